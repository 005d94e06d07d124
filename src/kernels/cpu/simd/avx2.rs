//! Eight floats with AVX2, FMA and F16C.

use std::arch::x86_64::*;

use super::Simd;

/// Proof that AVX2, FMA and F16C exist here.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Avx2(());

impl Avx2 {
    pub(in crate::cpu) fn detect() -> Option<Avx2> {
        let there =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        there.then_some(Avx2(()))
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;
    type M = __m256;
    type I = __m256i;
    const FUSED: bool = true;
    const SCALES_FREELY: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m256) {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn scale2(self, a: __m256, n: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_blendv_ps(no, yes, mask) }
    }
    #[inline(always)]
    fn lanes(self, a: __m256) -> [f32; 16] {
        let mut x = [0.0; 16];
        // SAFETY: `self` proves the instructions; `x` has room for twice as many.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), a) };
        x
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m256i {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_words(self, to: *mut u32, words: __m256i) {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), words) }
    }
    #[inline(always)]
    fn shift(self, words: __m256i, n: i32) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe {
            if n >= 0 {
                _mm256_sllv_epi32(words, _mm256_set1_epi32(n))
            } else {
                _mm256_srlv_epi32(words, _mm256_set1_epi32(-n))
            }
        }
    }
    #[inline(always)]
    fn and(self, words: __m256i, mask: u32) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_and_si256(words, _mm256_set1_epi32(mask as i32)) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn as_floats(self, words: __m256i) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_castsi256_ps(words) }
    }
    #[inline(always)]
    fn byte(self, words: __m256i, n: u32) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            // Moves byte n of each word to its place 0 and clears the others.
            let first = _mm256_setr_epi32(
                -0x7f7f_8000 + n as i32,
                -0x7f7f_7ffc + n as i32,
                -0x7f7f_7ff8 + n as i32,
                -0x7f7f_7ff4 + n as i32,
                -0x7f7f_8000 + n as i32,
                -0x7f7f_7ffc + n as i32,
                -0x7f7f_7ff8 + n as i32,
                -0x7f7f_7ff4 + n as i32,
            );
            _mm256_cvtepi32_ps(_mm256_shuffle_epi8(words, first))
        }
    }
    #[inline(always)]
    unsafe fn load_half(self, from: *const u16) -> __m256 {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_signed(self, from: *const i8) -> __m256 {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
}
