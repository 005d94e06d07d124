//! The opaque product of rows with one weight matrix.

use candle_core::{Result, Tensor};

use super::backend::product;

/// A bias-free projection `y = x · Wᵀ`.
pub(super) enum Linear {
    /// Plain candle operations; the matrix `[out, in]` in its stored type.
    Twin(Tensor),
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`, f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Linear::Twin(w) => product(x, w),
        }
    }
}

/// `down(gelu(gate x) ⊙ up x)`, the dense MLP of the layers and of self-conditioning.
pub(super) struct Mlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

impl Mlp {
    /// `[rows, hidden]` to the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&gated(&self.gate.forward(x)?, &self.up.forward(x)?)?)
    }
}

/// `gelu(g) ⊙ u` with the tanh form of gelu.
pub(super) fn gated(g: &Tensor, u: &Tensor) -> Result<Tensor> {
    g.gelu()? * u
}
