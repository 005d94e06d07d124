//! From a chat request's messages and tools to the conversation that `prompt` renders.
//!
//! Refuses what the model cannot take (images, audio, files) and what contradicts itself, by the path of the field.

use std::collections::HashSet;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::generation::Encoded;
use super::state::AppState;
use super::wire::chat::{ContentPart, Message, ReasoningEffort, Role, SentToolCall};
use super::wire::either::{Content, ToolChoice};
use super::wire::options::Tool;
use crate::prompt::{self, Chat, Fault, PromptError, Thinking};

/// Longest name of a tool, as in the original API.
const TOOL_NAME: usize = 64;

/// The messages as `prompt` knows them; `field` is the request's name for them.
pub(crate) fn messages(wire: Option<Vec<Message>>, field: &str) -> Result<Vec<prompt::Message>, ApiError> {
    let wire = wire.ok_or_else(|| ApiError::missing(field))?;
    if wire.is_empty() {
        return Err(ApiError::invalid(field, format!("'{field}' must hold at least one message.")));
    }
    let mut calls = HashSet::new();
    wire.into_iter()
        .enumerate()
        .map(|(index, message)| one(message, &format!("{field}[{index}]"), &mut calls))
        .collect()
}

/// One message at `path`; `calls` are the ids of the calls made before it.
pub(crate) fn one(wire: Message, path: &str, calls: &mut HashSet<String>) -> Result<prompt::Message, ApiError> {
    let at = |field: &str| format!("{path}.{field}");
    let role = wire.role.ok_or_else(|| ApiError::missing(&at("role")))?;
    if wire.audio.is_some() {
        return Err(ApiError::unsupported(at("audio"), "This model neither hears nor speaks; leave 'audio' out."));
    }
    if wire.function_call.is_some() {
        return Err(ApiError::unsupported(at("function_call"), "Use 'tool_calls' instead of 'function_call'."));
    }
    let tool_calls = wire.tool_calls.unwrap_or_default();
    if !tool_calls.is_empty() && role != Role::Assistant {
        return Err(ApiError::invalid(at("tool_calls"), "Only assistant messages may carry 'tool_calls'."));
    }
    let tool_calls = tool_calls.into_iter().enumerate();
    let tool_calls = tool_calls.map(|(index, call)| tool_call(call, &format!("{path}.tool_calls[{index}]")));
    let tool_calls = tool_calls.collect::<Result<Vec<_>, _>>()?;
    calls.extend(tool_calls.iter().map(|call| call.id.clone()));
    let tool_call_id = match role {
        Role::Tool => {
            let id = wire.tool_call_id.ok_or_else(|| ApiError::missing(&at("tool_call_id")))?;
            if !calls.contains(&id) {
                let message = "'tool_call_id' must name a call that an earlier assistant message made.";
                return Err(ApiError::invalid(at("tool_call_id"), message));
            }
            Some(id)
        }
        _ => None,
    };
    let content = match (wire.content, wire.refusal) {
        (Some(Content::Text(text)), _) => prompt::Content::Text(text),
        (Some(Content::Parts(parts)), _) => {
            let parts = parts.into_iter().enumerate();
            let parts = parts.map(|(index, wire)| part(wire, &format!("{path}.content[{index}]")));
            prompt::Content::Parts(parts.collect::<Result<_, _>>()?)
        }
        (None, Some(refusal)) => prompt::Content::Text(refusal),
        // An assistant may say nothing: it called tools, or its answer was cut off at once.
        (None, None) if role == Role::Assistant => prompt::Content::Text(String::new()),
        (None, None) => return Err(ApiError::missing(&at("content"))),
    };
    let role = match role {
        Role::System => prompt::Role::System,
        Role::Developer => prompt::Role::Developer,
        Role::User => prompt::Role::User,
        Role::Assistant => prompt::Role::Assistant,
        Role::Tool => prompt::Role::Tool,
    };
    let reasoning = wire.reasoning_content.or(wire.reasoning);
    Ok(prompt::Message { role, content, name: wire.name, reasoning, tool_calls, tool_call_id })
}

fn part(wire: ContentPart, path: &str) -> Result<prompt::Part, ApiError> {
    let at = |field: &str| format!("{path}.{field}");
    let text = match wire.r#type.as_deref() {
        Some("text" | "input_text" | "output_text") => wire.text.ok_or_else(|| ApiError::missing(&at("text")))?,
        Some("refusal") => wire.refusal.or(wire.text).ok_or_else(|| ApiError::missing(&at("refusal")))?,
        Some("image_url" | "input_image") => {
            return Err(ApiError::unsupported(path, "Images are not supported by this server yet; send text parts."));
        }
        Some("input_audio" | "audio" | "file" | "input_file") => {
            return Err(ApiError::unsupported(path, "Audio and files are not supported; send text parts."));
        }
        Some(_) => return Err(ApiError::invalid(at("type"), "The type of a content part must be 'text'.")),
        None => return Err(ApiError::missing(&at("type"))),
    };
    Ok(prompt::Part::Text(text))
}

