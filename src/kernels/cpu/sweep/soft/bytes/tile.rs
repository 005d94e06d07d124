//! Instructions of the soft embedding in bytes: rounding weights, turning the table, and the register tile.
//!
//! A chunk is 64 tokens. Its 16 words of four neighbouring tokens lie in the order in which vectors are packed to bytes
//! (word `4i + v` holds tokens `16v + 4i …`), of weights and of the table alike.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::super::super::super::{bytes::Vnni, layout::PANEL};

/// Tokens that are packed together.
pub(super) const CHUNK: usize = 64;
/// Columns of a register tile: four vectors.
pub(super) const COLUMNS: usize = 64;
/// Rows of a register tile: 24 vectors of sums leave room for four of columns and one of a row.
pub(super) const ROWS: usize = 6;

/// How the mean of a tile's tokens is taken.
pub(super) struct Mean {
    /// Words of ones, for the tokens that there are.
    ones: Vec<u32>,
    tokens: usize,
}

impl Mean {
    /// Of the first `tokens` of `padded` tokens, which are whole chunks.
    pub(super) fn of(tokens: usize, padded: usize) -> Mean {
        let mut ones = vec![0; padded / 4];
        for token in 0..tokens {
            let (chunk, vector, quarter) = (token / CHUNK, token % CHUNK / 16, token % 16 / 4);
            ones[chunk * CHUNK / 4 + 4 * quarter + vector] |= 1 << (8 * (token % 4));
        }
        Mean { ones, tokens }
    }
}

/// One tile: `sums[row] += step·(Σ weights·table + rest·mean)`, for some rows and 64 columns.
pub(super) struct SoftTile<'a> {
    /// At most [`ROWS`] of those in `sums`.
    pub rows: &'a [usize],
    /// Step and rest of each.
    pub steps: &'a [(f32, f32)],
    /// Words of unsigned bytes, `[rows, tokens / 4]`, kept in floats.
    pub weights: &'a [f32],
    /// Words of signed bytes, `[tokens / 4, 64]`, kept in floats.
    pub table: &'a [f32],
    pub mean: &'a [f32; COLUMNS],
    /// `[all rows, 64]`.
    pub sums: &'a mut [f32],
}

impl Vnni {
    /// The sum of a row's weights in a tile of whole chunks, and how many are not zero.
    pub(super) fn weight(self, weights: &[f32]) -> (f32, usize) {
        assert!(weights.len().is_multiple_of(16));
        // SAFETY: `self` proves the instructions; whole vectors.
        unsafe { weight(weights) }
    }

    /// Rounds weights times scales, both of whole chunks, to words of bytes. Gives the step, and how much larger the sum
    /// of what was rounded is than that of the bytes, in steps.
    pub(super) fn round_weights(self, weights: &[f32], scales: &[f32], to: &mut [f32]) -> (f32, f32) {
        assert!(weights.len().is_multiple_of(CHUNK) && scales.len() == weights.len() && to.len() == weights.len() / 4);
        // SAFETY: `self` proves the instructions; lengths were checked.
        unsafe { round_weights(weights, scales, to) }
    }

    /// Turns columns of a panel, words `[columns / 4, 32]` with a byte above 128 for each of four columns, whole blocks
    /// of 64, into the panel's place in blocks `[words, 64]` with a signed byte for each of four tokens. `index` is
    /// the panel's in its tile, `words` what a column of the tile takes.
    pub(super) fn turn(self, panel: &[u32], index: usize, words: usize, to: &mut [f32]) {
        let columns = panel.len() / PANEL * 4;
        assert!(columns.is_multiple_of(COLUMNS) && to.len() >= columns * words && (index / 2 + 1) * CHUNK / 4 <= words);
        // SAFETY: `self` proves the instructions; lengths were checked.
        unsafe { turn(panel, index, words, to) }
    }

    /// The mean of a tile's tokens in 64 columns of words `[tokens / 4, 64]`.
    pub(super) fn mean(self, mean: &Mean, table: &[f32]) -> [f32; COLUMNS] {
        assert!(table.len() == mean.ones.len() * COLUMNS);
        // SAFETY: `self` proves the instructions; lengths were checked.
        unsafe { take_mean(mean, table) }
    }

