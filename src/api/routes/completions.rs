//! `POST /v1/completions`: a text, continued.

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::super::body::Body;
use super::super::conversation::{aside, of_prompt};
use super::super::document::Failures;
use super::super::error::ApiError;
use super::super::generation::{Calls, Encoded, Plan, start};
use super::super::logprobs;
use super::super::order::{Delivery, UsageChunk, Wishes, count};
use super::super::pump::{Answer, Beat, Said};
use super::super::sse::{self, StreamDialect};
use super::super::state::{AppState, unix_seconds};
use super::super::wire::completion::{
    Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest,
};
use super::super::wire::either::Prompt;
use super::super::wire::usage::Usage;
use crate::prompt::{Dialect, Opening};

/// Tokens of an answer unless a request says otherwise, as in the original API.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Most alternatives per token, as in the original API.
const MOST_ALTERNATIVES: usize = 5;

/// Continues a text.
#[utoipa::path(
    post,
    path = "/v1/completions",
    operation_id = "createCompletion",
    tag = "Generation",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The answers; with `stream`, as server-sent events that end with `[DONE]`.", content(
            (Completion = "application/json"),
            (CompletionChunk = "text/event-stream")
        )),
        Failures
    )
)]
pub(crate) async fn completions(
    State(state): State<AppState>,
    Body { value: request, ignored }: Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    state.check_model(request.model.as_deref())?;
    if request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported("suffix", "Text is continued, not filled in; leave 'suffix' out."));
    }
    let alternatives = match request.logprobs {
        None => None,
        Some(wanted) => Some(count("logprobs", Some(wanted as usize), 0, 0, MOST_ALTERNATIVES)?),
    };
    let echo = request.echo == Some(true);
    if echo && alternatives.is_some() {
        return Err(ApiError::unsupported("logprobs", "'logprobs' of an echoed prompt are not supported."));
    }
    let most = state.settings().max_choices;
    let wanted = count("n", request.n, 1, 1, most)?;
    let made = count("best_of", request.best_of, wanted, wanted, most)?;
    if made > wanted && request.stream == Some(true) {
        return Err(ApiError::unsupported("best_of", "'best_of' above 'n' cannot be streamed."));
    }
    let max_tokens = count("max_tokens", request.max_tokens, DEFAULT_MAX_TOKENS, 1, usize::MAX)?;
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
    let vocabulary = state.engine().limits().vocabulary;
    let order = order.check(state.card().sampler, vocabulary, state.settings().request_timeout)?;
    let prompt = request.prompt.ok_or_else(|| ApiError::missing("prompt"))?;
    let prompts = split(prompt, vocabulary, most / made)?;
    let (prompts, echoes) = encode(&state, prompts, echo).await?;
    let delivery = order.delivery;
    let pump = start(
        &state,
        Plan {
            order,
            prompts,
            choices: made,
            max_tokens: Some(max_tokens),
            top_k: alternatives.unwrap_or(0) as u8,
            dialect: Dialect::Raw,
            calls: Calls::All,
            field: "prompt",
        },
    )?;
    let mut writer = Writer {
        id: format!("cmpl-{}", Uuid::now_v7().simple()),
        created: unix_seconds(),
        alternatives,
        usage: UsageChunk::Unwanted,
        state: state.clone(),
        per_prompt: wanted,
        echoes,
        offsets: vec![0; pump.len()],
    };
    let response = match delivery {
        Delivery::Whole => {
            let (answers, usage) = pump.whole().await?;
            Json(writer.whole(best(answers, made, wanted), usage)).into_response()
        }
        Delivery::Stream { usage, .. } => sse::respond(pump, Writer { usage, ..writer }, state.settings().keep_alive),
    };
    Ok(ignored.attach(response))
}

/// One prompt of a request.
enum OnePrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Takes a request's prompts apart; at most `most` of them.
fn split(prompt: Prompt, vocabulary: usize, most: usize) -> Result<Vec<OnePrompt>, ApiError> {
    let prompts = match prompt {
        Prompt::Text(text) => vec![OnePrompt::Text(text)],
        Prompt::Texts(texts) => texts.into_iter().map(OnePrompt::Text).collect(),
        Prompt::Tokens(ids) => vec![OnePrompt::Tokens(ids)],
        Prompt::TokenLists(lists) => lists.into_iter().map(OnePrompt::Tokens).collect(),
    };
    if prompts.len() > most {
        let message = format!("'prompt' holds {} prompts; with that many choices each, at most {most}.", prompts.len());
        return Err(ApiError::invalid("prompt", message));
    }
    for prompt in &prompts {
        if let OnePrompt::Tokens(ids) = prompt {
            check_ids("prompt", ids, vocabulary)?;
        }
    }
    Ok(prompts)
}

/// Refuses ids that are no token.
pub(crate) fn check_ids(field: &str, ids: &[u32], vocabulary: usize) -> Result<(), ApiError> {
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => {
            let message = format!("'{field}' holds the token id {id}; ids of this model are below {vocabulary}.");
            Err(ApiError::invalid(field, message))
        }
    }
}

