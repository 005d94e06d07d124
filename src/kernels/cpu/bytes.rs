//! Products in 8-bit integers, for quantised matrices on processors with VNNI: an opt-in that trades accuracy for
//! some three times the speed.
//!
//! Activations are rounded to 8 bits, one scale per row and 64 inputs; weights keep their stored numbers. Sums over a
//! group are exact integers and join in one order, so that results stay bit-identical per row. The only error is the
//! rounding of x: each is off by at most `max|x| / 254`, the maximum over its 64 neighbours, so that an output is off
//! by at most `Σ_k |w_k|·max|x| / 254`, and by about half a percent of `|x|·|w|` for bell-shaped activations.
//!
//! The weights are unsigned numbers above an offset. Where a format has no minima, the integer sum starts at
//! `−offset·Σx`, which makes the offset free; where it has them, offsets are zero.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{
    layout::{STRIP, WORDS},
    path::{Checked, Task},
    simd::Simd,
};

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
    /// Activations rounded to 8 bits where the matrix is quantised and the processor has the instructions; as with
    /// [`Precision::Bf16`] elsewhere, which includes attention and soft embeddings.
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

/// Rows of one register tile: eight vectors each of integers, of floats for 64 inputs, and of results.
pub(super) const BYTE_ROWS: usize = 4;

/// Inputs that share a scale, and that a step holds: 16 words of four.
const STEP: usize = 4 * WORDS;

/// Floats that a packed row of `k` inputs takes: its words, scales, and sums per 16 and per 32 inputs.
pub(super) const fn packed_width(k: usize) -> usize {
    k.div_ceil(STEP) * (WORDS + 1) + k / 16 + k / 32
}

/// Where the parts of a packed block of `rows` rows begin: scales, sums per 16, sums per 32.
pub(super) const fn parts(k: usize, rows: usize) -> (usize, usize, usize) {
    let scales = k.div_ceil(STEP) * WORDS * rows;
    let sums16 = scales + k.div_ceil(STEP) * rows;
    (scales, sums16, sums16 + k / 16 * rows)
}

/// Rounds one row into its place in a packed block: words `[steps, rows, 16]`, scales `[steps, rows]`, and negative
/// sums of the rounded numbers, as integers, `[k / 16, rows]` and `[k / 32, rows]`.
pub(super) struct Round<'a> {
    /// A whole number of strips.
    pub x: &'a [f32],
    pub to: &'a mut [f32],
    pub rows: usize,
    /// Which of them.
    pub row: usize,
}

impl Task for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Round { x, to, rows, row } = self;
        let (scales, sums16, sums32) = parts(x.len(), rows);
        for (step, x) in x.chunks(STEP).enumerate() {
            let mut bytes = [0i8; STEP];
            to[scales + step * rows + row] = if x.len() == STEP {
                // A length the compiler knows.
                round(x.first_chunk::<STEP>().expect("as long as that"), &mut bytes)
            } else {
                round(x, &mut bytes)
            };
            for (half, bytes) in bytes[..x.len()].chunks_exact(STRIP / 2).enumerate() {
                let sum: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
                to[sums16 + (step * STEP / 16 + half) * rows + row] = f32::from_bits(-sum as u32);
            }
            for (strip, bytes) in bytes[..x.len()].chunks_exact(STRIP).enumerate() {
                let sum: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
                to[sums32 + (step * STEP / 32 + strip) * rows + row] = f32::from_bits(-sum as u32);
            }
            let words = &mut to[(step * rows + row) * WORDS..][..WORDS];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = f32::from_bits(u32::from_le_bytes(bytes.map(|byte| byte as u8)));
            }
        }
    }
}

/// Rounds up to 64 numbers, and gives their scale; that is not a number where one of them is not finite, so that the
/// row cannot come out clean.
#[inline(always)]
fn round(x: &[f32], bytes: &mut [i8; STEP]) -> f32 {
    /// Adding this rounds to the nearest integer and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // Bits of absolute values order like the values; infinities and what is not a number come last.
    let max = x.iter().fold(0u32, |max, x| max.max(x.abs().to_bits()));
    let max = f32::from_bits(max);
    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
    for (byte, x) in bytes.iter_mut().zip(x) {
        *byte = (x * inverse + MAGIC).to_bits() as i8;
    }
    max / 127.0 + max * 0.0
}

