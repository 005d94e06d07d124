//! What chat and completions answer alike: the answers whole, and the chunks of a stream.

use serde::Serialize;
use utoipa::ToSchema;

use super::progress::ProgressFrame;
use super::usage::Usage;

/// What is the same in an answer and in all its chunks.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Head {
    /// Of this request.
    pub id: String,
    /// `chat.completion`, `chat.completion.chunk` or `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// Constant for a build and a model.
    pub system_fingerprint: String,
}

/// The answers, whole.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Answers<C> {
    /// What is the same in all chunks.
    #[serde(flatten)]
    pub head: Head,
    /// The answers, in index order; where there are several prompts, all of the first, then all of the second.
    pub choices: Vec<C>,
    /// What it cost.
    pub usage: Usage,
    /// `default`; in chat only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<&'static str>,
}

/// A piece of the answers, as it goes over a stream.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Chunk<C> {
    /// What is the same in all chunks.
    #[serde(flatten)]
    pub head: Head,
    /// One choice; none in the usage chunk.
    pub choices: Vec<C>,
    /// What it cost; null in all chunks but the last, and absent where nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    /// How a canvas stands; only where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diffusion: Option<ProgressFrame>,
}
