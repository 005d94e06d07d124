//! `POST /v1/responses`: the stateless subset, with function tools.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::chat::{ReasoningEffort, Seed};
use super::count::from_one;
use super::either::{Content, Input, ToolChoice};
use super::options::{DiffusionOptions, StreamOptions};
use super::progress::ProgressFrame;

/// An input to be answered. Nothing is remembered between requests.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(examples(json!({"model": "canvasd-demo", "input": "What is the capital of France?"})))]
pub struct ResponsesRequest {
    /// Name of the model, or one of its aliases; absent means the one model that is served. Another name is a 404.
    pub model: Option<String>,
    /// A text, or messages, calls and their results.
    #[schema(required = true, nullable = false)]
    pub input: Option<Input>,
    /// A system message in front of the input.
    pub instructions: Option<String>,
    /// Sends the answer as server-sent events, as it is committed. Default false.
    pub stream: Option<bool>,
    /// What the stream carries beside the text; `include_usage` has no effect, since the last event holds the usage.
    pub stream_options: Option<StreamOptions>,
    /// Short for `stream_options.include_diffusion_progress: true`; progress comes as events of the type
    /// `canvasd.diffusion.progress`.
    pub diffusing: Option<bool>,
    /// Most tokens of the answer; exact. What does not fit into the context is cut off it.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "from_one")]
    pub max_output_tokens: Option<usize>,
    /// 0 to 2, default 1; acts as in chat.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    /// Above 0, up to 1, default 1; acts as in chat.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// Same seed, same text.
    #[schema(value_type = Option<i64>)]
    pub seed: Option<Seed>,
    /// Whether the model thinks first.
    pub reasoning: Option<ReasoningOptions>,
    /// The form of the answer.
    pub text: Option<TextOptions>,
    /// How canvases are denoised.
    pub diffusion: Option<DiffusionOptions>,
    /// Functions that the model may call.
    pub tools: Option<Vec<FunctionTool>>,
    /// `auto` (default); `none`, which hides the tools from the model; `required`, or a function by name: the answer is
    /// held to a call of one of the tools, or of this one. `allowed_tools` is refused: leave the other tools out.
    pub tool_choice: Option<ToolChoice>,
    /// `false` passes on only the first call of an answer. Default true.
    pub parallel_tool_calls: Option<bool>,
    /// Accepted; has no effect: it bounds calls of tools that a server runs itself.
    #[expect(dead_code, reason = "accepted without effect")]
    pub max_tool_calls: Option<u64>,
    /// Refused: nothing is remembered; send the conversation as `input`.
    pub previous_response_id: Option<String>,
    /// Refused: nothing is remembered.
    #[schema(value_type = Option<Value>)]
    pub conversation: Option<Value>,
    /// `true` is refused: nothing runs behind a client's back.
    pub background: Option<bool>,
    /// `reasoning.encrypted_content` is accepted without effect: thoughts come in the open. Anything else is refused.
    pub include: Option<Vec<String>>,
    /// Refused: no prompts are stored.
    #[schema(value_type = Option<Object>)]
    pub prompt: Option<Value>,
    /// `disabled`; `auto` is refused: an input beyond the context is an error.
    pub truncation: Option<String>,
    /// Refused unless 0: log-probabilities come from the other endpoints.
    pub top_logprobs: Option<u64>,
    /// Accepted; nothing is ever stored.
    #[expect(dead_code, reason = "accepted without effect")]
    pub store: Option<bool>,
    /// Accepted and given back; has no effect.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Accepted; has no effect.
    #[expect(dead_code, reason = "accepted without effect")]
    pub user: Option<String>,
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

/// A function that the model may call.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
pub struct FunctionTool {
    /// `function`; another kind is refused.
    #[schema(required = true, nullable = false)]
    pub r#type: Option<String>,
    /// Its name: letters, digits, `_`, `-` and `.`, at most 64.
    #[schema(required = true, nullable = false)]
    pub name: Option<String>,
    /// What it does, in words for the model.
    pub description: Option<String>,
    /// JSON schema of its arguments, an object; shown to the model, and enforced where `strict` says so.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Map<String, Value>>,
    /// As in chat.
    pub strict: Option<bool>,
}

/// Whether the model thinks first.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ReasoningOptions {
    /// As `reasoning_effort` in chat.
    pub effort: Option<ReasoningEffort>,
    /// Accepted; thoughts come whole, never as a summary.
    #[expect(dead_code, reason = "accepted without effect")]
    pub summary: Option<String>,
    /// Accepted; the older name of `summary`.
    #[expect(dead_code, reason = "accepted without effect")]
    pub generate_summary: Option<String>,
}

