//! Attention over paged keys and values: the pools, and the opaque `attend`.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::backend::{Backend, host, kernel, numbers};
use super::config::LayerKind;
use super::plan::{Mode, Plan, Span, visible};
use crate::kernels::cpu;

/// Positions per page.
pub(super) const PAGE_TOKENS: usize = cpu::PAGE_TOKENS;

/// Keys and values of one layer.
pub(super) enum KvPool {
    /// Our kernels' pages.
    Own(cpu::KvPool),
    /// Two tensors `[pages · 64, kv_heads, head_dim]` of the backend's type.
    Twin { keys: Tensor, values: Tensor },
}

impl KvPool {
    pub fn new(backend: &Backend, pages: usize, kv_heads: usize, head_dim: usize) -> Result<KvPool> {
        if backend.cpu.is_some() {
            return Ok(KvPool::Own(cpu::KvPool::new(backend.kv, pages, kv_heads, head_dim)));
        }
        let shape = (pages * PAGE_TOKENS, kv_heads, head_dim);
        let zeros = || Tensor::zeros(shape, backend.kv_type(), &backend.device);
        Ok(KvPool::Twin { keys: zeros()?, values: zeros()? })
    }

    /// Writes the encode rows' keys and values, both `[rows, kv_heads, head_dim]`.
    pub fn write(&mut self, backend: &Backend, kind: LayerKind, plan: &Plan<'_>, k: &Tensor, v: &Tensor) -> Result<()> {
        match self {
            KvPool::Own(pool) => {
                let writes: Vec<_> = plan.encodes.iter().map(|span| kv_write(span, kind)).collect();
                let Some(cpu) = &backend.cpu else { candle_core::bail!("pages of the kernels without kernels") };
                numbers(k, |k| numbers(v, |v| cpu.write(pool, k, v, &writes).map_err(kernel)))
            }
            KvPool::Twin { keys, values } => {
                plan.encodes.iter().try_for_each(|span| copy_span(keys, values, span, kind, k, v))
            }
        }
    }

    /// Keys and values of some positions of a view on the twins' pages, each `[positions, kv_heads, head_dim]`.
    fn select(
        keys: &Tensor,
        values: &Tensor,
        backend: &Backend,
        (span, kind): (&Span<'_>, LayerKind),
        positions: Range<usize>,
    ) -> Result<(Tensor, Tensor)> {
        let rows = positions.map(|p| pool_row(span, kind, p).map(|r| r as u32)).collect::<Result<Vec<_>>>()?;
        let rows = backend.indices(rows)?;
        let wide = |all: &Tensor| all.index_select(&rows, 0)?.to_dtype(DType::F32);
        Ok((wide(keys)?, wide(values)?))
    }

    /// Key and value of one row of the pool (`page · 64 + offset`) on the host, each `[kv_heads, head_dim]`.
    pub fn row(&self, row: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        match self {
            KvPool::Own(pool) => {
                let dim = pool.head_dim();
                let mut k = vec![0.0; pool.kv_heads() * dim];
                let mut v = k.clone();
                let (page, offset) = ((row / PAGE_TOKENS) as u32, row % PAGE_TOKENS);
                for (head, (k, v)) in k.chunks_exact_mut(dim).zip(v.chunks_exact_mut(dim)).enumerate() {
                    pool.read(page, offset, head, k, v).map_err(kernel)?;
                }
                Ok((k, v))
            }
            KvPool::Twin { keys, values } => {
                let wide = |all: &Tensor| host(&all.narrow(0, row, 1)?.to_dtype(DType::F32)?);
                Ok((wide(keys)?, wide(values)?))
            }
        }
    }
}

fn kv_write<'a>(span: &'a Span<'_>, kind: LayerKind) -> cpu::KvWrite<'a> {
    let (pages, from) = span.pages(kind);
    cpu::KvWrite { row: span.rows.start, rows: span.rows.len(), position: span.kv.len, pages, from }
}

/// One copy per page.
fn copy_span(keys: &Tensor, values: &Tensor, span: &Span<'_>, kind: LayerKind, k: &Tensor, v: &Tensor) -> Result<()> {
    let mut row = span.rows.start;
    let mut position = span.kv.len;
    while row < span.rows.end {
        let run = (PAGE_TOKENS - position % PAGE_TOKENS).min(span.rows.end - row);
        let target = pool_row(span, kind, position)?;
        for (pool, rows) in [(keys, k), (values, v)] {
            pool.slice_set(&rows.narrow(0, row, run)?.to_dtype(pool.dtype())?.contiguous()?, 0, target)?;
        }
        row += run;
        position += run;
    }
    Ok(())
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
        match self.pool {
            KvPool::Own(pool) => self.own(pool),
            KvPool::Twin { keys, values } => self.twin(keys, values),
        }
    }

