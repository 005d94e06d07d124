//! The mixture branch: the router, and the opaque grouped product of the experts.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::backend::{Backend, host, kernel, numbers, product};
use super::linear::{Linear, gated, tensor_bytes};
use super::norm::RmsNorm;
use crate::kernels::cpu::{self, Cpu};

/// Which experts each row goes to.
pub(super) struct Routing {
    /// Experts per row.
    pub top_k: usize,
    /// `[rows · top_k]`, best first within a row.
    pub experts: Vec<u32>,
    /// `[rows · top_k]`, the weight of each.
    pub weights: Vec<f32>,
}

/// Scores rows and picks their experts (the model's reference, section 3.3).
pub(super) struct Router {
    /// Its weight is `router.scale · H^(−1/2)`.
    pub norm: RmsNorm,
    pub proj: Linear,
    pub per_expert_scale: Vec<f32>,
    pub top_k: usize,
}

impl Router {
    /// `x` is the residual stream after [`Router::norm`], `[rows, hidden]`.
    pub fn route(&self, x: &Tensor) -> Result<Routing> {
        let count = self.per_expert_scale.len();
        let scores = host(&self.proj.forward(x)?)?;
        let rows = scores.len() / count;
        let mut routing = Routing {
            top_k: self.top_k,
            experts: Vec::with_capacity(rows * self.top_k),
            weights: Vec::with_capacity(rows * self.top_k),
        };
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(self.top_k + 1);
        for row in scores.chunks_exact(count) {
            self.choose(row, &mut best, &mut routing);
        }
        Ok(routing)
    }

    /// Softmax over all experts, the best `top_k` renormalised to sum 1, then each expert's own scale.
    fn choose(&self, scores: &[f32], best: &mut Vec<(u32, f32)>, routing: &mut Routing) {
        best.clear();
        for (expert, &score) in scores.iter().enumerate() {
            // A total order keeps damaged (NaN) scores from upsetting the choice; ties go to the lower index.
            let better = |&(_, other): &(u32, f32)| other.total_cmp(&score).is_ge();
            if best.len() < self.top_k || !best.last().is_some_and(better) {
                let at = best.partition_point(better);
                best.insert(at, (expert as u32, score));
                best.truncate(self.top_k);
            }
        }
        // The softmax's common factor cancels in the renormalisation.
        let max = best.first().map_or(0.0, |&(_, score)| score);
        let sum: f32 = best.iter().map(|&(_, score)| (score - max).exp()).sum();
        for &(expert, score) in best.iter() {
            routing.experts.push(expert);
            routing.weights.push((score - max).exp() / sum * self.per_expert_scale[expert as usize]);
        }
    }
}

/// All experts of one layer.
pub(super) enum Experts {
    /// Our kernels.
    Own(Arc<Cpu>, cpu::Experts),
    /// Plain candle operations: `gate_up [2·intermediate, hidden]` and `down [hidden, intermediate]` per expert. Kept
    /// apart because a product with a slice of a stacked tensor would convert the whole stack on the CPU.
    Twin(Vec<(Tensor, Tensor)>),
}

impl Experts {
    /// `Σ weight · expert(row)`, summed by rank: `[rows, hidden]` to the same.
    pub fn forward(&self, backend: &Backend, x: &Tensor, routing: &Routing) -> Result<Tensor> {
        match self {
            Experts::Own(cpu, experts) => own(cpu, experts, x, routing),
            Experts::Twin(experts) => twin(backend, experts, x, routing),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Experts::Own(_, experts) => experts.bytes(),
            Experts::Twin(experts) => experts.iter().map(|(a, b)| tensor_bytes(a) + tensor_bytes(b)).sum(),
        }
    }
}

fn own(cpu: &Cpu, experts: &cpu::Experts, x: &Tensor, routing: &Routing) -> Result<Tensor> {
    let mut out = vec![0.0; x.elem_count()];
    let routing = cpu::Routing { experts: &routing.experts, weights: &routing.weights, top_k: routing.top_k };
    numbers(x, |x| cpu.experts(x, routing, experts, &mut out).map_err(kernel))?;
    Tensor::from_vec(out, x.shape(), x.device())
}

fn twin(backend: &Backend, experts: &[(Tensor, Tensor)], x: &Tensor, routing: &Routing) -> Result<Tensor> {
    let (rows, hidden) = x.dims2()?;
    let mut places: Vec<Vec<usize>> = vec![Vec::new(); experts.len()];
    for (place, &e) in routing.experts.iter().enumerate() {
        places[e as usize].push(place);
    }
    let mut outputs = Vec::new();
    // Where each place's output lands in the concatenation of the experts' outputs.
    let mut landed = vec![0u32; routing.experts.len()];
    let mut next = 0u32;
    for ((gate_up, down), places) in experts.iter().zip(&places).filter(|(_, p)| !p.is_empty()) {
        let picked = places.iter().map(|place| (place / routing.top_k) as u32).collect();
        let z = x.index_select(&backend.indices(picked)?, 0)?;
        let both = product(&z, gate_up)?;
        let width = both.dim(1)? / 2;
        let inner = gated(&both.narrow(1, 0, width)?.contiguous()?, &both.narrow(1, width, width)?.contiguous()?)?;
        outputs.push(product(&inner, down)?);
        for &place in places {
            landed[place] = next;
            next += 1;
        }
    }
    let by_place = Tensor::cat(&outputs, 0)?.index_select(&backend.indices(landed)?, 0)?;
    let weights = backend.tensor(routing.weights.clone(), &[rows, routing.top_k, 1])?;
    by_place.reshape((rows, routing.top_k, hidden))?.broadcast_mul(&weights)?.sum(1)
}
