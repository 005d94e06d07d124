//! `POST /v1/chat/completions`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::count::from_one;
use super::either::{Content, Stop, ToolChoice};
use super::lazy::Lazy;
use super::options::{DiffusionOptions, ResponseFormat, StreamOptions, Tool};

/// A conversation to be continued.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(examples(json!({
    "model": "canvasd-demo",
    "messages": [{"role": "user", "content": "What is the capital of France?"}]
})))]
pub struct ChatRequest {
    /// Name of the model, or one of its aliases; absent means the one model that is served. Another name is a 404.
    pub model: Option<String>,
    /// The conversation, at least one message.
    #[schema(required = true, nullable = false, min_items = 1)]
    pub messages: Option<Vec<Message>>,
    /// Sends the answer as server-sent events, as it is committed. Default false.
    pub stream: Option<bool>,
    /// What the stream carries beside the text. Has no effect without `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Short for `stream_options.include_diffusion_progress: true`.
    pub diffusing: Option<bool>,
    /// Answers wanted, 1 to 128. Default 1.
    #[schema(minimum = 1, maximum = 128)]
    #[serde(default, deserialize_with = "from_one")]
    pub n: Option<usize>,
    /// Same seed, same text: seed of all random draws. Absent: a new one each time, except that `temperature` 0 uses 0.
    #[schema(value_type = Option<i64>)]
    pub seed: Option<Seed>,
    /// 0 to 2, default 1. A factor on the temperature of the draw that re-noises a canvas; 0 always draws the best token.
    /// The checkpoint's own schedule, acceptance and stopping stay as they are.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    /// Above 0, up to 1, default 1. Nucleus of the same draw: the fewest best tokens that have this share of all, as far as
    /// they are of a position's 64 best.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// Most tokens of the answer; exact, never rounded up to a canvas. `max_completion_tokens` goes before it. What does
    /// not fit into the context is cut off it. Default: the server's `default_max_tokens`, or what the context holds.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "from_one")]
    pub max_tokens: Option<usize>,
    /// The newer name of `max_tokens`.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "from_one")]
    pub max_completion_tokens: Option<usize>,
    /// A string, or up to 4, of at most 1,024 characters each, before which the answer ends. It is looked for in the
    /// content, not in the reasoning.
    pub stop: Option<Stop>,
    /// Gives each content token's log-probability at the last step of its canvas, under that step's temperature and
    /// biases. The tokens of a stop string have none, as far as they are of the canvas in which it ends. Default false.
    pub logprobs: Option<bool>,
    /// Alternatives per token, 0 to 20; needs `logprobs`.
    #[schema(maximum = 20)]
    pub top_logprobs: Option<usize>,
    /// Token ids (as text) and what is added to their logits, −100 to 100, before temperature and every statistic.
    #[schema(value_type = Option<Object>)]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// −2 to 2, default 0. Taken from the logits of tokens that occur in the answer's committed canvases; frozen while a
    /// canvas is denoised.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f64>,
    /// −2 to 2, default 0. The same, times the number of occurrences.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f64>,
    /// Functions that the model may call.
    pub tools: Option<Vec<Tool>>,
    /// `auto` (default); `none`, which hides the tools from the model; `required`, or a function by name: the answer is
    /// held to a call of one of the tools, or of this one. `allowed_tools` is refused: leave the other tools out.
    pub tool_choice: Option<ToolChoice>,
    /// `false` passes on only the first call of an answer. Default true.
    pub parallel_tool_calls: Option<bool>,
    /// What the answer must be: any text, or JSON, of a schema where one is given.
    pub response_format: Option<ResponseFormat>,
    /// `none` and `minimal` answer at once; `low`, `medium`, `high`, `xhigh` and `max` let the model think first, and are
    /// refused where its template cannot switch that on.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Handed to the checkpoint's chat template. `enable_thinking` switches thinking, and beats `reasoning_effort`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// How canvases are denoised.
    pub diffusion: Option<DiffusionOptions>,
    /// `["text"]`; another modality is refused.
    pub modalities: Option<Vec<String>>,
    /// Refused: this server gives no audio.
    #[schema(value_type = Option<Object>)]
    pub audio: Option<Value>,
    /// Refused: use `tools`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub functions: Option<Value>,
    /// Refused: use `tool_choice`.
    #[schema(value_type = Option<Value>)]
    pub function_call: Option<Value>,
    /// Refused: this server searches nothing.
    #[schema(value_type = Option<Object>)]
    pub web_search_options: Option<Value>,
    /// Accepted; a hint for speed that has no effect.
    #[schema(value_type = Option<Object>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub prediction: Option<Value>,
    /// Accepted; has no effect: the model has no such control.
    #[expect(dead_code, reason = "accepted without effect")]
    pub verbosity: Option<String>,
    /// Accepted; has no effect.
    #[expect(dead_code, reason = "accepted without effect")]
    pub user: Option<String>,
    /// Accepted; has no effect.
    #[schema(value_type = Option<Object>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub metadata: Option<Value>,
    /// Accepted; nothing is ever stored.
    #[expect(dead_code, reason = "accepted without effect")]
    pub store: Option<bool>,
    /// Accepted; all requests are served alike.
    #[expect(dead_code, reason = "accepted without effect")]
    pub service_tier: Option<String>,
    /// Accepted; has no effect.
    #[expect(dead_code, reason = "accepted without effect")]
    pub safety_identifier: Option<String>,
    /// Accepted; prefixes are found without it.
    #[expect(dead_code, reason = "accepted without effect")]
    pub prompt_cache_key: Option<String>,
    /// Accepted; has no effect.
    #[expect(dead_code, reason = "accepted without effect")]
    pub prompt_cache_retention: Option<String>,
}

