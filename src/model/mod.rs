//! DiffusionGemma on candle: config, layers, attention, experts, KV bytes, self-conditioning, vocabulary head.
//!
//! One Gemma 4 stack in two modes with the same weights: *encode* is causal and writes keys and values, *denoise* sees
//! the prefix and its whole canvas and writes nothing. Four operations are opaque, so that faster insides never change
//! their callers: a projection ([`linear`]), the experts ([`experts`]), attention over pages ([`attention`]) and the
//! sweep over the vocabulary ([`vocab`]). Each runs on our own CPU kernels, or, on other devices, as its twin in plain
//! candle operations.
//!
//! May use `pass` and `kernels`; must not know requests, text or files.

mod attention;
mod backend;
mod clock;
mod config;
mod config_section;
mod denoiser;
mod experts;
mod footprint;
mod layer;
mod linear;
mod load;
mod names;
mod norm;
mod observe;
mod options;
mod plan;
#[doc(hidden)]
pub mod probe;
mod vocab;
mod vocab_twin;
mod weights;

pub use crate::kernels::ElementType;
pub use crate::kernels::cpu::{KvElement, PAGE_TOKENS, Path, Precision};
pub use clock::{Operation, Splits};
pub use config::{AttentionConfig, Config, ExpertsConfig, ImageTokens, LayerKind, Rope};
pub use config_section::ConfigError;
pub use denoiser::DiffusionGemma;
use denoiser::Parts;
pub use footprint::{coarse_bytes, page_bytes, row_bytes, sliding_pages, slot_bytes, strips_bytes};
pub use load::LoadError;
pub use names::EMBEDDING;
pub use options::{DeviceChoice, LoadOptions, WeightType};
pub use weights::{RawTensor, WeightError, Weights, widened};
