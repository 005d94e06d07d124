//! The HTTP API over the real scheduler, the shipped tokenizer and a scripted model: no weights, every path.

mod calls;
mod channels;
mod chat;
mod clients;
mod completions;
mod document;
mod early;
mod errors;
mod exact;
mod fuzz;
mod guard;
#[path = "../support/log.rs"]
mod log;
mod parrot;
mod responses;
mod shapes;
mod small;
mod streams;
mod structure;
mod support;