/// One tile of 32 columns and some inputs: `C[r, c] (+)= Σ_step scale[r]·Σ_group (Σ x·(q − offset))·a[c] + Σx·b[c]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteTile {
    /// 1 to [`BYTE_ROWS`].
    pub rows: usize,
    /// A multiple of 32.
    pub inputs: usize,
    /// Inputs of a group, 16 or 32.
    pub group: usize,
    /// A power of two from 4 to 128, or zero.
    pub offset: u32,
    /// `[steps, rows, 16]` words of four signed bytes.
    pub x: *const i32,
    /// `[steps, rows]`.
    pub x_scales: *const f32,
    /// `[groups, rows]`, negative.
    pub x_sums: *const i32,
    /// `[inputs / 4, 32]` words of four unsigned bytes.
    pub w: *const i32,
    /// `[groups, 32]`.
    pub w_scales: *const f32,
    /// `[groups, 32]`, where the format has minima; it has no offset then.
    pub w_minima: Option<*const f32>,
    pub c: *mut f32,
    pub c_stride: usize,
    /// Whether C holds something to add to.
    pub add: bool,
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

    /// Computes the tile.
    ///
    /// # Safety
    /// Everything that the shape names must be readable, C writable and nobody else's meanwhile.
    pub(super) unsafe fn tile(self, tile: &ByteTile) {
        debug_assert!(tile.w_minima.is_none() || tile.offset == 0);
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
        match (tile.group, tile.w_minima) {
            (16, None) => rows::<4, false>(tile),
            (16, Some(_)) => rows::<4, true>(tile),
            (_, None) => rows::<8, false>(tile),
            (_, Some(_)) => rows::<8, true>(tile),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn rows<const UNITS: usize, const MINIMA: bool>(tile: &ByteTile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            1 => kernel::<1, UNITS, MINIMA>(tile),
            2 => kernel::<2, UNITS, MINIMA>(tile),
            3 => kernel::<3, UNITS, MINIMA>(tile),
            4 => kernel::<4, UNITS, MINIMA>(tile),
            _ => unreachable!("byte tiles have at most four rows"),
        }
    }
}

/// A group is `UNITS` words long.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn kernel<const ROWS: usize, const UNITS: usize, const MINIMA: bool>(tile: &ByteTile) {
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
        let shift = _mm_cvtsi32_si128(tile.offset.trailing_zeros() as i32 & 31);
        let (mut x, mut w) = (tile.x, tile.w);
        let (mut x_scales, mut x_sums) = (tile.x_scales, tile.x_sums);
        let mut w_scales = tile.w_scales;
        let mut w_minima = tile.w_minima.unwrap_or(std::ptr::null());
        for first in (0..tile.inputs).step_by(STEP) {
            let groups = STEP.min(tile.inputs - first) / (4 * UNITS);
            let mut parts = [[_mm512_setzero_ps(); 2]; ROWS];
            for g in 0..groups {
                let mut dots = [[_mm512_setzero_si512(); 2]; ROWS];
                if !MINIMA {
                    for (r, row) in dots.iter_mut().enumerate() {
                        *row = [_mm512_sll_epi32(_mm512_set1_epi32(*x_sums.add(r)), shift); 2];
                    }
                }
                for u in 0..UNITS {
                    let columns = [_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(w.add(16).cast())];
                    for (r, row) in dots.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(*x.add(r * WORDS + g * UNITS + u));
                        row[0] = _mm512_dpbusd_epi32(row[0], columns[0], x);
                        row[1] = _mm512_dpbusd_epi32(row[1], columns[1], x);
                    }
                    w = w.add(32);
                }
                for v in 0..2 {
                    let scale = _mm512_loadu_ps(w_scales.add(v * 16));
                    for r in 0..ROWS {
                        parts[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r][v]), scale, parts[r][v]);
                    }
                    if MINIMA {
                        let minimum = _mm512_loadu_ps(w_minima.add(v * 16));
                        for (r, part) in parts.iter_mut().enumerate() {
                            let sum = _mm512_cvtepi32_ps(_mm512_set1_epi32(*x_sums.add(r)));
                            part[v] = _mm512_fnmadd_ps(minimum, sum, part[v]);
                        }
                    }
                }
                w_scales = w_scales.add(32);
                if MINIMA {
                    w_minima = w_minima.add(32);
                }
                x_sums = x_sums.add(ROWS);
            }
            for r in 0..ROWS {
                let scale = _mm512_set1_ps(*x_scales.add(r));
                for v in 0..2 {
                    sums[r][v] = _mm512_fmadd_ps(parts[r][v], scale, sums[r][v]);
                }
            }
            x = x.add(ROWS * WORDS);
            x_scales = x_scales.add(ROWS);
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                _mm512_storeu_ps(tile.c.add(r * tile.c_stride + v * 16), *sum);
            }
        }
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
