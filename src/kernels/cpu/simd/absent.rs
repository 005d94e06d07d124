//! Stand-ins on processors without the x86 instruction sets: types without a value.

use std::convert::Infallible;

/// Never exists here.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Avx2(pub(in crate::cpu) Infallible);

/// Never exists here.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Avx512<const BF16: bool = false>(pub(in crate::cpu) Infallible);

impl Avx2 {
    pub(in crate::cpu) fn detect() -> Option<Avx2> {
        None
    }
}

impl Avx512 {
    pub(in crate::cpu) fn detect() -> Option<Avx512> {
        None
    }
}
