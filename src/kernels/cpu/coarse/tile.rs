//! Activation rows rounded to bytes, and the register tile of bytes with coarse scales.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{
    super::{bytes::Vnni, layout::WORDS, path::Task, simd::Simd},
    GROUP,
};

/// Rows of one register tile: 24 vectors of sums leave room for two of columns and one of a row.
pub(in crate::cpu) const COARSE_ROWS: usize = 12;

/// Inputs of one step: 16 words of four.
const STEP: usize = 4 * WORDS;

/// Where the parts of a packed block lie, in floats: words `[steps, rows, 16]`, then scales `[groups, rows]`, then sums
/// of the rounded numbers as integers `[groups, rows]`.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct RowParts {
    pub scales: usize,
    pub sums: usize,
}

impl RowParts {
    /// Of a block of `rows` rows of `k` inputs.
    pub(in crate::cpu) const fn of(k: usize, rows: usize) -> RowParts {
        let scales = k.div_ceil(STEP) * WORDS * rows;
        RowParts { scales, sums: scales + k.div_ceil(GROUP) * rows }
    }

    /// Floats that a packed row of `k` inputs takes.
    pub(in crate::cpu) const fn width(k: usize) -> usize {
        k.div_ceil(STEP) * WORDS + 2 * k.div_ceil(GROUP)
    }
}

/// Rounds one row into its place in a packed block.
pub(in crate::cpu) struct RoundRow<'a> {
    pub x: &'a [f32],
    pub to: &'a mut [f32],
    /// Rows of the block.
    pub rows: usize,
    /// Which of them.
    pub row: usize,
}

impl Task for RoundRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RoundRow { x, to, rows, row } = self;
        let parts = RowParts::of(x.len(), rows);
        for (group, x) in x.chunks(GROUP).enumerate() {
            let mut bytes = [0i8; GROUP];
            let (scale, sum) = round(s, x, &mut bytes);
            to[parts.scales + group * rows + row] = scale;
            to[parts.sums + group * rows + row] = f32::from_bits(sum as u32);
            let steps = bytes[..x.len().next_multiple_of(STEP)].chunks_exact(STEP);
            for (step, bytes) in steps.enumerate() {
                let step = group * (GROUP / STEP) + step;
                let words = &mut to[(step * rows + row) * WORDS..][..WORDS];
                for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *word = f32::from_bits(u32::from_le_bytes(bytes.map(|byte| byte as u8)));
                }
            }
        }
    }
}

/// Rounds up to 256 numbers to `x / scale`, the rest to zeros, and gives the scale and the sum of the rounded numbers.
/// The scale is not a number where one of them is not finite, so that what it scales cannot come out clean.
#[inline(always)]
pub(super) fn round<S: Simd>(s: S, x: &[f32], bytes: &mut [i8; GROUP]) -> (f32, i32) {
    match x.first_chunk::<GROUP>() {
        Some(x) => round_all(s, x, bytes),
        None => {
            let mut padded = [0.0; GROUP];
            padded[..x.len()].copy_from_slice(x);
            round_all(s, &padded, bytes)
        }
    }
}

#[inline(always)]
fn round_all<S: Simd>(s: S, x: &[f32; GROUP], bytes: &mut [i8; GROUP]) -> (f32, i32) {
    /// Beside anything that a sum could show, smaller numbers are zeros; and their inverse would be infinite.
    const LEAST: f32 = 1e-30;
    // SAFETY: (all of them) LANES divides 256, the length of both.
    let load = |i: usize| unsafe { s.load(x.as_ptr().add(i)) };
    let (mut most, mut damage) = (s.splat(0.0), s.splat(0.0));
    for i in (0..GROUP).step_by(S::LANES) {
        let x = load(i);
        most = s.max(most, s.max(x, s.sub(s.splat(0.0), x)));
        // Not a number where x is infinite or none, and zero elsewhere.
        damage = s.add(damage, s.mul(x, s.splat(0.0)));
    }
    let most = s.lanes(most).into_iter().fold(0f32, f32::max);
    let inverse = if most > LEAST { 127.0 / most } else { 0.0 };
    let mut sum = s.splat(0.0);
    for i in (0..GROUP).step_by(S::LANES) {
        let x = s.round(s.mul(load(i), s.splat(inverse)));
        // Exact: integers below 2²⁴.
        sum = s.add(sum, x);
        // SAFETY: as above.
        unsafe { s.store_signed(bytes.as_mut_ptr().add(i), x) };
    }
    (most / 127.0 + s.sum(damage), s.sum(sum) as i32)
}

