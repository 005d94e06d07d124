//! Attention with operands in bf16: queries, keys, probabilities and values are rounded, sums and the running maximum
//! stay in f32.
//!
//! Scores lie query by query here, 64 keys side by side, so that probabilities come out in the order in which the next
//! product reads them.

use super::{Inputs, Item, PAGE_TOKENS, Sight};
use crate::cpu::{
    kv::{KvPool, Stored},
    layout::{PANEL, WORDS, row_block},
    math::exp,
    memory::Scratch,
    pairs::{PairTile, Pairs, RoundPairs, Session, pair_width},
    path::{Checked, Task},
    simd::Simd,
    tile::Start,
};

/// The running state of an item's queries; query i is row `i / ratio`, head `i % ratio`.
pub(super) struct PairQueries<'a> {
    path: Checked,
    pairs: Pairs,
    session: Session,
    item: &'a Item<'a>,
    inputs: &'a Inputs<'a>,
    ratio: usize,
    dim: usize,
    /// Words of a query or key.
    words: usize,
    stride: usize,
    count: usize,
    /// Blocks of packed rows.
    q: Scratch,
    /// `[queries, value stride]`: values summed so far, relative to `max`.
    out: Scratch,
    max: Scratch,
    sum: Scratch,
    /// First position each query sees, and the one after its last; as floats, which are exact up to 2^24.
    low: Scratch,
    high: Scratch,
    /// `[2, words, 32]`: the keys of a block, 32 and 32.
    keys: Scratch,
    /// `[32, value stride]`: pairs of values.
    values: Scratch,
    /// `[rows, 64]`.
    scores: Scratch,
    /// Packed rows of 64 numbers.
    chances: Scratch,
    factors: Scratch,
}

