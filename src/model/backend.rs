//! Where numbers live and who computes them: our own kernels on the CPU, or their twins in plain candle operations.
//!
//! Activations are f32 tensors `[rows, width]` everywhere; weights keep the type they are stored in.

use candle_core::{DType, Device, Result, Tensor};

use super::weights::RawTensor;
use crate::kernels::ElementType;

/// The device, and the choice between kernels and twins.
#[derive(Clone)]
pub(super) struct Backend {
    pub device: Device,
}

impl Backend {
    /// A tensor of host numbers, `shape` row-major.
    pub fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(values, shape, &self.device)
    }

    pub fn indices(&self, values: Vec<u32>) -> Result<Tensor> {
        let n = values.len();
        Tensor::from_vec(values, n, &self.device)
    }
}

/// The candle type of a plain element type; `None` for block formats.
pub(super) fn plain(element: ElementType) -> Option<DType> {
    match element {
        ElementType::F32 => Some(DType::F32),
        ElementType::F16 => Some(DType::F16),
        ElementType::Bf16 => Some(DType::BF16),
        _ => None,
    }
}

/// Every number of a plain tensor as f32, exactly.
pub(super) fn widen(raw: &RawTensor<'_>) -> Option<Vec<f32>> {
    let two = |decode: fn([u8; 2]) -> f32| raw.bytes.chunks_exact(2).map(|c| decode([c[0], c[1]])).collect();
    match raw.element {
        ElementType::F32 => {
            Some(raw.bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
        }
        ElementType::F16 => Some(two(|b| half::f16::from_le_bytes(b).to_f32())),
        ElementType::Bf16 => Some(two(|b| half::bf16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

/// `x · wᵀ` in f32: x `[rows, in]`, w `[out, in]` in its stored type.
///
/// On the CPU the weights are widened, which is exact; elsewhere the product runs in the weights' type, as the
/// reference does.
pub(super) fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.matmul(&w.to_dtype(DType::F32)?.t()?)
    } else {
        x.to_dtype(w.dtype())?.matmul(&w.t()?)?.to_dtype(DType::F32)
    }
}

/// `p · w` in f32, the same way: p `[rows, n]`, w `[n, width]`.
pub(super) fn weighted_rows(p: &Tensor, w: &Tensor) -> Result<Tensor> {
    if p.device().is_cpu() {
        p.matmul(&w.to_dtype(DType::F32)?)
    } else {
        p.to_dtype(w.dtype())?.matmul(w)?.to_dtype(DType::F32)
    }
}

/// All numbers of an f32 tensor on the host, row-major.
pub(super) fn host(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}
