//! DiffusionGemma on candle: config, layers, attention, experts, KV bytes, self-conditioning, vocabulary head.
//!
//! May use `pass` and `kernels`; must not know requests, text or files.

mod weights;

pub use weights::{RawTensor, WeightError, Weights};
