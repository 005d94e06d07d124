//! How exact products are, and products in 8-bit integers, for quantised matrices on processors with VNNI: some three
//! times the speed of products in f32, for a rounding that is no larger than that of the matrices.
//!
//! Activations are rounded to signed 8 bits, one scale per row and 256 inputs: each is off by at most `max|x| / 254`,
//! the maximum over its group, some half a percent of `|x|·|w|` for bell-shaped activations. Weights are unsigned 8-bit
//! numbers above an offset, with one scale per column and the same 256 inputs: see [`super::coarse`]. Sums over 256 inputs are exact integers and
//! join in one order, so that results stay bit-identical per row.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::path::Checked;

/// How activations enter products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As they are: products are exact up to the rounding of f32 sums.
    #[default]
    Exact,
    /// Activations and weights rounded to bf16, sums in f32, where the matrix is quantised or bf16 and the processor
    /// has the instructions; as they are elsewhere. Each is off by at most 2⁻⁸ of
    /// itself.
    Bf16,
    /// Activations rounded to 8 bits where the matrix is quantised and the processor has the instructions, and so the
    /// probabilities of a soft embedding; as with [`Precision::Bf16`] elsewhere, which includes attention.
    Bytes,
}

impl Precision {
    /// Every precision, the most accurate first.
    pub const ALL: [Precision; 3] = [Precision::Exact, Precision::Bf16, Precision::Bytes];

    /// Its name: `exact`, `bf16` or `bytes`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Exact => "exact",
            Precision::Bf16 => "bf16",
            Precision::Bytes => "bytes",
        }
    }

    /// The precision of that name.
    pub fn parse(name: &str) -> Option<Precision> {
        Precision::ALL.into_iter().find(|precision| precision.name() == name)
    }
}

/// Proof that AVX-512 with VNNI exists here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vnni(());

impl Vnni {
    pub(super) fn detect(path: Checked) -> Option<Vnni> {
        #[cfg(target_arch = "x86_64")]
        let there = matches!(path, Checked::Avx512(_)) && is_x86_feature_detected!("avx512vnni");
        #[cfg(not(target_arch = "x86_64"))]
        let there = matches!(path, Checked::Avx512(_));
        there.then_some(Vnni(()))
    }
}

impl Vnni {
    /// Multiplies numbers in registers, so many rounds of [`Vnni::spun`] operations: the peak.
    pub(super) fn spin(self, rounds: usize) {
        // SAFETY: `self` proves the instructions.
        unsafe { spin(rounds) }
    }

    /// The operations of [`Vnni::spin`], a multiply-add counting two.
    pub(super) fn spun(rounds: usize) -> usize {
        rounds * CHAINS * 128
    }
}

/// Independent sums: enough to hide the latency of a multiply-add.
const CHAINS: usize = 12;

#[cfg(not(target_arch = "x86_64"))]
unsafe fn spin(_: usize) {
    unreachable!("there is no proof of these instructions here")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn spin(rounds: usize) {
    use std::hint::black_box;
    let word = black_box(_mm512_set1_epi8(1));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, word, word);
        }
    }
    black_box(sums);
}
