//! From a chat request's messages to the conversation that `prompt` renders.
//!
//! Refuses what the model cannot take (images, audio, files) and what contradicts itself, by the path of the field.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::body::{Ignored, in_json_words};
use super::error::ApiError;
use super::exact::Exact;
use super::open_calls::{CallForm, OpenCalls};
use super::wire::chat::{ContentPart, Message, ReasoningEffort, Role, SentToolCall};
use super::wire::either::Content;
use crate::prompt::{self, Text, Thinking};

/// The messages as `prompt` knows them; `field` is the request's name for them.
pub(crate) fn messages(wire: Option<Vec<Message>>, field: &str) -> Result<Vec<prompt::Message>, ApiError> {
    let wire = wire.ok_or_else(|| ApiError::missing(field))?;
    if wire.is_empty() {
        return Err(ApiError::invalid(field, format!("'{field}' must hold at least one message.")));
    }
    let mut calls = OpenCalls::new(CallForm::Messages);
    let mut messages = Vec::with_capacity(wire.len());
    for (index, message) in wire.into_iter().enumerate() {
        if message.role.is_some_and(|role| role != Role::Tool) {
            calls.settled()?;
        }
        messages.push(one(message, &format!("{field}[{index}]"), &mut calls)?);
    }
    calls.settled()?;
    Ok(messages)
}

/// One message at `path`; `calls` are the calls made before it.
pub(crate) fn one(wire: Message, path: &str, calls: &mut OpenCalls) -> Result<prompt::Message, ApiError> {
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
    let tool_calls = tool_calls.into_iter().enumerate().map(|(index, call)| {
        let path = format!("{path}.tool_calls[{index}]");
        let mut call = tool_call(call, &path)?;
        call.id = calls.call(call.id, &path)?;
        Ok(call)
    });
    let tool_calls = tool_calls.collect::<Result<Vec<_>, ApiError>>()?;
    let tool_call_id = match (role, wire.tool_call_id) {
        (Role::Tool, Some(id)) => Some(calls.result(id, path)?),
        (Role::Tool, None) => return Err(ApiError::missing(&at("tool_call_id"))),
        (_, Some(_)) => {
            let message = "Only 'tool' messages answer a call; leave 'tool_call_id' out.";
            return Err(ApiError::invalid(at("tool_call_id"), message));
        }
        (_, None) => None,
    };
    let content = match (wire.content, wire.refusal) {
        (Some(wire), _) => content(wire, &at("content"))?,
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
    let reasoning = match (wire.reasoning_content, wire.reasoning) {
        (Some(one), Some(other)) if one != other => {
            let message = "'reasoning' is another name of 'reasoning_content', and they differ; send one of them.";
            return Err(ApiError::invalid(at("reasoning"), message));
        }
        (one, other) => one.or(other),
    };
    Ok(prompt::Message { role, content, name: wire.name, reasoning, tool_calls, tool_call_id })
}

/// What a message, or the result of a call, holds.
pub(crate) fn content(wire: Content, path: &str) -> Result<prompt::Content, ApiError> {
    match wire {
        Content::Text(text) => Ok(prompt::Content::Text(text)),
        Content::Parts(parts) => {
            let parts = parts.into_iter().enumerate();
            let parts = parts.map(|(index, wire)| part(wire, &format!("{path}[{index}]")));
            Ok(prompt::Content::Parts(parts.collect::<Result<_, _>>()?))
        }
    }
}

fn part(wire: ContentPart, path: &str) -> Result<prompt::Part, ApiError> {
    let at = |field: &str| format!("{path}.{field}");
    let text = match wire.r#type.as_deref() {
        Some("text" | "input_text" | "output_text") => {
            refuse_media(&wire, path)?;
            if wire.refusal.is_some() {
                let message = "A 'refusal' belongs to a part of the type 'refusal'; leave it out.";
                return Err(ApiError::invalid(at("refusal"), message));
            }
            wire.text.ok_or_else(|| ApiError::missing(&at("text")))?
        }
        Some("refusal") => {
            refuse_media(&wire, path)?;
            match (wire.refusal, wire.text) {
                (Some(_), Some(_)) => {
                    let message = "A part of the type 'refusal' holds its text once; leave 'text' out.";
                    return Err(ApiError::invalid(at("text"), message));
                }
                (refusal, text) => refusal.or(text).ok_or_else(|| ApiError::missing(&at("refusal")))?,
            }
        }
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

/// Refuses what a part of text may hold of another kind.
fn refuse_media(wire: &ContentPart, path: &str) -> Result<(), ApiError> {
    let media = [
        (wire.image_url.is_some(), "image_url", "Images are not supported by this server yet; send text parts."),
        (wire.input_audio.is_some(), "input_audio", "Audio is not supported; send text parts."),
        (wire.file.is_some(), "file", "Files are not supported; send text parts."),
    ];
    match media.into_iter().find(|(given, ..)| *given) {
        Some((_, field, message)) => Err(ApiError::unsupported(format!("{path}.{field}"), message)),
        None => Ok(()),
    }
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
        arguments: arguments(function.arguments, &at("function.arguments"))?,
    })
}

/// The arguments of a call in the history: the JSON text of an object, no key twice, or none.
pub(crate) fn arguments(text: Option<String>, path: &str) -> Result<prompt::Arguments, ApiError> {
    let text = text.unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(prompt::Arguments::default());
    }
    let mut json = serde_json::Deserializer::from_str(text.trim());
    let values = Map::deserialize(Exact(&mut json)).and_then(|values| json.end().map(|()| values));
    let values = values.map_err(|error| {
        let why = in_json_words(&error);
        ApiError::invalid(path, format!("'{path}' must be the JSON text of an object: {why}."))
    })?;
    Ok(prompt::Arguments::new(values, text))
}

/// Whether the model is to think, and what else the template is told.
#[derive(Debug, Default)]
pub(crate) struct Reflection {
    pub thinking: Thinking,
    pub kwargs: Map<String, Value>,
    /// The field that switches thinking.
    pub field: &'static str,
}

impl Reflection {
    /// From the request's effort, whose name is `field`, and the template's further variables.
    pub(crate) fn new(
        field: &'static str,
        effort: Option<ReasoningEffort>,
        kwargs: Option<Map<String, Value>>,
    ) -> Result<Reflection, ApiError> {
        const SWITCH: &str = "chat_template_kwargs.enable_thinking";
        let mut kwargs = kwargs.unwrap_or_default();
        // The place of a key in the map is of no consequence to a template.
        let switch = kwargs.swap_remove("enable_thinking").filter(|value| !value.is_null());
        let (thinking, field) = match (switch, effort) {
            (Some(Value::Bool(true)), _) => (Thinking::On, SWITCH),
            (Some(Value::Bool(false)), _) => (Thinking::Off, SWITCH),
            (Some(_), _) => return Err(ApiError::invalid(SWITCH, format!("'{SWITCH}' must be true or false."))),
            (None, None) => (Thinking::Default, field),
            (None, Some(ReasoningEffort::None | ReasoningEffort::Minimal)) => (Thinking::Off, field),
            (None, Some(_)) => (Thinking::On, field),
        };
        Ok(Reflection { thinking, kwargs, field })
    }

    /// Notes the variables that the template does not read: they have no effect.
    pub(crate) fn note_unread(&self, text: &Text, ignored: &mut Ignored) {
        for key in self.kwargs.keys().filter(|key| !text.reads(key)) {
            ignored.add("chat_template_kwargs", key);
        }
    }
}
