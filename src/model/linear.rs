//! The opaque product of rows with one weight matrix.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::backend::{kernel, numbers, product};
use crate::kernels::cpu::{Cpu, PackedMatrix};

/// A bias-free projection `y = x · Wᵀ`.
pub(super) enum Linear {
    /// Our kernels.
    Own(Arc<Cpu>, PackedMatrix),
    /// Plain candle operations; the matrix `[out, in]` in its stored type.
    Twin(Tensor),
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`, f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Linear::Own(cpu, matrix) => packed(cpu, matrix, x),
            Linear::Twin(w) => product(x, w),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Linear::Own(_, matrix) => matrix.bytes(),
            Linear::Twin(w) => tensor_bytes(w),
        }
    }
}

/// Bytes of a tensor's numbers.
pub(super) fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// `down(gelu(gate x) ⊙ up x)` with the tanh form of gelu: the dense MLP of the layers and of self-conditioning.
pub(super) enum Mlp {
    /// Our kernels, gate and up packed side by side.
    Own {
        /// Shared by the whole model.
        cpu: Arc<Cpu>,
        /// Gate and up.
        gate_up: PackedMatrix,
        /// Down.
        down: PackedMatrix,
    },
    /// Plain candle operations.
    Twin {
        /// `[intermediate, hidden]`
        gate: Tensor,
        /// `[intermediate, hidden]`
        up: Tensor,
        /// `[hidden, intermediate]`
        down: Tensor,
    },
}

impl Mlp {
    /// `[rows, hidden]` to the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Mlp::Own { cpu, gate_up, down } => packed(cpu, down, &packed(cpu, gate_up, x)?),
            Mlp::Twin { gate, up, down } => product(&gated(&product(x, gate)?, &product(x, up)?)?, down),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Mlp::Own { gate_up, down, .. } => gate_up.bytes() + down.bytes(),
            Mlp::Twin { gate, up, down } => [gate, up, down].map(tensor_bytes).iter().sum(),
        }
    }
}

/// A product with a packed matrix.
fn packed(cpu: &Cpu, matrix: &PackedMatrix, x: &Tensor) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let mut out = vec![0.0; rows * matrix.outputs()];
    numbers(x, |x| cpu.matmul(x, matrix, &mut out).map_err(kernel))?;
    Tensor::from_vec(out, (rows, matrix.outputs()), x.device())
}

/// `gelu(g) ⊙ u`, for the twins.
pub(super) fn gated(g: &Tensor, u: &Tensor) -> Result<Tensor> {
    g.gelu()? * u
}
