//! The batch scheduler: many requests, one model, one pass after another.
//!
//! Owns the queue, admission, pages, slots, the prefix tree and the pass loop on one engine thread. May use
//! `diffusion` and `pass`; must not know HTTP, text or tensors.

mod job;

pub use job::*;
