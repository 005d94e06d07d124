//! Attention over paged keys and values: the pools, and the opaque `attend`.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::backend::{Backend, host};
use super::config::LayerKind;
use super::plan::{Mode, Plan, Span, visible};

/// Positions per page.
pub(super) const PAGE_TOKENS: usize = 64;

/// Keys and values of one layer: rows of the pool are `page · 64 + offset`.
pub(super) enum KvPool {
    /// Two tensors `[pages · 64, kv_heads, head_dim]`.
    Twin { keys: Tensor, values: Tensor },
}

impl KvPool {
    pub fn new(backend: &Backend, pages: usize, kv_heads: usize, head_dim: usize) -> Result<KvPool> {
        let shape = (pages * PAGE_TOKENS, kv_heads, head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, &backend.device);
        Ok(KvPool::Twin { keys: zeros()?, values: zeros()? })
    }

    /// Writes the encode rows' keys and values, both `[rows, kv_heads, head_dim]`.
    pub fn write(&mut self, kind: LayerKind, plan: &Plan<'_>, k: &Tensor, v: &Tensor) -> Result<()> {
        for span in &plan.encodes {
            let mut row = span.rows.start;
            let mut position = span.kv.len;
            // One copy per page.
            while row < span.rows.end {
                let run = (PAGE_TOKENS - position % PAGE_TOKENS).min(span.rows.end - row);
                let target = pool_row(span, kind, position)?;
                match self {
                    KvPool::Twin { keys, values } => {
                        keys.slice_set(&k.narrow(0, row, run)?.contiguous()?, 0, target)?;
                        values.slice_set(&v.narrow(0, row, run)?.contiguous()?, 0, target)?;
                    }
                }
                row += run;
                position += run;
            }
        }
        Ok(())
    }

    /// Keys and values of some positions of a view, each `[positions, kv_heads, head_dim]`.
    pub fn read(
        &self,
        backend: &Backend,
        kind: LayerKind,
        span: &Span<'_>,
        positions: Range<usize>,
    ) -> Result<(Tensor, Tensor)> {
        self.select(backend, positions.map(|p| pool_row(span, kind, p)).collect::<Result<Vec<_>>>()?)
    }

    fn select(&self, backend: &Backend, rows: Vec<usize>) -> Result<(Tensor, Tensor)> {
        let rows = backend.indices(rows.into_iter().map(|r| r as u32).collect())?;
        match self {
            KvPool::Twin { keys, values } => Ok((keys.index_select(&rows, 0)?, values.index_select(&rows, 0)?)),
        }
    }

    /// Some rows of the pool on the host.
    pub fn rows(&self, backend: &Backend, rows: Vec<usize>) -> Result<(Vec<f32>, Vec<f32>)> {
        let (keys, values) = self.select(backend, rows)?;
        Ok((host(&keys)?, host(&values)?))
    }
}

/// The plan has checked every view, so a miss is a bug of ours; it is reported, not suffered.
fn pool_row(span: &Span<'_>, kind: LayerKind, position: usize) -> Result<usize> {
    match span.kv.row(kind, position, PAGE_TOKENS) {
        Some(row) => Ok(row),
        None => candle_core::bail!("position {position} lies on no page of its view"),
    }
}

/// What one layer's attention works on.
pub(super) struct Attend<'a> {
    pub backend: &'a Backend,
    pub plan: &'a Plan<'a>,
    pub kind: LayerKind,
    pub window: usize,
    pub pool: &'a KvPool,
    /// Queries of the rows from `first_query` on, `[rows − first_query, heads, head_dim]`.
    pub q: &'a Tensor,
    /// The first row that asks: 0, or the first denoise row where encode rows need no output.
    pub first_query: usize,
    /// Keys of all rows, `[rows, kv_heads, head_dim]`.
    pub k: &'a Tensor,
    /// Values of all rows.
    pub v: &'a Tensor,
}

impl Attend<'_> {
    /// Softmax(q·kᵀ)·v with scale 1 over what each row sees: `[rows − first_query, heads · head_dim]`.
    pub fn run(&self) -> Result<Tensor> {
        let mut outputs = Vec::new();
        if self.first_query == 0 {
            for span in &self.plan.encodes {
                outputs.push(self.encode(span)?);
            }
        }
        for (span, _) in &self.plan.denoises {
            outputs.push(self.denoise(span)?);
        }
        Tensor::cat(&outputs, 0)
    }

    fn encode(&self, span: &Span<'_>) -> Result<Tensor> {
        let seen = |position| visible(self.kind, self.window, span.kv, Mode::Encode { position });
        let (first, last) = (span.kv.len, span.kv.len + span.rows.len() - 1);
        let all = seen(first).start..seen(last).end;
        let (k, v) = self.pool.read(self.backend, self.kind, span, all.clone())?;
        let mut mask = Vec::with_capacity(span.rows.len() * all.len());
        for position in first..=last {
            let seen = seen(position);
            mask.extend(all.clone().map(|t| if seen.contains(&t) { 0.0 } else { f32::NEG_INFINITY }));
        }
        let mask = self.backend.tensor(mask, &[1, span.rows.len(), all.len()])?;
        self.softmax(span, &k, &v, Some(&mask))
    }

    fn denoise(&self, span: &Span<'_>) -> Result<Tensor> {
        let seen = visible(self.kind, self.window, span.kv, Mode::Denoise);
        let own = |t: &Tensor| t.narrow(0, span.rows.start, span.rows.len());
        let (k, v) = (own(self.k)?, own(self.v)?);
        if seen.is_empty() {
            return self.softmax(span, &k, &v, None);
        }
        let (pk, pv) = self.pool.read(self.backend, self.kind, span, seen)?;
        self.softmax(span, &Tensor::cat(&[&pk, &k], 0)?, &Tensor::cat(&[&pv, &v], 0)?, None)
    }

    /// `k`, `v`: `[keys, kv_heads, head_dim]`; query head h uses key head `h / (heads / kv_heads)`.
    fn softmax(&self, span: &Span<'_>, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (_, heads, dim) = self.q.dims3()?;
        let (keys, kv_heads, _) = k.dims3()?;
        let rows = span.rows.len();
        let group = heads / kv_heads;
        let q = self.q.narrow(0, span.rows.start - self.first_query, rows)?;
        let q = q.reshape((rows, kv_heads, group, dim))?.permute((1, 2, 0, 3))?.contiguous()?;
        let q = q.reshape((kv_heads, group * rows, dim))?;
        let scores = q.matmul(&k.permute((1, 2, 0))?.contiguous()?)?.reshape((heads, rows, keys))?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let p = candle_nn::ops::softmax_last_dim(&scores)?.reshape((kv_heads, group * rows, keys))?;
        let out = p.matmul(&v.transpose(0, 1)?.contiguous()?)?.reshape((kv_heads, group, rows, dim))?;
        out.permute((2, 0, 1, 3))?.contiguous()?.reshape((rows, heads * dim))
    }
}
