//! RMS norms and rotary embeddings: the row-wise arithmetic around the projections.

use candle_core::{Result, Tensor};

use super::backend::Backend;
use super::config::Rope;

/// `y = x · (mean(x²) + ε)^(−1/2) · w` with w as stored (the model's reference, section 3.1).
pub(super) struct RmsNorm {
    /// Ones for an unweighted norm.
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    pub fn new(weight: Tensor, eps: f32) -> RmsNorm {
        RmsNorm { weight, eps }
    }

    /// A norm without a weight over the last dimension of size `width`.
    pub fn unweighted(backend: &Backend, width: usize, eps: f32) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: backend.tensor(vec![1.0; width], &[width])?, eps })
    }

    /// Over the last dimension of any contiguous shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::rms_norm(x, &self.weight, self.eps)
    }
}

/// The frequencies of one layer kind.
pub(super) struct Rotary {
    /// One per pair, zero where a pair does not rotate. f32, rounded as the reference rounds them, because at large
    /// positions a different rounding is a different angle.
    frequencies: Vec<f32>,
}

/// Cosines and sines of a pass's rows, `[rows, head_dim / 2]`.
pub(super) struct Angles {
    cos: Tensor,
    sin: Tensor,
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
        let shape = [positions.len(), self.frequencies.len()];
        let mut cos = Vec::with_capacity(shape[0] * shape[1]);
        let mut sin = Vec::with_capacity(shape[0] * shape[1]);
        for &position in positions {
            for &frequency in &self.frequencies {
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        Ok(Angles { cos: backend.tensor(cos, &shape)?, sin: backend.tensor(sin, &shape)? })
    }
}

impl Angles {
    /// The rows from `first` on.
    pub fn from(&self, first: usize) -> Result<Angles> {
        let rows = self.cos.dim(0)? - first;
        let cut = |t: &Tensor| t.narrow(0, first, rows)?.contiguous();
        Ok(Angles { cos: cut(&self.cos)?, sin: cut(&self.sin)? })
    }

    /// Rotates heads: `x` is `[rows, heads, head_dim]`, in halves.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
    }
}
