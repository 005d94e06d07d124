//! RMS norms and rotary embeddings: the row-wise arithmetic around the projections.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::backend::{Backend, kernel, numbers};
use super::config::Rope;
use crate::kernels::cpu::{self, Cpu};

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

    /// Several norms of the same rows, which read them once.
    pub fn all<const N: usize>(norms: [&RmsNorm; N], x: &Tensor) -> Result<[Tensor; N]> {
        let own = norms.map(RmsNorm::own_weight);
        if let Some(Some((cpu, _))) = own.first() {
            let mut outs = [(); N].map(|()| vec![0.0; x.elem_count()]);
            let weights = own.map(|own| own.and_then(|(_, weight)| weight));
            let (width, eps) = (x.dim(candle_core::D::Minus1)?, norms[0].eps);
            let rows = outs.each_mut().map(|out| &mut out[..]);
            numbers(x, |x| cpu.rms_norms(x, width, weights, eps, rows).map_err(kernel))?;
            return each(outs.map(|out| Tensor::from_vec(out, x.shape(), x.device())));
        }
        each(norms.map(|norm| norm.forward(x)))
    }

    /// `stream + norm(x)`, both `[rows, width]`.
    pub fn added(&self, stream: &Tensor, x: &Tensor) -> Result<Tensor> {
        match self.own_weight() {
            Some((cpu, Some(weight))) => {
                let mut out = vec![0.0; x.elem_count()];
                numbers(stream, |stream| {
                    numbers(x, |x| cpu.add_norm(stream, x, weight, self.eps, &mut out).map_err(kernel))
                })?;
                Tensor::from_vec(out, x.shape(), x.device())
            }
            _ => stream + self.forward(x)?,
        }
    }

    /// The kernels and the weight for them, where they compute.
    fn own_weight(&self) -> Option<(&Cpu, Option<&[f32]>)> {
        match &self.weight {
            Weight::Own(cpu, weight) => Some((cpu, weight.as_deref())),
            Weight::Twin(_) => None,
        }
    }

    /// Norm, then rotation: `x` is `[rows, heads, head_dim]`.
    pub fn rotated(&self, x: &Tensor, angles: &Angles) -> Result<Tensor> {
        match (&self.weight, angles) {
            (Weight::Own(cpu, weight), Angles::Own { cos, sin, .. }) => {
                let (dim, weight) = (x.dim(2)?, weight.as_deref());
                let mut out = vec![0.0; x.elem_count()];
                numbers(x, |x| cpu.norm_rope(x, dim, weight, self.eps, (cos, sin), &mut out).map_err(kernel))?;
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

/// The end of a layer (the model's reference, section 3.3): what feed-forward adds to the stream, and the layer's scalar.
pub(super) struct LayerEnd<'a> {
    /// The residual stream after attention, `[rows, hidden]`.
    pub stream: &'a Tensor,
    /// What the dense MLP gave.
    pub dense: &'a Tensor,
    /// What the experts gave, and the norms of the dense MLP's and the experts' results.
    pub mixture: Option<(&'a Tensor, &'a RmsNorm, &'a RmsNorm)>,
    /// The norm of the sum.
    pub norm: &'a RmsNorm,
    /// The stream's factor for the first `encode_rows` rows, and for the others.
    pub scalars: (f32, f32),
    /// Rows in encoder mode, which come first.
    pub encode_rows: usize,
}

/// Results of the experts, and the weights of the norms of the dense MLP's and of these.
type Branches<'a> = (&'a [f32], &'a [f32], &'a [f32]);

impl LayerEnd<'_> {
    /// The stream that leaves the layer.
    pub fn forward(&self) -> Result<Tensor> {
        match self.norm.own_weight() {
            Some((cpu, Some(weight))) => self.own(cpu, weight),
            _ => self.twin(),
        }
    }

    fn own(&self, cpu: &Cpu, weight: &[f32]) -> Result<Tensor> {
        let mut out = vec![0.0; self.stream.elem_count()];
        let mut end = |stream: &[f32], dense: &[f32], mixture: Option<Branches<'_>>| {
            let (scalars, split) = (self.scalars, self.encode_rows);
            let end = cpu::LayerEnd { stream, dense, mixture, weight, eps: self.norm.eps, scalars, split };
            cpu.layer_end(end, &mut out).map_err(kernel)
        };
        numbers(self.stream, |stream| {
            numbers(self.dense, |dense| match self.mixture {
                None => end(stream, dense, None),
                Some((experts, first, second)) => numbers(experts, |experts| {
                    let weights = (first.own_weight(), second.own_weight());
                    let (Some((_, Some(first))), Some((_, Some(second)))) = weights else {
                        candle_core::bail!("norms of two kinds in one layer")
                    };
                    end(stream, dense, Some((experts, first, second)))
                }),
            })
        })?;
        Tensor::from_vec(out, self.stream.shape(), self.stream.device())
    }

    fn twin(&self) -> Result<Tensor> {
        let sum = match self.mixture {
            None => self.dense.clone(),
            Some((experts, first, second)) => (first.forward(self.dense)? + second.forward(experts)?)?,
        };
        let x = self.norm.added(self.stream, &sum)?;
        let (encoder, decoder) = (f64::from(self.scalars.0), f64::from(self.scalars.1));
        match (self.encode_rows, x.dim(0)?) {
            (0, _) => x * decoder,
            (n, rows) if n == rows => x * encoder,
            (n, rows) => Tensor::cat(&[(x.narrow(0, 0, n)? * encoder)?, (x.narrow(0, n, rows - n)? * decoder)?], 0),
        }
    }
}

/// All of them, or the first error.
fn each<const N: usize>(results: [Result<Tensor>; N]) -> Result<[Tensor; N]> {
    let tensors: Vec<Tensor> = results.into_iter().collect::<Result<_>>()?;
    tensors.try_into().map_err(|_| candle_core::Error::Msg("a norm is missing".into()))
}

/// The frequencies of one layer kind.
pub(super) struct Rotary {
    /// One per pair, zero where a pair does not rotate. f32, rounded as the reference rounds them, because at large
    /// positions a different rounding is a different angle.
    frequencies: Vec<f32>,
}

/// How far the heads of a pass's rows turn.
pub(super) enum Angles {
    /// The same on the host, for our kernels, and how many pairs a row has.
    Own { cos: Vec<f32>, sin: Vec<f32>, pairs: usize },
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
            let angles = positions.iter().flat_map(|&position| {
                self.frequencies.iter().map(move |frequency| (position as f32 * frequency).sin_cos())
            });
            let (sin, cos) = angles.unzip();
            return Ok(Angles::Own { cos, sin, pairs: self.frequencies.len() });
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
            Angles::Own { cos, sin, pairs } => {
                let cut = |all: &[f32]| all.get(first * pairs..).unwrap_or_default().to_vec();
                Ok(Angles::Own { cos: cut(cos), sin: cut(sin), pairs: *pairs })
            }
            Angles::Twin { cos, sin } => {
                let cut = |t: &Tensor| t.narrow(0, first, t.dim(0)?.saturating_sub(first))?.contiguous();
                Ok(Angles::Twin { cos: cut(cos)?, sin: cut(sin)? })
            }
        }
    }
}