/// One tile of 32 columns and up to 256 inputs: `C[r, c] = B[r, c] + scale[r]·scale[c]·Σ x·(q − 128)`.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct CoarseTile {
    /// 1 to [`COARSE_ROWS`].
    pub rows: usize,
    /// Words of four inputs, 1 to 64.
    pub words: usize,
    /// `[steps, rows, 16]` words of four signed bytes.
    pub x: *const i32,
    /// `[rows]`.
    pub x_scales: *const f32,
    /// `[rows]`, Σ x.
    pub x_sums: *const i32,
    /// `[words, 32]` words of four unsigned bytes.
    pub w: *const u32,
    /// `[32]`.
    pub w_scales: *const f32,
    /// Null (zeros), or `[rows, 32]`.
    pub b: *const f32,
    /// Row r is at `c + r·c_stride`.
    pub c: *mut f32,
    pub c_stride: usize,
}

impl Vnni {
    /// Computes the tile.
    ///
    /// # Safety
    /// Everything that the shape names must be readable, C writable and nobody else's meanwhile.
    pub(in crate::cpu) unsafe fn coarse(self, tile: &CoarseTile) {
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe { dispatch(tile) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn dispatch(_: &CoarseTile) {
    unreachable!("there is no proof of these instructions here")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn dispatch(tile: &CoarseTile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            1 => kernel::<1>(tile),
            2 => kernel::<2>(tile),
            3 => kernel::<3>(tile),
            4 => kernel::<4>(tile),
            5 => kernel::<5>(tile),
            6 => kernel::<6>(tile),
            7 => kernel::<7>(tile),
            8 => kernel::<8>(tile),
            9 => kernel::<9>(tile),
            10 => kernel::<10>(tile),
            11 => kernel::<11>(tile),
            12 => kernel::<12>(tile),
            _ => unreachable!("coarse tiles have at most twelve rows"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn kernel<const ROWS: usize>(tile: &CoarseTile) {
    // SAFETY: (whole body) offsets stay within what the caller promised of the tile.
    unsafe {
        let mut dots = [[_mm512_setzero_si512(); 2]; ROWS];
        for (r, row) in dots.iter_mut().enumerate() {
            // The offset of the weights, for the price of a start.
            *row = [_mm512_set1_epi32((*tile.x_sums.add(r)).wrapping_mul(-128)); 2];
        }
        let (mut x, mut w) = (tile.x, tile.w);
        for first in (0..tile.words).step_by(WORDS) {
            for u in 0..WORDS.min(tile.words - first) {
                let columns = [_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(w.add(16).cast())];
                for (r, row) in dots.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*x.add(r * WORDS + u));
                    row[0] = _mm512_dpbusd_epi32(row[0], columns[0], x);
                    row[1] = _mm512_dpbusd_epi32(row[1], columns[1], x);
                }
                w = w.add(32);
            }
            x = x.add(ROWS * WORDS);
        }
        let scales = [_mm512_loadu_ps(tile.w_scales), _mm512_loadu_ps(tile.w_scales.add(16))];
        for (r, row) in dots.iter().enumerate() {
            let x_scale = _mm512_set1_ps(*tile.x_scales.add(r));
            for (v, dots) in row.iter().enumerate() {
                let before =
                    if tile.b.is_null() { _mm512_setzero_ps() } else { _mm512_loadu_ps(tile.b.add(r * 32 + v * 16)) };
                let scale = _mm512_mul_ps(scales[v], x_scale);
                let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(*dots), scale, before);
                _mm512_storeu_ps(tile.c.add(r * tile.c_stride + v * 16), sum);
            }
        }
    }
}
