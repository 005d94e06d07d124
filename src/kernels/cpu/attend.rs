//! Attention over ragged spans of rows and paged keys and values.
//!
//! Scores are never materialised beyond 64 keys by 32 queries: blocks of keys are folded into a running maximum, sum
//! and output. Blocks of the prefix are aligned to absolute positions (a page each), so that a row's result does not
//! depend on how the prompt was cut into chunks; a canvas's own keys follow in blocks of 64 from its start.

mod pairs;

use self::pairs::PairQueries;
use super::{
    Cpu,
    kv::{KvPool, PAGE_TOKENS},
    layout::row_block,
    math::exp,
    memory::{Scratch, Shared},
    path::{Checked, Task},
    simd::Simd,
    tile::{Start, Tile},
};
use crate::KernelError;

/// Queries folded together: the columns of a score tile.
const QUERIES: usize = 32;
/// Numbers in the queries of one parallel call: enough queries to pay for widening and transposing keys, while they and
/// their results stay in the second cache level.
const GROUP: usize = 1 << 17;
/// Queries of one call at most.
const MOST: usize = 512;

/// What a row sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Position p sees positions `t ≤ p`, with a window W only `p − W < t`. Everything is read from the pages, the
    /// span's own rows included: write them first.
    Encode,
    /// Every row sees the same last `min(prefix, W − 1)` positions of the prefix (all of it without a window), read
    /// from the pages, and the whole span in both directions, read from `k` and `v`.
    Denoise,
}

/// Consecutive rows of one request.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// First row.
    pub row: usize,
    /// How many rows.
    pub rows: usize,
    /// What they see.
    pub sight: Sight,
    /// Tokens before the first row, which is its position.
    pub prefix: usize,
    /// Pages of the request, 64 positions each.
    pub pages: &'a [u32],
    /// Position of the first token in `pages[0]`, a multiple of 64, not after the first position seen.
    pub from: usize,
}

/// The shape of one layer's attention. Scores are not scaled: queries carry whatever scale there is.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Query heads, a multiple of the pool's heads: query head h reads key head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Sliding window W, or `None` for full layers.
    pub window: Option<usize>,
    /// All rows, in any order of spans; no row belongs to two.
    pub spans: &'a [Span<'a>],
}

/// The slices an attention call works on.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    heads: usize,
    window: Option<usize>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    pool: &'a KvPool,
}

/// One parallel call: some rows of a span under one key head.
#[derive(Clone, Copy)]
struct Item<'a> {
    span: Span<'a>,
    first: usize,
    rows: usize,
    head: usize,
}

impl Item<'_> {
    /// The first position that a row (of the span) sees, and the one after its last.
    fn sees(&self, window: Option<usize>, row: usize) -> (usize, usize) {
        match self.span.sight {
            Sight::Encode => {
                let end = self.span.prefix + row + 1;
                (window.map_or(0, |window| end.saturating_sub(window)), end)
            }
            Sight::Denoise => (self.span.begin(window), self.span.prefix + self.span.rows),
        }
    }

    /// The blocks of keys in pages that any row of this item sees: page, first position, how many. Oldest first, and
    /// aligned to absolute positions.
    fn pages(&self, window: Option<usize>) -> impl Iterator<Item = (u32, usize, usize)> {
        let span = self.span;
        let begin = self.sees(window, self.first).0 / PAGE_TOKENS * PAGE_TOKENS;
        let end = match span.sight {
            Sight::Encode => span.prefix + self.first + self.rows,
            Sight::Denoise => span.prefix,
        };
        (begin..end)
            .step_by(PAGE_TOKENS)
            .map(move |start| (span.pages[(start - span.from) / PAGE_TOKENS], start, PAGE_TOKENS.min(end - start)))
    }
}

/// Keys `[head_dim, 64]` and values `[64, value stride]` of positions `start .. start + count`.
struct Block<'a> {
    start: usize,
    count: usize,
    keys: &'a [f32],
    values: &'a [f32],
}

