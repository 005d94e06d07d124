//! RMS norms and rotary embeddings: the row-wise arithmetic around the projections.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::backend::{Backend, kernel, numbers};
use super::config::Rope;
use crate::kernels::cpu::Cpu;

/// `y = x · (mean(x²) + ε)^(−1/2) · w` over the last dimension, with w as stored (the model's reference, section 3.1).
pub(super) struct RmsNorm {
    eps: f32,
    weight: Weight,
}

enum Weight {
    /// Our kernels; `None` for an unweighted norm.
    Own(Arc<Cpu>, Option<Vec<f32>>),
    /// Plain candle operations; ones for an unweighted norm.
    Twin(Tensor),
}

impl RmsNorm {
    pub fn new(backend: &Backend, weight: Vec<f32>, eps: f32) -> Result<RmsNorm> {
        let weight = match &backend.cpu {
            Some(cpu) => Weight::Own(cpu.clone(), Some(weight)),
            None => {
                let shape = [weight.len()];
                Weight::Twin(backend.tensor(weight, &shape)?)
            }
        };
        Ok(RmsNorm { eps, weight })
    }

    /// A norm without a weight over the last dimension of size `width`.
    pub fn unweighted(backend: &Backend, width: usize, eps: f32) -> Result<RmsNorm> {
        let weight = match &backend.cpu {
            Some(cpu) => Weight::Own(cpu.clone(), None),
            None => Weight::Twin(backend.tensor(vec![1.0; width], &[width])?),
        };
        Ok(RmsNorm { eps, weight })
    }

    /// Any contiguous shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Own(cpu, weight) => Tensor::from_vec(self.own(cpu, weight.as_deref(), x)?, x.shape(), x.device()),
            Weight::Twin(weight) => candle_nn::ops::rms_norm(x, weight, self.eps),
        }
    }

    /// Norm, then rotation: `x` is `[rows, heads, head_dim]`.
    pub fn rotated(&self, x: &Tensor, angles: &Angles) -> Result<Tensor> {
        match (&self.weight, angles) {
            (Weight::Own(cpu, weight), Angles::Own { positions, frequencies }) => {
                let mut out = self.own(cpu, weight.as_deref(), x)?;
                cpu.rope(&mut out, x.dim(1)?, positions, frequencies).map_err(kernel)?;
                Tensor::from_vec(out, x.shape(), x.device())
            }
            (_, Angles::Twin { cos, sin }) => {
                candle_nn::rotary_emb::rope_thd(&self.forward(x)?.unsqueeze(0)?, cos, sin)?.squeeze(0)
            }
            (Weight::Twin(_), Angles::Own { .. }) => candle_core::bail!("angles of the kernels in a twin"),
        }
    }

    fn own(&self, cpu: &Cpu, weight: Option<&[f32]>, x: &Tensor) -> Result<Vec<f32>> {
        let width = x.dim(candle_core::D::Minus1)?;
        let mut out = vec![0.0; x.elem_count()];
        numbers(x, |x| cpu.rms_norm(x, width, weight, self.eps, &mut out).map_err(kernel))?;
        Ok(out)
    }
}

/// The frequencies of one layer kind.
pub(super) struct Rotary {
    /// One per pair, zero where a pair does not rotate. f32, rounded as the reference rounds them, because at large
    /// positions a different rounding is a different angle.
    frequencies: Arc<[f32]>,
}

/// How far the heads of a pass's rows turn.
pub(super) enum Angles {
    /// What our kernels want to know: one position per row, one frequency per pair.
    Own { positions: Vec<u32>, frequencies: Arc<[f32]> },
    /// Cosines and sines `[rows, head_dim / 2]`.
    Twin { cos: Tensor, sin: Tensor },
}

impl Rotary {
    pub fn new(rope: &Rope, head_dim: usize) -> Rotary {
        let frequency = |j: usize| {
            if j >= rope.rotating_pairs {
                return 0.0;
            }
            let exponent = (2 * j) as f32 / head_dim as f32;
            let power = rope.theta.powf(f64::from(exponent)) as f32;
            1.0 / power / rope.factor as f32
        };
        Rotary { frequencies: (0..head_dim / 2).map(frequency).collect() }
    }

    pub fn angles(&self, backend: &Backend, positions: &[u32]) -> Result<Angles> {
        if backend.cpu.is_some() {
            return Ok(Angles::Own { positions: positions.to_vec(), frequencies: self.frequencies.clone() });
        }
        let shape = [positions.len(), self.frequencies.len()];
        let mut cos = Vec::with_capacity(shape[0] * shape[1]);
        let mut sin = Vec::with_capacity(shape[0] * shape[1]);
        for &position in positions {
            for &frequency in &*self.frequencies {
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        Ok(Angles::Twin { cos: backend.tensor(cos, &shape)?, sin: backend.tensor(sin, &shape)? })
    }
}

impl Angles {
    /// The rows from `first` on.
    pub fn from(&self, first: usize) -> Result<Angles> {
        match self {
            Angles::Own { positions, frequencies } => {
                let positions = positions.get(first..).unwrap_or_default().to_vec();
                Ok(Angles::Own { positions, frequencies: frequencies.clone() })
            }
            Angles::Twin { cos, sin } => {
                let cut = |t: &Tensor| t.narrow(0, first, t.dim(0)?.saturating_sub(first))?.contiguous();
                Ok(Angles::Twin { cos: cut(cos)?, sin: cut(sin)? })
            }
        }
    }
}
