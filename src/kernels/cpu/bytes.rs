//! Products in 8-bit integers, for quantised matrices on processors with VNNI: an opt-in that trades accuracy for
//! some three times the speed.
//!
//! Activations are rounded to 8 bits, one scale per row and 32 inputs; weights keep their stored numbers. Sums over a
//! group are exact integers and join in one order, so that results stay bit-identical per row. The only error is the
//! rounding of x: each is off by at most `max|x| / 254`, the maximum over its 32 neighbours, so that an output is off
//! by at most `Σ_k |w_k|·max|x| / 254`, and by about half a percent of `|x|·|w|` for bell-shaped activations.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{
    path::{Checked, Task},
    simd::Simd,
    strips::STRIP,
};

/// How activations enter products with quantised matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As they are: products are exact up to the rounding of f32 sums.
    #[default]
    Exact,
    /// Rounded to 8 bits where the matrix is quantised and the processor has the instructions; as they are elsewhere.
    Bytes,
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

/// Rows of one register tile: twelve integer and twelve float vectors of the 32 registers.
pub(super) const BYTE_ROWS: usize = 6;

/// Floats that a packed row of `k` inputs takes: its units, scales, and sums per 16 and per 32 inputs.
pub(super) const fn packed_width(k: usize) -> usize {
    k / 4 + k / 32 + k / 16 + k / 32
}

/// Where the parts of a packed block of `rows` rows begin: scales, sums per 16, sums per 32.
pub(super) const fn parts(k: usize, rows: usize) -> (usize, usize, usize) {
    (k / 4 * rows, (k / 4 + k / 32) * rows, (k / 4 + k / 32 + k / 16) * rows)
}

/// Rounds one row into its place in a packed block.
pub(super) struct Round<'a> {
    /// A whole number of strips.
    pub x: &'a [f32],
    /// The packed block of `rows` rows.
    pub to: &'a mut [f32],
    pub rows: usize,
    /// Which of them.
    pub row: usize,
}

impl Task for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        /// Adding this rounds to the nearest integer and leaves it in the low bits.
        const MAGIC: f32 = 12_582_912.0;
        let Round { x, to, rows, row } = self;
        let (scales, sums16, sums32) = parts(x.len(), rows);
        for (strip, x) in x.chunks_exact(STRIP).enumerate() {
            let (mut max, mut poison) = (0f32, 0f32);
            for &x in x {
                max = max.max(x.abs());
                // Not a number where x is not finite: the row must not come out clean.
                poison += x * 0.0;
            }
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            let scale = max / 127.0 + poison;
            let mut bytes = [0u32; STRIP];
            for (byte, x) in bytes.iter_mut().zip(x) {
                *byte = (x * inverse + MAGIC).to_bits();
            }
            let mut total = 0;
            for (half, bytes) in bytes.chunks_exact(16).enumerate() {
                let sum: i32 = bytes.iter().map(|bits| *bits as i32 - MAGIC.to_bits() as i32).sum();
                total += sum;
                to[sums16 + (2 * strip + half) * rows + row] = sum as f32 * scale;
            }
            to[scales + strip * rows + row] = scale;
            to[sums32 + strip * rows + row] = total as f32 * scale;
            for (unit, bytes) in bytes.chunks_exact(4).enumerate() {
                let word = bytes.iter().rev().fold(0, |word, byte| word << 8 | byte & 255);
                to[(strip * STRIP / 4 + unit) * rows + row] = f32::from_bits(word);
            }
        }
    }
}

/// One tile of 32 columns and some inputs: `C[r, c] (+)= Σ_group (Σ x·q)·scale[r]·a[c] + sum[r]·b[c]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteTile {
    /// 1 to [`BYTE_ROWS`].
    pub rows: usize,
    pub groups: usize,
    /// Inputs of a group, 16 or 32.
    pub group: usize,
    /// `[inputs / 4, rows]` words of four signed bytes.
    pub x: *const f32,
    /// `[inputs / 32, rows]`.
    pub x_scales: *const f32,
    /// `[groups, rows]`.
    pub x_sums: *const f32,
    /// `[inputs / 4, 32]` words of four unsigned bytes.
    pub w: *const f32,
    /// `[groups, 32]`.
    pub w_scales: *const f32,
    /// `[groups, 32]`.
    pub w_offsets: *const f32,
    pub c: *mut f32,
    pub c_stride: usize,
    /// Whether C holds something to add to.
    pub add: bool,
}

impl Vnni {
    /// Computes the tile.
    ///
    /// # Safety
    /// Everything that the shape names must be readable, C writable and nobody else's meanwhile.
    pub(super) unsafe fn tile(self, tile: &ByteTile) {
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe { dispatch(tile) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn dispatch(_: &ByteTile) {
    unreachable!("there is no proof of these instructions here")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn dispatch(tile: &ByteTile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            1 => kernel::<1>(tile),
            2 => kernel::<2>(tile),
            3 => kernel::<3>(tile),
            4 => kernel::<4>(tile),
            5 => kernel::<5>(tile),
            6 => kernel::<6>(tile),
            _ => unreachable!("byte tiles have at most six rows"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn kernel<const ROWS: usize>(tile: &ByteTile) {
    // SAFETY: (whole body) offsets stay within what the caller promised of the tile.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        if tile.add {
            for (r, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(tile.c.add(r * tile.c_stride + v * 16));
                }
            }
        }
        let units = tile.group / 4;
        let (mut x, mut w) = (tile.x.cast::<i32>(), tile.w.cast::<i32>());
        for g in 0..tile.groups {
            let mut dots = [[_mm512_setzero_si512(); 2]; ROWS];
            for _ in 0..units {
                let columns = [_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(w.add(16).cast())];
                for (r, row) in dots.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*x.add(r));
                    row[0] = _mm512_dpbusd_epi32(row[0], columns[0], x);
                    row[1] = _mm512_dpbusd_epi32(row[1], columns[1], x);
                }
                w = w.add(32);
                x = x.add(ROWS);
            }
            let x_scales = tile.x_scales.add(g * tile.group / 32 * ROWS);
            let x_sums = tile.x_sums.add(g * ROWS);
            for v in 0..2 {
                let scale = _mm512_loadu_ps(tile.w_scales.add(g * 32 + v * 16));
                let offset = _mm512_loadu_ps(tile.w_offsets.add(g * 32 + v * 16));
                for r in 0..ROWS {
                    let both = _mm512_mul_ps(scale, _mm512_set1_ps(*x_scales.add(r)));
                    let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r][v]), both, sums[r][v]);
                    sums[r][v] = _mm512_fmadd_ps(offset, _mm512_set1_ps(*x_sums.add(r)), sum);
                }
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                _mm512_storeu_ps(tile.c.add(r * tile.c_stride + v * 16), *sum);
            }
        }
    }
}