impl Cpu {
    /// Attention of `q[rows, heads, head_dim]` over the pool and, for denoising spans, `k` and `v`
    /// `[rows, kv_heads, head_dim]`; `out` is `[rows, heads, head_dim]`. Rows of no span are left as they are.
    pub fn attend(
        &self,
        attention: Attention<'_>,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        pool: &KvPool,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let Attention { heads, window, spans } = attention;
        let (kv_heads, dim) = (pool.kv_heads(), pool.head_dim());
        let ratio = heads.checked_div(kv_heads).unwrap_or(0);
        KernelError::expect("query heads, a multiple of the key heads", ratio * kv_heads, heads)?;
        KernelError::below("query heads per key head", 0, ratio)?;
        KernelError::expect("results of attention", q.len(), out.len())?;
        let rows = super::rows::whole_rows("queries", q.len(), heads * dim)?;
        KernelError::expect("keys", rows * kv_heads * dim, k.len())?;
        KernelError::expect("values", rows * kv_heads * dim, v.len())?;
        for span in spans {
            span.check(window, rows, pool)?;
        }
        apart(spans)?;
        let mut items = Vec::new();
        // Fewer where threads would go without.
        let fair = (spans.iter().map(|span| span.rows).sum::<usize>() * kv_heads).div_ceil(4 * self.threads());
        let most = (GROUP / dim.max(1)).clamp(QUERIES, MOST).div_ceil(ratio).min(fair.max(QUERIES / ratio)).max(1);
        for span in spans {
            for part in 0..span.rows.div_ceil(most) {
                let part = row_block(span.rows, most, part);
                items.extend((0..kv_heads).map(|head| Item { span: *span, first: part.start, rows: part.len(), head }));
            }
        }
        let inputs = Inputs { heads, window, q, k, v, pool };
        let path = self.checked();
        let to = Shared::new(out);
        self.pool().run(items.len(), |index| match self.engines.pairs {
            Some(pairs) => {
                let mut state = PairQueries::new(path, pairs, &items[index], &inputs);
                state.fold_all();
                // SAFETY: items cover disjoint rows and heads: spans share no row, and are cut into parts.
                unsafe { state.running.finish(to.get()) };
            }
            None => {
                let mut state = Queries::new(path, &items[index], &inputs);
                state.fold_all();
                // SAFETY: as above.
                unsafe { state.running.finish(to.get()) };
            }
        })
    }
}

impl Span<'_> {
    /// First position that any row sees in the pages.
    fn begin(&self, window: Option<usize>) -> usize {
        match (self.sight, window) {
            (_, None) => 0,
            (Sight::Encode, Some(window)) => (self.prefix + 1).saturating_sub(window),
            (Sight::Denoise, Some(window)) => self.prefix - self.prefix.min(window.saturating_sub(1)),
        }
    }

    /// The position after the last that any row sees in the pages.
    fn end(&self) -> usize {
        match self.sight {
            Sight::Encode => self.prefix + self.rows,
            Sight::Denoise => self.prefix,
        }
    }

    fn check(&self, window: Option<usize>, rows: usize, pool: &KvPool) -> Result<(), KernelError> {
        KernelError::below("end of a span's rows", self.row.saturating_add(self.rows), rows + 1)?;
        KernelError::below("end of a span's positions", self.prefix.saturating_add(self.rows), usize::MAX)?;
        KernelError::expect("first position of the pages, in whole pages", 0, self.from % PAGE_TOKENS)?;
        if self.begin(window) < self.end() {
            KernelError::below("first position of the pages", self.from, self.begin(window) + 1)?;
            let pages = (self.end() - self.from).div_ceil(PAGE_TOKENS);
            KernelError::below("last page of a span", pages - 1, self.pages.len())?;
        }
        for &page in self.pages {
            KernelError::below("page", page as usize, pool.pages())?;
        }
        Ok(())
    }
}

/// Sees that no row belongs to two spans: each span's results are written by threads of their own.
fn apart(spans: &[Span<'_>]) -> Result<(), KernelError> {
    let filled = spans.iter().filter(|span| span.rows > 0);
    let mut rows: Vec<_> = filled.map(|span| (span.row, span.row + span.rows)).collect();
    rows.sort_unstable();
    let mut pairs = rows.windows(2);
    pairs
        .try_for_each(|pair| KernelError::below("end of a span's rows, before the next span", pair[0].1, pair[1].0 + 1))
}

/// What is known so far of an item's queries; query i is row `i / ratio`, head `i % ratio`.
struct Running<'a> {
    item: &'a Item<'a>,
    inputs: &'a Inputs<'a>,
    ratio: usize,
    dim: usize,
    stride: usize,
    count: usize,
    /// `[queries, value stride]`: values summed so far, relative to `max`.
    out: Scratch,
    max: Scratch,
    sum: Scratch,
    /// First position each query sees, and the one after its last; as floats, which are exact up to 2^24.
    low: Scratch,
    high: Scratch,
}

