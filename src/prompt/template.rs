//! The checkpoint's own chat template, run the way the reference runs it.
//!
//! The engine is set up like the reference's Jinja2: blocks trimmed, `None` and `True` printed as Python prints them,
//! `raise_exception`, `strftime_now` and its kind of `tojson`. Everything a client sent goes in through a [`Shield`].

use std::collections::{HashMap, HashSet};
use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use serde_json::{Map, Number, Value as Json};

use super::arguments::{Arguments, Whole};
use super::chat::{Chat, Content, Message, Part, Role, Thinking, ToolCall};
use super::clock::Moment;
use super::error::PromptError;
use super::python::{self, Escapes, JsonStyle, KeyOrder};
use super::shield::Shield;

/// Variables the server fills in.
const RESERVED: [&str; 5] = ["messages", "tools", "bos_token", "eos_token", "add_generation_prompt"];
const NAME: &str = "chat_template";
/// Steps that a template may take for one conversation, a second or two. The longest contexts take some millions; a loop in
/// the template that never ends would hold its thread for ever.
const STEPS: u64 = 50_000_000;

/// How the template wants a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentForm {
    /// Always as one string.
    Text,
    /// As a string or a list of parts, as the client sent it.
    AsSent,
}

/// A compiled chat template.
pub(super) struct Template {
    env: Environment<'static>,
    /// Every word of its source.
    words: HashSet<String>,
    form: ContentForm,
    bos_token: String,
    eos_token: String,
}

