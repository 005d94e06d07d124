//! The operations on the CPU, behind one handle, [`Cpu`].
//!
//! Everything here is reproducible: a row's results are bit-identical whatever the other rows, their number and order,
//! and the number of threads. Sums run in one fixed order; threads share out columns, rows, experts and heads, never
//! the terms of a sum.

mod attend;
mod blocks;
mod bytes;
mod experts;
mod fused;
mod kv;
mod math;
mod memory;
mod pack;
mod path;
mod peak;
mod pool;
mod product;
mod rows;
mod simd;
mod strips;
mod sweep;
mod tile;

#[cfg(test)]
mod tests;

pub use attend::{Attention, Sight, Span};
pub use blocks::{dequantise, row_bytes};
pub use bytes::Precision;
pub use experts::{Experts, Routing};
pub use fused::{LayerEnd, NormWeight};
pub use kv::{KvElement, KvPool, KvWrite, PAGE_TOKENS};
pub use pack::{Columns, PackedMatrix, Source};
pub use path::Path;
pub use peak::Peak;
pub use pool::Pool;
pub use sweep::{CANDIDATES, Candidate, Draw, Head, Statistics, Sweep, SweepTimes, Watch};

use self::{bytes::Vnni, path::Checked};
use super::KernelError;

/// The CPU as the kernels use it: an instruction path and a pool of threads. Share it by `Arc`; operations called from
/// several threads take turns.
#[derive(Debug)]
pub struct Cpu {
    path: Checked,
    pool: Pool,
    /// The instructions for 8-bit products, where they are wanted and there.
    bytes: Option<Vnni>,
}

impl Cpu {
    /// A pool of `threads` threads on the fastest path, or on `path` (an error where the processor lacks it).
    pub fn new(threads: usize, path: Option<Path>) -> Result<Cpu, KernelError> {
        let path = Checked::new(path.unwrap_or_else(Path::detect))?;
        Ok(Cpu { path, pool: Pool::new(threads)?, bytes: None })
    }

    /// The same with another precision of products with quantised matrices; [`Precision::Exact`] at first.
    pub fn with_precision(self, precision: Precision) -> Cpu {
        let bytes = match precision {
            Precision::Exact => None,
            Precision::Bytes => Vnni::detect(self.path),
        };
        Cpu { bytes, ..self }
    }

    /// The precision in use, which is exact where the processor lacks the instructions for another.
    pub fn precision(&self) -> Precision {
        if self.bytes.is_some() { Precision::Bytes } else { Precision::Exact }
    }

    /// The instruction path in use.
    pub fn path(&self) -> Path {
        self.path.path()
    }

    /// Threads in use, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The threads, for loops of the caller's own.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn checked(&self) -> Checked {
        self.path
    }
}
