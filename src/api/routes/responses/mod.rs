//! `POST /v1/responses`: an input, answered. Stateless; functions are the only tools.

mod input;
mod writer;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, json};
use uuid::Uuid;

use super::super::body::Body;
use super::super::calls::Calls;
use super::super::conversation::{Reflection, encode_chat};
use super::super::error::ApiError;
use super::super::failures::Failures;
use super::super::form;
use super::super::generation::{Plan, start};
use super::super::order::{Delivery, Wishes, count};
use super::super::sse;
use super::super::state::{AppState, unix_seconds};
use super::super::wire::either::ToolChoice;
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
    Body { value: mut request, ignored }: Body<ResponsesRequest>,
) -> Result<Response, ApiError> {
    state.check_model(request.model.as_deref())?;
    refuse_unsupported(&request)?;
    let max_tokens = match request.max_output_tokens {
        Some(most) => Some(count("max_output_tokens", Some(most), 1, 1, usize::MAX)?),
        None => state.settings().default_max_tokens,
    };
    let order = Wishes {
        seed: request.seed,
        temperature: request.temperature,
        top_p: request.top_p,
        diffusion: request.diffusion.take(),
        stream: request.stream,
        stream_options: request.stream_options.take(),
        diffusing: request.diffusing,
        ..Wishes::default()
    };
    let order = order.order(&state)?;
    let effort = request.reasoning.as_ref().and_then(|reasoning| reasoning.effort);
    let reflection = Reflection::new("reasoning.effort", effort, None)?;
    let messages = input::conversation(request.instructions.clone(), request.input.take())?;
    let given = request.tools.take().unwrap_or_default();
    let choice = request.tool_choice.clone().unwrap_or_else(|| ToolChoice::Mode("auto".to_owned()));
    let tools = input::tools(&given)?.offered(request.tool_choice.take())?;
    let calls = Calls::of(&tools.declared, request.parallel_tool_calls);
    let chat = Chat { messages, tools: tools.declared, thinking: reflection.thinking, kwargs: Map::new() };
    let format = request.text.take().and_then(|text| text.format);
    let asked = form::of_responses(format.as_ref())?;
    let prompt = encode_chat(&state, chat, "input", reflection.field).await?;
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
    let answer = ResponseObject {
        id: format!("resp_{}", Uuid::now_v7().simple()),
        object: "response",
        created_at: unix_seconds(),
        status: "in_progress",
        background: false,
        error: None,
        incomplete_details: None,
        instructions: request.instructions,
        max_output_tokens: request.max_output_tokens,
        model: state.card().id.clone(),
        output: Vec::new(),
        parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
        previous_response_id: None,
        reasoning: json!({"effort": effort, "summary": null}),
        service_tier: "default",
        store: false,
        temperature: request.temperature.unwrap_or(1.0),
        top_p: request.top_p.unwrap_or(1.0),
        text: format.map_or_else(|| json!({"format": {"type": "text"}}), |format| json!({"format": format})),
        tool_choice: choice,
        tools: given,
        truncation: "disabled",
        usage: None,
        metadata: request.metadata.unwrap_or_default(),
    };
    let writer = Writer::new(answer);
    let response = match delivery {
        Delivery::Whole => Json(writer.whole(pump).await?).into_response(),
        Delivery::Stream { .. } => sse::respond(pump, writer, state.settings().keep_alive),
    };
    Ok(ignored.attach(response))
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
