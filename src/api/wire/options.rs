//! Options that several requests share.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::count::from_one;
use super::either::Progress;

/// What a stream carries beside the text.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Sends one more chunk at the end, with `choices: []` and the usage of the whole request. Default false.
    pub include_usage: Option<bool>,
    /// Sends chunks with an empty delta and a top-level `diffusion` object while canvases are denoised. `true`, or an
    /// object with `every`, `mode` and `max_hz`. Default false.
    pub include_diffusion_progress: Option<Progress>,
    /// Accepted; has no effect: nothing is obfuscated.
    #[expect(dead_code, reason = "accepted without effect")]
    pub include_obfuscation: Option<bool>,
}

/// How a stream tells of canvases being denoised.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, ToSchema)]
pub struct ProgressOptions {
    /// Tells of every n-th step only. 1 to 1,000; default 1.
    #[schema(minimum = 1, maximum = 1000)]
    #[serde(default, deserialize_with = "from_one")]
    pub every: Option<usize>,
    /// `text`: the draft's text each time. `edits`: what changed in it. `stats`: numbers alone. Default `text`.
    pub mode: Option<ProgressMode>,
    /// Most chunks of drafts per second and choice; what lies between is left out. The frame of a commit always comes. Above
    /// 0, up to 1,000; default 20.
    #[schema(exclusive_minimum = 0, maximum = 1000)]
    pub max_hz: Option<f64>,
}

/// What of a draft is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProgressMode {
    /// The draft's text.
    #[default]
    Text,
    /// The difference from the draft before.
    Edits,
    /// No text.
    Stats,
}

/// How canvases are denoised for this request. Explicit values beat `effort`, which beats the checkpoint's own.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct DiffusionOptions {
    /// A trade of quality for speed, relative to the checkpoint's values. `fast`: a third of the steps, 3 × the entropy
    /// bound, 4 × the confidence threshold. `balanced`: the checkpoint's values. `quality`: half the entropy bound, half
    /// the confidence threshold, one more stable step.
    pub effort: Option<Effort>,
    /// Most denoising steps per canvas, 1 to 1,024.
    #[schema(minimum = 1, maximum = 1024)]
    #[serde(default, deserialize_with = "from_one")]
    pub max_denoising_steps: Option<usize>,
    /// Nats of entropy that may be accepted per step; above 0, up to 1,000,000.
    #[schema(exclusive_minimum = 0, maximum = 1000000)]
    pub entropy_bound: Option<f64>,
    /// Mean entropy of a canvas, in nats, below which it may stop; above 0, up to 1,000.
    #[schema(exclusive_minimum = 0, maximum = 1000)]
    pub confidence_threshold: Option<f64>,
    /// Equal canvases in a row wanted before one may stop, 0 to 1,024.
    #[schema(maximum = 1024)]
    pub stability_threshold: Option<usize>,
    /// Most milliseconds from the request's head to the last commit. When they are over, the canvas is committed as it
    /// stands and the answer ends with `finish_reason: "length"`. At least 1; the server's own limit holds beside it.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "from_one")]
    pub timeout_ms: Option<u64>,
}

/// A trade of quality for speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Fewer steps.
    Fast,
    /// As the checkpoint says.
    Balanced,
    /// More steps.
    Quality,
}

/// A tool that the model may call.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct Tool {
    /// `function`; another kind is refused.
    #[schema(required = true, nullable = false)]
    pub r#type: Option<String>,
    /// What can be called.
    #[schema(required = true, nullable = false)]
    pub function: Option<Function>,
}

/// A function that the model may call.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct Function {
    /// Its name: letters, digits, `_`, `-` and `.`, at most 64.
    #[schema(required = true, nullable = false)]
    pub name: Option<String>,
    /// What it does, in words for the model.
    pub description: Option<String>,
    /// JSON schema of its arguments, an object; shown to the model, and enforced where `strict` says so.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Map<String, Value>>,
    /// `true`: a call whose arguments do not fit the schema comes as content, not as a call. A schema with keywords that
    /// are not checked (such as `pattern`; `format` demands nothing) is refused. Default false: arguments are valid JSON,
    /// and no more.
    pub strict: Option<bool>,
}

/// A choice of one tool by name.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, ToSchema)]
pub struct NamedTool {
    /// `function`.
    #[schema(required = true, nullable = false)]
    pub r#type: Option<String>,
    /// Which one, as in chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<NamedFunction>,
    /// Which one, as in responses; beside `function` it must be the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A function by name.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, ToSchema)]
pub struct NamedFunction {
    /// Its name.
    #[schema(required = true, nullable = false)]
    pub name: Option<String>,
}

/// The form of the answer.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`. The JSON forms are enforced while the answer is written; an answer that is cut
    /// short (`finish_reason: "length"`) is a beginning of one.
    #[schema(required = true, nullable = false)]
    pub r#type: Option<String>,
    /// The schema, with the type `json_schema`; refused with another.
    pub json_schema: Option<JsonSchemaFormat>,
}

/// A form given by a schema.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct JsonSchemaFormat {
    /// Its name.
    #[schema(required = true, nullable = false)]
    pub name: Option<String>,
    /// Accepted; the model is not told of it: say in the messages what is wanted.
    #[expect(dead_code, reason = "accepted without effect")]
    pub description: Option<String>,
    /// The JSON Schema. A keyword that cannot be enforced is refused by name.
    #[schema(value_type = Object, required = true, nullable = false)]
    pub schema: Option<Value>,
    /// Accepted; the schema is always enforced.
    #[expect(dead_code, reason = "accepted without effect")]
    pub strict: Option<bool>,
}