fn tool_call(wire: SentToolCall, path: &str) -> Result<prompt::ToolCall, ApiError> {
    let at = |field: &str| format!("{path}.{field}");
    if wire.r#type.is_some_and(|kind| kind != "function") {
        return Err(ApiError::unsupported(at("type"), "The type of a tool call must be 'function'."));
    }
    let function = wire.function.ok_or_else(|| ApiError::missing(&at("function")))?;
    Ok(prompt::ToolCall {
        id: wire.id.ok_or_else(|| ApiError::missing(&at("id")))?,
        name: function.name.ok_or_else(|| ApiError::missing(&at("function.name")))?,
        arguments: function.arguments.unwrap_or_default(),
    })
}

/// The tools that the model is told of: none where `choice` says so.
pub(crate) fn tools(wire: Option<Vec<Tool>>, choice: Option<ToolChoice>) -> Result<Vec<Value>, ApiError> {
    let tools = wire.unwrap_or_default().into_iter().enumerate();
    let tools = tools.map(|(index, wire)| tool(wire, &format!("tools[{index}]"))).collect::<Result<Vec<_>, _>>()?;
    match choice {
        None => Ok(tools),
        Some(ToolChoice::Mode(mode)) if mode == "auto" => Ok(tools),
        Some(ToolChoice::Mode(mode)) if mode == "none" => Ok(Vec::new()),
        Some(ToolChoice::Mode(mode)) if mode == "required" => Err(not_enforced()),
        Some(ToolChoice::Named(_)) => Err(not_enforced()),
        Some(ToolChoice::Mode(_)) => Err(ApiError::invalid("tool_choice", "'tool_choice' must be 'auto' or 'none'.")),
    }
}

fn not_enforced() -> ApiError {
    let message = "This server cannot force the model to call a tool; 'tool_choice' must be 'auto' or 'none'.";
    ApiError::unsupported("tool_choice", message)
}

fn tool(wire: Tool, path: &str) -> Result<Value, ApiError> {
    let at = |field: &str| format!("{path}.{field}");
    match wire.r#type.as_deref() {
        Some("function") => {}
        Some(_) => return Err(ApiError::unsupported(at("type"), "The type of a tool must be 'function'.")),
        None => return Err(ApiError::missing(&at("type"))),
    }
    let function = wire.function.ok_or_else(|| ApiError::missing(&at("function")))?;
    let name = function.name.ok_or_else(|| ApiError::missing(&at("function.name")))?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > TOOL_NAME || !name.chars().all(legal) {
        let message =
            format!("A tool's name is made of letters, digits, '_', '-' and '.', at most {TOOL_NAME} of them.");
        return Err(ApiError::invalid(at("function.name"), message));
    }
    if function.strict == Some(true) {
        let message = "The schema of arguments is not enforced; leave 'strict' out or set it to false.";
        return Err(ApiError::unsupported(at("function.strict"), message));
    }
    let mut declared = Map::new();
    declared.insert("name".into(), name.into());
    if let Some(description) = function.description {
        declared.insert("description".into(), description.into());
    }
    if let Some(parameters) = function.parameters {
        declared.insert("parameters".into(), parameters.into());
    }
    Ok(json!({"type": "function", "function": declared}))
}

/// Whether the model is to think, and what else the template is told.
pub(crate) fn thinking(
    effort: Option<ReasoningEffort>,
    kwargs: Option<Map<String, Value>>,
) -> Result<(Thinking, Map<String, Value>), ApiError> {
    let mut kwargs = kwargs.unwrap_or_default();
    // The place of a key in the map is of no consequence to a template.
    let switch = kwargs.swap_remove("enable_thinking").filter(|value| !value.is_null());
    let thinking = match (switch, effort) {
        (Some(Value::Bool(true)), _) => Thinking::On,
        (Some(Value::Bool(false)), _) => Thinking::Off,
        (Some(_), _) => {
            let path = "chat_template_kwargs.enable_thinking";
            return Err(ApiError::invalid(path, format!("'{path}' must be true or false.")));
        }
        (None, None) => Thinking::Default,
        (None, Some(ReasoningEffort::None | ReasoningEffort::Minimal)) => Thinking::Off,
        (None, Some(_)) => Thinking::On,
    };
    Ok((thinking, kwargs))
}

/// Renders and tokenizes, off the threads that serve connections: a long conversation takes its time.
pub(crate) async fn encode_chat(state: &AppState, chat: Chat) -> Result<Encoded, ApiError> {
    let text = state.text().clone();
    let prompt = aside(move || text.render(&chat)).await?.map_err(|error| of_prompt(&error))?;
    Ok(Encoded { ids: prompt.ids, resume_points: prompt.resume_points, opening: prompt.opening })
}

/// Runs work that takes the processor for long.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::of_status(StatusCode::INTERNAL_SERVER_ERROR))
}

/// An error between text and tokens, as the client sees it.
pub(crate) fn of_prompt(error: &PromptError) -> ApiError {
    match error.fault() {
        Fault::Request { param } => ApiError::invalid(param, sentence(&error.to_string())),
        Fault::Checkpoint => {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, sentence(&error.to_string())).code("checkpoint")
        }
    }
}

/// The other rooms' errors are clauses; a client gets sentences.
fn sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str().trim_end_matches('.')),
        None => String::new(),
    }
}