/// Carries the message of `raise_exception` through the engine.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl Template {
    pub(super) fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Template, PromptError> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|error| PromptError::Template(describe(&error)))?);
        env.set_fuel(Some(STEPS));
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_formatter(|out, _state, value| python::write_str(out, value).map_err(Error::from));
        env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
        });
        env.add_function("strftime_now", |format: String| Moment::now().format(&format));
        env.add_filter("tojson", to_json);
        env.add_filter("string", |value: Value| -> Result<String, Error> {
            let mut text = String::new();
            python::write_str(&mut text, &value)?;
            Ok(text)
        });
        // In Jinja2 a sequence is whatever has a length and can be indexed: strings and mappings too.
        env.add_test("sequence", |value: Value| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
        });
        env.add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| PromptError::Template(describe(&error)))?;
        let mut template = Template {
            env,
            words: words(source).map(str::to_owned).collect(),
            form: ContentForm::AsSent,
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
        };
        template.form = template.probe()?;
        Ok(template)
    }

    /// Finds out whether the template renders a list of parts as it renders the same text, and whether it ends.
    fn probe(&self) -> Result<ContentForm, PromptError> {
        const TEXT: &str = "canvas";
        let shield = Shield::without_markers();
        let render = |content: Content| {
            let message = Message { content, ..Message::new(Role::User, "") };
            self.render(&Chat { messages: vec![message], ..Chat::default() }, &shield)
        };
        let text = render(Content::Text(TEXT.to_owned()));
        if let Err(PromptError::Endless(steps)) = text {
            let why = format!("it does not come to an end within {steps} steps for one short message");
            return Err(PromptError::Template(format!(
                "{why}; put one that does into chat_template.jinja beside the model"
            )));
        }
        let parts = render(Content::Parts(vec![Part::Text(TEXT.to_owned())]));
        let alike = text.is_ok_and(|text| parts.is_ok_and(|parts| text == parts));
        Ok(if alike { ContentForm::AsSent } else { ContentForm::Text })
    }

    /// Whether the template's source uses this name.
    pub(super) fn reads(&self, variable: &str) -> bool {
        self.words.contains(variable)
    }

    /// Renders the conversation and what makes the model answer; client text goes through the shield, whose marks are
    /// still in the result.
    pub(super) fn render(&self, chat: &Chat, shield: &Shield) -> Result<String, PromptError> {
        self.check(chat)?;
        let mut context: Vec<(String, Value)> = Vec::new();
        for (name, value) in &chat.kwargs {
            context.push((name.clone(), shielded(value, shield)));
        }
        match chat.thinking {
            Thinking::Default => {}
            _ if chat.kwargs.contains_key("enable_thinking") => {}
            thinking => context.push(("enable_thinking".to_owned(), Value::from(thinking == Thinking::On))),
        }
        context.push(("messages".to_owned(), Value::from(self.messages(&chat.messages, shield))));
        let tools = match chat.tools.as_slice() {
            [] => Value::from(()),
            tools => tools.iter().map(|tool| shielded(tool, shield)).collect(),
        };
        context.push(("tools".to_owned(), tools));
        context.push(("bos_token".to_owned(), Value::from(self.bos_token.as_str())));
        context.push(("eos_token".to_owned(), Value::from(self.eos_token.as_str())));
        context.push(("add_generation_prompt".to_owned(), Value::from(true)));
        let template = self.env.get_template(NAME).map_err(|error| PromptError::Template(describe(&error)))?;
        template.render(Value::from_pairs(context)).map_err(|error| match raised(&error) {
            Some(message) => PromptError::Raised(shield.strip(message).text),
            None if is_endless(&error) => PromptError::Endless(STEPS),
            None => PromptError::Render(shield.strip(&describe(&error)).text),
        })
    }

    /// Refuses what the template would leave out without a word.
    fn check(&self, chat: &Chat) -> Result<(), PromptError> {
        if chat.messages.is_empty() {
            return Err(PromptError::NoMessages);
        }
        if let Some(name) = chat.kwargs.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(PromptError::ReservedArgument(name.clone()));
        }
        let thinks = match chat.kwargs.get("enable_thinking") {
            Some(value) => value.as_bool() == Some(true),
            None => chat.thinking == Thinking::On,
        };
        if thinks && !self.reads("enable_thinking") {
            return Err(PromptError::NoThinking);
        }
        let calls = |message: &Message| message.role == Role::Tool || !message.tool_calls.is_empty();
        let calls_tools = chat.messages.iter().any(calls) && !self.reads("tool_calls") && !self.reads("tools");
        if calls_tools || (!chat.tools.is_empty() && !self.reads("tools")) {
            return Err(PromptError::NoTools);
        }
        Ok(())
    }

    fn messages(&self, messages: &[Message], shield: &Shield) -> Vec<Value> {
        // Names of the tools that calls went to, by the calls' ids; of calls with the same id the later one's.
        let mut called = HashMap::new();
        let mut values = Vec::with_capacity(messages.len());
        for message in messages {
            values.push(self.message(message, &called, shield));
            called.extend(message.tool_calls.iter().map(|call| (call.id.as_str(), call.name.as_str())));
        }
        values
    }

    /// A message; `called` are the tools of the calls before it.
    fn message(&self, message: &Message, called: &HashMap<&str, &str>, shield: &Shield) -> Value {
        let role = match message.role {
            Role::Developer if !self.reads("developer") => Role::System,
            role => role,
        };
        let content = |text: &str| match role {
            Role::Assistant => Value::from(shield.content(&shield.without_thoughts(text))),
            _ => Value::from(shield.content(text)),
        };
        let mut fields = vec![("role", Value::from(role.as_str()))];
        fields.push((
            "content",
            match (&message.content, self.form) {
                (Content::Text(text), _) => content(text),
                (Content::Parts(parts), ContentForm::Text) => content(&joined(parts)),
                (Content::Parts(parts), ContentForm::AsSent) => parts
                    .iter()
                    .map(|Part::Text(text)| Value::from_pairs([("type", Value::from("text")), ("text", content(text))]))
                    .collect(),
            },
        ));
        let call = message.tool_call_id.as_deref();
        let answered = call.filter(|_| role == Role::Tool).and_then(|id| called.get(id).copied());
        if let Some(name) = message.name.as_deref().or(answered) {
            fields.push(("name", Value::from(shield.text(name))));
        }
        if let Some(id) = call {
            fields.push(("tool_call_id", Value::from(shield.text(id))));
        }
        if let Some(reasoning) = &message.reasoning {
            let reasoning = Value::from(shield.content(reasoning));
            fields.push(("reasoning", reasoning.clone()));
            fields.push(("reasoning_content", reasoning));
        }
        if !message.tool_calls.is_empty() {
            let calls = message.tool_calls.iter().map(|call| tool_call(call, shield));
            fields.push(("tool_calls", calls.collect()));
        }
        Value::from_pairs(fields)
    }
}