impl<'a> PairQueries<'a> {
    pub(super) fn new(path: Checked, pairs: Pairs, item: &'a Item<'a>, inputs: &'a Inputs<'a>) -> PairQueries<'a> {
        let dim = inputs.pool.head_dim();
        let ratio = inputs.heads / inputs.pool.kv_heads();
        let (count, words, stride) = (item.rows * ratio, pair_width(dim), KvPool::value_stride(dim));
        let filled = |length: usize, value: f32| {
            let mut scratch = Scratch::take(length);
            scratch.fill(value);
            scratch
        };
        let mut state = PairQueries {
            path,
            pairs,
            session: pairs.session(),
            item,
            inputs,
            ratio,
            dim,
            words,
            stride,
            count,
            q: Scratch::take(count * words),
            out: filled(count * stride, 0.0),
            max: filled(count, f32::NEG_INFINITY),
            sum: filled(count, 0.0),
            low: Scratch::take(count),
            high: Scratch::take(count),
            // What no key or value is written to stays zero.
            keys: filled(2 * words * PANEL, 0.0),
            values: filled(PAGE_TOKENS / 2 * stride, 0.0),
            scores: Scratch::take(pairs.most() * PAGE_TOKENS),
            chances: Scratch::take(pairs.most() * pair_width(PAGE_TOKENS)),
            factors: Scratch::take(pairs.most()),
        };
        state.load();
        state
    }

    fn load(&mut self) {
        for index in 0..self.count.div_ceil(self.pairs.most()) {
            let block = row_block(self.count, self.pairs.most(), index);
            let to = &mut self.q[block.start * self.words..block.end * self.words];
            for (row, i) in block.clone().enumerate() {
                let (own, head) = (self.item.first + i / self.ratio, self.item.head * self.ratio + i % self.ratio);
                let at = ((self.item.span.row + own) * self.inputs.heads + head) * self.dim;
                let x = &self.inputs.q[at..at + self.dim];
                self.path.run_rounding(RoundPairs { x, to, rows: block.len(), row });
                let (low, high) = self.item.sees(self.inputs.window, own);
                self.low[i] = low as f32;
                self.high[i] = high as f32;
            }
        }
    }

    /// Folds every block of keys that a query of this item sees, oldest first.
    pub(super) fn fold_all(&mut self) {
        let (span, pool, head) = (self.item.span, self.inputs.pool, self.item.head);
        for (page, start, count) in self.item.pages(self.inputs.window) {
            let (keys, values) = (&mut self.keys, &mut self.values);
            let (dim, words, stride) = (self.dim, self.words, self.stride);
            match pool.stored(page, head) {
                Stored::F32(k, v) => {
                    self.path.run_rounding(Pair {
                        from: k,
                        from_stride: PAGE_TOKENS,
                        rows: dim,
                        columns: count,
                        to: keys,
                        blocks: words,
                    });
                    self.path.run_rounding(Pair {
                        from: v,
                        from_stride: stride,
                        rows: count,
                        columns: stride,
                        to: values,
                        blocks: 0,
                    });
                }
                Stored::Bf16(k, v) => {
                    self.path.run_rounding(Zip {
                        from: k,
                        from_stride: PAGE_TOKENS,
                        rows: dim,
                        columns: count,
                        to: keys,
                        blocks: words,
                    });
                    self.path.run_rounding(Zip {
                        from: v,
                        from_stride: stride,
                        rows: count,
                        columns: stride,
                        to: values,
                        blocks: 0,
                    });
                }
            }
            self.fold(start, count);
        }
        if span.sight == Sight::Denoise {
            for first in (0..span.rows).step_by(PAGE_TOKENS) {
                let count = PAGE_TOKENS.min(span.rows - first);
                self.own(first, count);
                self.fold(span.prefix + first, count);
            }
        }
    }

    /// Takes keys and values of the span's own rows.
    fn own(&mut self, first: usize, count: usize) {
        let width = self.inputs.pool.kv_heads() * self.dim;
        let at = |i: usize| (self.item.span.row + first + i) * width + self.item.head * self.dim;
        self.path.run_rounding(Stand {
            from: &self.inputs.k[at(0)..at(count - 1) + self.dim],
            from_stride: width,
            rows: count,
            dim: self.dim,
            words: self.words,
            to: &mut self.keys,
        });
        let from = &self.inputs.v[at(0)..at(count - 1) + self.dim];
        let to = &mut self.values;
        if self.dim == self.stride {
            let (rows, columns) = (count, self.dim);
            self.path.run_rounding(Pair { from, from_stride: width, rows, columns, to, blocks: 0 });
        } else {
            let mut padded = Scratch::take(count * self.stride);
            padded.fill(0.0);
            for (to, from) in padded.chunks_exact_mut(self.stride).zip(from.chunks(width)) {
                to[..self.dim].copy_from_slice(&from[..self.dim]);
            }
            let (from_stride, columns) = (self.stride, self.stride);
            self.path.run_rounding(Pair { from: &padded, from_stride, rows: count, columns, to, blocks: 0 });
        }
    }

    /// Folds `count` keys at positions from `start` on, which lie ready, into every query.
    fn fold(&mut self, start: usize, count: usize) {
        let most = self.pairs.most();
        let pairs = count.div_ceil(2).next_multiple_of(self.pairs.granule());
        for index in 0..self.count.div_ceil(most) {
            let block = row_block(self.count, most, index);
            let rows = block.len();
            for half in 0..count.div_ceil(PANEL) {
                // SAFETY: packed queries of `words` words, keys `[words, 32]`, scores `[rows, 64]`.
                unsafe {
                    self.session.tile(&PairTile {
                        rows,
                        columns: PANEL,
                        pairs: self.words,
                        a: self.q[block.start * self.words..].as_ptr().cast(),
                        a_rows: rows,
                        b: self.keys[half * self.words * PANEL..].as_ptr().cast(),
                        b_stride: PANEL,
                        index: std::ptr::null(),
                        c: self.scores[half * PANEL..].as_mut_ptr(),
                        c_stride: PAGE_TOKENS,
                        start: Start::Zero,
                    });
                }
            }
            self.path.run_rounding(Fold {
                scores: &mut self.scores,
                start: start as f32,
                count,
                low: &self.low[block.clone()],
                high: &self.high[block.clone()],
                max: &mut self.max[block.clone()],
                sum: &mut self.sum[block.clone()],
                factors: &mut self.factors,
                chances: &mut self.chances,
            });
            // SAFETY: packed probabilities of 32 words, values `[32, stride]`, results `[queries, stride]`.
            unsafe {
                self.session.tile(&PairTile {
                    rows,
                    columns: self.stride,
                    pairs,
                    a: self.chances.as_ptr().cast(),
                    a_rows: rows,
                    b: self.values.as_ptr().cast(),
                    b_stride: self.stride,
                    index: std::ptr::null(),
                    c: self.out[block.start * self.stride..].as_mut_ptr(),
                    c_stride: self.stride,
                    start: Start::Scale(self.factors.as_ptr()),
                });
            }
        }
    }

    /// Writes the results.
    ///
    /// # Safety
    /// `out` must be `[rows, heads, head_dim]`, and nobody else may write this item's rows and heads.
    pub(super) unsafe fn finish(&self, out: *mut f32) {
        for i in 0..self.count {
            let row = self.item.span.row + self.item.first + i / self.ratio;
            let head = self.item.head * self.ratio + i % self.ratio;
            let from = &self.out[i * self.stride..][..self.dim];
            // SAFETY: inside `out`, and this item's own.
            let to = unsafe {
                std::slice::from_raw_parts_mut(out.add((row * self.inputs.heads + head) * self.dim), self.dim)
            };
            for (y, x) in to.iter_mut().zip(from) {
                *y = x / self.sum[i];
            }
        }
    }
}

