//! The small endpoints: models, tokens, probes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::chat::Message;
use super::count::ids;
use super::options::Tool;

/// The models that can be asked for.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The served model, then its aliases.
    pub data: Vec<Model>,
}

/// A model that can be asked for.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Model {
    /// What to put into `model`.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Unix seconds of the server's start.
    pub created: u64,
    /// `canvasd`.
    pub owned_by: &'static str,
    /// The served model behind this name.
    pub root: String,
    /// Most tokens of a prompt and its answer together.
    pub max_model_len: usize,
    /// Tokens denoised at once.
    pub canvas_length: usize,
}

/// Something to be cut into tokens. Its text, rendered where it is a conversation, has at most 1 MiB, or as many bytes as a
/// prompt that fits might have where that is more.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(examples(json!({"prompt": "Hello"})))]
pub struct TokenizeRequest {
    /// Name of the model, or one of its aliases.
    pub model: Option<String>,
    /// A text, taken as a completion's prompt. Either this or `messages`.
    pub prompt: Option<String>,
    /// A conversation, taken through the chat template.
    #[schema(nullable = false, min_items = 1)]
    pub messages: Option<Vec<Message>>,
    /// Functions that the model may call; with `messages`. Beside `prompt` it has no effect, and the response says so.
    pub tools: Option<Vec<Tool>>,
    /// Handed to the checkpoint's chat template, as in chat; with `messages`. Beside `prompt` it has no effect, and the
    /// response says so.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Also gives each token's text. Default false.
    pub return_token_strs: Option<bool>,
}

/// Tokens of a text.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// The ids.
    pub tokens: Vec<u32>,
    /// How many they are.
    pub count: usize,
    /// Most tokens of a prompt and its answer together.
    pub max_model_len: usize,
    /// The text of each, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_strs: Option<Vec<String>>,
}

/// Tokens to be turned into text.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(examples(json!({"tokens": [10, 11]})))]
pub struct DetokenizeRequest {
    /// Name of the model, or one of its aliases.
    pub model: Option<String>,
    /// The ids.
    #[schema(required = true, nullable = false)]
    #[serde(default, deserialize_with = "ids")]
    pub tokens: Option<Vec<u32>>,
}

/// The text of tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// The text, control tokens spelled out.
    pub prompt: String,
}

/// How the server is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Health {
    /// `ok`; a server that is not says so as an error.
    pub status: &'static str,
}

/// What the server is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Version {
    /// Of canvasd.
    pub version: &'static str,
    /// The served model.
    pub model: String,
    /// Constant for a build and a model.
    pub system_fingerprint: String,
}
