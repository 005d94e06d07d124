//! The mathematics of one canvas: random numbers, noise, temperature schedule, acceptance, stopping.
//!
//! Pure and deterministic: no tensors, no IO, no clock. Depends on nothing. A [`Canvas`] says what the model has to
//! look at next (tokens, temperature, uniform numbers), is told what the model saw (one [`Observation`] per position),
//! and decides what happens then. The formulas are those of the model's reference, section 5.

mod acceptance;
mod canvas;
mod effort;
mod random;
mod sampler;
mod structure;

pub use canvas::{Canvas, Observation, ObservationError, Progress, StepOutcome};
pub use effort::Effort;
pub use random::Key;
pub use sampler::{Sampler, SamplerError};
pub use structure::{Structure, StructureError};
