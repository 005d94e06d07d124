//! canvasd serves text-diffusion language models behind the OpenAI HTTP API.
//!
//! A block of random tokens, the *canvas*, is denoised in parallel over a few steps; finished canvases follow each
//! other from left to right. The house has one way through it:
//!
//! | room | what it is for | may use |
//! |---|---|---|
//! | [`api`] | HTTP: wire types, validation, errors, SSE | `prompt`, `scheduler` |
//! | [`prompt`] | text to tokens and back | `scheduler` (the commit gate, and what it asks about structure) |
//! | [`scheduler`] | many requests, one pass after another | `diffusion`, `pass` |
//! | [`diffusion`] | the mathematics of one canvas | nothing |
//! | [`pass`] | plain data between scheduler and model | nothing |
//! | [`model`] | DiffusionGemma on candle | `pass`, `kernels` |
//! | [`kernels`] (a crate) | the operations candle does not do fast enough | nothing |
//! | [`checkpoint`] | where weights come from | `model`, `kernels` (how tensors are stored) |
//! | [`telemetry`] | the log | `config` |
//! | [`config`] | one typed configuration | nothing |
//! | [`cli`] | wires the rooms together | all |
#![deny(unsafe_code)]
#![warn(missing_docs)]
// A binary's documentation is read by those who work on it, and is built with its private items.
#![allow(rustdoc::private_intra_doc_links)]

pub mod api;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod diffusion;
pub mod model;
pub mod pass;
pub mod prompt;
pub mod scheduler;
pub mod telemetry;

/// The operations candle does not do fast enough: a crate of its own below `src/kernels/`, so that it can be optimised
/// in development builds and holds the `unsafe` code: of the other rooms only `checkpoint` has any, to map a file.
#[doc(inline)]
pub use canvasd_kernels as kernels;