impl<'a> Running<'a> {
    /// Nothing yet, with room for a multiple of `lanes` queries. Lanes without a query see everything, and are not read.
    fn new(item: &'a Item<'a>, inputs: &'a Inputs<'a>, lanes: usize) -> Running<'a> {
        let dim = inputs.pool.head_dim();
        let ratio = inputs.heads / inputs.pool.kv_heads();
        let count = item.rows * ratio;
        let room = count.next_multiple_of(lanes);
        let stride = KvPool::value_stride(dim);
        let filled = |length: usize, value: f32| {
            let mut scratch = Scratch::take(length);
            scratch.fill(value);
            scratch
        };
        let mut running = Running {
            item,
            inputs,
            ratio,
            dim,
            stride,
            count,
            out: filled(room * stride, 0.0),
            max: filled(room, f32::NEG_INFINITY),
            sum: filled(room, 0.0),
            low: filled(room, 0.0),
            high: filled(room, f32::INFINITY),
        };
        for i in 0..count {
            let (low, high) = item.sees(inputs.window, item.first + i / ratio);
            (running.low[i], running.high[i]) = (low as f32, high as f32);
        }
        running
    }

    /// Where query i lies in `[rows, heads, head_dim]`.
    fn place(&self, i: usize) -> usize {
        let row = self.item.span.row + self.item.first + i / self.ratio;
        let head = self.item.head * self.ratio + i % self.ratio;
        (row * self.inputs.heads + head) * self.dim
    }

    /// Query i.
    fn query(&self, i: usize) -> &'a [f32] {
        &self.inputs.q[self.place(i)..][..self.dim]
    }

    /// Writes the results.
    ///
    /// # Safety
    /// `out` must be `[rows, heads, head_dim]`, and nobody else may write this item's rows and heads.
    unsafe fn finish(&self, out: *mut f32) {
        for i in 0..self.count {
            // SAFETY: inside `out`, and this item's own.
            let to = unsafe { std::slice::from_raw_parts_mut(out.add(self.place(i)), self.dim) };
            for (y, x) in to.iter_mut().zip(&self.out[i * self.stride..]) {
                *y = x / self.sum[i];
            }
        }
    }
}

/// The queries of an item in floats, in tiles of 32 lanes.
struct Queries<'a> {
    path: Checked,
    running: Running<'a>,
    /// Tiles of `[head_dim, 32]`.
    q: Scratch,
    scores: Scratch,
    factors: Scratch,
}