/// Any integer of up to 64 bits, signed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl serde::de::Visitor<'_> for Shape {
            type Value = Seed;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an integer of at most 64 bits")
            }
            fn visit_u64<E: serde::de::Error>(self, seed: u64) -> Result<Seed, E> {
                Ok(Seed(seed))
            }
            fn visit_i64<E: serde::de::Error>(self, seed: i64) -> Result<Seed, E> {
                Ok(Seed(seed.cast_unsigned()))
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

/// How much the model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReasoningEffort {
    /// Not at all.
    None,
    /// Not at all.
    Minimal,
    /// Thinking is on.
    Low,
    /// Thinking is on.
    Medium,
    /// Thinking is on.
    High,
    /// Thinking is on.
    Xhigh,
    /// Thinking is on.
    Max,
}

/// One message of a conversation. What a client got as an answer may be sent back as it is.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct Message {
    /// Who speaks.
    #[schema(required = true, nullable = false)]
    pub role: Option<Role>,
    /// Text, or parts. May be absent in an assistant message, which then says nothing.
    pub content: Option<Content>,
    /// Handed to the template.
    pub name: Option<String>,
    /// Calls that the assistant made. Each wants its result, in a `tool` message, before the conversation goes on.
    pub tool_calls: Option<Vec<SentToolCall>>,
    /// Which call a `tool` message answers; required there, and refused elsewhere.
    pub tool_call_id: Option<String>,
    /// Thoughts of the assistant; whether they are shown to the model again is the template's decision.
    pub reasoning_content: Option<String>,
    /// The same under its other name; refused where the two differ.
    pub reasoning: Option<String>,
    /// Stands for `content` where that is absent.
    pub refusal: Option<String>,
    /// Accepted; has no effect.
    #[schema(value_type = Option<Value>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub annotations: Option<Value>,
    /// Refused unless null: this model hears nothing.
    #[schema(value_type = Option<Object>)]
    pub audio: Option<Value>,
    /// Refused unless null: use `tool_calls`.
    #[schema(value_type = Option<Object>)]
    pub function_call: Option<Value>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sets the scene.
    System,
    /// The newer name of `system`.
    Developer,
    /// Asks.
    User,
    /// The model.
    Assistant,
    /// The result of a call.
    Tool,
}

