//! A conversation as the template sees it, and the prompt it becomes: plain data.

use serde_json::{Map, Value};

use super::arguments::Arguments;

/// A conversation to render.
#[derive(Debug, Clone, Default)]
pub struct Chat {
    /// The messages, oldest first; at least one.
    pub messages: Vec<Message>,
    /// Tool declarations as clients send them: `{"type": "function", "function": {…}}`.
    pub tools: Vec<Value>,
    /// Whether the model is to think first.
    pub thinking: Thinking,
    /// Further variables of the template (`chat_template_kwargs`); those the server fills in are refused.
    pub kwargs: Map<String, Value>,
}

/// Whether the model is to think before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thinking {
    /// As the template decides, or `enable_thinking` in [`Chat::kwargs`] says.
    #[default]
    Default,
    /// It is; refused where the template has no switch for it.
    On,
    /// It is not.
    Off,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Standing instructions.
    System,
    /// Standing instructions, under their newer name; a template that does not know it gets `system`.
    Developer,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The role's name in templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; empty text where a client sends none.
    pub content: Content,
    /// The speaker's name, or the tool's.
    pub name: Option<String>,
    /// What the model thought before it said this.
    pub reasoning: Option<String>,
    /// Calls the model made.
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: Role, text: impl Into<String>) -> Message {
        Message {
            role,
            content: Content::Text(text.into()),
            name: None,
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

/// What a message holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts in order. Templates that know only text get them joined by newlines.
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
}

/// A call the model made earlier.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Its id, which the result names.
    pub id: String,
    /// The tool.
    pub name: String,
    /// What it was called with.
    pub arguments: Arguments,
}

/// A rendered and tokenised conversation, or a plain text.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Prefix lengths that a later request is likely to share: the ends of the system turn and of each earlier turn.
    /// Ascending; the end of the prompt is not among them, since it always is one.
    pub resume_points: Vec<usize>,
    /// Where the answer begins.
    pub opening: Opening,
}

impl Prompt {
    /// The tokens of a plain text, which the answer continues.
    pub fn plain(ids: Vec<u32>) -> Prompt {
        Prompt { ids, resume_points: Vec::new(), opening: Opening::Content }
    }
}

/// The channel in which an answer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Opening {
    /// The answer proper.
    #[default]
    Content,
    /// The prompt ends inside a thought.
    Reasoning,
}
