//! The vocabulary head: one streaming sweep over the embedding that never holds more than a tile of logits.
//!
//! Per row it keeps the running maximum m, S = Σ exp(z−m), Σ (m−z)·exp(z−m) (so that the entropy is ln S + that/S,
//! without cancellation), the argmax, the best candidates, every tile's mass, and Σ exp(z−m)·E: the *next* step's soft
//! embedding, since a step's temperature is known before it runs. One uniform number per row then picks a tile by its
//! mass and a token inside it, whose logits are computed again.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{DType, Result, Tensor};

use super::backend::{Backend, kernel, numbers};
use super::clock::Clock;
use super::linear::tensor_bytes;
use super::observe::Observer;
use super::options::WeightType;
use super::vocab_twin::Twin;
use crate::kernels::ElementType;
use crate::kernels::cpu::{self, Cpu, PackedMatrix, SweepTimes};
use crate::pass::{CANDIDATES, Candidate, Draw, Head, Row};

// The kernels know nothing of passes and have the number a second time.
const _: () = assert!(cpu::CANDIDATES == CANDIDATES);

/// Entries of the softmax below e^−28 of the best one are left out of soft embeddings: f32 could not show them.
const NEGLIGIBLE: f32 = 28.0;

/// The embedding, which is also the output head.
pub(super) struct VocabHead {
    pub table: Table,
    pub vocabulary: usize,
    pub softcap: f32,
    /// √H as the embedding's type rounds it.
    pub scale: f32,
    /// Columns per tile.
    pub tile: usize,
}

/// √H, which the reference rounds to the embedding's type (its section 3.1): the one that it is stored in, or that a plain
/// one is converted to. Block formats are made from bf16 checkpoints.
pub(super) fn embedding_scale(hidden: usize, dtype: Option<WeightType>, stored: ElementType) -> f32 {
    let root = (hidden as f64).sqrt() as f32;
    match (dtype, stored) {
        (Some(WeightType::F32), ElementType::F32 | ElementType::F16 | ElementType::Bf16) | (None, ElementType::F32) => {
            root
        }
        (None, ElementType::F16) => half::f16::from_f32(root).to_f32(),
        _ => half::bf16::from_f32(root).to_f32(),
    }
}

/// Where the embedding `[vocabulary, hidden]` lies.
pub(super) enum Table {
    /// Our kernels.
    Own(Arc<Cpu>, PackedMatrix),
    /// Plain candle operations, in the stored type.
    Twin(Tensor),
}

impl Table {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Table::Own(_, table) => table.bytes(),
            Table::Twin(table) => tensor_bytes(table),
        }
    }
}

/// The rows of one canvas.
pub(super) struct Request<'a> {
    /// Rows within the hidden states given to the sweep; requests follow each other without gaps.
    pub rows: Range<usize>,
    pub head: &'a Head,
    /// The canvas as the pass saw it.
    pub tokens: &'a [u32],
    pub uniforms: &'a [f32],
}

/// What a sweep yields.
pub(super) struct Swept {
    /// One per row of hidden states. A row whose logits are not finite has a `lse` that is not finite.
    pub rows: Vec<Row>,
    /// softmax(z)·E·√H per row, `[rows, hidden]`: the next step's soft embedding.
    pub soft: Tensor,
    /// How much of the sweep's time went into `soft`, as far as that is known.
    pub soft_time: Duration,
}

impl VocabHead {
    /// `E[tokens] · √H`, `[tokens, hidden]`, f32.
    pub fn embed(&self, backend: &Backend, tokens: &[u32]) -> Result<Tensor> {
        match &self.table {
            Table::Own(cpu, table) => {
                let mut rows = vec![0.0; tokens.len() * table.inputs()];
                cpu.embed(table, tokens, self.scale, &mut rows).map_err(kernel)?;
                backend.tensor(rows, &[tokens.len(), table.inputs()])
            }
            Table::Twin(table) => {
                let rows = table.index_select(&backend.indices(tokens.to_vec())?, 0)?.to_dtype(DType::F32)?;
                rows * f64::from(self.scale)
            }
        }
    }