/// A part of a message's content. Valid on every role.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text` (also `input_text`, `output_text`, `refusal`). Images, audio and files are refused.
    #[schema(required = true, nullable = false)]
    pub r#type: Option<String>,
    /// The text.
    pub text: Option<String>,
    /// The text of a `refusal`; refused elsewhere.
    pub refusal: Option<String>,
    /// Refused: this server does not see images yet.
    #[schema(value_type = Option<Value>)]
    pub image_url: Option<Value>,
    /// Refused: this server hears nothing.
    #[schema(value_type = Option<Object>)]
    pub input_audio: Option<Value>,
    /// Refused: this server reads no files.
    #[schema(value_type = Option<Object>)]
    pub file: Option<Value>,
    /// Accepted; has no effect.
    #[schema(value_type = Option<Value>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub annotations: Option<Value>,
    /// Accepted; has no effect.
    #[schema(value_type = Option<Value>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub logprobs: Option<Value>,
    /// Accepted; prefixes are cached without it.
    #[schema(value_type = Option<Value>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub cache_control: Option<Value>,
}

/// A call as it comes back in the history.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct SentToolCall {
    /// Its id, which the result's `tool_call_id` repeats; no two calls that wait for their results may have the same.
    #[schema(required = true, nullable = false)]
    pub id: Option<String>,
    /// `function`.
    pub r#type: Option<String>,
    /// What was called.
    #[schema(required = true, nullable = false)]
    pub function: Option<SentFunction>,
    /// Accepted; has no effect.
    #[expect(dead_code, reason = "accepted without effect")]
    pub index: Option<usize>,
}

/// A called function as it comes back in the history.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct SentFunction {
    /// Its name.
    #[schema(required = true, nullable = false)]
    pub name: Option<String>,
    /// Its arguments: text that holds a JSON object, no key twice. Empty text stands for `{}`.
    pub arguments: Option<String>,
}

/// One answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Its number.
    pub index: usize,
    /// What the assistant says.
    pub message: AssistantMessage,
    /// Log-probabilities, if asked for.
    #[schema(required = true)]
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// What the assistant says.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The answer; null where there are only tool calls.
    #[schema(required = true)]
    pub content: Option<String>,
    /// Always null.
    #[schema(required = true)]
    pub refusal: Option<String>,
    /// What the model thought; absent where it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls; absent where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call that the model makes.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ToolCall {
    /// Number of the call within its answer; in streams only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// Its id.
    pub id: String,
    /// `function`.
    pub r#type: &'static str,
    /// What is called.
    pub function: CalledFunction,
}

/// A function that the model calls.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CalledFunction {
    /// Its name.
    pub name: String,
    /// Its arguments, always valid JSON.
    pub arguments: String,
}

/// Log-probabilities of an answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry per content token.
    #[schema(value_type = Vec<TokenLogprob>)]
    pub content: Lazy<TokenLogprob>,
    /// Always null.
    #[schema(required = true)]
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token and how sure the model was of it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text; bytes that are no text by themselves are replaced.
    pub token: String,
    /// Natural log-probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The best alternatives, this token included.
    pub top_logprobs: Vec<Alternative>,
}

/// A token that might have stood there.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Alternative {
    /// Its text.
    pub token: String,
    /// Natural log-probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What a chunk adds to a choice.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// Which one.
    pub index: usize,
    /// Appended to the message.
    pub delta: ChunkDelta,
    /// Log-probabilities of the delta's content, if asked for.
    #[schema(required = true)]
    pub logprobs: Option<ChatLogprobs>,
    /// Set in the choice's last chunk.
    #[schema(required = true)]
    pub finish_reason: Option<&'static str>,
}

/// What is appended to a message.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ChunkDelta {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More of the thoughts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls, each whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}
