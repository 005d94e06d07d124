//! What can be chosen when a model is loaded.

use crate::kernels::ElementType;
use crate::kernels::cpu::{KvElement, Path, Precision};

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// A CUDA device by its number; needs a build with the feature `cuda`.
    Cuda(usize),
    /// A Metal device by its number; needs a build with the feature `metal`.
    Metal(usize),
}

/// A type that matrices may be converted to at load, from whatever they are stored in: blocks are widened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight; what is stored more finely is rounded.
    Bf16,
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: DeviceChoice,
    /// Converts the matrices; `None` keeps the type they are stored in.
    pub dtype: Option<WeightType>,
    /// Threads of the CPU kernels, at least 1. The result does not depend on it.
    pub threads: usize,
    /// How activations enter the CPU's products with quantised matrices.
    pub precision: Precision,
    /// The CPU's instructions; `None` is the best that this processor has, and one that it lacks an error.
    pub path: Option<Path>,
    /// How keys and values are held; `None` is bf16, or f32 where the weights are f32 as stored or by `dtype`.
    pub kv: Option<KvElement>,
}

impl LoadOptions {
    /// How keys and values are held: as chosen, or else rounded to bf16 as the reference rounds them, unless the weights are
    /// f32, as the embedding is stored or by `dtype`, and then wanted exact.
    pub fn keys_and_values(&self, embedding: Option<ElementType>) -> KvElement {
        let rounded = match self.dtype {
            Some(WeightType::Bf16) => true,
            Some(WeightType::F32) => false,
            None => embedding.is_some_and(|element| element != ElementType::F32),
        };
        self.kv.unwrap_or(if rounded { KvElement::Bf16 } else { KvElement::F32 })
    }
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        LoadOptions {
            device: DeviceChoice::Cpu,
            dtype: None,
            threads,
            precision: Precision::default(),
            path: None,
            kv: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_follow_the_weights_unless_they_are_chosen() {
        use {ElementType as E, KvElement as K, WeightType as W};
        for (dtype, embedding, held) in [
            (None, E::F32, K::F32),
            (None, E::Bf16, K::Bf16),
            (None, E::Q8_0, K::Bf16),
            (Some(W::Bf16), E::F32, K::Bf16),
            (Some(W::Bf16), E::Bf16, K::Bf16),
            (Some(W::F32), E::Bf16, K::F32),
        ] {
            let options = LoadOptions { dtype, ..LoadOptions::default() };
            assert_eq!(options.keys_and_values(Some(embedding)), held, "{dtype:?} {embedding:?}");
            for chosen in [K::F32, K::Bf16] {
                assert_eq!(LoadOptions { kv: Some(chosen), ..options }.keys_and_values(Some(embedding)), chosen);
            }
        }
    }
}
