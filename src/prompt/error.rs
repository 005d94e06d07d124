//! What can go wrong between text and tokens, and whose fault it is.

/// Why a text, a conversation or a checkpoint's tokenizer or template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The checkpoint has no chat template.
    #[error("this checkpoint has no chat template: send the whole prompt as text to /v1/completions instead")]
    NoTemplate,
    /// The conversation has no message.
    #[error("at least one message is needed")]
    NoMessages,
    /// The template itself refuses the conversation (`raise_exception`); its own words.
    #[error("the chat template refuses this conversation: {0}")]
    Raised(String),
    /// The template failed on this conversation.
    #[error("the chat template cannot render this conversation: {0}")]
    Render(String),
    /// The template goes on and on.
    #[error("the chat template does not come to an end within {0} steps for this conversation: shorten it")]
    Endless(u64),
    /// Tools, calls or results are given, but the template writes none.
    #[error("this checkpoint's chat template knows no tools: leave out tools, tool calls and tool results")]
    NoTools,
    /// Thinking is asked for, but the template has no switch for it.
    #[error("this checkpoint's chat template knows no thinking: leave it off")]
    NoThinking,
    /// A template argument would replace what the server fills in.
    #[error("the server fills in {0} itself: leave it out of chat_template_kwargs")]
    ReservedArgument(String),
    /// A text uses up every code point that the renderer could mark it with.
    #[error("the text uses too many private code points to be rendered safely")]
    NoSentinel,
    /// The template does not compile.
    #[error("the checkpoint's chat template is not understood: {0}")]
    Template(String),
    /// The tokenizer's decoder is of a kind that cannot be streamed.
    #[error("the tokenizer's decoder {0} is not supported")]
    Decoder(String),
    /// No answer can be held to the form asked for.
    #[error("the schema cannot be enforced: {0}")]
    Structure(String),
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

/// Whose fault a [`PromptError`] is: what of the request it is about, if it is the request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The text or the conversation.
    Messages,
    /// The tools.
    Tools,
    /// What switches thinking on.
    Thinking,
    /// The template's further variables.
    Kwargs,
    /// The form its answer must have.
    Form,
    /// The checkpoint's or ours.
    Checkpoint,
}

impl PromptError {
    /// Whose fault it is: a request's is answered as a bad request, and trying again cannot help.
    pub fn fault(&self) -> Fault {
        match self {
            PromptError::NoTemplate
            | PromptError::NoMessages
            | PromptError::Raised(_)
            | PromptError::Render(_)
            | PromptError::Endless(_)
            | PromptError::NoSentinel => Fault::Messages,
            PromptError::NoTools => Fault::Tools,
            PromptError::NoThinking => Fault::Thinking,
            PromptError::ReservedArgument(_) => Fault::Kwargs,
            PromptError::Structure(_) => Fault::Form,
            PromptError::Template(_) | PromptError::Decoder(_) | PromptError::Tokenizer(_) => Fault::Checkpoint,
        }
    }
}
