//! `POST /v1/responses`: an input, answered. Stateless; no tools.

use std::collections::HashSet;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::body::Body;
use super::super::conversation::{encode_chat, one, thinking};
use super::super::document::Failures;
use super::super::error::{ApiError, ErrorObject};
use super::super::generation::{Calls, Plan, start};
use super::super::order::{Delivery, Wishes, count};
use super::super::pump::{Beat, Commit, Finish};
use super::super::sse::{self, StreamDialect};
use super::super::state::{AppState, unix_seconds};
use super::super::wire::chat::Message;
use super::super::wire::either::{Content, Input};
use super::super::wire::responses::{
    IncompleteDetails, InputItem, OutputItem, OutputPart, ResponseEvent, ResponseObject, ResponseUsage,
    ResponsesRequest,
};
use super::super::wire::usage::Usage;
use super::chat::text_only;
use crate::prompt::{self, Chat, Dialect};

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
    Body { value: request, ignored }: Body<ResponsesRequest>,
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
        diffusion: request.diffusion,
        stream: request.stream,
        stream_options: request.stream_options,
        diffusing: request.diffusing,
        ..Wishes::default()
    };
    let vocabulary = state.engine().limits().vocabulary;
    let order = order.check(state.card().sampler, vocabulary, state.settings().request_timeout)?;
    let effort = request.reasoning.and_then(|reasoning| reasoning.effort);
    let (thinking, kwargs) = thinking(effort, None)?;
    let messages = conversation(request.instructions.clone(), request.input)?;
    let prompt = encode_chat(&state, Chat { messages, tools: Vec::new(), thinking, kwargs }).await?;
    let delivery = order.delivery;
    let plan = Plan {
        order,
        prompts: vec![prompt],
        choices: 1,
        max_tokens,
        top_k: 0,
        dialect: Dialect::ChatWithoutTools,
        calls: Calls::All,
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
        parallel_tool_calls: true,
        previous_response_id: None,
        store: false,
        temperature: request.temperature.unwrap_or(1.0),
        top_p: request.top_p.unwrap_or(1.0),
        text: json!({"format": {"type": "text"}}),
        tool_choice: "auto",
        tools: Vec::new(),
        truncation: "disabled",
        usage: None,
        metadata: request.metadata.unwrap_or_default(),
    };
    let mut writer = Writer { answer, sequence: 0, finish: Finish::Stop };
    let response = match delivery {
        Delivery::Whole => {
            let (answers, usage) = pump.whole().await?;
            for answer in answers {
                // The events of a stream that nobody reads: the answer they build is the same.
                writer.commit(Commit { reasoning: answer.reasoning, content: answer.content, ..Commit::default() });
                writer.finish = answer.finish;
            }
            writer.finish(usage);
            Json(writer.answer).into_response()
        }
        Delivery::Stream { .. } => sse::respond(pump, writer, state.settings().keep_alive),
    };
    Ok(ignored.attach(response))
}