impl<'a> Queries<'a> {
    fn new(path: Checked, item: &'a Item<'a>, inputs: &'a Inputs<'a>) -> Queries<'a> {
        let running = Running::new(item, inputs, QUERIES);
        let mut q = Scratch::take(running.count.next_multiple_of(QUERIES) * running.dim);
        q.fill(0.0);
        for i in 0..running.count {
            let to = &mut q[i / QUERIES * QUERIES * running.dim..];
            for (d, &x) in running.query(i).iter().enumerate() {
                to[d * QUERIES + i % QUERIES] = x;
            }
        }
        let (scores, factors) = (Scratch::take(PAGE_TOKENS * QUERIES), Scratch::take(QUERIES));
        Queries { path, running, q, scores, factors }
    }

    /// Folds every block of keys that a query of this item sees, oldest first.
    fn fold_all(&mut self) {
        let Running { item, inputs, dim, stride, .. } = self.running;
        let (span, pool, head) = (item.span, inputs.pool, item.head);
        let mut scratch = Scratch::take(pool.scratch());
        for (page, start, count) in item.pages(inputs.window) {
            let (keys, values) = pool.head(page, head, &mut scratch);
            self.fold(&Block { start, count, keys, values });
        }
        if span.sight == Sight::Denoise {
            let mut keys = Scratch::take(PAGE_TOKENS * dim);
            let mut values = Scratch::take(PAGE_TOKENS * stride);
            for first in (0..span.rows).step_by(PAGE_TOKENS) {
                let count = PAGE_TOKENS.min(span.rows - first);
                for i in 0..count {
                    let at = ((span.row + first + i) * pool.kv_heads() + head) * dim;
                    for (d, &x) in inputs.k[at..at + dim].iter().enumerate() {
                        keys[d * PAGE_TOKENS + i] = x;
                    }
                    values[i * stride..][..dim].copy_from_slice(&inputs.v[at..at + dim]);
                }
                self.fold(&Block { start: span.prefix + first, count, keys: &keys, values: &values });
            }
        }
    }

    /// Folds one block into every tile of queries.
    fn fold(&mut self, block: &Block<'_>) {
        let most = self.path.tile_rows();
        let Running { count, dim, stride, .. } = self.running;
        for first in (0..count).step_by(QUERIES) {
            let lanes = first..first + QUERIES;
            // Scores, keys down and queries across.
            for index in 0..block.count.div_ceil(most) {
                let keys = row_block(block.count, most, index);
                // SAFETY: keys are `[head_dim, 64]`, a tile of queries `[head_dim, 32]`, scores `[64, 32]`.
                unsafe {
                    self.path.tile(&Tile {
                        rows: keys.len(),
                        columns: QUERIES,
                        k: dim,
                        a: block.keys[keys.start..].as_ptr(),
                        a_stride: PAGE_TOKENS,
                        b: self.q[first * dim..].as_ptr(),
                        b_stride: QUERIES,
                        index: std::ptr::null(),
                        c: self.scores[keys.start * QUERIES..].as_mut_ptr(),
                        c_stride: QUERIES,
                        start: Start::Zero,
                    });
                }
            }
            self.path.run(Fold {
                scores: &mut self.scores,
                start: block.start as f32,
                count: block.count,
                low: &self.running.low[lanes.clone()],
                high: &self.running.high[lanes.clone()],
                max: &mut self.running.max[lanes.clone()],
                sum: &mut self.running.sum[lanes],
                factors: &mut self.factors,
            });
            let queries = QUERIES.min(count - first);
            for index in 0..queries.div_ceil(most) {
                let rows = row_block(queries, most, index);
                // SAFETY: probabilities are `[64, 32]`, values `[64, stride]`, results `[lanes, stride]`.
                unsafe {
                    self.path.tile(&Tile {
                        rows: rows.len(),
                        columns: stride,
                        k: block.count,
                        a: self.scores[rows.start..].as_ptr(),
                        a_stride: QUERIES,
                        b: block.values.as_ptr(),
                        b_stride: stride,
                        index: std::ptr::null(),
                        c: self.running.out[(first + rows.start) * stride..].as_mut_ptr(),
                        c_stride: stride,
                        start: Start::Scale(self.factors[rows.start..].as_ptr()),
                    });
                }
            }
        }
    }
}

/// Turns a tile of scores into probabilities relative to the running maximum, and moves maximum and sum on.
struct Fold<'a> {
    scores: &'a mut [f32],
    start: f32,
    count: usize,
    low: &'a [f32],
    high: &'a [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    factors: &'a mut [f32],
}

impl Task for Fold<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let end = self.start + self.count as f32;
        let all_seen = self.low.iter().all(|&low| low <= self.start) && self.high.iter().all(|&high| high >= end);
        let hidden = s.splat(f32::NEG_INFINITY);
        for lane in (0..QUERIES).step_by(S::LANES) {
            // SAFETY: scores are `[64, 32]` with `count ≤ 64`, the other slices have 32 numbers.
            unsafe {
                let scores = self.scores.as_mut_ptr().add(lane);
                let old = s.load(self.max.as_ptr().add(lane));
                let mut max = old;
                if all_seen {
                    for j in 0..self.count {
                        max = s.max(s.load(scores.add(j * QUERIES)), max);
                    }
                } else {
                    let (low, high) = (s.load(self.low.as_ptr().add(lane)), s.load(self.high.as_ptr().add(lane)));
                    for j in 0..self.count {
                        let t = s.splat(self.start + j as f32);
                        let score = s.load(scores.add(j * QUERIES));
                        let score = s.select(s.lt(t, high), score, hidden);
                        let score = s.select(s.lt(t, low), hidden, score);
                        s.store(scores.add(j * QUERIES), score);
                        max = s.max(score, max);
                    }
                }
                // A query that has seen nothing yet keeps its infinite maximum; its differences must not become NaN.
                let shift = s.select(s.lt(hidden, max), max, s.splat(0.0));
                let factor = exp(s, s.sub(old, shift));
                let mut sum = s.mul(s.load(self.sum.as_ptr().add(lane)), factor);
                for j in 0..self.count {
                    let p = exp(s, s.sub(s.load(scores.add(j * QUERIES)), shift));
                    s.store(scores.add(j * QUERIES), p);
                    sum = s.add(sum, p);
                }
                s.store(self.max.as_mut_ptr().add(lane), max);
                s.store(self.sum.as_mut_ptr().add(lane), sum);
                s.store(self.factors.as_mut_ptr().add(lane), factor);
            }
        }
    }
}
