//! `POST /v1/chat/completions`: a conversation, continued.

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::super::body::Body;
use super::super::conversation::{encode_chat, messages, thinking, tools};
use super::super::document::Failures;
use super::super::error::ApiError;
use super::super::generation::{Calls, Plan, start};
use super::super::logprobs;
use super::super::order::{Delivery, UsageChunk, Wishes, count};
use super::super::pump::{Answer, Beat, Call, Commit};
use super::super::sse::{self, StreamDialect};
use super::super::state::{AppState, unix_seconds};
use super::super::wire::chat::{
    AssistantMessage, CalledFunction, ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChatRequest, ChunkChoice,
    ChunkDelta, ToolCall,
};
use super::super::wire::options::ResponseFormat;
use super::super::wire::progress::ProgressFrame;
use super::super::wire::usage::Usage;
use crate::prompt::{Chat, Dialect};

/// Most alternatives per token, as in the original API.
const MOST_ALTERNATIVES: usize = 20;

/// Continues a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "createChatCompletion",
    tag = "Generation",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answers; with `stream`, as server-sent events that end with `[DONE]`.", content(
            (ChatCompletion = "application/json"),
            (ChatChunk = "text/event-stream")
        )),
        Failures
    )
)]
pub(crate) async fn chat(
    State(state): State<AppState>,
    Body { value: request, mut ignored }: Body<ChatRequest>,
) -> Result<Response, ApiError> {
    state.check_model(request.model.as_deref())?;
    refuse_unsupported(&request)?;
    let alternatives = alternatives(&request)?;
    let choices = count("n", request.n, 1, 1, state.settings().max_choices)?;
    let max_tokens = match (request.max_completion_tokens, request.max_tokens) {
        (Some(most), _) => Some(count("max_completion_tokens", Some(most), 1, 1, usize::MAX)?),
        (None, Some(most)) => Some(count("max_tokens", Some(most), 1, 1, usize::MAX)?),
        (None, None) => state.settings().default_max_tokens,
    };
    let order = Wishes {
        seed: request.seed,
        temperature: request.temperature,
        top_p: request.top_p,
        logit_bias: request.logit_bias,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        stop: request.stop,
        diffusion: request.diffusion,
        stream: request.stream,
        stream_options: request.stream_options,
        diffusing: request.diffusing,
    };
    let order =
        order.check(state.card().sampler, state.engine().limits().vocabulary, state.settings().request_timeout)?;
    let (thinking, kwargs) = thinking(request.reasoning_effort, request.chat_template_kwargs)?;
    for key in kwargs.keys().filter(|key| !state.text().reads(key)) {
        ignored.add(format!("chat_template_kwargs.{key}"));
    }
    let conversation = Chat {
        messages: messages(request.messages, "messages")?,
        tools: tools(request.tools, request.tool_choice)?,
        thinking,
        kwargs,
    };
    let dialect = if conversation.tools.is_empty() { Dialect::ChatWithoutTools } else { Dialect::Chat };
    let prompt = encode_chat(&state, conversation).await?;
    let delivery = order.delivery;
    let pump = start(
        &state,
        Plan {
            order,
            prompts: vec![prompt],
            choices,
            max_tokens,
            top_k: alternatives.unwrap_or(0) as u8,
            dialect,
            calls: if request.parallel_tool_calls == Some(false) { Calls::First } else { Calls::All },
            field: "messages",
        },
    )?;
    let writer = Writer {
        id: format!("chatcmpl-{}", Uuid::now_v7().simple()),
        created: unix_seconds(),
        alternatives,
        choices,
        usage: UsageChunk::Unwanted,
        state: state.clone(),
    };
    let response = match delivery {
        Delivery::Whole => {
            let (answers, usage) = pump.whole().await?;
            Json(writer.whole(answers, usage)).into_response()
        }
        Delivery::Stream { usage, .. } => sse::respond(pump, Writer { usage, ..writer }, state.settings().keep_alive),
    };
    Ok(ignored.attach(response))
}

/// Refuses fields that ask for what this server does not do.
fn refuse_unsupported(request: &ChatRequest) -> Result<(), ApiError> {
    let refused = [
        (request.audio.is_some(), "audio", "This server gives no audio; leave 'audio' out."),
        (request.functions.is_some(), "functions", "'functions' is not supported; use 'tools'."),
        (request.function_call.is_some(), "function_call", "'function_call' is not supported; use 'tool_choice'."),
        (
            request.web_search_options.is_some(),
            "web_search_options",
            "This server searches nothing; leave 'web_search_options' out.",
        ),
    ];
    if let Some((_, field, message)) = refused.into_iter().find(|(given, ..)| *given) {
        return Err(ApiError::unsupported(field, message));
    }
    if request.modalities.as_ref().is_some_and(|kinds| kinds.iter().any(|kind| kind != "text")) {
        return Err(ApiError::unsupported("modalities", "'modalities' must be [\"text\"]."));
    }
    text_only(request.response_format.as_ref(), "response_format.type")
}

