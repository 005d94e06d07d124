//! What goes over the wire: requests as they may be written, responses as clients expect them.
//!
//! Plain data with serde and the OpenAPI description; the doc comment of a field *is* its public documentation, in
//! `openapi/openapi.json` and in `docs/api.md`. No field of a request is required by its type: `null` and absence are
//! the same, and what is indispensable is asked for in words. Nothing here decides whether a value can be honoured.

pub mod answer;
pub mod chat;
pub mod completion;
pub(crate) mod count;
pub mod either;
pub mod lazy;
pub mod options;
pub mod other;
pub mod progress;
pub mod responses;
pub mod usage;
