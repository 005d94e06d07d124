//! One module per group of endpoints.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod document;
pub(crate) mod models;
pub(crate) mod probes;
pub(crate) mod responses;
pub(crate) mod tokens;