    /// Computes a tile.
    pub(super) fn soft(self, tile: SoftTile<'_>) {
        let (rows, words) = (tile.rows.len(), tile.table.len() / COLUMNS);
        assert!(tile.steps.len() == rows && tile.weights.len() == rows * words);
        assert!(tile.rows.iter().all(|row| (row + 1) * COLUMNS <= tile.sums.len()));
        // SAFETY: `self` proves the instructions; lengths were checked.
        unsafe { dispatch(tile) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod absent {
    use super::{COLUMNS, Mean, SoftTile};

    const NO: &str = "there is no proof of these instructions here";

    pub(super) unsafe fn weight(_: &[f32]) -> (f32, usize) {
        unreachable!("{NO}")
    }
    pub(super) unsafe fn round_weights(_: &[f32], _: &[f32], _: &mut [f32]) -> (f32, f32) {
        unreachable!("{NO}")
    }
    pub(super) unsafe fn turn(_: &[u32], _: usize, _: usize, _: &mut [f32]) {
        unreachable!("{NO}")
    }
    pub(super) unsafe fn take_mean(_: &Mean, _: &[f32]) -> [f32; COLUMNS] {
        unreachable!("{NO}")
    }
    pub(super) unsafe fn dispatch(_: SoftTile<'_>) {
        unreachable!("{NO}")
    }
}
#[cfg(not(target_arch = "x86_64"))]
use absent::{dispatch, round_weights, take_mean, turn, weight};

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn weight(weights: &[f32]) -> (f32, usize) {
    let (mut sum, mut present) = (_mm512_setzero_ps(), 0);
    for weights in weights.chunks_exact(16) {
        // SAFETY: sixteen floats.
        let weights = unsafe { _mm512_loadu_ps(weights.as_ptr()) };
        sum = _mm512_add_ps(sum, weights);
        present += _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(weights, _mm512_setzero_ps()).count_ones() as usize;
    }
    (_mm512_reduce_add_ps(sum), present)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn round_weights(weights: &[f32], scales: &[f32], to: &mut [f32]) -> (f32, f32) {
    // SAFETY: (whole body) whole chunks of weights, scales and words, as the caller promised.
    unsafe {
        let product = |at: usize| {
            _mm512_mul_ps(_mm512_loadu_ps(weights.as_ptr().add(at)), _mm512_loadu_ps(scales.as_ptr().add(at)))
        };
        let (mut max, mut sum) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for at in (0..weights.len()).step_by(16) {
            let product = product(at);
            max = _mm512_max_ps(max, product);
            sum = _mm512_add_ps(sum, product);
        }
        let max = _mm512_reduce_max_ps(max);
        // So that the inverse is finite; nothing that small can be seen beside any other tile.
        if max < 1e-35 {
            to.fill(0.0);
            return (0.0, 0.0);
        }
        let inverse = 255.0 / max;
        let factor = _mm512_set1_ps(inverse);
        let mut total = _mm512_setzero_si512();
        for (chunk, to) in to.chunks_exact_mut(CHUNK / 4).enumerate() {
            let number = |v: usize| _mm512_cvtps_epi32(_mm512_mul_ps(product(chunk * CHUNK + v * 16), factor));
            let low = _mm512_packus_epi32(number(0), number(1));
            let high = _mm512_packus_epi32(number(2), number(3));
            let bytes = _mm512_packus_epi16(low, high);
            total = _mm512_dpbusd_epi32(total, bytes, _mm512_set1_epi8(1));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes);
        }
        let rest = _mm512_reduce_add_ps(sum) * inverse - _mm512_reduce_add_epi32(total) as f32;
        (max / 255.0, rest)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn turn(panel: &[u32], index: usize, words: usize, to: &mut [f32]) {
    // SAFETY: (whole body) the caller checked the lengths.
    unsafe {
        // Byte 4t + h of a 128-bit part, token t and column h, goes to 4h + t.
        let order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        let signed = _mm512_set1_epi8(-128);
        for (quad, panel) in panel.chunks_exact(4 * PANEL).enumerate() {
            let column = 16 * quad;
            for half in 0..2 {
                let mut x = [_mm512_setzero_si512(); 4];
                for (i, x) in x.iter_mut().enumerate() {
                    let words = _mm512_loadu_si512(panel.as_ptr().add(i * PANEL + half * 16).cast());
                    *x = _mm512_xor_si512(_mm512_shuffle_epi8(words, order), signed);
                }
                let even = [_mm512_shuffle_i32x4::<0x88>(x[0], x[1]), _mm512_shuffle_i32x4::<0x88>(x[2], x[3])];
                let odd = [_mm512_shuffle_i32x4::<0xdd>(x[0], x[1]), _mm512_shuffle_i32x4::<0xdd>(x[2], x[3])];
                let quarters = [
                    _mm512_shuffle_i32x4::<0x88>(even[0], even[1]),
                    _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]),
                    _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]),
                    _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]),
                ];
                let block = to.as_mut_ptr().add(column / COLUMNS * words * COLUMNS + column % COLUMNS);
                for (i, quarter) in quarters.into_iter().enumerate() {
                    let word = index / 2 * (CHUNK / 4) + 4 * i + 2 * (index % 2) + half;
                    _mm512_storeu_si512(block.add(word * COLUMNS).cast(), quarter);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn take_mean(mean: &Mean, table: &[f32]) -> [f32; COLUMNS] {
    let mut sums = [_mm512_setzero_si512(); 4];
    for (&ones, columns) in mean.ones.iter().zip(table.chunks_exact(COLUMNS)) {
        for (sum, columns) in sums.iter_mut().zip(columns.chunks_exact(16)) {
            // SAFETY: sixteen words.
            let columns = unsafe { _mm512_loadu_si512(columns.as_ptr().cast()) };
            *sum = _mm512_dpbusd_epi32(*sum, _mm512_set1_epi32(ones as i32), columns);
        }
    }
    let mut out = [0.0; COLUMNS];
    let count = _mm512_set1_ps(mean.tokens as f32);
    for (sum, out) in sums.iter().zip(out.chunks_exact_mut(16)) {
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_div_ps(_mm512_cvtepi32_ps(*sum), count)) };
    }
    out
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn dispatch(tile: SoftTile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows.len() {
            0 => {}
            1 => kernel::<1>(tile),
            2 => kernel::<2>(tile),
            3 => kernel::<3>(tile),
            4 => kernel::<4>(tile),
            5 => kernel::<5>(tile),
            6 => kernel::<6>(tile),
            _ => unreachable!("tiles of the soft embedding have at most six rows"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn kernel<const COUNT: usize>(tile: SoftTile<'_>) {
    const VECTORS: usize = COLUMNS / 16;
    let words = tile.table.len() / COLUMNS;
    let sums = tile.sums.as_mut_ptr();
    // SAFETY: (whole body) the caller checked the lengths; each row's 64 sums are met once.
    unsafe {
        for row in tile.rows {
            // They come from the third cache level: ask for them while computing.
            for v in 0..VECTORS {
                _mm_prefetch::<_MM_HINT_T0>(sums.add(row * COLUMNS + v * 16).cast());
            }
        }
        let mut dots = [[_mm512_setzero_si512(); VECTORS]; COUNT];
        let (mut weights, mut table) = (tile.weights.as_ptr().cast::<i32>(), tile.table.as_ptr());
        for _ in 0..words {
            let mut columns = [_mm512_setzero_si512(); VECTORS];
            for (v, columns) in columns.iter_mut().enumerate() {
                *columns = _mm512_loadu_si512(table.add(v * 16).cast());
            }
            for (r, row) in dots.iter_mut().enumerate() {
                let weights = _mm512_set1_epi32(*weights.add(r * words));
                for (dot, columns) in row.iter_mut().zip(columns) {
                    *dot = _mm512_dpbusd_epi32(*dot, weights, columns);
                }
            }
            weights = weights.add(1);
            table = table.add(COLUMNS);
        }
        for ((row, dots), (step, rest)) in tile.rows.iter().zip(dots).zip(tile.steps) {
            let (step, rest) = (_mm512_set1_ps(*step), _mm512_set1_ps(*rest));
            for (v, dot) in dots.into_iter().enumerate() {
                let at = sums.add(row * COLUMNS + v * 16);
                let mean = _mm512_loadu_ps(tile.mean.as_ptr().add(v * 16));
                let part = _mm512_fmadd_ps(rest, mean, _mm512_cvtepi32_ps(dot));
                _mm512_storeu_ps(at, _mm512_fmadd_ps(part, step, _mm512_loadu_ps(at)));
            }
        }
    }
}
