//! Where numbers live and who computes them: our own kernels on the CPU, or their twins in plain candle operations.
//!
//! Activations are f32 tensors `[rows, width]` everywhere; weights keep the type they are stored in.

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Storage, Tensor};

use crate::kernels::cpu::{Cpu, KvElement};
use crate::kernels::{ElementType, KernelError};

/// The device, and the choice between kernels and twins.
#[derive(Clone)]
pub(super) struct Backend {
    pub device: Device,
    /// Our kernels; `None` where twins compute.
    pub cpu: Option<Arc<Cpu>>,
    /// How keys and values are held.
    pub kv: KvElement,
}

impl Backend {
    /// A tensor of host numbers, `shape` row-major.
    pub fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(values, shape, &self.device)
    }

    /// The candle type of keys and values.
    pub fn kv_type(&self) -> DType {
        match self.kv {
            KvElement::F32 => DType::F32,
            KvElement::Bf16 => DType::BF16,
        }
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

/// Lets `read` look at the numbers of a contiguous f32 tensor on the CPU.
pub(super) fn numbers<R>(x: &Tensor, read: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("a tensor that is not contiguous") };
    match &*storage {
        Storage::Cpu(storage) => match storage.as_slice::<f32>()?.get(start..end) {
            Some(slice) => read(slice),
            None => candle_core::bail!("a tensor that exceeds its storage"),
        },
        _ => candle_core::bail!("a tensor that is not on the CPU"),
    }
}

/// What a candle error says, without the backtrace that it carries where RUST_BACKTRACE is set: that one is for
/// developers, and this text is for users.
pub(super) fn said(error: &Error) -> String {
    match error {
        Error::WithBacktrace { inner, .. } => said(inner),
        Error::Context { inner, context } => format!("{context}: {}", said(inner)),
        Error::WithPath { inner, path } => format!("{}: {}", path.display(), said(inner)),
        other => other.to_string(),
    }
}

/// A kernel's refusal as a candle error.
pub(super) fn kernel(error: KernelError) -> Error {
    Error::wrap(error)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_is_wrong_and_nothing_else() {
        let inner = Error::Msg("no such device".into()).context("opening it");
        let backtrace = Box::new(std::backtrace::Backtrace::force_capture());
        let error = Error::WithBacktrace { inner: Box::new(inner), backtrace };
        assert!(error.to_string().lines().count() > 2, "candle shows the backtrace");
        assert_eq!(said(&error), "opening it: no such device");
    }
}