/// Where the word of a pair of rows and a column goes: with blocks of so many pairs, 32 columns to a block; without,
/// lines of all columns.
#[inline(always)]
fn place(blocks: usize, columns: usize, pair: usize, column: usize) -> usize {
    if blocks == 0 { pair * columns + column } else { (column / PANEL * blocks + pair) * PANEL + column % PANEL }
}

/// Rounds rows of floats two by two into lines of words; missing rows count as zeros up to 64, columns beyond the last
/// come out as zeros.
struct Pair<'a> {
    from: &'a [f32],
    from_stride: usize,
    rows: usize,
    columns: usize,
    to: &'a mut [f32],
    blocks: usize,
}

impl Task for Pair<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pair { from, from_stride, rows, columns, to, blocks } = self;
        let lines = lines(rows, blocks);
        let width = if blocks == 0 { columns } else { PAGE_TOKENS };
        for pair in 0..lines {
            for column in (0..width).step_by(16) {
                let mut two = [[0f32; 16]; 2];
                for (row, numbers) in (2 * pair..rows).zip(&mut two) {
                    let here = 16.min(columns.saturating_sub(column));
                    let at = row * from_stride + column;
                    numbers[..here].copy_from_slice(&from[at..at + here]);
                }
                let to = &mut to[place(blocks, columns, pair, column)..][..16];
                for lane in (0..16).step_by(S::LANES) {
                    // SAFETY: sixteen floats each, and sixteen words.
                    unsafe {
                        let words = s.pairs(s.load(two[0].as_ptr().add(lane)), s.load(two[1].as_ptr().add(lane)));
                        s.store_words(to.as_mut_ptr().cast::<u32>().add(lane), words);
                    }
                }
            }
        }
    }
}

/// How many lines of words are written: all of a block, or all that 64 rows can make.
#[inline(always)]
fn lines(rows: usize, blocks: usize) -> usize {
    if blocks == 0 { PAGE_TOKENS / 2 } else { rows.div_ceil(2) }
}

/// [`Pair`] for rows that are bf16 already.
struct Zip<'a> {
    from: &'a [u16],
    from_stride: usize,
    rows: usize,
    columns: usize,
    to: &'a mut [f32],
    blocks: usize,
}

impl Task for Zip<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Zip { from, from_stride, rows, columns, to, blocks } = self;
        let width = if blocks == 0 { columns } else { PAGE_TOKENS };
        for pair in 0..lines(rows, blocks) {
            for column in (0..width).step_by(16) {
                let mut two = [[0u16; 16]; 2];
                for (row, numbers) in (2 * pair..rows).zip(&mut two) {
                    let here = 16.min(columns.saturating_sub(column));
                    let at = row * from_stride + column;
                    if here == 16 {
                        numbers.copy_from_slice(&from[at..at + 16]);
                    } else {
                        numbers[..here].copy_from_slice(&from[at..at + here]);
                    }
                }
                let to = &mut to[place(blocks, columns, pair, column)..][..16];
                for (to, (&low, &high)) in to.iter_mut().zip(two[0].iter().zip(&two[1])) {
                    *to = f32::from_bits(u32::from(low) | u32::from(high) << 16);
                }
            }
        }
    }
}

