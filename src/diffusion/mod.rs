//! The mathematics of one canvas: random numbers, noise, temperature schedule, acceptance, stopping.
//!
//! Pure and deterministic: no tensors, no IO, no clock. Depends on nothing.

/// How canvases are denoised; the checkpoint's generation_config.json gives the defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Most denoising steps per canvas, `≥ 1`.
    pub max_steps: usize,
    /// Temperature approached at the last step, `0 ≤ t_min < t_max`.
    pub t_min: f32,
    /// Temperature of the first step.
    pub t_max: f32,
    /// Nats of entropy that may be accepted per step, `> 0`.
    pub entropy_bound: f32,
    /// Equal argmax canvases in a row wanted before a canvas may stop.
    pub stability_threshold: usize,
    /// Mean entropy in nats below which a canvas may stop, `> 0`.
    pub confidence_threshold: f32,
}
