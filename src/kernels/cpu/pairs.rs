//! Products of bf16 numbers with sums in f32: a register tile like [`super::tile`]'s whose inputs come in pairs.
//!
//! Packed rows lie `[steps, rows, 16]`: a step is 16 words of two numbers each, the earlier in the low half, padded
//! with zeros. Both engines read that: AVX-512's dot products of pairs, and AMX's tiles. Sums run in one order,
//! whatever the other rows: those of one engine are reproducible bit for bit, those of two agree up to rounding.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{
    amx::{Amx, Tiles},
    layout::WORDS,
    path::{Checked, Task},
    simd::Simd,
    tile::Start,
};

/// How products of bf16 are computed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pairs {
    /// One instruction per pair of numbers, row and vector of columns.
    Dot(Dot),
    /// Tiles of 16 rows by 16 columns by 16 pairs.
    Tiles(Amx),
}

/// Proof that AVX-512 with its instructions for bf16 exists here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dot(());

impl Dot {
    pub(super) fn detect(path: Checked) -> Option<Dot> {
        #[cfg(target_arch = "x86_64")]
        let there = matches!(path, Checked::Avx512(simd) if simd.with_bf16().is_some());
        #[cfg(not(target_arch = "x86_64"))]
        let there = matches!(path, Checked::Avx512(_));
        there.then_some(Dot(()))
    }
}

/// One tile: `C[r, c] (+)= Σ_p A[r, p]₀·B[p, c]₀ + A[r, p]₁·B[p, c]₁`.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairTile {
    /// 1 to [`Pairs::most`].
    pub rows: usize,
    /// A multiple of 16.
    pub columns: usize,
    /// Words of a row to multiply. B holds as many, rounded up to [`Pairs::granule`], the rest zero.
    pub pairs: usize,
    /// The word of row r and pair p is at `a + (p / 16 · a_rows + r) · 16 + p % 16`; zeros fill the last step.
    pub a: *const u32,
    pub a_rows: usize,
    /// The word of pair p and column c is at `b + p·b_stride + c`, or at `b + index[p]·b_stride + c` where an index is
    /// given. Aligned to 64 bytes for speed.
    pub b: *const u32,
    pub b_stride: usize,
    /// Null, or `pairs` row numbers of B, in runs of [`Pairs::granule`] consecutive ones.
    pub index: *const u32,
    /// `C[r, c]` is at `c + r·c_stride + c`.
    pub c: *mut f32,
    pub c_stride: usize,
    pub start: Start,
}

/// An engine in use by one thread: AMX keeps its tiles for as long.
pub(super) enum Session {
    Dot,
    Tiles(Tiles),
}

impl Pairs {
    /// Most rows of a tile.
    pub(super) fn most(self) -> usize {
        match self {
            Pairs::Dot(_) => 12,
            Pairs::Tiles(_) => 2 * WORDS,
        }
    }

    /// Pairs that are multiplied together or not at all.
    pub(super) fn granule(self) -> usize {
        match self {
            Pairs::Dot(_) => 1,
            Pairs::Tiles(_) => WORDS,
        }
    }

    /// Multiplies numbers in registers, so many rounds of [`Pairs::spun`] operations: the engine's peak.
    pub(super) fn spin(self, rounds: usize) {
        match self {
            // SAFETY: the value proves the instructions.
            Pairs::Dot(_) => unsafe { spin(rounds) },
            Pairs::Tiles(amx) => amx.spin(rounds / 16),
        }
    }

    /// The operations of [`Pairs::spin`], a multiply-add counting two.
    pub(super) fn spun(self, rounds: usize) -> usize {
        match self {
            Pairs::Dot(_) => rounds * CHAINS * 64,
            Pairs::Tiles(_) => rounds / 16 * 4 * 16 * 16 * 64,
        }
    }

    pub(super) fn session(self) -> Session {
        match self {
            Pairs::Dot(_) => Session::Dot,
            Pairs::Tiles(amx) => Session::Tiles(amx.tiles()),
        }
    }
}

/// Words that a packed row of `k` numbers takes.
pub(super) const fn pair_width(k: usize) -> usize {
    k.div_ceil(2 * WORDS) * WORDS
}

impl Session {
    /// Computes the tile.
    ///
    /// # Safety
    /// Every element of A and B that the shape names must be readable, every element of C writable and not written by
    /// another thread meanwhile; `rows` and `columns` must be within their bounds.
    pub(super) unsafe fn tile(&mut self, tile: &PairTile) {
        // SAFETY: the caller's promise; a session exists only where its instructions do.
        unsafe {
            match self {
                Session::Dot => dot(tile),
                Session::Tiles(tiles) => tiles.multiply(tile),
            }
        }
    }
}

