//! `POST /v1/responses`: an input, answered. Stateless; functions are the only tools.

mod input;
mod writer;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::Map;
use uuid::Uuid;

use super::super::body::Body;
use super::super::calls::Calls;
use super::super::conversation::Reflection;
use super::super::error::ApiError;
use super::super::failures::Failures;
use super::super::form;
use super::super::generation::{Plan, start};
use super::super::order::{Delivery, Wishes, count};
use super::super::prompts::{Purpose, encode_chat};
use super::super::sse;
use super::super::state::{AppState, unix_seconds};
use super::super::wire::responses::{ResponseEvent, ResponseObject, ResponsesRequest};
use crate::prompt::Chat;
use writer::Writer;

/// What may be included without changing anything: there is nothing encrypted here.
const INCLUDED: &str = "reasoning.encrypted_content";

/// Answers an input.
#[utoipa::path(
    post,
    path = "/v1/responses",
    operation_id = "createResponse",
    tag = "Generation",
    request_body = ResponsesRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, as server-sent events.", content(
            (ResponseObject = "application/json"),
            (ResponseEvent = "text/event-stream")
        )),
        Failures
    )
)]
pub(crate) async fn responses(
    State(state): State<AppState>,
    Body { value: mut request, ignored, arrived }: Body<ResponsesRequest>,
) -> Result<Response, ApiError> {
    state.check_model(request.model.as_deref())?;
    refuse_unsupported(&request)?;
    let id = format!("resp_{}", Uuid::now_v7().simple());
    let writer = Writer::new(ResponseObject::begun(&request, id, unix_seconds(), state.card().id.clone()));
    let max_tokens = match request.max_output_tokens {
        Some(most) => Some(count("max_output_tokens", Some(most), 1, 1, usize::MAX)?),
        None => state.settings().default_max_tokens,
    };
    let order = wishes(&mut request).order(&state, arrived)?;
    let effort = request.reasoning.and_then(|reasoning| reasoning.effort);
    let reflection = Reflection::new("reasoning.effort", effort, None)?;
    let messages = input::conversation(request.instructions, request.input)?;
    let tools = input::tools(request.tools.unwrap_or_default())?.offered(request.tool_choice)?;
    let calls = Calls::of(&tools.declared, request.parallel_tool_calls);
    let chat = Chat { messages, tools: tools.declared, thinking: reflection.thinking, kwargs: Map::new() };
    let asked = form::of_responses(request.text.and_then(|text| text.format))?;
    let prompt = encode_chat(&state, chat, Purpose::Prompt, "input", reflection.field).await?;
    let structure = form::blueprint(&state, asked, tools.expected).await?;
    let delivery = order.delivery;
    let plan = Plan {
        order,
        prompts: vec![prompt],
        choices: 1,
        max_tokens,
        top_k: 0,
        dialect: calls.dialect(),
        calls,
        callable: tools.callable,
        structure,
        field: "input",
    };
    let pump = start(&state, plan)?;
    let response = match delivery {
        Delivery::Whole => Json(writer.whole(pump).await?).into_response(),
        Delivery::Stream { .. } => sse::respond(pump, writer, state.settings().keep_alive),
    };
    Ok(ignored.attach(response))
}

/// Takes the fields that all generating requests share out of this one, as far as it has them.
fn wishes(request: &mut ResponsesRequest) -> Wishes {
    Wishes {
        seed: request.seed.take(),
        temperature: request.temperature.take(),
        top_p: request.top_p.take(),
        diffusion: request.diffusion.take(),
        stream: request.stream.take(),
        stream_options: request.stream_options.take(),
        diffusing: request.diffusing.take(),
        ..Wishes::default()
    }
}

/// Refuses fields that ask for what this endpoint does not do.
fn refuse_unsupported(request: &ResponsesRequest) -> Result<(), ApiError> {
    let refused = [
        (
            request.previous_response_id.is_some(),
            "previous_response_id",
            "Nothing is remembered between requests; send the conversation as 'input'.",
        ),
        (request.conversation.is_some(), "conversation", "Nothing is remembered; send the conversation as 'input'."),
        (request.background == Some(true), "background", "'background' must be false."),
        (
            request.include.as_ref().is_some_and(|include| include.iter().any(|what| what != INCLUDED)),
            "include",
            "There is nothing more to include; leave 'include' out.",
        ),
        (request.prompt.is_some(), "prompt", "No prompts are stored; use 'instructions' and 'input'."),
        (
            request.truncation.as_ref().is_some_and(|how| how != "disabled"),
            "truncation",
            "'truncation' must be 'disabled'.",
        ),
        (
            request.top_logprobs.is_some_and(|wanted| wanted > 0),
            "top_logprobs",
            "Log-probabilities come from /v1/chat/completions; leave 'top_logprobs' out.",
        ),
    ];
    if let Some((_, field, message)) = refused.into_iter().find(|(given, ..)| *given) {
        return Err(ApiError::unsupported(field, message));
    }
    Ok(())
}