/// The form of an answer.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct TextOptions {
    /// Of content; any text unless given.
    pub format: Option<TextFormat>,
    /// Accepted; has no effect: the model has no such control.
    #[expect(dead_code, reason = "accepted without effect")]
    pub verbosity: Option<String>,
}

/// The form of the content.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct TextFormat {
    /// `text`, `json_object` or `json_schema`, enforced as in chat.
    #[schema(required = true, nullable = false)]
    pub r#type: Option<String>,
    /// The schema's name, with the type `json_schema`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Accepted; the model is not told of it: say in the input what is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The JSON Schema, with the type `json_schema`; refused with another.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Accepted; the schema is always enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// An item of the input. The output of an earlier answer may be sent back as it is. A field that another kind of item
/// has is refused.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct InputItem {
    /// `message`, also where absent; `function_call` or `function_call_output`. `reasoning` is accepted and left out, with
    /// its `content`: old thoughts are not shown to the model.
    pub r#type: Option<String>,
    /// Who speaks: `system`, `developer`, `user` or `assistant`.
    pub role: Option<super::chat::Role>,
    /// Text, or parts; of a message, or of a `reasoning` item.
    pub content: Option<Content>,
    /// Id of a call, which its output repeats. Each call wants its output before the conversation goes on.
    pub call_id: Option<String>,
    /// The function of a call; of a message, the speaker's name, handed to the template.
    pub name: Option<String>,
    /// Arguments of a call: text that holds a JSON object, no key twice. Empty text stands for `{}`.
    pub arguments: Option<String>,
    /// The output of a call: text, or parts.
    pub output: Option<Content>,
    /// Accepted; has no effect.
    #[expect(dead_code, reason = "accepted without effect")]
    pub id: Option<String>,
    /// Accepted; has no effect.
    #[expect(dead_code, reason = "accepted without effect")]
    pub status: Option<String>,
    /// Accepted; has no effect.
    #[schema(value_type = Option<Value>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub summary: Option<Value>,
    /// Accepted; has no effect.
    #[schema(value_type = Option<Value>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub encrypted_content: Option<Value>,
    /// Accepted; has no effect.
    #[schema(value_type = Option<Value>)]
    #[expect(dead_code, reason = "accepted without effect")]
    pub phase: Option<Value>,
}

/// An answer, whole or on its way.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ResponseObject {
    /// Of this request.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: u64,
    /// `in_progress`, `completed` or `incomplete`.
    pub status: &'static str,
    /// Always false.
    pub background: bool,
    /// Always null: an error in the middle of a stream is an event of its own.
    #[schema(required = true)]
    pub error: Option<String>,
    /// Why the answer is incomplete: `max_output_tokens`.
    #[schema(required = true)]
    pub incomplete_details: Option<IncompleteDetails>,
    /// As they were sent.
    #[schema(required = true)]
    pub instructions: Option<String>,
    /// As it was sent.
    #[schema(required = true)]
    pub max_output_tokens: Option<usize>,
    /// The model that answers.
    pub model: String,
    /// What the model wrote, in its order: `reasoning`, `message` and `function_call` items, any number of each.
    pub output: Vec<OutputItem>,
    /// As it was sent, or its default.
    pub parallel_tool_calls: bool,
    /// Always null.
    #[schema(required = true)]
    pub previous_response_id: Option<String>,
    /// `{"effort": …, "summary": null}`, the effort as it was sent.
    #[schema(value_type = Object)]
    pub reasoning: Value,
    /// `default`.
    pub service_tier: &'static str,
    /// Always false: nothing is stored.
    pub store: bool,
    /// As it was sent, or its default.
    pub temperature: f64,
    /// As it was sent, or its default.
    pub top_p: f64,
    /// `{"format": …}`, the format as it was sent, or `{"type": "text"}`.
    #[schema(value_type = Object)]
    pub text: Value,
    /// As it was sent, or its default.
    pub tool_choice: ToolChoice,
    /// As they were sent.
    pub tools: Vec<FunctionTool>,
    /// `disabled`.
    pub truncation: &'static str,
    /// What it cost; null until it is complete.
    #[schema(required = true)]
    pub usage: Option<ResponseUsage>,
    /// As it was sent.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

