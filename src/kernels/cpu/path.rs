//! Which instructions the kernels use, chosen once at run time.

use super::{
    amx::Amx,
    simd::{Avx2, Avx512, Portable, Simd},
};
use crate::KernelError;

/// An instruction path. Results of one path are reproducible bit for bit; two paths agree up to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// Plain Rust, any processor.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL; also its instructions for bf16 and bytes where [`super::Precision`] wants them.
    Avx512,
    /// AVX-512 and AMX: products of bf16 in tiles. Exact products run as on [`Path::Avx512`].
    Amx,
}

impl Path {
    /// Every path, the plainest first.
    pub const ALL: [Path; 4] = [Path::Portable, Path::Avx2, Path::Avx512, Path::Amx];

    /// The fastest path this processor has.
    pub fn detect() -> Path {
        Path::ALL.into_iter().rev().find(|path| path.supported()).unwrap_or(Path::Portable)
    }

    /// Whether this processor has the instructions.
    pub fn supported(self) -> bool {
        match self {
            Path::Portable => true,
            Path::Avx2 => Avx2::detect().is_some(),
            Path::Avx512 => Avx512::detect().is_some(),
            Path::Amx => Avx512::detect().is_some() && Amx::detect().is_some(),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Path::Portable => "portable",
            Path::Avx2 => "avx2",
            Path::Avx512 => "avx512",
            Path::Amx => "amx",
        }
    }
}

/// The vectors of a path, which are known to exist here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Checked {
    Portable(Portable),
    Avx2(Avx2),
    Avx512(Avx512),
}

impl Checked {
    pub(super) fn new(path: Path) -> Result<Checked, KernelError> {
        let checked = match path {
            Path::Portable => Some(Checked::Portable(Portable)),
            Path::Avx2 => Avx2::detect().map(Checked::Avx2),
            Path::Avx512 => Avx512::detect().map(Checked::Avx512),
            Path::Amx => Amx::detect().and_then(|_| Avx512::detect()).map(Checked::Avx512),
        };
        checked.ok_or(KernelError::Unsupported(path))
    }

    /// Most rows of one register tile ([`super::tile`]).
    pub(super) fn tile_rows(self) -> usize {
        match self {
            Checked::Portable(_) => 4,
            Checked::Avx2(_) => 6,
            Checked::Avx512(_) => 12,
        }
    }

    /// Runs work that rounds to bf16 much, with the instructions for that where they exist; the same numbers.
    pub(super) fn run_rounding<T: Task>(self, task: T) -> T::Output {
        #[cfg(target_arch = "x86_64")]
        if let Checked::Avx512(simd) = self
            && let Some(simd) = simd.with_bf16()
        {
            // SAFETY: as in `run`.
            return unsafe { run_avx512_bf16(simd, task) };
        }
        self.run(task)
    }

    /// Runs element-wise work with this path's vectors.
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            Checked::Portable(simd) => task.run(simd),
            // SAFETY: a value of the vector type exists only where its instructions were detected.
            Checked::Avx2(simd) => unsafe { run_avx2(simd, task) },
            // SAFETY: as above.
            Checked::Avx512(simd) => unsafe { run_avx512(simd, task) },
        }
    }
}

/// Work written once over vectors of any width. `run` and everything it calls that touches vectors must be
/// `#[inline(always)]`, so that it is compiled with the instructions of the caller.
pub(super) trait Task {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<T: Task>(simd: Avx2, task: T) -> T::Output {
    task.run(simd)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn run_avx512<T: Task>(simd: Avx512, task: T) -> T::Output {
    task.run(simd)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn run_avx512_bf16<T: Task>(simd: Avx512<true>, task: T) -> T::Output {
    task.run(simd)
}

// On other processors the two types cannot be made, and these are never called.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn run_avx2<T: Task>(simd: Avx2, _task: T) -> T::Output {
    match simd.0 {}
}
#[cfg(not(target_arch = "x86_64"))]
unsafe fn run_avx512<T: Task>(simd: Avx512, _task: T) -> T::Output {
    match simd.0 {}
}
