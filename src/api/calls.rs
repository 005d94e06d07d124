//! The tools of a request, and the calls of its answers: what may be called, what must be, and how many calls are passed on.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::wire::either::ToolChoice;
use super::wire::options::{Function, NamedTool, Tool};
use crate::prompt::{CallableTools, CalledTool, Dialect};

/// Longest name of a tool, as in the original API.
const TOOL_NAME: usize = 64;

/// How many of an answer's tool calls are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Every one.
    All,
    /// The first.
    First,
    /// None: no tools are offered, so there are no calls.
    None,
}

impl Calls {
    /// What a request with those tools wants.
    pub(crate) fn of<T>(tools: &[T], parallel: Option<bool>) -> Calls {
        match parallel {
            _ if tools.is_empty() => Calls::None,
            Some(false) => Calls::First,
            _ => Calls::All,
        }
    }

    /// How a chat answer is read accordingly.
    pub(crate) fn dialect(self) -> Dialect {
        if self == Calls::None { Dialect::ChatWithoutTools } else { Dialect::Chat }
    }
}

/// What calls an answer may consist of.
#[derive(Debug, Default)]
pub(crate) enum Expected {
    /// None: no tools are offered.
    #[default]
    Nothing,
    /// Calls of these tools, where the model makes any.
    Offered(Vec<CalledTool>),
    /// A call of one of these tools.
    Demanded(Vec<CalledTool>),
}

impl Expected {
    /// Of a request that offers these and demands nothing.
    fn of(tools: Vec<CalledTool>) -> Expected {
        if tools.is_empty() { Expected::Nothing } else { Expected::Offered(tools) }
    }
}

/// The tools of a request.
#[derive(Debug, Default)]
pub(crate) struct Toolbox {
    /// What the template is told of them.
    pub declared: Vec<Value>,
    /// What may be called, and how.
    pub callable: CallableTools,
    /// What calls of them an answer may, or must, consist of.
    pub expected: Expected,
}

impl Toolbox {
    /// Chat's tools: none where `choice` says so.
    pub(crate) fn new(wire: Option<Vec<Tool>>, choice: Option<ToolChoice>) -> Result<Toolbox, ApiError> {
        let mut tools = Toolbox::default();
        for (index, tool) in wire.unwrap_or_default().into_iter().enumerate() {
            let path = format!("tools[{index}]");
            check_kind(tool.r#type.as_deref(), &path)?;
            let path = format!("{path}.function");
            tools.add(tool.function.ok_or_else(|| ApiError::missing(&path))?, &path)?;
        }
        tools.offered(choice)
    }

    /// Adds a function; `path` is where the request describes it.
    pub(crate) fn add(&mut self, wire: Function, path: &str) -> Result<(), ApiError> {
        let at = |field: &str| format!("{path}.{field}");
        let name = wire.name.ok_or_else(|| ApiError::missing(&at("name")))?;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > TOOL_NAME || !name.chars().all(legal) {
            let message =
                format!("A tool's name is made of letters, digits, '_', '-' and '.', at most {TOOL_NAME} of them.");
            return Err(ApiError::invalid(at("name"), message));
        }
        if !self.callable.insert(&name) {
            let message = format!("There are two tools named {}; give each its own name.", json!(name));
            return Err(ApiError::invalid(at("name"), message));
        }
        if wire.strict == Some(true) {
            self.callable.insert_strict(&name, wire.parameters.as_ref()).map_err(|error| {
                let message = format!("A strict tool's calls are checked, but {error}; leave it or 'strict' out.");
                ApiError::unsupported(at("parameters"), message)
            })?;
        }
        let mut declared = Map::new();
        declared.insert("name".into(), name.into());
        if let Some(description) = wire.description {
            declared.insert("description".into(), description.into());
        }
        if let Some(parameters) = wire.parameters {
            declared.insert("parameters".into(), parameters.into());
        }
        self.declared.push(json!({"type": "function", "function": declared}));
        Ok(())
    }

    /// These tools, or none where `choice` says so; it may demand a call, too.
    pub(crate) fn offered(mut self, choice: Option<ToolChoice>) -> Result<Toolbox, ApiError> {
        let tools: Vec<CalledTool> = self.tools().collect();
        self.expected = match choice {
            None => Expected::of(tools),
            Some(ToolChoice::Mode(mode)) => match mode.as_str() {
                "auto" => Expected::of(tools),
                "none" => return Ok(Toolbox::default()),
                "required" if tools.is_empty() => {
                    let message =
                        "'tool_choice' demands a call, but there are no 'tools'; send those that may be called.";
                    return Err(ApiError::invalid("tool_choice", message));
                }
                "required" => Expected::Demanded(tools),
                _ => return Err(unknown_choice("tool_choice")),
            },
            Some(ToolChoice::Named(tool)) => Expected::Demanded(vec![self.named(tool)?]),
        };
        Ok(self)
    }

    /// What was declared, as what can be called.
    fn tools(&self) -> impl Iterator<Item = CalledTool> {
        self.declared.iter().map(|tool| {
            let function = &tool["function"];
            CalledTool {
                name: function["name"].as_str().unwrap_or_default().to_owned(),
                parameters: function["parameters"].clone(),
            }
        })
    }

    /// The tool that a choice names.
    fn named(&self, choice: NamedTool) -> Result<CalledTool, ApiError> {
        let (name, path) = match (choice.function, choice.name) {
            (Some(function), Some(other)) if function.name.as_ref().is_some_and(|name| *name != other) => {
                let message = "'tool_choice' names a function twice, and the names differ; send one of them.";
                return Err(ApiError::invalid("tool_choice.name", message));
            }
            (Some(function), _) => (function.name, "tool_choice.function.name"),
            (None, name) => (name, "tool_choice.name"),
        };
        match choice.r#type.as_deref() {
            Some("function") => {}
            None => return Err(ApiError::missing("tool_choice.type")),
            Some("allowed_tools") => {
                let message = "This server offers the model all 'tools'; send only those that it may call, and \
                               'tool_choice' as 'auto' or 'required'.";
                return Err(ApiError::unsupported("tool_choice", message));
            }
            Some(_) => return Err(unknown_choice("tool_choice.type")),
        }
        let name = name.ok_or_else(|| ApiError::missing(path))?;
        self.tools().find(|tool| tool.name == name).ok_or_else(|| {
            ApiError::invalid(path, format!("'{path}' is {}, which is not among the 'tools'.", json!(name)))
        })
    }
}

fn unknown_choice(path: &str) -> ApiError {
    let message = "'tool_choice' must be 'auto', 'none', 'required', or a function: {\"type\": \"function\", …}.";
    ApiError::invalid(path, message)
}

/// Refuses a tool that is no function.
pub(crate) fn check_kind(kind: Option<&str>, path: &str) -> Result<(), ApiError> {
    let path = format!("{path}.type");
    match kind {
        Some("function") => Ok(()),
        Some(_) => Err(ApiError::unsupported(path, "The type of a tool must be 'function'.")),
        None => Err(ApiError::missing(&path)),
    }
}