/// Rounds one row into its place in a packed block.
pub(super) struct RoundPairs<'a> {
    pub x: &'a [f32],
    /// Words, kept in a buffer of floats: `[steps, rows, 16]`.
    pub to: &'a mut [f32],
    pub rows: usize,
    /// Which of them.
    pub row: usize,
}

impl Task for RoundPairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RoundPairs { x, to, rows, row } = self;
        for (step, x) in x.chunks(2 * WORDS).enumerate() {
            let to = &mut to[(step * rows + row) * WORDS..][..WORDS];
            let mut padded = [0.0; 2 * WORDS];
            let from = if x.len() == 2 * WORDS {
                x.as_ptr()
            } else {
                padded[..x.len()].copy_from_slice(x);
                padded.as_ptr()
            };
            for i in (0..2 * WORDS).step_by(S::LANES) {
                // SAFETY: 32 floats, to 32 halves.
                unsafe { s.store_bf16(to.as_mut_ptr().cast::<u16>().add(i), s.load(from.add(i))) };
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn dot(_: &PairTile) {
    unreachable!("there is no proof of these instructions here")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn dot(tile: &PairTile) {
    let mut column = 0;
    while column < tile.columns {
        // SAFETY: the caller's promise, for columns `column ..` of the tile.
        unsafe {
            if tile.columns - column >= 32 {
                rows::<2>(tile, column);
                column += 32;
            } else {
                rows::<1>(tile, column);
                column += 16;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
#[inline]
unsafe fn rows<const VECTORS: usize>(tile: &PairTile, column: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            1 => kernel::<1, VECTORS>(tile, column),
            2 => kernel::<2, VECTORS>(tile, column),
            3 => kernel::<3, VECTORS>(tile, column),
            4 => kernel::<4, VECTORS>(tile, column),
            5 => kernel::<5, VECTORS>(tile, column),
            6 => kernel::<6, VECTORS>(tile, column),
            7 => kernel::<7, VECTORS>(tile, column),
            8 => kernel::<8, VECTORS>(tile, column),
            9 => kernel::<9, VECTORS>(tile, column),
            10 => kernel::<10, VECTORS>(tile, column),
            11 => kernel::<11, VECTORS>(tile, column),
            12 => kernel::<12, VECTORS>(tile, column),
            _ => unreachable!("tiles have at most twelve rows"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
#[inline]
unsafe fn kernel<const ROWS: usize, const VECTORS: usize>(tile: &PairTile, column: usize) {
    // SAFETY: (whole body) offsets stay within what the caller promised of the tile.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        let c = tile.c.add(column);
        for (r, row) in sums.iter_mut().enumerate() {
            for (v, sum) in row.iter_mut().enumerate() {
                let at = c.add(r * tile.c_stride + v * 16);
                *sum = match tile.start {
                    Start::Zero => *sum,
                    Start::Add => _mm512_loadu_ps(at),
                    Start::Scale(factors) => _mm512_mul_ps(_mm512_set1_ps(*factors.add(r)), _mm512_loadu_ps(at)),
                };
            }
        }
        let b = tile.b.add(column);
        let mut a = tile.a;
        for first in (0..tile.pairs).step_by(WORDS) {
            let count = WORDS.min(tile.pairs - first);
            if tile.index.is_null() {
                let mut b = b.add(first * tile.b_stride);
                for p in 0..count {
                    step::<ROWS, VECTORS>(&mut sums, a.add(p), b);
                    b = b.add(tile.b_stride);
                }
            } else {
                for p in 0..count {
                    let row = *tile.index.add(first + p) as usize;
                    step::<ROWS, VECTORS>(&mut sums, a.add(p), b.add(row * tile.b_stride));
                }
            }
            a = a.add(tile.a_rows * WORDS);
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                _mm512_storeu_ps(c.add(r * tile.c_stride + v * 16), *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
#[inline]
unsafe fn step<const ROWS: usize, const VECTORS: usize>(
    sums: &mut [[__m512; VECTORS]; ROWS],
    a: *const u32,
    b: *const u32,
) {
    use std::mem::transmute;
    // SAFETY: the caller's promise for one pair; the transmutations keep 64 bytes as they are.
    unsafe {
        let mut columns = [transmute::<__m512i, __m512bh>(_mm512_setzero_si512()); VECTORS];
        for (v, column) in columns.iter_mut().enumerate() {
            *column = transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.add(v * 16).cast()));
        }
        for (r, row) in sums.iter_mut().enumerate() {
            let x = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*a.add(r * WORDS) as i32));
            for (sum, column) in row.iter_mut().zip(columns) {
                *sum = _mm512_dpbf16_ps(*sum, column, x);
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn spin(rounds: usize) {
    use std::{hint::black_box, mem::transmute};
    // SAFETY: 64 bytes stay as they are.
    let word = black_box(unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0x3f80_3f80)) });
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, word, word);
        }
    }
    black_box(sums);
}