impl ResponseObject {
    /// The answer to this request before any of it is there.
    pub(crate) fn begun(request: &ResponsesRequest, id: String, created_at: u64, model: String) -> ResponseObject {
        let effort = request.reasoning.as_ref().and_then(|reasoning| reasoning.effort);
        let format = request.text.as_ref().and_then(|text| text.format.as_ref());
        ResponseObject {
            id,
            object: "response",
            created_at,
            status: "in_progress",
            background: false,
            error: None,
            incomplete_details: None,
            instructions: request.instructions.clone(),
            max_output_tokens: request.max_output_tokens,
            model,
            output: Vec::new(),
            parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
            previous_response_id: None,
            reasoning: json!({"effort": effort, "summary": null}),
            service_tier: "default",
            store: false,
            temperature: request.temperature.unwrap_or(1.0),
            top_p: request.top_p.unwrap_or(1.0),
            text: format.map_or_else(|| json!({"format": {"type": "text"}}), |format| json!({"format": format})),
            tool_choice: request.tool_choice.clone().unwrap_or_else(|| ToolChoice::Mode("auto".to_owned())),
            tools: request.tools.clone().unwrap_or_default(),
            truncation: "disabled",
            usage: None,
            metadata: request.metadata.clone().unwrap_or_default(),
        }
    }
}

/// Why an answer is incomplete.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// A part of the output.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// What the model thought.
    Reasoning {
        /// Its id.
        id: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        summary: Vec<Value>,
        /// The text.
        content: Vec<OutputPart>,
    },
    /// What the model says.
    Message {
        /// Its id.
        id: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
        /// `assistant`.
        role: &'static str,
        /// The text.
        content: Vec<OutputPart>,
    },
    /// A function that the model calls.
    FunctionCall {
        /// Its id.
        id: String,
        /// `in_progress` or `completed`.
        status: &'static str,
        /// Id of the call, which its output repeats.
        call_id: String,
        /// The function.
        name: String,
        /// Its arguments, always valid JSON.
        arguments: String,
    },
}

/// A piece of text in the output.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OutputPart {
    /// `output_text` or `reasoning_text`.
    pub r#type: &'static str,
    /// The text.
    pub text: String,
    /// Always empty, and in messages only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub annotations: Option<Vec<Value>>,
    /// Always empty, and in messages only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub logprobs: Option<Vec<Value>>,
}

/// What an answer cost.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ResponseUsage {
    /// Tokens of the input.
    pub input_tokens: usize,
    /// More about them.
    pub input_tokens_details: super::usage::PromptTokens,
    /// Tokens of the answer, up to its end.
    pub output_tokens: usize,
    /// More about them.
    pub output_tokens_details: super::usage::CompletionTokens,
    /// Both.
    pub total_tokens: usize,
    /// What the denoising cost.
    pub diffusion: super::usage::DiffusionUsage,
}

/// One event of a stream; which fields it has depends on its type.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ResponseEvent {
    /// `response.created`, `response.in_progress`, `response.output_item.added`, `response.content_part.added`,
    /// `response.output_text.delta`, `response.reasoning_text.delta`, `response.function_call_arguments.delta`, their
    /// `.done` forms, `response.completed`, `response.incomplete`, `error`, or `canvasd.diffusion.progress`.
    pub r#type: String,
    /// Counts the events of the stream, from 0.
    pub sequence_number: u64,
    /// The answer as it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<ResponseObject>,
    /// Number of the item within the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_index: Option<usize>,
    /// Id of the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_id: Option<String>,
    /// Number of the part within the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_index: Option<usize>,
    /// The item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<OutputItem>,
    /// The part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<OutputPart>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<String>,
    /// The whole text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The function that is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The whole arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
    /// Always empty, and beside an output text only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub logprobs: Option<Vec<Value>>,
    /// How a canvas stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diffusion: Option<ProgressFrame>,
}
