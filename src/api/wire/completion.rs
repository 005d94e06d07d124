//! `POST /v1/completions`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::chat::Seed;
use super::count::from_one;
use super::either::{Prompt, Stop};
use super::lazy::Lazy;
use super::options::{DiffusionOptions, StreamOptions};

/// A text to be continued, without roles, reasoning or tools.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(examples(json!({"model": "canvasd-demo", "prompt": "Once upon a time", "max_tokens": 48})))]
pub struct CompletionRequest {
    /// Name of the model, or one of its aliases; absent means the one model that is served. Another name is a 404.
    pub model: Option<String>,
    /// A text, several texts, token ids, or several lists of token ids. Each prompt is continued by itself.
    #[schema(required = true, nullable = false)]
    pub prompt: Option<Prompt>,
    /// Sends the answer as server-sent events, as it is committed. Default false.
    pub stream: Option<bool>,
    /// What the stream carries beside the text. Has no effect without `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Short for `stream_options.include_diffusion_progress: true`.
    pub diffusing: Option<bool>,
    /// Continuations wanted per prompt, 1 to 128. Default 1.
    #[schema(minimum = 1, maximum = 128)]
    #[serde(default, deserialize_with = "from_one")]
    pub n: Option<usize>,
    /// Makes that many continuations and gives the `n` with the best mean log-probability; at least `n`, at most 128.
    /// Not with `stream`. Default `n`.
    #[schema(minimum = 1, maximum = 128)]
    #[serde(default, deserialize_with = "from_one")]
    pub best_of: Option<usize>,
    /// Repeats the prompt in front of the answer. Not with `logprobs`. Default false.
    pub echo: Option<bool>,
    /// Gives log-probabilities with that many alternatives per token, 0 to 5; of a stop string's tokens as in chat.
    #[schema(maximum = 5)]
    pub logprobs: Option<usize>,
    /// Refused unless empty: text is continued, not filled in.
    pub suffix: Option<String>,
    /// Most tokens of an answer; exact. What does not fit into the context is cut off it. Default 16.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "from_one")]
    pub max_tokens: Option<usize>,
    /// A string, or up to 4, of at most 1,024 characters each, before which the answer ends.
    pub stop: Option<Stop>,
    /// Same seed, same text: seed of all random draws. Absent: a new one each time, except that `temperature` 0 uses 0.
    #[schema(value_type = Option<i64>)]
    pub seed: Option<Seed>,
    /// 0 to 2, default 1; acts as in chat.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    /// Above 0, up to 1, default 1; acts as in chat.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// Token ids (as text) and what is added to their logits, −100 to 100.
    #[schema(value_type = Option<Object>)]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// −2 to 2, default 0; acts as in chat.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f64>,
    /// −2 to 2, default 0; acts as in chat.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f64>,
    /// How canvases are denoised.
    pub diffusion: Option<DiffusionOptions>,
    /// Accepted; has no effect.
    #[expect(dead_code, reason = "accepted without effect")]
    pub user: Option<String>,
    /// Accepted; has no effect.
    #[schema(value_type = Option<Object>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub metadata: Option<Value>,
}

/// One answer, or what a chunk adds to it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Its number.
    pub index: usize,
    /// The text.
    pub text: String,
    /// Log-probabilities, if asked for.
    #[schema(required = true)]
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null in all chunks but the last.
    #[schema(required = true)]
    pub finish_reason: Option<&'static str>,
}

/// Log-probabilities in the older shape: four lists of the same length.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The tokens. One that holds only a part of a character is spelled by its bytes: `bytes:\xe6`.
    pub tokens: Vec<String>,
    /// How sure the model was of each.
    pub token_logprobs: Vec<f32>,
    /// The best alternatives of each, spelled likewise. Of several with the same spelling the likeliest is named.
    #[schema(value_type = Vec<Object>)]
    pub top_logprobs: Lazy<Map<String, Value>>,
    /// Where each begins in the text, in Unicode code points; the parts of a character all begin where it stands.
    pub text_offset: Vec<usize>,
}
