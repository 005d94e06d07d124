//! `POST /tokenize` and `POST /detokenize`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::super::body::Body;
use super::super::calls::Toolbox;
use super::super::conversation::{Reflection, messages};
use super::super::error::ApiError;
use super::super::failures::Failures;
use super::super::prompts::{Purpose, check_text, encode_chat, encode_text};
use super::super::state::AppState;
use super::super::wire::other::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use super::completions::check_known;
use crate::prompt::Chat;

/// Cuts a text or a conversation into tokens, as a prompt would be.
#[utoipa::path(
    post,
    path = "/tokenize",
    operation_id = "tokenize",
    tag = "Tokens",
    request_body = TokenizeRequest,
    responses((status = 200, description = "The tokens.", body = TokenizeResponse), Failures)
)]
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    Body { value: request, mut ignored, .. }: Body<TokenizeRequest>,
) -> Result<Response, ApiError> {
    state.check_model(request.model.as_deref())?;
    let tokens = match (request.prompt, request.messages) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("prompt", "Give either 'prompt' or 'messages', not both."));
        }
        (None, None) => return Err(ApiError::missing("prompt")),
        (Some(prompt), None) => {
            if request.tools.is_some() {
                ignored.add("", "tools");
            }
            if request.chat_template_kwargs.is_some() {
                ignored.add("", "chat_template_kwargs");
            }
            check_text(&state, &prompt, Purpose::Tokens, "prompt")?;
            let here = state.clone();
            state.aside().run(move || encode_text(&here, &prompt, Purpose::Tokens, "prompt")).await??
        }
        (None, Some(wire)) => {
            let reflection = Reflection::new("", None, request.chat_template_kwargs)?;
            reflection.note_unread(state.text(), &mut ignored);
            let messages = messages(Some(wire), "messages")?;
            let tools = Toolbox::new(request.tools, None)?.declared;
            let chat = Chat { messages, tools, thinking: reflection.thinking, kwargs: reflection.kwargs };
            encode_chat(&state, chat, Purpose::Tokens, "messages", reflection.field).await?.ids
        }
    };
    let spelled = |id: &u32| String::from_utf8_lossy(&state.text().token_bytes(*id)).into_owned();
    let token_strs = (request.return_token_strs == Some(true)).then(|| tokens.iter().map(spelled).collect());
    let max_model_len = state.engine().limits().context;
    let response = TokenizeResponse { count: tokens.len(), tokens, max_model_len, token_strs };
    Ok(ignored.attach(Json(response).into_response()))
}

/// Turns tokens into text.
#[utoipa::path(
    post,
    path = "/detokenize",
    operation_id = "detokenize",
    tag = "Tokens",
    request_body = DetokenizeRequest,
    responses((status = 200, description = "The text.", body = DetokenizeResponse), Failures)
)]
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    Body { value: request, ignored, .. }: Body<DetokenizeRequest>,
) -> Result<Response, ApiError> {
    state.check_model(request.model.as_deref())?;
    let tokens = request.tokens.ok_or_else(|| ApiError::missing("tokens"))?;
    check_known("tokens", &tokens, state.engine().limits().vocabulary)?;
    let text = state.text().clone();
    let prompt = state.aside().run(move || text.decode(&tokens)).await?;
    Ok(ignored.attach(Json(DetokenizeResponse { prompt }).into_response()))
}
