//! From a response's input to the conversation that `prompt` renders.
//!
//! Calls and their results are items of their own here; in the conversation a call belongs to the assistant's message
//! before it, and a result is a message. As long as a call waits for its result the assistant's turn is not over: what it
//! says after the call belongs to the same message.

use super::super::super::calls::{Toolbox, check_kind};
use super::super::super::conversation::{arguments, content, one};
use super::super::super::error::ApiError;
use super::super::super::open_calls::{CallForm, OpenCalls};
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
    let mut turns = Turns { messages: Vec::new(), calls: OpenCalls::new(CallForm::Items), turn: 0 };
    turns.messages.extend(instructions.map(|text| prompt::Message::new(Role::System, text)));
    match input.ok_or_else(|| ApiError::missing("input"))? {
        Input::Text(text) => turns.messages.push(prompt::Message::new(Role::User, text)),
        Input::Items(items) => {
            for (index, item) in items.into_iter().enumerate() {
                turns.take(item, &format!("input[{index}]"))?;
            }
        }
    }
    turns.calls.settled()?;
    if turns.messages.is_empty() {
        return Err(ApiError::invalid("input", "'input' must hold at least one message."));
    }
    Ok(turns.messages)
}

/// The conversation so far.
struct Turns {
    messages: Vec<prompt::Message>,
    calls: OpenCalls,
    /// Which message made the calls that wait for their results; means nothing where none does.
    turn: usize,
}

impl Turns {
    fn take(&mut self, item: InputItem, path: &str) -> Result<(), ApiError> {
        match item.r#type.as_deref() {
            None | Some("message") => self.message(item, path),
            Some("function_call") => self.call(item, path),
            Some("function_call_output") => self.output(item, path),
            // Old thoughts are not shown to the model.
            Some("reasoning") => refuse_strangers(&item, path, "reasoning", &["content"]),
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
        refuse_strangers(&item, path, "message", &["role", "content", "name"])?;
        if item.role.is_some_and(|role| role != wire::Role::Assistant) {
            self.calls.settled()?;
        }
        let content = item.content.filter(|content| !matches!(content, Content::Parts(parts) if parts.is_empty()));
        let message = Message { role: item.role, content, name: item.name, ..Message::default() };
        let message = one(message, path, &mut self.calls)?;
        match self.messages.get_mut(self.turn).filter(|_| self.calls.waiting()) {
            Some(turn) => {
                turn.name = turn.name.take().or(message.name);
                append(&mut turn.content, message.content);
            }
            None => self.messages.push(message),
        }
        Ok(())
    }

    fn call(&mut self, item: InputItem, path: &str) -> Result<(), ApiError> {
        let at = |field: &str| format!("{path}.{field}");
        refuse_strangers(&item, path, "function_call", &["call_id", "name", "arguments"])?;
        let id = item.call_id.ok_or_else(|| ApiError::missing(&at("call_id")))?;
        let name = item.name.ok_or_else(|| ApiError::missing(&at("name")))?;
        let arguments = arguments(item.arguments, &at("arguments"))?;
        if !self.calls.waiting() {
            if self.messages.last().is_none_or(|message| message.role != Role::Assistant) {
                self.messages.push(prompt::Message::new(Role::Assistant, ""));
            }
            self.turn = self.messages.len() - 1;
        }
        let id = self.calls.call(id, path)?;
        if let Some(turn) = self.messages.get_mut(self.turn) {
            turn.tool_calls.push(ToolCall { id, name, arguments });
        }
        Ok(())
    }

    fn output(&mut self, item: InputItem, path: &str) -> Result<(), ApiError> {
        let at = |field: &str| format!("{path}.{field}");
        refuse_strangers(&item, path, "function_call_output", &["call_id", "output"])?;
        let id = item.call_id.ok_or_else(|| ApiError::missing(&at("call_id")))?;
        let id = self.calls.result(id, path)?;
        let output = item.output.ok_or_else(|| ApiError::missing(&at("output")))?;
        let mut message = prompt::Message::new(Role::Tool, "");
        message.content = content(output, &at("output"))?;
        message.tool_call_id = Some(id);
        self.messages.push(message);
        Ok(())
    }
}

/// Refuses fields that an item of that kind has no use for: who sends them means something by them.
fn refuse_strangers(item: &InputItem, path: &str, kind: &str, own: &[&str]) -> Result<(), ApiError> {
    let given = [
        ("role", item.role.is_some()),
        ("content", item.content.is_some()),
        ("call_id", item.call_id.is_some()),
        ("name", item.name.is_some()),
        ("arguments", item.arguments.is_some()),
        ("output", item.output.is_some()),
    ];
    match given.into_iter().find(|(field, given)| *given && !own.contains(field)) {
        None => Ok(()),
        Some((field, _)) => {
            let message = format!("An input item of the type '{kind}' has no '{field}'; leave it out.");
            Err(ApiError::invalid(format!("{path}.{field}"), message))
        }
    }
}

/// Lets a message go on with `more`, as if it had been said at once.
fn append(said: &mut prompt::Content, more: prompt::Content) {
    let parts = |content| match content {
        prompt::Content::Text(text) => vec![Part::Text(text)],
        prompt::Content::Parts(parts) => parts,
    };
    let mut all = parts(std::mem::replace(said, prompt::Content::Parts(Vec::new())));
    let mut more = parts(more).into_iter();
    match (all.pop(), more.next()) {
        (Some(Part::Text(last)), Some(Part::Text(first))) => all.push(Part::Text(last + &first)),
        (last, first) => all.extend(last.into_iter().chain(first)),
    }
    all.extend(more);
    *said = prompt::Content::Parts(all);
}

/// The functions that the model may call.
pub(super) fn tools(wire: Vec<FunctionTool>) -> Result<Toolbox, ApiError> {
    let mut tools = Toolbox::default();
    for (index, tool) in wire.into_iter().enumerate() {
        let path = format!("tools[{index}]");
        check_kind(tool.r#type.as_deref(), &path)?;
        let FunctionTool { name, description, parameters, strict, .. } = tool;
        tools.add(Function { name, description, parameters, strict }, &path)?;
    }
    Ok(tools)
}
