//! `POST /v1/chat/completions`: a conversation, continued.

use axum::extract::State;
use axum::response::Response;

use super::super::body::Body;
use super::super::calls::{Calls, Toolbox};
use super::super::chunks::{self, ChunkDialect};
use super::super::conversation::{Reflection, messages};
use super::super::error::ApiError;
use super::super::failures::Failures;
use super::super::form;
use super::super::generation::{Plan, start};
use super::super::logprobs;
use super::super::order::{count, wishes};
use super::super::prompts::{Purpose, encode_chat};
use super::super::pump::{Answer, Call, Channels, Commit, Finish, Said};
use super::super::state::AppState;
use super::super::wire::answer::{Answers, Chunk};
use super::super::wire::chat::{
    AssistantMessage, CalledFunction, ChatChoice, ChatLogprobs, ChatRequest, ChunkChoice, ChunkDelta, ToolCall,
};
use crate::prompt::Chat;

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
            (Answers<ChatChoice> = "application/json"),
            (Chunk<ChunkChoice> = "text/event-stream")
        )),
        Failures
    )
)]
pub(crate) async fn chat(
    State(state): State<AppState>,
    Body { value: mut request, mut ignored, arrived }: Body<ChatRequest>,
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
    let order = wishes!(request).order(&state, arrived)?;
    let reflection = Reflection::new("reasoning_effort", request.reasoning_effort, request.chat_template_kwargs)?;
    reflection.note_unread(state.text(), &mut ignored);
    let asked = form::of_chat(request.response_format)?;
    let messages = messages(request.messages, "messages")?;
    let tools = Toolbox::new(request.tools, request.tool_choice)?;
    let chat = Chat { messages, tools: tools.declared, thinking: reflection.thinking, kwargs: reflection.kwargs };
    let calls = Calls::of(&chat.tools, request.parallel_tool_calls);
    let prompt = encode_chat(&state, chat, Purpose::Prompt, "messages", reflection.field).await?;
    let structure = form::blueprint(&state, asked, tools.expected).await?;
    let delivery = order.delivery;
    let plan = Plan {
        order,
        prompts: vec![prompt],
        choices,
        max_tokens,
        top_k: alternatives.unwrap_or(0) as u8,
        dialect: calls.dialect(),
        calls,
        callable: tools.callable,
        structure,
        field: "messages",
    };
    let pump = start(&state, plan)?;
    let dialect = ChatDialect { alternatives, choices, state: state.clone() };
    Ok(ignored.attach(chunks::answer(&state, pump, delivery, dialect).await?))
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
    Ok(())
}

/// How many alternatives are wanted per token; `None` where no log-probabilities are.
fn alternatives(request: &ChatRequest) -> Result<Option<usize>, ApiError> {
    let wanted_count = count("top_logprobs", request.top_logprobs, 0, 0, MOST_ALTERNATIVES)?;
    match request.logprobs {
        Some(true) => Ok(Some(wanted_count)),
        _ if wanted_count > 0 => Err(ApiError::invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true.")),
        _ => Ok(None),
    }
}

/// A choice as chat has it.
struct ChatDialect {
    alternatives: Option<usize>,
    choices: usize,
    state: AppState,
}

impl ChatDialect {
    fn logprobs(&self, tokens: Vec<Said>) -> Option<ChatLogprobs> {
        self.alternatives.map(|alternatives| logprobs::chat(self.state.text(), tokens, alternatives))
    }
}

impl ChunkDialect for ChatDialect {
    type Choice = ChatChoice;
    type Piece = ChunkChoice;
    const PREFIX: &'static str = "chatcmpl-";
    const WHOLE: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";
    const TIER: Option<&'static str> = Some("default");

    fn choices(&mut self, answers: Vec<Answer>) -> Vec<ChatChoice> {
        let choices = answers.into_iter().enumerate().map(|(index, answer)| ChatChoice {
            index,
            logprobs: self.logprobs(answer.tokens),
            finish_reason: answer.finish.as_str(),
            message: assistant_message(answer.channels),
        });
        choices.collect()
    }

    /// The role of every choice.
    fn open(&mut self) -> Vec<ChunkChoice> {
        let role = || ChunkDelta { role: Some("assistant"), content: Some(String::new()), ..ChunkDelta::default() };
        (0..self.choices).map(|index| piece(index, role(), None)).collect()
    }

    /// At most one piece per channel.
    fn commit(&mut self, index: usize, commit: Commit) -> Vec<ChunkChoice> {
        let mut pieces = Vec::new();
        let logprobs = self.logprobs(commit.tokens).filter(|logprobs| !logprobs.content.is_empty());
        let Channels { reasoning, content, calls } = commit.passages.into();
        if !reasoning.is_empty() {
            let delta = ChunkDelta { reasoning_content: Some(reasoning), ..ChunkDelta::default() };
            pieces.push(piece(index, delta, None));
        }
        if !content.is_empty() || logprobs.is_some() {
            let delta = ChunkDelta { content: Some(content), ..ChunkDelta::default() };
            pieces.push(piece(index, delta, logprobs));
        }
        if !calls.is_empty() {
            let tool_calls = calls.into_iter().map(|call| {
                let index = call.index;
                tool_call(call, Some(index))
            });
            let delta = ChunkDelta { tool_calls: tool_calls.collect(), ..ChunkDelta::default() };
            pieces.push(piece(index, delta, None));
        }
        pieces
    }

    fn silent(&self, index: usize, finish: Option<Finish>) -> ChunkChoice {
        ChunkChoice { finish_reason: finish.map(Finish::as_str), ..piece(index, ChunkDelta::default(), None) }
    }
}

fn assistant_message(channels: Channels) -> AssistantMessage {
    let Channels { reasoning, content, calls } = channels;
    AssistantMessage {
        role: "assistant",
        content: (!content.is_empty() || calls.is_empty()).then_some(content),
        refusal: None,
        reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
        tool_calls: calls.into_iter().map(|call| tool_call(call, None)).collect(),
    }
}

fn piece(index: usize, delta: ChunkDelta, logprobs: Option<ChatLogprobs>) -> ChunkChoice {
    ChunkChoice { index, delta, logprobs, finish_reason: None }
}

fn tool_call(call: Call, index: Option<usize>) -> ToolCall {
    let function = CalledFunction { name: call.name, arguments: call.arguments };
    ToolCall { index, id: call.id, r#type: "function", function }
}