/// Refuses forms of an answer that would have to be enforced; `path` is where the request says its form.
pub(crate) fn text_only(format: Option<&ResponseFormat>, path: &str) -> Result<(), ApiError> {
    match format.map(|format| format.r#type.as_deref()) {
        None | Some(Some("text")) => Ok(()),
        Some(None) => Err(ApiError::missing(path)),
        Some(Some("json_object" | "json_schema")) => {
            let message = format!("JSON output is not enforced by this server yet; '{path}' must be 'text'.");
            Err(ApiError::unsupported(path, message))
        }
        Some(Some(_)) => Err(ApiError::invalid(path, format!("'{path}' must be 'text'."))),
    }
}

/// How many alternatives are wanted per token; `None` where no log-probabilities are.
fn alternatives(request: &ChatRequest) -> Result<Option<usize>, ApiError> {
    let wanted = request.top_logprobs.map(|wanted| wanted as usize);
    let wanted_count = count("top_logprobs", wanted, 0, 0, MOST_ALTERNATIVES)?;
    match request.logprobs {
        Some(true) => Ok(Some(wanted_count)),
        _ if wanted_count > 0 => Err(ApiError::invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true.")),
        _ => Ok(None),
    }
}

/// Writes answers down in the chat dialect.
struct Writer {
    id: String,
    created: u64,
    alternatives: Option<usize>,
    choices: usize,
    usage: UsageChunk,
    state: AppState,
}

impl Writer {
    fn whole(&self, answers: Vec<Answer>, usage: Usage) -> ChatCompletion {
        let choices = answers.into_iter().enumerate().map(|(index, answer)| ChatChoice {
            index,
            logprobs: self.logprobs(&answer.tokens),
            finish_reason: answer.finish.as_str(),
            message: AssistantMessage {
                role: "assistant",
                content: (!answer.content.is_empty() || answer.calls.is_empty()).then_some(answer.content),
                refusal: None,
                reasoning_content: (!answer.reasoning.is_empty()).then_some(answer.reasoning),
                tool_calls: answer.calls.into_iter().map(|call| tool_call(call, None)).collect(),
            },
        });
        ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.state.card().id.clone(),
            choices: choices.collect(),
            usage,
            system_fingerprint: self.state.fingerprint().to_owned(),
            service_tier: "default",
        }
    }

    fn logprobs(&self, tokens: &[super::super::pump::Said]) -> Option<ChatLogprobs> {
        self.alternatives.map(|alternatives| logprobs::chat(self.state.text(), tokens, alternatives))
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.state.card().id.clone(),
            system_fingerprint: self.state.fingerprint().to_owned(),
            choices,
            usage: (self.usage == UsageChunk::Wanted).then_some(None),
            diffusion: None,
        }
    }

    fn delta(&self, index: usize, delta: ChunkDelta, logprobs: Option<ChatLogprobs>) -> Event {
        sse::data(&self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason: None }]))
    }

    fn progress(&self, frame: ProgressFrame) -> Event {
        let index = frame.choice;
        let choice = ChunkChoice { index, delta: ChunkDelta::default(), logprobs: None, finish_reason: None };
        sse::data(&ChatChunk { diffusion: Some(frame), ..self.chunk(vec![choice]) })
    }

    /// At most one chunk per channel.
    fn commit(&self, index: usize, commit: Commit) -> Vec<Event> {
        let mut events = Vec::new();
        if !commit.reasoning.is_empty() {
            let delta = ChunkDelta { reasoning_content: Some(commit.reasoning), ..ChunkDelta::default() };
            events.push(self.delta(index, delta, None));
        }
        let logprobs = self.logprobs(&commit.tokens).filter(|logprobs| !logprobs.content.is_empty());
        if !commit.content.is_empty() || logprobs.is_some() {
            let delta = ChunkDelta { content: Some(commit.content), ..ChunkDelta::default() };
            events.push(self.delta(index, delta, logprobs));
        }
        if !commit.calls.is_empty() {
            let tool_calls = commit.calls.into_iter().map(|call| {
                let index = call.index;
                tool_call(call, Some(index))
            });
            let delta = ChunkDelta { tool_calls: tool_calls.collect(), ..ChunkDelta::default() };
            events.push(self.delta(index, delta, None));
        }
        events
    }
}

impl StreamDialect for Writer {
    fn open(&mut self) -> Vec<Event> {
        let role = || ChunkDelta { role: Some("assistant"), content: Some(String::new()), ..ChunkDelta::default() };
        (0..self.choices).map(|index| self.delta(index, role(), None)).collect()
    }

    fn beat(&mut self, index: usize, beat: Beat) -> Vec<Event> {
        match beat {
            Beat::Progress(frame) => vec![self.progress(frame)],
            Beat::Commit(commit) => self.commit(index, commit),
            Beat::Finished(finish, _) => {
                let finish_reason = Some(finish.as_str());
                let choice = ChunkChoice { index, delta: ChunkDelta::default(), logprobs: None, finish_reason };
                vec![sse::data(&self.chunk(vec![choice]))]
            }
            Beat::Failed(error) => self.fail(&error),
        }
    }

    fn close(&mut self, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        if self.usage == UsageChunk::Wanted {
            events.push(sse::data(&ChatChunk { usage: Some(Some(usage)), ..self.chunk(Vec::new()) }));
        }
        events.push(sse::done());
        events
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        vec![sse::data(&error.body())]
    }
}

fn tool_call(call: Call, index: Option<usize>) -> ToolCall {
    let function = CalledFunction { name: call.name, arguments: call.arguments };
    ToolCall { index, id: call.id, r#type: "function", function }
}
