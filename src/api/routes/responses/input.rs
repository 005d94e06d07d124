//! From a response's input to the conversation that `prompt` renders.
//!
//! Calls and their results are items of their own here; in the conversation a call belongs to the assistant's message
//! before it, what the assistant says after a call belongs to the message that calls, and a result is a message.

use std::collections::HashSet;

use super::super::super::conversation::{Toolbox, arguments, check_kind, content, one};
use super::super::super::error::ApiError;
use super::super::super::wire::chat::{self as wire, Message};
use super::super::super::wire::either::{Content, Input};
use super::super::super::wire::options::Function;
use super::super::super::wire::responses::{FunctionTool, InputItem};
use crate::prompt::{self, Part, Role, ToolCall};

/// The instructions and the input as a conversation.
pub(super) fn conversation(
    instructions: Option<String>,
    input: Option<Input>,
) -> Result<Vec<prompt::Message>, ApiError> {
    let mut turns = Turns::default();
    turns.messages.extend(instructions.map(|text| prompt::Message::new(Role::System, text)));
    match input.ok_or_else(|| ApiError::missing("input"))? {
        Input::Text(text) => turns.messages.push(prompt::Message::new(Role::User, text)),
        Input::Items(items) => {
            for (index, item) in items.into_iter().enumerate() {
                turns.take(item, &format!("input[{index}]"))?;
            }
        }
    }
    if turns.messages.is_empty() {
        return Err(ApiError::invalid("input", "'input' must hold at least one message."));
    }
    Ok(turns.messages)
}

/// The conversation so far.
#[derive(Default)]
struct Turns {
    messages: Vec<prompt::Message>,
    /// Ids of the calls so far.
    calls: HashSet<String>,
}

impl Turns {
    fn take(&mut self, item: InputItem, path: &str) -> Result<(), ApiError> {
        match item.r#type.as_deref() {
            None | Some("message") => self.message(item, path),
            Some("function_call") => self.call(item, path),
            Some("function_call_output") => self.output(item, path),
            // Old thoughts are not shown to the model.
            Some("reasoning") => Ok(()),
            Some(_) => {
                let message = "The type of an input item must be 'message', 'function_call' or 'function_call_output'.";
                Err(ApiError::unsupported(format!("{path}.type"), message))
            }
        }
    }

    fn message(&mut self, item: InputItem, path: &str) -> Result<(), ApiError> {
        if item.role == Some(wire::Role::Tool) {
            let message = "The result of a call is no message here; send an item of the type 'function_call_output' with \
                           the call's 'call_id' and its 'output'.";
            return Err(ApiError::invalid(format!("{path}.role"), message));
        }
        let content = item.content.filter(|content| !matches!(content, Content::Parts(parts) if parts.is_empty()));
        let message = Message { role: item.role, content, ..Message::default() };
        let message = one(message, path, &mut self.calls)?;
        match self.messages.last_mut() {
            // Between a call and its result there is no room for another turn.
            Some(calling) if message.role == Role::Assistant && !calling.tool_calls.is_empty() => {
                go_on(&mut calling.content, message.content);
            }
            _ => self.messages.push(message),
        }
        Ok(())
    }

    fn call(&mut self, item: InputItem, path: &str) -> Result<(), ApiError> {
        let at = |field: &str| format!("{path}.{field}");
        let id = item.call_id.ok_or_else(|| ApiError::missing(&at("call_id")))?;
        let name = item.name.ok_or_else(|| ApiError::missing(&at("name")))?;
        let call = ToolCall { id: id.clone(), name, arguments: arguments(item.arguments, &at("arguments"))? };
        self.calls.insert(id);
        match self.messages.last_mut() {
            Some(message) if message.role == Role::Assistant => message.tool_calls.push(call),
            _ => {
                let mut message = prompt::Message::new(Role::Assistant, "");
                message.tool_calls.push(call);
                self.messages.push(message);
            }
        }
        Ok(())
    }

    fn output(&mut self, item: InputItem, path: &str) -> Result<(), ApiError> {
        let at = |field: &str| format!("{path}.{field}");
        let id = item.call_id.ok_or_else(|| ApiError::missing(&at("call_id")))?;
        if !self.calls.contains(&id) {
            let message = "'call_id' must name a 'function_call' that stands before it.";
            return Err(ApiError::invalid(at("call_id"), message));
        }
        let output = item.output.ok_or_else(|| ApiError::missing(&at("output")))?;
        let mut message = prompt::Message::new(Role::Tool, "");
        message.content = content(output, &at("output"))?;
        message.tool_call_id = Some(id);
        self.messages.push(message);
        Ok(())
    }
}

/// Continues what was said: without a seam, since it was one text before a call came in between.
fn go_on(said: &mut prompt::Content, more: prompt::Content) {
    if let (prompt::Content::Text(text), prompt::Content::Text(more)) = (&mut *said, &more) {
        text.push_str(more);
        return;
    }
    let mut whole = parts(std::mem::replace(said, prompt::Content::Parts(Vec::new())));
    for (index, Part::Text(text)) in parts(more).into_iter().enumerate() {
        match whole.last_mut() {
            Some(Part::Text(last)) if index == 0 => last.push_str(&text),
            _ => whole.push(Part::Text(text)),
        }
    }
    *said = prompt::Content::Parts(whole);
}

fn parts(content: prompt::Content) -> Vec<Part> {
    match content {
        prompt::Content::Text(text) => vec![Part::Text(text)],
        prompt::Content::Parts(parts) => parts,
    }
}

/// The functions that the model may call.
pub(super) fn tools(wire: &[FunctionTool]) -> Result<Toolbox, ApiError> {
    let mut tools = Toolbox::default();
    for (index, tool) in wire.iter().enumerate() {
        let path = format!("tools[{index}]");
        check_kind(tool.r#type.as_deref(), &path)?;
        let FunctionTool { name, description, parameters, strict, .. } = tool.clone();
        tools.add(Function { name, description, parameters, strict }, &path)?;
    }
    Ok(tools)
}
