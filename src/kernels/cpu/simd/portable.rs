//! Four floats in plain Rust.

use super::Simd;

/// Vectors without any special instruction.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Portable;

type V = [f32; 4];

#[inline(always)]
fn map2(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Portable {
    const LANES: usize = 4;
    type V = V;
    type M = [bool; 4];
    type I = [u32; 4];
    const FUSED: bool = false;
    const SCALES_FREELY: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: V) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        // Without the instruction a fused operation would be a library call.
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: V) -> V {
        // Adding and taking away 1.5·2^23 rounds small numbers; larger ones are integers already or not used.
        const MAGIC: f32 = 12_582_912.0;
        a.map(|a| (a + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn scale2(self, a: V, n: V) -> V {
        map2(a, n, |a, n| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn lt(self, a: V, b: V) -> [bool; 4] {
        [a[0] < b[0], a[1] < b[1], a[2] < b[2], a[3] < b[3]]
    }
    #[inline(always)]
    fn select(self, mask: [bool; 4], yes: V, no: V) -> V {
        std::array::from_fn(|i| if mask[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn lanes(self, a: V) -> [f32; 16] {
        let mut x = [0.0; 16];
        x[..4].copy_from_slice(&a);
        x
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> [u32; 4] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_words(self, to: *mut u32, words: [u32; 4]) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u32; 4]>().write_unaligned(words) }
    }
    #[inline(always)]
    fn shift(self, words: [u32; 4], n: i32) -> [u32; 4] {
        words.map(|word| if n >= 0 { word << n } else { word >> -n })
    }
    #[inline(always)]
    fn and(self, words: [u32; 4], mask: u32) -> [u32; 4] {
        words.map(|word| word & mask)
    }
    #[inline(always)]
    fn or(self, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn as_floats(self, words: [u32; 4]) -> V {
        words.map(f32::from_bits)
    }
    #[inline(always)]
    fn byte(self, words: [u32; 4], n: u32) -> V {
        words.map(|word| ((word >> (8 * n)) & 255) as f32)
    }
    #[inline(always)]
    unsafe fn load_half(self, from: *const u16) -> V {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; 4]>().read_unaligned() };
        bits.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn load_signed(self, from: *const i8) -> V {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[i8; 4]>().read_unaligned() }.map(f32::from)
    }
}