/// The words of a template's source: names, and what else is written with the same characters.
fn words(source: &str) -> impl Iterator<Item = &str> {
    source.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn joined(parts: &[Part]) -> String {
    let texts: Vec<&str> = parts.iter().map(|Part::Text(text)| text.as_str()).collect();
    texts.join("\n")
}

fn tool_call(call: &ToolCall, shield: &Shield) -> Value {
    let function = Value::from_pairs([
        ("name", Value::from(shield.text(&call.name))),
        ("arguments", arguments(&call.arguments, shield)),
    ]);
    Value::from_pairs([
        ("id", Value::from(shield.text(&call.id))),
        ("type", Value::from("function")),
        ("function", function),
    ])
}

/// What a call was made with, long numbers as they were written.
fn arguments(arguments: &Arguments, shield: &Shield) -> Value {
    let mut written = arguments.numbers();
    let mut number = |number: &Number| {
        let whole = written.next().and_then(|text| Whole::of(number, text));
        whole.map_or_else(|| plain_number(number), Value::from_object)
    };
    shielded_map(arguments.values(), shield, &mut number)
}

/// JSON as a template's value, every string and key shielded.
fn shielded(json: &Json, shield: &Shield) -> Value {
    shielded_with(json, shield, &mut plain_number)
}

/// The same, with what numbers become; they come in order.
fn shielded_with(json: &Json, shield: &Shield, number: &mut dyn FnMut(&Number) -> Value) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(value) => number(value),
        Json::String(text) => Value::from(shield.text(text)),
        Json::Array(items) => items.iter().map(|item| shielded_with(item, shield, number)).collect(),
        Json::Object(map) => shielded_map(map, shield, number),
    }
}

fn shielded_map(map: &Map<String, Json>, shield: &Shield, number: &mut dyn FnMut(&Number) -> Value) -> Value {
    Value::from_pairs(map.iter().map(|(key, value)| (shield.text(key), shielded_with(value, shield, number))))
}

fn plain_number(number: &Number) -> Value {
    match (number.as_i64(), number.as_u64()) {
        (Some(value), _) => Value::from(value),
        (None, Some(value)) => Value::from(value),
        (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
    }
}

/// Drops the tags with which training marks what the model wrote: `{% generation %} … {% endgeneration %}`.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        let Some((inner, after)) = tag[2..].split_once("%}") else { break };
        let tag = &tag[..tag.len() - after.len()];
        out.push_str(before);
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn to_json(_state: &State, value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two strings")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        indent,
        item,
        key,
        keys: if sorted.unwrap_or(false) { KeyOrder::Sorted } else { KeyOrder::Given },
        escapes: if ascii.unwrap_or(false) { Escapes::NonAscii } else { Escapes::Needed },
    };
    let mut text = String::new();
    python::write_json(&mut text, &value, &style, 0)?;
    Ok(Value::from(text))
}

/// An error and what it came from, the outermost first.
fn causes(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let outermost: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(outermost), |&current| current.source())
}

fn raised(error: &Error) -> Option<&str> {
    causes(error).find_map(|cause| cause.downcast_ref().map(|Raised(message)| message.as_str()))
}

/// Whether the template has taken all the steps that it may.
fn is_endless(error: &Error) -> bool {
    let spent = |cause: &Error| cause.kind() == ErrorKind::OutOfFuel;
    causes(error).any(|cause| cause.downcast_ref().is_some_and(spent))
}

fn describe(error: &Error) -> String {
    match error.line() {
        Some(line) => format!("{} (line {line} of the template)", error.detail().unwrap_or(&error.kind().to_string())),
        None => error.to_string(),
    }
}
