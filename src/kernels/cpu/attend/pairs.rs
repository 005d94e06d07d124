//! Attention with operands in bf16: queries, keys, probabilities and values are rounded, sums and the running maximum
//! stay in f32.
//!
//! Scores lie query by query here, 64 keys side by side, so that probabilities come out in the order in which the next
//! product reads them.

use super::{Inputs, Item, PAGE_TOKENS, Running, Sight};
use crate::cpu::{
    kv::Stored,
    layout::{PANEL, WORDS, row_block},
    math::exp,
    memory::Scratch,
    pairs::{PairTile, Pairs, RoundPairs, Session, pair_width},
    path::{Checked, Task},
    simd::Simd,
    tile::Start,
};

/// The queries of an item in pairs of bf16.
pub(super) struct PairQueries<'a> {
    path: Checked,
    pairs: Pairs,
    session: Session,
    pub(super) running: Running<'a>,
    /// Words of a query or key.
    words: usize,
    /// Blocks of packed rows.
    q: Scratch,
    /// `[2, words, 32]`: the keys of a block, 32 and 32.
    keys: Scratch,
    /// `[value stride / 32, 32, 32]`: pairs of values, 32 columns at a time.
    values: Scratch,
    /// `[rows, 64]`.
    scores: Scratch,
    /// Packed rows of 64 numbers.
    chances: Scratch,
    factors: Scratch,
}

impl<'a> PairQueries<'a> {
    pub(super) fn new(path: Checked, pairs: Pairs, item: &'a Item<'a>, inputs: &'a Inputs<'a>) -> PairQueries<'a> {
        let running = Running::new(item, inputs, 1);
        let words = pair_width(running.dim);
        // What no key or value is written to stays zero.
        let zeros = |length: usize| {
            let mut scratch = Scratch::take(length);
            scratch.fill(0.0);
            scratch
        };
        let mut state = PairQueries {
            path,
            pairs,
            session: pairs.session(),
            words,
            q: Scratch::take(running.count * words),
            keys: zeros(2 * words * PANEL),
            values: zeros(LINES * running.stride.next_multiple_of(PANEL)),
            scores: Scratch::take(pairs.most() * PAGE_TOKENS),
            chances: Scratch::take(pairs.most() * LINES),
            factors: Scratch::take(pairs.most()),
            running,
        };
        state.load();
        state
    }

    fn load(&mut self) {
        let count = self.running.count;
        for index in 0..count.div_ceil(self.pairs.most()) {
            let block = row_block(count, self.pairs.most(), index);
            let to = &mut self.q[block.start * self.words..block.end * self.words];
            for (row, i) in block.clone().enumerate() {
                let x = self.running.query(i);
                self.path.run_rounding(RoundPairs { x, to, rows: block.len(), row });
            }
        }
    }

    /// Folds every block of keys that a query of this item sees, oldest first.
    pub(super) fn fold_all(&mut self) {
        let Running { item, inputs, dim, stride, .. } = self.running;
        let span = item.span;
        for (page, start, count) in item.pages(inputs.window) {
            let keys = Lines::of_keys(dim, count, self.words);
            let values = Lines::of_values(count, stride);
            match inputs.pool.stored(page, item.head) {
                Stored::F32(k, v) => {
                    self.path.run_rounding(Pair { from: k, stride: PAGE_TOKENS, lines: keys, to: &mut self.keys });
                    self.path.run_rounding(Pair { from: v, stride, lines: values, to: &mut self.values });
                }
                Stored::Bf16(k, v) => {
                    self.path.run_rounding(Zip { from: k, stride: PAGE_TOKENS, lines: keys, to: &mut self.keys });
                    self.path.run_rounding(Zip { from: v, stride, lines: values, to: &mut self.values });
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
        let Running { item, inputs, dim, .. } = self.running;
        let width = inputs.pool.kv_heads() * dim;
        let at = |i: usize| (item.span.row + first + i) * width + item.head * dim;
        self.path.run_rounding(Stand {
            from: &inputs.k[at(0)..at(count - 1) + dim],
            from_stride: width,
            rows: count,
            dim,
            words: self.words,
            to: &mut self.keys,
        });
        let from = &inputs.v[at(0)..at(count - 1) + dim];
        let lines = Lines::of_values(count, dim);
        self.path.run_rounding(Pair { from, stride: width, lines, to: &mut self.values });
    }

    /// Folds `count` keys at positions from `start` on, which lie ready, into every query.
    fn fold(&mut self, start: usize, count: usize) {
        let most = self.pairs.most();
        let stride = self.running.stride;
        let pairs = count.div_ceil(2).next_multiple_of(self.pairs.granule());
        for index in 0..self.running.count.div_ceil(most) {
            let block = row_block(self.running.count, most, index);
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
                low: &self.running.low[block.clone()],
                high: &self.running.high[block.clone()],
                max: &mut self.running.max[block.clone()],
                sum: &mut self.running.sum[block.clone()],
                factors: &mut self.factors,
                chances: &mut self.chances,
            });
            for column in (0..stride).step_by(PANEL) {
                // SAFETY: packed probabilities of 32 words, values `[32, 32]`, results `[queries, stride]`.
                unsafe {
                    self.session.tile(&PairTile {
                        rows,
                        columns: PANEL.min(stride - column),
                        pairs,
                        a: self.chances.as_ptr().cast(),
                        a_rows: rows,
                        b: self.values[column * LINES..].as_ptr().cast(),
                        b_stride: PANEL,
                        index: std::ptr::null(),
                        c: self.running.out[block.start * stride + column..].as_mut_ptr(),
                        c_stride: stride,
                        start: Start::Scale(self.factors.as_ptr()),
                    });
                }
            }
        }
    }
}

