//! The scheduler against a scripted model, in explicit time.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/log.rs"]
mod log;

mod budgets;
mod cache;
mod engine;
mod loads;
mod schedules;
mod text;
mod world;
