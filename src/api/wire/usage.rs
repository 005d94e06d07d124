//! What a request cost.

use serde::Serialize;
use utoipa::ToSchema;

/// Tokens of a request; they add up.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt, or of all prompts together.
    pub prompt_tokens: usize,
    /// Tokens of all answers, up to the stop.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More about the prompt.
    pub prompt_tokens_details: PromptTokens,
    /// More about the answers.
    pub completion_tokens_details: CompletionTokens,
    /// What the denoising cost.
    pub diffusion: DiffusionUsage,
}

/// More about the prompt.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PromptTokens {
    /// Tokens that an earlier request had already encoded.
    pub cached_tokens: usize,
    /// Always 0: what is kept for later requests is not counted apart.
    pub cache_write_tokens: usize,
}

/// More about the answers.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CompletionTokens {
    /// Tokens spent in the reasoning channel.
    pub reasoning_tokens: usize,
}

/// What the denoising of all choices cost.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DiffusionUsage {
    /// Canvases denoised.
    pub canvases: usize,
    /// Denoising steps, all canvases together.
    pub steps: usize,
    /// Completion tokens per denoising step.
    pub tokens_per_forward: f64,
    /// Canvases committed because the time was over.
    pub forced_commits: usize,
}
