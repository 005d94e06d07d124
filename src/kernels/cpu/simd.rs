//! Vectors of `f32` of whatever width the instruction path has.
//!
//! A value of a vector type is the proof that its instructions exist here, which is what makes the methods safe.

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(not(target_arch = "x86_64"))]
pub(super) use absent::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use portable::Portable;

/// Operations on vectors of [`Simd::LANES`] floats. Implementations are `#[inline(always)]` throughout: they must be
/// compiled into a function that enables their instructions.
pub(super) trait Simd: Copy {
    /// Floats in a vector; divides 16.
    const LANES: usize;
    /// A vector.
    type V: Copy;
    /// One truth value per lane.
    type M: Copy;
    /// One 32-bit word per lane.
    type I: Copy;
    /// Whether [`Simd::fma`] rounds once.
    const FUSED: bool;
    /// Whether [`Simd::scale2`] takes any number, and results overflow to infinity and underflow to zero.
    const SCALES_FREELY: bool;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Reads `LANES` floats.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// Writes `LANES` floats.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store(self, to: *mut f32, v: Self::V);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`, rounded once where the path has the instruction.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is not a number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a · 2^n` for integral `n` in −126 … 127, or any where the path [scales freely](Simd::SCALES_FREELY).
    fn scale2(self, a: Self::V, n: Self::V) -> Self::V;
    /// `a < b`, false where either is not a number.
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    /// `yes` where the mask is set, else `no`.
    fn select(self, mask: Self::M, yes: Self::V, no: Self::V) -> Self::V;
    /// The lanes in order, the rest zero.
    fn lanes(self, a: Self::V) -> [f32; 16];

    /// Reads `LANES` words.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load_words(self, from: *const u32) -> Self::I;
    /// Writes `LANES` words.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store_words(self, to: *mut u32, words: Self::I);
    /// Every word shifted left by `n` bits, or right by `−n`; |n| < 32.
    fn shift(self, words: Self::I, n: i32) -> Self::I;
    fn and(self, words: Self::I, mask: u32) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// The words' bits as floats.
    fn as_floats(self, words: Self::I) -> Self::V;
    /// Byte `n` of every word, unsigned, as a float.
    fn byte(self, words: Self::I, n: u32) -> Self::V;
    /// Reads `LANES` halves.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load_half(self, from: *const u16) -> Self::V;
    /// Reads `LANES` signed bytes.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load_signed(self, from: *const i8) -> Self::V;

    /// Writes `LANES` floats of at most 127 in size, rounded to the nearest integer, ties to even, as signed bytes.
    ///
    /// # Safety
    /// As many bytes must be writable.
    #[inline(always)]
    unsafe fn store_signed(self, to: *mut i8, v: Self::V) {
        for (i, x) in self.lanes(self.round(v)).into_iter().take(Self::LANES).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = x as i8 };
        }
    }
    /// Both rounded to bf16, ties to even: `low` in the low half of each word, `high` in the high one.
    #[inline(always)]
    fn pairs(self, low: Self::V, high: Self::V) -> Self::I {
        let (low, high) = (self.lanes(low), self.lanes(high));
        let words: [u32; 16] = std::array::from_fn(|i| bf16_bits(low[i]) | bf16_bits(high[i]) << 16);
        // SAFETY: sixteen words, which is as many as a vector can have.
        unsafe { self.load_words(words.as_ptr()) }
    }
    /// Writes `LANES` floats rounded to bf16, ties to even.
    ///
    /// # Safety
    /// As many halves must be writable.
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, v: Self::V) {
        for (i, x) in self.lanes(v).into_iter().take(Self::LANES).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = bf16_bits(x) as u16 };
        }
    }

    /// Writes 32 words, each of a half of `low` and one of `high`.
    ///
    /// # Safety
    /// 32 halves must be readable at each, 32 words writable.
    #[inline(always)]
    unsafe fn zip(self, low: *const u16, high: *const u16, to: *mut u32) {
        for i in 0..32 {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = u32::from(*low.add(i)) | u32::from(*high.add(i)) << 16 };
        }
    }

    /// Turns 16 by 16 floats: `to[c · 32 + r] = from[r · 32 + c]`.
    ///
    /// # Safety
    /// 16 rows of 16 must be readable and writable; they must not overlap.
    #[inline(always)]
    unsafe fn turn(self, from: *const f32, to: *mut f32) {
        for r in 0..16 {
            for c in 0..16 {
                // SAFETY: the caller's promise.
                unsafe { *to.add(c * 32 + r) = *from.add(r * 32 + c) };
            }
        }
    }

    /// The largest lane; all are numbers.
    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        let mut largest = f32::NEG_INFINITY;
        for lane in &self.lanes(a)[..Self::LANES] {
            largest = largest.max(*lane);
        }
        largest
    }

    /// All lanes added: halves folded onto each other, the same order every time.
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        let mut x = self.lanes(a);
        let mut width = Self::LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                x[i] += x[i + width];
            }
        }
        x[0]
    }
}

/// The bits of `x` rounded to bf16, ties to even.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    u32::from(half::bf16::from_f32(x).to_bits())
}
