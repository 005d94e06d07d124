//! Sixteen floats with AVX-512.

use std::arch::x86_64::*;

use super::Simd;

/// Proof that AVX-512 F, BW, DQ and VL (and AVX2, FMA, F16C) exist here; with `BF16` also those for bf16.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Avx512<const BF16: bool = false>(());

impl Avx512 {
    /// The same with the instructions for bf16, where they exist.
    pub(in crate::cpu) fn with_bf16(self) -> Option<Avx512<true>> {
        is_x86_feature_detected!("avx512bf16").then_some(Avx512(()))
    }

    pub(in crate::cpu) fn detect() -> Option<Avx512> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && super::Avx2::detect().is_some();
        there.then_some(Avx512(()))
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
    type V = __m512;
    type M = __mmask16;
    type I = __m512i;
    const FUSED: bool = true;
    const SCALES_FREELY: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m512) {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn scale2(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_mask_blend_ps(mask, no, yes) }
    }
    #[inline(always)]
    fn lanes(self, a: __m512) -> [f32; 16] {
        let mut x = [0.0; 16];
        // SAFETY: `self` proves the instructions; `x` has room for sixteen floats.
        unsafe { _mm512_storeu_ps(x.as_mut_ptr(), a) };
        x
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m512i {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_words(self, to: *mut u32, words: __m512i) {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), words) }
    }
    #[inline(always)]
    fn shift(self, words: __m512i, n: i32) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe {
            if n >= 0 {
                _mm512_sllv_epi32(words, _mm512_set1_epi32(n))
            } else {
                _mm512_srlv_epi32(words, _mm512_set1_epi32(-n))
            }
        }
    }
    #[inline(always)]
    fn and(self, words: __m512i, mask: u32) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_and_si512(words, _mm512_set1_epi32(mask as i32)) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn as_floats(self, words: __m512i) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_castsi512_ps(words) }
    }
    #[inline(always)]
    fn byte(self, words: __m512i, n: u32) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            // Moves byte n of each word to its place 0 and clears the others.
            let first = _mm512_set4_epi32(-0x7f7f_7ff4, -0x7f7f_7ff8, -0x7f7f_7ffc, -0x7f7f_8000);
            let place = _mm512_add_epi32(first, _mm512_set1_epi32(n as i32));
            _mm512_cvtepi32_ps(_mm512_shuffle_epi8(words, place))
        }
    }
    #[inline(always)]
    unsafe fn load_half(self, from: *const u16) -> __m512 {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_signed(self, from: *const i8) -> __m512 {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_signed(self, to: *mut i8, v: __m512) {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    fn pairs(self, low: __m512, high: __m512) -> __m512i {
        if !BF16 {
            let (low, high) = (self.lanes(low), self.lanes(high));
            let words: [u32; 16] = std::array::from_fn(|i| super::bf16_bits(low[i]) | super::bf16_bits(high[i]) << 16);
            // SAFETY: `self` proves the instructions; `words` has sixteen of them.
            return unsafe { self.load_words(words.as_ptr()) };
        }
        // SAFETY: `self` proves the instructions.
        unsafe {
            // The rounding puts low before high; the permutation takes one of each in turn.
            let both = _mm512_cvtne2ps_pbh(high, low);
            let order = _mm512_or_si512(
                _mm512_cvtepu8_epi32(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)),
                _mm512_slli_epi32::<16>(_mm512_cvtepu8_epi32(_mm_setr_epi8(
                    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                ))),
            );
            _mm512_permutexvar_epi16(order, std::mem::transmute::<__m512bh, __m512i>(both))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, v: __m512) {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe {
            if BF16 {
                let bits = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
                _mm256_storeu_si256(to.cast(), bits);
            } else {
                for (i, x) in self.lanes(v).into_iter().enumerate() {
                    *to.add(i) = super::bf16_bits(x) as u16;
                }
            }
        }
    }
    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // The trait's order, without the way through memory.
        // SAFETY: `self` proves the instructions.
        unsafe {
            let a = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }
    #[inline(always)]
    unsafe fn zip(self, low: *const u16, high: *const u16, to: *mut u32) {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe {
            // Word i takes number i of the first vector and number i of the second, which counts from 32 on.
            let count = _mm512_cvtepu8_epi32(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
            let both = _mm512_or_si512(count, _mm512_slli_epi32::<16>(count));
            let first = _mm512_add_epi32(both, _mm512_set1_epi32(0x0020_0000));
            let second = _mm512_add_epi32(both, _mm512_set1_epi32(0x0030_0010));
            let (low, high) = (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(high.cast()));
            _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(low, first, high));
            _mm512_storeu_si512(to.add(16).cast(), _mm512_permutex2var_epi16(low, second, high));
        }
    }
    #[inline(always)]
    unsafe fn turn(self, from: *const f32, to: *mut f32) {
        // SAFETY: `self` proves the instructions; what is read or written is the caller's promise.
        unsafe {
            let mut x = [_mm512_setzero_ps(); 16];
            for (r, x) in x.iter_mut().enumerate() {
                *x = _mm512_loadu_ps(from.add(r * 32));
            }
            // Pairs, then fours inside each 128-bit part: y[4i + j] holds column j of every part, rows 4i … 4i + 3.
            let mut y = [_mm512_setzero_ps(); 16];
            for i in 0..4 {
                let low = _mm512_unpacklo_ps(x[4 * i], x[4 * i + 1]);
                let high = _mm512_unpackhi_ps(x[4 * i], x[4 * i + 1]);
                let next_low = _mm512_unpacklo_ps(x[4 * i + 2], x[4 * i + 3]);
                let next_high = _mm512_unpackhi_ps(x[4 * i + 2], x[4 * i + 3]);
                y[4 * i] = _mm512_shuffle_ps::<0x44>(low, next_low);
                y[4 * i + 1] = _mm512_shuffle_ps::<0xee>(low, next_low);
                y[4 * i + 2] = _mm512_shuffle_ps::<0x44>(high, next_high);
                y[4 * i + 3] = _mm512_shuffle_ps::<0xee>(high, next_high);
            }
            // A 4 by 4 turn of the 128-bit parts.
            for j in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(y[j], y[4 + j]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(y[j], y[4 + j]);
                let next_even = _mm512_shuffle_f32x4::<0x88>(y[8 + j], y[12 + j]);
                let next_odd = _mm512_shuffle_f32x4::<0xdd>(y[8 + j], y[12 + j]);
                _mm512_storeu_ps(to.add(j * 32), _mm512_shuffle_f32x4::<0x88>(even, next_even));
                _mm512_storeu_ps(to.add((4 + j) * 32), _mm512_shuffle_f32x4::<0x88>(odd, next_odd));
                _mm512_storeu_ps(to.add((8 + j) * 32), _mm512_shuffle_f32x4::<0xdd>(even, next_even));
                _mm512_storeu_ps(to.add((12 + j) * 32), _mm512_shuffle_f32x4::<0xdd>(odd, next_odd));
            }
        }
    }
}