/// Rounds rows of `dim` floats and stands them up: row i becomes column i of blocks `[2, words, 32]`, missing ones zero.
struct Stand<'a> {
    from: &'a [f32],
    from_stride: usize,
    rows: usize,
    dim: usize,
    words: usize,
    to: &'a mut [f32],
}

impl Task for Stand<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Stand { from, from_stride, rows, dim, words, to } = self;
        assert!(to.len() >= 2 * words * PANEL);
        for first in (0..PAGE_TOKENS).step_by(16) {
            for step in 0..words / WORDS {
                // Sixteen rows of 16 words, in lines of 32.
                let mut lines = [0f32; 16 * PANEL];
                for row in first..rows.min(first + 16) {
                    let here = (dim - step * 2 * WORDS).min(2 * WORDS);
                    let x = &from[row * from_stride + step * 2 * WORDS..][..here];
                    RoundPairs { x, to: &mut lines[(row - first) * PANEL..], rows: 1, row: 0 }.run(s);
                }
                let at = (first / PANEL * words + step * WORDS) * PANEL + first % PANEL;
                // SAFETY: sixteen lines, to sixteen lines of one block; checked above.
                unsafe { s.turn(lines.as_ptr(), to.as_mut_ptr().add(at)) };
            }
        }
    }
}

/// Turns rows of scores into packed probabilities relative to the running maximum, and moves maximum and sum on.
struct Fold<'a> {
    scores: &'a mut [f32],
    start: f32,
    count: usize,
    low: &'a [f32],
    high: &'a [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    factors: &'a mut [f32],
    chances: &'a mut [f32],
}

impl Task for Fold<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const COUNTS: [f32; 16] =
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        let rows = self.low.len();
        let end = self.start + self.count as f32;
        let hidden = s.splat(f32::NEG_INFINITY);
        // SAFETY: sixteen numbers, at least a vector.
        let counts = unsafe { s.load(COUNTS.as_ptr()) };
        assert!(self.scores.len() >= rows * PAGE_TOKENS && self.chances.len() >= rows * pair_width(PAGE_TOKENS));
        for row in 0..rows {
            let scores = self.scores[row * PAGE_TOKENS..][..PAGE_TOKENS].as_mut_ptr();
            let high = self.high[row].min(end);
            if self.low[row] > self.start || high < self.start + PAGE_TOKENS as f32 {
                let (low, high) = (s.splat(self.low[row]), s.splat(high));
                for j in (0..PAGE_TOKENS).step_by(S::LANES) {
                    // SAFETY: inside the row.
                    unsafe {
                        let t = s.add(s.splat(self.start + j as f32), counts);
                        let score = s.select(s.lt(t, high), s.load(scores.add(j)), hidden);
                        s.store(scores.add(j), s.select(s.lt(t, low), hidden, score));
                    }
                }
            }
            let mut most = hidden;
            for j in (0..PAGE_TOKENS).step_by(S::LANES) {
                // SAFETY: inside the row.
                most = s.max(unsafe { s.load(scores.add(j)) }, most);
            }
            let lanes = s.lanes(most);
            let max = lanes[..S::LANES].iter().fold(self.max[row], |max, &x| if x > max { x } else { max });
            // A query that has seen nothing yet keeps its infinite maximum; its differences must not become NaN.
            let shift = s.splat(if max > f32::NEG_INFINITY { max } else { 0.0 });
            let factor = s.lanes(exp(s, s.sub(s.splat(self.max[row]), shift)))[0];
            let mut sum = s.splat(0.0);
            for j in (0..PAGE_TOKENS).step_by(S::LANES) {
                let to = self.chances[((j / (2 * WORDS)) * rows + row) * WORDS..].as_mut_ptr();
                // SAFETY: inside the row, and a vector of halves inside the row's step.
                unsafe {
                    let p = exp(s, s.sub(s.load(scores.add(j)), shift));
                    sum = s.add(sum, p);
                    s.store_bf16(to.cast::<u16>().add(j % (2 * WORDS)), p);
                }
            }
            self.sum[row] = self.sum[row] * factor + s.sum(sum);
            self.max[row] = max;
            self.factors[row] = factor;
        }
    }
}