/// Refuses fields that ask for what this endpoint does not do.
fn refuse_unsupported(request: &ResponsesRequest) -> Result<(), ApiError> {
    let other_choice = |choice: &Value| choice != "auto" && choice != "none";
    let refused = [
        (
            request.tools.as_ref().is_some_and(|tools| !tools.is_empty()),
            "tools",
            "This endpoint calls no tools; use /v1/chat/completions.",
        ),
        (
            request.tool_choice.as_ref().is_some_and(other_choice),
            "tool_choice",
            "'tool_choice' must be 'auto' or 'none'.",
        ),
        (
            request.previous_response_id.is_some(),
            "previous_response_id",
            "Nothing is remembered between requests; send the conversation as 'input'.",
        ),
        (request.conversation.is_some(), "conversation", "Nothing is remembered; send the conversation as 'input'."),
        (request.background == Some(true), "background", "'background' must be false."),
        (
            request.include.as_ref().is_some_and(|include| !include.is_empty()),
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
    text_only(request.text.as_ref().and_then(|text| text.format.as_ref()), "text.format.type")
}

/// The instructions and the input as a conversation.
fn conversation(instructions: Option<String>, input: Option<Input>) -> Result<Vec<prompt::Message>, ApiError> {
    let mut messages: Vec<prompt::Message> =
        instructions.into_iter().map(|text| prompt::Message::new(prompt::Role::System, text)).collect();
    match input.ok_or_else(|| ApiError::missing("input"))? {
        Input::Text(text) => messages.push(prompt::Message::new(prompt::Role::User, text)),
        Input::Items(items) => {
            for (index, item) in items.into_iter().enumerate() {
                messages.extend(message(item, &format!("input[{index}]"))?);
            }
        }
    }
    if messages.is_empty() {
        return Err(ApiError::invalid("input", "'input' must hold at least one message."));
    }
    Ok(messages)
}

/// One item of the input; old thoughts are none.
fn message(item: InputItem, path: &str) -> Result<Option<prompt::Message>, ApiError> {
    match item.r#type.as_deref() {
        None | Some("message") => {}
        Some("reasoning") => return Ok(None),
        Some(_) => {
            let message = "The type of an input item must be 'message'.";
            return Err(ApiError::unsupported(format!("{path}.type"), message));
        }
    }
    let content = item.content.filter(|content| !matches!(content, Content::Parts(parts) if parts.is_empty()));
    let wire = Message { role: item.role, content, ..Message::default() };
    one(wire, path, &mut HashSet::new()).map(Some)
}

/// Builds the answer, and tells of it event by event.
struct Writer {
    answer: ResponseObject,
    sequence: u64,
    finish: Finish,
}

/// What an output item holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
}

impl Kind {
    fn item(self) -> &'static str {
        match self {
            Kind::Reasoning => "reasoning",
            Kind::Message => "message",
        }
    }

    fn part(self, text: &str) -> OutputPart {
        match self {
            Kind::Reasoning => {
                OutputPart { r#type: "reasoning_text", text: text.to_owned(), annotations: None, logprobs: None }
            }
            Kind::Message => OutputPart {
                r#type: "output_text",
                text: text.to_owned(),
                annotations: Some(Vec::new()),
                logprobs: Some(Vec::new()),
            },
        }
    }

    /// Beside text of a message, as the SDKs want it.
    fn logprobs(self) -> Option<Vec<Value>> {
        (self == Kind::Message).then(Vec::new)
    }
}