    /// Statistics, draw and soft embedding of every row of `hidden [rows, hidden]` (after the final norm).
    pub fn sweep(
        &self,
        backend: &Backend,
        hidden: &Tensor,
        requests: &[Request<'_>],
        (clock, observer): (&Clock, &mut dyn Observer),
    ) -> Result<Swept> {
        match &self.table {
            Table::Own(cpu, table) => self.own(cpu, table, hidden, requests, (clock, observer)),
            Table::Twin(table) => Twin::new(self, table, backend, hidden, requests)?.sweep(observer),
        }
    }

    fn own(
        &self,
        cpu: &Cpu,
        table: &PackedMatrix,
        hidden: &Tensor,
        requests: &[Request<'_>],
        (clock, observer): (&Clock, &mut dyn Observer),
    ) -> Result<Swept> {
        let times = SweepTimes::default();
        let heads: Vec<cpu::Head<'_>> = requests.iter().map(Request::for_kernel).collect();
        // Tiles are seen from several threads; an observer is told afterwards.
        let seen = Mutex::new(Vec::new());
        let watch = |row: usize, first: usize, logits: &[f32]| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push((row, first, logits.to_vec()));
        };
        let sweep = cpu::Sweep {
            softcap: Some(self.softcap),
            tile: self.tile,
            negligible: NEGLIGIBLE,
            heads: &heads,
            watch: observer.wants_logits().then_some(&watch),
            times: clock.is_running().then_some(&times),
        };
        let begun = Instant::now();
        let mut soft = vec![0.0; hidden.elem_count()];
        // A token that stays where it is is the best guess at the most likely one.
        let hints: Vec<u32> = requests.iter().flat_map(|request| request.tokens).copied().collect();
        let rows = numbers(hidden, |h| cpu.sweep_from(h, table, &sweep, &hints, Some(&mut soft)).map_err(kernel))?;
        // Threads work on different parts at a time: the parts' shares are those of all threads together.
        let parts = times.logits() + times.statistics() + times.soft();
        let soft_time = begun.elapsed().mul_f64(times.soft().as_secs_f64() / parts.as_secs_f64().max(1e-9));
        for (row, first, logits) in seen.into_inner().unwrap_or_else(PoisonError::into_inner) {
            observer.logits(row, first, &logits);
        }
        soft.iter_mut().for_each(|x| *x *= self.scale);
        let rows = rows.into_iter().map(row).collect();
        Ok(Swept { rows, soft: Tensor::from_vec(soft, hidden.shape(), hidden.device())?, soft_time })
    }
}

impl Request<'_> {
    fn for_kernel(&self) -> cpu::Head<'_> {
        cpu::Head {
            rows: self.rows.len(),
            temperature: self.head.temperature,
            draw: match self.head.draw {
                Draw::Argmax => cpu::Draw::Argmax,
                Draw::Scaled { temperature, top_p } => cpu::Draw::Scaled { temperature, top_p },
            },
            uniforms: self.uniforms,
            bias: &self.head.bias,
            top_k: self.head.top_k.into(),
        }
    }
}

fn row(statistics: cpu::Statistics) -> Row {
    let top = statistics.top.iter().map(|c| Candidate { token: c.token, logit: c.logit }).collect();
    Row {
        argmax: statistics.argmax,
        sampled: statistics.sampled,
        max: statistics.max,
        lse: if statistics.finite { statistics.lse } else { f32::NAN },
        entropy: statistics.entropy,
        top,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_rounded_as_the_embedding_is() {
        use {ElementType as E, WeightType as W};
        let exact = 2816f32.sqrt();
        for (dtype, stored, rounded) in [
            (None, E::F32, exact),
            (Some(W::F32), E::Bf16, exact),
            (Some(W::F32), E::F16, exact),
            (None, E::F16, 53.0625),
            (None, E::Bf16, 53.0),
            (None, E::Q4K, 53.0),
            (Some(W::Bf16), E::F32, 53.0),
            (Some(W::Bf16), E::F16, 53.0),
            // The numbers are those that a bf16 checkpoint was rounded to; unpacking them undoes nothing.
            (Some(W::F32), E::Q8_0, 53.0),
        ] {
            assert_eq!(embedding_scale(2816, dtype, stored), rounded, "{dtype:?} {stored:?}");
        }
    }
}
