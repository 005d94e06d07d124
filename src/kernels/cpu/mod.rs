//! The operations on the CPU, behind one handle, [`Cpu`].
//!
//! Everything here is reproducible: a row's results are bit-identical whatever the other rows, their number and order,
//! and the number of threads. Sums run in one fixed order; threads share out columns, rows, experts and heads, never
//! the terms of a sum.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(not(target_arch = "x86_64"))]
#[path = "amx/absent.rs"]
mod amx;
mod attend;
mod blocks;
mod bytes;
mod coarse;
mod experts;
mod fused;
mod kv;
mod layout;
mod math;
mod memory;
mod operand;
mod pack;
mod pairs;
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
pub use pack::{Columns, PackedMatrix, Packing, Source};
pub use path::Path;
pub use peak::Peak;
pub use pool::Pool;
pub use sweep::{CANDIDATES, Candidate, Draw, Head, Statistics, Sweep, SweepTimes, Watch};

use self::{
    amx::Amx,
    bytes::Vnni,
    pairs::{Dot, Pairs},
    path::Checked,
};
use super::KernelError;

/// The CPU as the kernels use it: an instruction path and a pool of threads. Share it by `Arc`; operations called from
/// several threads take turns.
#[derive(Debug)]
pub struct Cpu {
    path: Path,
    vectors: Checked,
    pool: Pool,
    engines: Engines,
}

/// How products with rounded operands are computed.
#[derive(Debug, Clone, Copy)]
struct Engines {
    precision: Precision,
    /// The instructions for products of bf16, where they are wanted and there.
    pairs: Option<Pairs>,
    /// Those for products of bytes.
    bytes: Option<Vnni>,
}

impl Engines {
    /// What a path has for a precision: where it lacks the instructions, the next more accurate precision that it has.
    fn new(path: Path, vectors: Checked, precision: Precision) -> Engines {
        let tiles = (path == Path::Amx).then(Amx::detect).flatten().map(Pairs::Tiles);
        let pairs = tiles.or_else(|| Dot::detect(vectors).map(Pairs::Dot));
        // Tiles of bf16 are faster than bytes whose sums must be scaled group by group.
        let bytes = if tiles.is_some() { None } else { Vnni::detect(vectors) };
        match precision {
            Precision::Bytes if bytes.is_some() => Engines { precision, pairs, bytes },
            Precision::Bytes | Precision::Bf16 if pairs.is_some() => {
                Engines { precision: Precision::Bf16, pairs, bytes: None }
            }
            _ => Engines { precision: Precision::Exact, pairs: None, bytes: None },
        }
    }
}

impl Precision {
    /// Whether a [`Cpu`] of this precision on `path` rounds quantised matrices to bytes where [`Packing::Fast`] allows it;
    /// for plans that are made before there is one.
    pub fn packs_bytes(self, path: Option<Path>) -> bool {
        let path = path.unwrap_or_else(Path::detect);
        Checked::new(path).is_ok_and(|vectors| Engines::new(path, vectors, self).bytes.is_some())
    }
}

impl Cpu {
    /// A pool of `threads` threads on the fastest path, or on `path` (an error where the processor lacks it).
    pub fn new(threads: usize, path: Option<Path>) -> Result<Cpu, KernelError> {
        let path = path.unwrap_or_else(Path::detect);
        let (vectors, pool) = (Checked::new(path)?, Pool::new(threads)?);
        let engines = Engines::new(path, vectors, Precision::Exact);
        Ok(Cpu { path, vectors, pool, engines })
    }

    /// The same with another precision of products; [`Precision::Exact`] at first. Where the processor lacks the
    /// instructions, the next more accurate one that it has.
    pub fn with_precision(self, precision: Precision) -> Cpu {
        Cpu { engines: Engines::new(self.path, self.vectors, precision), ..self }
    }

    /// The precision in use.
    pub fn precision(&self) -> Precision {
        self.engines.precision
    }

    /// The instruction path in use.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Threads in use, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The threads, for loops of the caller's own.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Whether quantised matrices that are packed for speed become bytes with coarse scales ([`Packing::Fast`]).
    pub fn packs_bytes(&self) -> bool {
        self.engines.bytes.is_some()
    }

    fn checked(&self) -> Checked {
        self.vectors
    }
}