/// Lines of words that a page's values make: a word for each two of them.
const LINES: usize = PAGE_TOKENS / 2;

/// How rows of numbers become lines of words, two rows to a line: in blocks of 32 columns, `[columns / 32, lines, 32]`.
#[derive(Clone, Copy)]
struct Lines {
    /// Rows and columns that there are.
    rows: usize,
    columns: usize,
    /// Lines and columns to write, the latter rounded up to whole blocks; zeros where there is nothing.
    lines: usize,
    width: usize,
    /// Lines of a block.
    block: usize,
}

impl Lines {
    /// Of keys `[head_dim, 64]`, `words` of them to a block.
    fn of_keys(dim: usize, count: usize, words: usize) -> Lines {
        Lines { rows: dim, columns: count, lines: dim.div_ceil(2), width: PAGE_TOKENS, block: words }
    }

    /// Of values `[64, columns]`.
    fn of_values(count: usize, columns: usize) -> Lines {
        Lines { rows: count, columns, lines: LINES, width: columns, block: LINES }
    }

    /// The two rows of a line from a column on: in place, or as much as there is of them and zeros.
    #[inline(always)]
    fn two<'a, T: Copy>(
        self,
        line: usize,
        column: usize,
        from: &'a [T],
        stride: usize,
        spare: &'a mut [[T; PANEL]; 2],
    ) -> [&'a [T; PANEL]; 2] {
        let here = self.columns.saturating_sub(column).min(PANEL);
        let row = |row: usize| &from[row * stride + column..][..here];
        if let (PANEL, true) = (here, 2 * line + 1 < self.rows)
            && let (Some(low), Some(high)) = (row(2 * line).first_chunk(), row(2 * line + 1).first_chunk())
        {
            return [low, high];
        }
        for (number, spare) in (2 * line..self.rows).zip(&mut *spare) {
            spare[..here].copy_from_slice(if here == 0 { &[] } else { row(number) });
        }
        let [low, high] = spare;
        [low, high]
    }

    /// Where a line's word of a column goes.
    #[inline(always)]
    fn place(self, line: usize, column: usize) -> usize {
        (column / PANEL * self.block + line) * PANEL + column % PANEL
    }
}

/// Rounds rows of floats two by two into lines of words.
struct Pair<'a> {
    from: &'a [f32],
    stride: usize,
    lines: Lines,
    to: &'a mut [f32],
}

impl Task for Pair<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pair { from, stride, lines, to } = self;
        for line in 0..lines.lines {
            for column in (0..lines.width).step_by(PANEL) {
                let mut spare = [[0f32; PANEL]; 2];
                let rows = lines.two(line, column, from, stride, &mut spare);
                let to = &mut to[lines.place(line, column)..][..PANEL];
                for lane in (0..PANEL).step_by(S::LANES) {
                    // SAFETY: 32 floats each, and 32 words.
                    unsafe {
                        let words = s.pairs(s.load(rows[0].as_ptr().add(lane)), s.load(rows[1].as_ptr().add(lane)));
                        s.store_words(to.as_mut_ptr().cast::<u32>().add(lane), words);
                    }
                }
            }
        }
    }
}

/// [`Pair`] for rows that are bf16 already.
struct Zip<'a> {
    from: &'a [u16],
    stride: usize,
    lines: Lines,
    to: &'a mut [f32],
}

impl Task for Zip<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Zip { from, stride, lines, to } = self;
        for line in 0..lines.lines {
            for column in (0..lines.width).step_by(PANEL) {
                let mut spare = [[0u16; PANEL]; 2];
                let rows = lines.two(line, column, from, stride, &mut spare);
                let to = &mut to[lines.place(line, column)..][..PANEL];
                // SAFETY: 32 halves each, and 32 words.
                unsafe { s.zip(rows[0].as_ptr(), rows[1].as_ptr(), to.as_mut_ptr().cast()) };
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
        assert!(self.scores.len() >= rows * PAGE_TOKENS && self.chances.len() >= rows * LINES);
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
            let (before, most) = (self.max[row], s.largest(most));
            let max = if most > before { most } else { before };
            // A query that has seen nothing yet keeps its infinite maximum; its differences must not become NaN.
            let shift = s.splat(if max > f32::NEG_INFINITY { max } else { 0.0 });
            let factor = if max > before { s.largest(exp(s, s.sub(s.splat(before), shift))) } else { 1.0 };
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
