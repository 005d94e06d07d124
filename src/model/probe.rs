//! The model's insides, for parity tests and benches only: no stability promised.

use super::config::{Config, LayerKind};
use super::load::{self, LoadError};
use super::options::LoadOptions;
use super::{DiffusionGemma, Weights};
use crate::pass::{Denoiser, EngineError, KvView, Output, Pass, SegmentError};

pub use super::load::{Operations, Tuning};
pub use super::observe::Observer;

/// Loads with chosen inner workings.
///
/// # Errors
/// As [`DiffusionGemma::load`].
pub fn load(
    config: &Config,
    weights: &dyn Weights,
    options: &LoadOptions,
    tuning: Tuning,
) -> Result<DiffusionGemma, LoadError> {
    load::load(config, weights, options, tuning)
}

/// Runs a pass and shows what happens inside.
///
/// # Errors
/// As [`Denoiser::run`].
pub fn run(
    model: &mut DiffusionGemma,
    pass: &Pass,
    observer: &mut dyn Observer,
) -> Result<Vec<Result<Output, SegmentError>>, EngineError> {
    model.run_observed(pass, observer)
}

/// Keys and values of one position of a view on a layer, each `[kv_heads, head_dim]`.
///
/// # Errors
/// Positions that lie on no page of the view.
pub fn keys_values(
    model: &DiffusionGemma,
    layer: usize,
    kind: LayerKind,
    view: &KvView,
    position: usize,
) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
    let row = view
        .row(kind, position, model.limits().page_tokens)
        .ok_or_else(|| EngineError::Capacity(format!("position {position} lies on no page")))?;
    model.pool_row(layer, row)
}

/// The soft embedding that a slot holds, `[canvas, hidden]`.
///
/// # Errors
/// As [`Denoiser::run`].
pub fn soft(model: &DiffusionGemma, slot: u32) -> Result<Vec<f32>, EngineError> {
    model.soft(slot as usize)
}

/// Puts the soft embedding of given logits `[canvas, vocabulary]` (after the temperature) into a slot: softmax in f64,
/// then the weighted sum of embeddings.
///
/// # Errors
/// As [`Denoiser::run`].
pub fn inject_logits(model: &mut DiffusionGemma, slot: u32, logits: &[f32]) -> Result<(), EngineError> {
    let vocabulary = model.limits().vocabulary;
    let tokens: Vec<u32> = (0..vocabulary as u32).collect();
    let table = model.embed(&tokens)?;
    let hidden = table.len() / vocabulary;
    let mut soft = Vec::with_capacity(logits.len() / vocabulary * hidden);
    for row in logits.chunks_exact(vocabulary) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = row.iter().map(|&z| f64::from(z - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut mean = vec![0.0; hidden];
        for (w, e) in weights.iter().zip(table.chunks_exact(hidden)) {
            for (m, e) in mean.iter_mut().zip(e) {
                *m += w / sum * f64::from(*e);
            }
        }
        soft.extend(mean.iter().map(|&m: &f64| m as f32));
    }
    model.set_soft(slot as usize, soft)
}
