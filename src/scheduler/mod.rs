//! The batch scheduler: many requests, one model, one pass after another.
//!
//! Owns the queue, admission, pages, slots, the prefix tree and the pass loop on one engine thread. May use
//! `diffusion` and `pass`; must not know HTTP, text or tensors.
//!
//! [`Engine`] is the thread, [`Handle`] the way to it; [`Core`] is the state machine between them, which knows no clock.

mod admission;
mod core;
mod engine;
mod front;
mod job;
mod kv;
mod lane;
mod metrics;
mod outcome;
mod pace;
mod planning;
mod reader;
mod sampling;
mod settings;

pub use self::core::Core;
pub use crate::diffusion::{Effort, Sampler, SamplerError, Structure, StructureError};
pub use crate::pass::{Candidate, Draw, Limits};
pub use engine::{Engine, Handle};
pub use front::{Front, State, Submission, Ticket};
pub use job::*;
pub use outcome::Answer;
pub use reader::Reader;
pub use sampling::sampling;
pub use settings::{Settings, StartError};
