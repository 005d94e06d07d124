//! The scheduler against a scripted model, in explicit time.

#[path = "../support/mod.rs"]
mod support;

mod budgets;
mod cache;
mod engine;
mod loads;
mod schedules;
mod text;
mod world;