impl Writer {
    fn event(&mut self, name: &str, event: ResponseEvent) -> Event {
        let sequence_number = self.sequence;
        self.sequence += 1;
        sse::named(name, &ResponseEvent { r#type: name.to_owned(), sequence_number, ..event })
    }

    fn whole(&mut self, name: &str) -> Event {
        let response = Some(self.answer.clone());
        self.event(name, ResponseEvent { response, ..ResponseEvent::default() })
    }

    /// The item under way, if it is of that kind.
    fn under_way(&self, kind: Kind) -> bool {
        self.answer.output.last().is_some_and(|item| item.r#type == kind.item() && item.status == "in_progress")
    }

    /// An event about the last item.
    fn about(&self) -> ResponseEvent {
        ResponseEvent {
            output_index: Some(self.answer.output.len().saturating_sub(1)),
            item_id: self.answer.output.last().map(|item| item.id.clone()),
            content_index: Some(0),
            ..ResponseEvent::default()
        }
    }

    fn open_item(&mut self, kind: Kind) -> Vec<Event> {
        let (prefix, role, summary) = match kind {
            Kind::Reasoning => ("rs", None, Some(Vec::new())),
            Kind::Message => ("msg", Some("assistant"), None),
        };
        let id = format!("{prefix}_{}", Uuid::now_v7().simple());
        let content = Vec::new();
        let item = OutputItem { id, r#type: kind.item(), status: "in_progress", role, content, summary };
        self.answer.output.push(item.clone());
        let about = self.about();
        let added = ResponseEvent { item: Some(item), item_id: None, content_index: None, ..about.clone() };
        let added = self.event("response.output_item.added", added);
        let part = self.event("response.content_part.added", ResponseEvent { part: Some(kind.part("")), ..about });
        if let Some(item) = self.answer.output.last_mut() {
            item.content.push(kind.part(""));
        }
        vec![added, part]
    }

    fn close_item(&mut self) -> Vec<Event> {
        let about = self.about();
        let Some(item) = self.answer.output.last_mut().filter(|item| item.status == "in_progress") else {
            return Vec::new();
        };
        item.status = "completed";
        let item = item.clone();
        let kind = if item.r#type == Kind::Message.item() { Kind::Message } else { Kind::Reasoning };
        let name = match kind {
            Kind::Reasoning => "response.reasoning_text.done",
            Kind::Message => "response.output_text.done",
        };
        let part = item.content.first().cloned();
        let text = part.as_ref().map(|part| part.text.clone());
        vec![
            self.event(name, ResponseEvent { text, logprobs: kind.logprobs(), ..about.clone() }),
            self.event("response.content_part.done", ResponseEvent { part, ..about.clone() }),
            self.event(
                "response.output_item.done",
                ResponseEvent { item: Some(item), item_id: None, content_index: None, ..about },
            ),
        ]
    }

    fn say(&mut self, kind: Kind, text: String) -> Vec<Event> {
        let mut events = Vec::new();
        if text.is_empty() {
            return events;
        }
        if !self.under_way(kind) {
            events.extend(self.close_item());
            events.extend(self.open_item(kind));
        }
        if let Some(part) = self.answer.output.last_mut().and_then(|item| item.content.first_mut()) {
            part.text.push_str(&text);
        }
        let name = match kind {
            Kind::Reasoning => "response.reasoning_text.delta",
            Kind::Message => "response.output_text.delta",
        };
        let about = self.about();
        events.push(self.event(name, ResponseEvent { delta: Some(text), logprobs: kind.logprobs(), ..about }));
        events
    }

    fn commit(&mut self, commit: Commit) -> Vec<Event> {
        let mut events = self.say(Kind::Reasoning, commit.reasoning);
        events.extend(self.say(Kind::Message, commit.content));
        events
    }

    /// Ends the answer; it holds a message, if only an empty one.
    fn finish(&mut self, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.answer.output.iter().any(|item| item.r#type == Kind::Message.item()) {
            events.extend(self.close_item());
            events.extend(self.open_item(Kind::Message));
        }
        events.extend(self.close_item());
        let incomplete = self.finish == Finish::Length;
        self.answer.status = if incomplete { "incomplete" } else { "completed" };
        self.answer.incomplete_details = incomplete.then_some(IncompleteDetails { reason: "max_output_tokens" });
        self.answer.usage = Some(ResponseUsage {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: usage.prompt_tokens_details,
            output_tokens: usage.completion_tokens,
            output_tokens_details: usage.completion_tokens_details,
            total_tokens: usage.total_tokens,
            diffusion: usage.diffusion,
        });
        events.push(self.whole(if incomplete { "response.incomplete" } else { "response.completed" }));
        events
    }
}

impl StreamDialect for Writer {
    fn open(&mut self) -> Vec<Event> {
        vec![self.whole("response.created"), self.whole("response.in_progress")]
    }

    fn beat(&mut self, _: usize, beat: Beat) -> Vec<Event> {
        match beat {
            Beat::Progress(frame) => {
                let event = ResponseEvent { diffusion: Some(frame), ..ResponseEvent::default() };
                vec![self.event("canvasd.diffusion.progress", event)]
            }
            Beat::Commit(commit) => self.commit(commit),
            Beat::Finished(finish, _) => {
                self.finish = finish;
                Vec::new()
            }
            Beat::Failed(error) => self.fail(&error),
        }
    }

    fn close(&mut self, usage: Usage) -> Vec<Event> {
        self.finish(usage)
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        /// The documented event, and the envelope beside it: some SDKs raise for the one, some for the other.
        #[derive(Serialize)]
        struct Failure {
            r#type: &'static str,
            code: Option<String>,
            message: String,
            param: Option<String>,
            sequence_number: u64,
            error: ErrorObject,
        }
        let error = error.body().error;
        let failure = Failure {
            r#type: "error",
            code: error.code.clone(),
            message: error.message.clone(),
            param: error.param.clone(),
            sequence_number: self.sequence,
            error,
        };
        vec![sse::named("error", &failure)]
    }
}
