//! The scheduler against a scripted model, in explicit time.

#[path = "../support/mod.rs"]
mod support;

mod text;
mod world;