/// The prompts in tokens, and their texts where they are to be echoed.
async fn encode(
    state: &AppState,
    prompts: Vec<OnePrompt>,
    echo: bool,
) -> Result<(Vec<Encoded>, Option<Vec<String>>), ApiError> {
    let text = state.text().clone();
    let encoded = aside(move || {
        prompts
            .into_iter()
            .map(|prompt| {
                let (ids, shown) = match prompt {
                    OnePrompt::Tokens(ids) => {
                        let shown = if echo { text.decode(&ids) } else { String::new() };
                        (ids, shown)
                    }
                    OnePrompt::Text(shown) => (text.encode(&shown)?, shown),
                };
                Ok((Encoded { ids, resume_points: Vec::new(), opening: Opening::Content }, shown))
            })
            .collect::<Result<Vec<_>, _>>()
    });
    let encoded = encoded.await?.map_err(|error| of_prompt(&error))?;
    let (prompts, shown) = encoded.into_iter().unzip();
    Ok((prompts, echo.then_some(shown)))
}

/// Of each prompt's `made` answers the `wanted` ones that the model was surest of.
fn best(answers: Vec<Answer>, made: usize, wanted: usize) -> Vec<Answer> {
    if made == wanted {
        return answers;
    }
    let mut best = Vec::new();
    let mut answers = answers.into_iter();
    loop {
        let mut ranked: Vec<Answer> = answers.by_ref().take(made).collect();
        if ranked.is_empty() {
            return best;
        }
        // A stable sort: equals stay in index order.
        ranked.sort_by(|a, b| logprobs::mean(&b.tokens).total_cmp(&logprobs::mean(&a.tokens)));
        best.extend(ranked.into_iter().take(wanted));
    }
}

/// Writes answers down in the dialect of completions.
struct Writer {
    id: String,
    created: u64,
    alternatives: Option<usize>,
    usage: UsageChunk,
    state: AppState,
    /// Choices per prompt.
    per_prompt: usize,
    /// The prompts, where they are to be echoed.
    echoes: Option<Vec<String>>,
    /// Code points of each choice's text so far.
    offsets: Vec<usize>,
}

impl Writer {
    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Completion {
        let choices = answers.into_iter().enumerate().map(|(index, answer)| {
            let echo = self.echo(index).to_owned();
            CompletionChoice {
                index,
                logprobs: self.logprobs(index, &answer.tokens),
                text: format!("{echo}{}", answer.content),
                finish_reason: Some(answer.finish.as_str()),
            }
        });
        Completion {
            choices: choices.collect(),
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.state.card().id.clone(),
            system_fingerprint: self.state.fingerprint().to_owned(),
            usage,
        }
    }

    fn echo(&self, index: usize) -> &str {
        let prompts = self.echoes.as_deref().unwrap_or_default();
        prompts.get(index / self.per_prompt).map_or("", String::as_str)
    }

    fn logprobs(&mut self, index: usize, tokens: &[Said]) -> Option<CompletionLogprobs> {
        let offset = self.offsets.get_mut(index)?;
        self.alternatives.map(|alternatives| logprobs::completion(self.state.text(), tokens, alternatives, offset))
    }

    fn chunk(&self, choices: Vec<CompletionChoice>) -> CompletionChunk {
        CompletionChunk {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.state.card().id.clone(),
            system_fingerprint: self.state.fingerprint().to_owned(),
            choices,
            usage: (self.usage == UsageChunk::Wanted).then_some(None),
            diffusion: None,
        }
    }
}

impl StreamDialect for Writer {
    fn open(&mut self) -> Vec<Event> {
        let echo = |index| (!self.echo(index).is_empty()).then(|| self.echo(index).to_owned());
        let echoes = (0..self.offsets.len()).filter_map(|index| echo(index).map(|text| (index, text)));
        let chunks = echoes.map(|(index, text)| {
            self.chunk(vec![CompletionChoice { index, text, logprobs: None, finish_reason: None }])
        });
        chunks.map(|chunk| sse::data(&chunk)).collect()
    }

    fn beat(&mut self, index: usize, beat: Beat) -> Vec<Event> {
        let choice = |text, logprobs, finish_reason| vec![CompletionChoice { index, text, logprobs, finish_reason }];
        match beat {
            Beat::Progress(frame) => {
                let chunk = self.chunk(choice(String::new(), None, None));
                vec![sse::data(&CompletionChunk { diffusion: Some(frame), ..chunk })]
            }
            Beat::Commit(commit) => {
                let logprobs = self.logprobs(index, &commit.tokens).filter(|logprobs| !logprobs.tokens.is_empty());
                if commit.content.is_empty() && logprobs.is_none() {
                    return Vec::new();
                }
                vec![sse::data(&self.chunk(choice(commit.content, logprobs, None)))]
            }
            Beat::Finished(finish, _) => {
                vec![sse::data(&self.chunk(choice(String::new(), None, Some(finish.as_str()))))]
            }
            Beat::Failed(error) => self.fail(&error),
        }
    }

    fn close(&mut self, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        if self.usage == UsageChunk::Wanted {
            events.push(sse::data(&CompletionChunk { usage: Some(Some(usage)), ..self.chunk(Vec::new()) }));
        }
        events.push(sse::done());
        events
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        vec![sse::data(&error.body())]
    }
}