    fn own(&self, pool: &cpu::KvPool) -> Result<Tensor> {
        let Some(cpu) = &self.backend.cpu else { candle_core::bail!("pages of the kernels without kernels") };
        let (rows, heads, dim) = self.q.dims3()?;
        let span = |span: &Span<'_>, sight| (span.rows.clone(), span.kv.len, sight);
        let mut spans = Vec::new();
        if self.first_query == 0 {
            spans.extend(self.plan.encodes.iter().map(|s| (span(s, cpu::Sight::Encode), s)));
        }
        spans.extend(self.plan.denoises.iter().map(|(s, _)| (span(s, cpu::Sight::Denoise), s)));
        let spans: Vec<cpu::Span<'_>> = spans
            .into_iter()
            .map(|((rows, prefix, sight), span)| {
                let (pages, from) = span.pages(self.kind);
                cpu::Span { row: rows.start - self.first_query, rows: rows.len(), sight, prefix, pages, from }
            })
            .collect();
        let window = match self.kind {
            LayerKind::Sliding => Some(self.window),
            LayerKind::Full => None,
        };
        let attention = cpu::Attention { heads, window, spans: &spans };
        let mut out = vec![0.0; self.q.elem_count()];
        let own = |t: &Tensor| t.narrow(0, self.first_query, rows);
        numbers(self.q, |q| {
            numbers(&own(self.k)?, |k| {
                numbers(&own(self.v)?, |v| cpu.attend(attention, q, k, v, pool, &mut out).map_err(kernel))
            })
        })?;
        Tensor::from_vec(out, (rows, heads * dim), self.q.device())
    }

    fn twin(&self, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let mut outputs = Vec::new();
        if self.first_query == 0 {
            for span in &self.plan.encodes {
                outputs.push(self.encode(keys, values, span)?);
            }
        }
        for (span, _) in &self.plan.denoises {
            outputs.push(self.denoise(keys, values, span)?);
        }
        Tensor::cat(&outputs, 0)
    }

    fn encode(&self, keys: &Tensor, values: &Tensor, span: &Span<'_>) -> Result<Tensor> {
        let seen = |position| visible(self.kind, self.window, span.kv, Mode::Encode { position });
        let (first, end) = (span.kv.len, span.kv.len + span.rows.len());
        let all = seen(first).start..end;
        let (k, v) = KvPool::select(keys, values, self.backend, (span, self.kind), all.clone())?;
        let mut mask = Vec::with_capacity(span.rows.len() * all.len());
        for position in first..end {
            let seen = seen(position);
            mask.extend(all.clone().map(|t| if seen.contains(&t) { 0.0 } else { f32::NEG_INFINITY }));
        }
        let mask = self.backend.tensor(mask, &[1, span.rows.len(), all.len()])?;
        self.softmax(span, &k, &v, Some(&mask))
    }

    fn denoise(&self, keys: &Tensor, values: &Tensor, span: &Span<'_>) -> Result<Tensor> {
        let seen = visible(self.kind, self.window, span.kv, Mode::Denoise);
        let own = |t: &Tensor| t.narrow(0, span.rows.start, span.rows.len());
        let (k, v) = (own(self.k)?, own(self.v)?);
        if seen.is_empty() {
            return self.softmax(span, &k, &v, None);
        }
        let (pk, pv) = KvPool::select(keys, values, self.backend, (span, self.kind), seen)?;
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
