//! The operations on the CPU, behind one handle, [`Cpu`].
//!
//! Everything here is reproducible: a row's results are bit-identical whatever the other rows, their number and order,
//! and the number of threads. Sums run in one fixed order; threads share out columns, rows, experts and heads, never
//! the terms of a sum.
#![allow(unsafe_code)]

mod attend;
mod blocks;
mod experts;
mod kv;
mod math;
mod memory;
mod pack;
mod path;
mod pool;
mod product;
mod rows;
mod simd;
mod sweep;
mod tile;

#[cfg(test)]
mod tests;

pub use attend::{Attention, Sight, Span};
pub use blocks::{dequantise, row_bytes};
pub use experts::{Experts, Routing};
pub use kv::{KvElement, KvPool, KvWrite, PAGE_TOKENS};
pub use pack::{Columns, PackedMatrix, Source};
pub use path::Path;
pub use pool::Pool;
pub use sweep::{CANDIDATES, Candidate, Draw, Head, Statistics, Sweep, Watch};

use self::path::Checked;
use super::KernelError;

/// The CPU as the kernels use it: an instruction path and a pool of threads. Share it by `Arc`; operations called from
/// several threads take turns.
#[derive(Debug)]
pub struct Cpu {
    path: Checked,
    pool: Pool,
}

impl Cpu {
    /// A pool of `threads` threads on the fastest path, or on `path` (an error where the processor lacks it).
    pub fn new(threads: usize, path: Option<Path>) -> Result<Cpu, KernelError> {
        let path = Checked::new(path.unwrap_or_else(Path::detect))?;
        Ok(Cpu { path, pool: Pool::new(threads)? })
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
