//! From what a request wants said or continued to tokens, and what is looked at before that work is done: whether the
//! request could be taken at all, and whether a text so long could fit.

use std::fmt;

use axum::http::StatusCode;

use super::error::{ApiError, sentence};
use super::state::AppState;
use crate::prompt::{self, Chat, Fault, PromptError};

/// Bytes of text that are cut into tokens for their own sake, whatever the context.
const MOST_BYTES: usize = 1 << 20;

/// What something is cut into tokens for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be continued.
    Prompt,
    /// For the tokens' own sake, which may be more than the context holds.
    Tokens,
}

/// How many tokens a prompt has.
#[derive(Debug, Clone, Copy)]
enum Count {
    Exactly(usize),
    /// As far as its bytes tell.
    AtLeast(usize),
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Count::Exactly(tokens) => write!(f, "{tokens}"),
            Count::AtLeast(tokens) => write!(f, "at least {tokens}"),
        }
    }
}

/// Renders and tokenizes a conversation, aside. `messages` and `thinking` are the request's names for what errors may be
/// about.
pub(crate) async fn encode_chat(
    state: &AppState,
    chat: Chat,
    purpose: Purpose,
    messages: &'static str,
    thinking: &'static str,
) -> Result<prompt::Prompt, ApiError> {
    check_open(state, purpose, 1)?;
    let here = state.clone();
    let encoded = state.aside().run(move || {
        let text = here.text();
        let rendered = text.rendered(&chat).map_err(|error| of_chat(&error, messages, thinking))?;
        check_text(&here, rendered.text(), purpose, messages)?;
        let prompt = text.tokenize(&rendered).map_err(|error| of_prompt(&error, messages))?;
        check_ids(&here, &prompt.ids, purpose, messages)?;
        Ok(prompt)
    });
    encoded.await?
}

/// Tokenizes a plain text. Takes the processor for long.
pub(crate) fn encode_text(state: &AppState, text: &str, purpose: Purpose, field: &str) -> Result<Vec<u32>, ApiError> {
    let ids = state.text().encode(text).map_err(|error| of_prompt(&error, field))?;
    check_ids(state, &ids, purpose, field)?;
    Ok(ids)
}

/// Refuses so many prompts if the engine would not take them in any case: work that takes long would be for nothing.
pub(crate) fn check_open(state: &AppState, purpose: Purpose, prompts: usize) -> Result<(), ApiError> {
    match purpose {
        Purpose::Prompt => state.engine().check_open(prompts).map_err(|refusal| ApiError::refused(&refusal, "prompt")),
        Purpose::Tokens => Ok(()),
    }
}

/// Refuses a text that is too long whatever its tokens are.
pub(crate) fn check_text(state: &AppState, text: &str, purpose: Purpose, field: &str) -> Result<(), ApiError> {
    let Some(longest) = state.text().longest_token() else { return Ok(()) };
    match purpose {
        Purpose::Prompt => check_room(state, Count::AtLeast(text.len().div_ceil(longest)), field),
        Purpose::Tokens => {
            let most = longest.saturating_mul(state.engine().limits().context).max(MOST_BYTES);
            if text.len() <= most {
                return Ok(());
            }
            let message = format!(
                "The text has {} bytes; at most {most} are cut into tokens at once: send it in parts.",
                text.len()
            );
            Err(ApiError::invalid(field, message))
        }
    }
}

/// Refuses a prompt that is none, or too long.
pub(crate) fn check_ids(state: &AppState, ids: &[u32], purpose: Purpose, field: &str) -> Result<(), ApiError> {
    match purpose {
        Purpose::Prompt if ids.is_empty() => {
            Err(ApiError::invalid(field, format!("'{field}' holds no tokens; at least one is needed.")))
        }
        Purpose::Prompt => check_room(state, Count::Exactly(ids.len()), field),
        Purpose::Tokens => Ok(()),
    }
}

/// Refuses a prompt beside which there is no room for a canvas.
fn check_room(state: &AppState, count: Count, field: &str) -> Result<(), ApiError> {
    let (limits, whole) = (state.engine().limits(), state.engine().model_context());
    let most = limits.context.saturating_sub(limits.canvas);
    let (Count::Exactly(tokens) | Count::AtLeast(tokens)) = count;
    if tokens <= most {
        return Ok(());
    }
    let mut message = format!(
        "The prompt has {count} tokens; shorten it to at most {most}, so that this server's context of {} tokens has room \
         for an answer.",
        limits.context
    );
    if limits.context < whole {
        message += &format!(" The model's own has {whole}: whoever runs the server can raise kv_memory.");
    }
    Err(ApiError::invalid(field, message).code("context_length_exceeded"))
}

/// Why a conversation cannot be rendered.
fn of_chat(error: &PromptError, messages: &str, thinking: &str) -> ApiError {
    match error.fault() {
        Fault::Thinking => {
            let message = format!("This checkpoint's chat template knows no thinking; leave '{thinking}' out.");
            ApiError::unsupported(thinking, message)
        }
        _ => of_prompt(error, messages),
    }
}

/// An error between text and tokens, as the client sees it; `messages` is the request's name for what was rendered or compiled.
pub(crate) fn of_prompt(error: &PromptError, messages: &str) -> ApiError {
    let message = sentence(&error.to_string());
    match error.fault() {
        Fault::Messages | Fault::Form => ApiError::invalid(messages, message),
        Fault::Tools => ApiError::unsupported("tools", message),
        Fault::Thinking | Fault::Kwargs => ApiError::invalid("chat_template_kwargs", message),
        Fault::Checkpoint => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("checkpoint"),
    }
}
