//! `POST /v1/completions`: a text, continued.

use axum::extract::State;
use axum::response::Response;

use super::super::body::Body;
use super::super::calls::Calls;
use super::super::chunks::{self, ChunkDialect};
use super::super::error::ApiError;
use super::super::failures::Failures;
use super::super::generation::{Plan, start};
use super::super::logprobs;
use super::super::order::{count, wishes};
use super::super::prompts::{self, Purpose};
use super::super::pump::{Answer, Channels, Commit, Finish, Said};
use super::super::state::AppState;
use super::super::wire::answer::{Answers, Chunk};
use super::super::wire::completion::{CompletionChoice, CompletionLogprobs, CompletionRequest};
use super::super::wire::either::Prompt;
use crate::prompt::{CallableTools, Dialect, Prompt as Encoded};

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
            (Answers<CompletionChoice> = "application/json"),
            (Chunk<CompletionChoice> = "text/event-stream")
        )),
        Failures
    )
)]
pub(crate) async fn completions(
    State(state): State<AppState>,
    Body { value: mut request, ignored, arrived }: Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    state.check_model(request.model.as_deref())?;
    if request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported("suffix", "Text is continued, not filled in; leave 'suffix' out."));
    }
    let alternatives = match request.logprobs {
        None => None,
        Some(wanted) => Some(count("logprobs", Some(wanted), 0, 0, MOST_ALTERNATIVES)?),
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
    let order = wishes!(request).order(&state, arrived)?;
    let prompt = request.prompt.ok_or_else(|| ApiError::missing("prompt"))?;
    let prompts = split(prompt, state.engine().limits().vocabulary, most / made)?;
    check_room(prompts.len(), made, state.engine().most_jobs(made))?;
    let (prompts, echoes) = encode(&state, prompts, echo).await?;
    let delivery = order.delivery;
    let plan = Plan {
        order,
        prompts,
        choices: made,
        max_tokens: Some(max_tokens),
        top_k: alternatives.unwrap_or(0) as u8,
        dialect: Dialect::Raw,
        calls: Calls::None,
        callable: CallableTools::default(),
        structure: None,
        field: "prompt",
    };
    let pump = start(&state, plan)?;
    let offsets = vec![0; pump.len()];
    let dialect = CompletionDialect { alternatives, made, wanted, echoes, offsets, state: state.clone() };
    Ok(ignored.attach(chunks::answer(&state, pump, delivery, dialect).await?))
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
            check_known("prompt", ids, vocabulary)?;
        }
    }
    Ok(prompts)
}

/// Refuses more prompts than an empty queue takes, with so many choices each: another try would be refused as well, however
/// little there is to do.
fn check_room(prompts: usize, choices: usize, room: usize) -> Result<(), ApiError> {
    if prompts <= room {
        return Ok(());
    }
    let message = format!(
        "'prompt' holds {prompts} prompts; with {choices} choices each this server's queue never takes more than {room}: \
         send them in several requests."
    );
    Err(ApiError::invalid("prompt", message))
}

/// Refuses ids that are no token.
pub(crate) fn check_known(field: &str, ids: &[u32], vocabulary: usize) -> Result<(), ApiError> {
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
    for prompt in &prompts {
        match prompt {
            OnePrompt::Text(text) => prompts::check_text(state, text, Purpose::Prompt, "prompt")?,
            OnePrompt::Tokens(ids) => prompts::check_ids(state, ids, Purpose::Prompt, "prompt")?,
        }
    }
    prompts::check_open(state, Purpose::Prompt, prompts.len())?;
    let here = state.clone();
    let one = move |prompt| {
        let (ids, shown) = match prompt {
            OnePrompt::Tokens(ids) => {
                let shown = if echo { here.text().decode(&ids) } else { String::new() };
                (ids, shown)
            }
            OnePrompt::Text(text) => (prompts::encode_text(&here, &text, Purpose::Prompt, "prompt")?, text),
        };
        Ok((Encoded::plain(ids), shown))
    };
    let encoded = state.aside().run(move || prompts.into_iter().map(one).collect::<Result<Vec<_>, ApiError>>());
    let (prompts, shown) = encoded.await??.into_iter().unzip();
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

/// A choice as completions have it.
struct CompletionDialect {
    alternatives: Option<usize>,
    /// Choices made per prompt.
    made: usize,
    /// Choices given out per prompt.
    wanted: usize,
    /// The prompts, where they are to be echoed.
    echoes: Option<Vec<String>>,
    /// Code points of each choice's text so far.
    offsets: Vec<usize>,
    state: AppState,
}

impl CompletionDialect {
    /// What is put in front of a choice.
    fn echo(&self, index: usize) -> &str {
        let prompts = self.echoes.as_deref().unwrap_or_default();
        prompts.get(index / self.wanted).map_or("", String::as_str)
    }

    fn logprobs(&mut self, index: usize, tokens: Vec<Said>) -> Option<CompletionLogprobs> {
        let offset = self.offsets.get_mut(index)?;
        self.alternatives.map(|alternatives| logprobs::completion(self.state.text(), tokens, alternatives, offset))
    }
}

impl ChunkDialect for CompletionDialect {
    type Choice = CompletionChoice;
    type Piece = CompletionChoice;
    const PREFIX: &'static str = "cmpl-";
    const WHOLE: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";
    const TIER: Option<&'static str> = None;

    fn choices(&mut self, answers: Vec<Answer>) -> Vec<CompletionChoice> {
        let answers = best(answers, self.made, self.wanted).into_iter().enumerate();
        let choices = answers.map(|(index, answer)| {
            let text = format!("{}{}", self.echo(index), answer.channels.content);
            let logprobs = self.logprobs(index, answer.tokens);
            CompletionChoice { index, text, logprobs, finish_reason: Some(answer.finish.as_str()) }
        });
        choices.collect()
    }

    /// The prompts that are echoed.
    fn open(&mut self) -> Vec<CompletionChoice> {
        let echoes = (0..self.offsets.len()).map(|index| piece(index, self.echo(index).to_owned(), None));
        echoes.filter(|piece| !piece.text.is_empty()).collect()
    }

    fn commit(&mut self, index: usize, commit: Commit) -> Vec<CompletionChoice> {
        let logprobs = self.logprobs(index, commit.tokens).filter(|logprobs| !logprobs.tokens.is_empty());
        let text = Channels::from(commit.passages).content;
        let said = !text.is_empty() || logprobs.is_some();
        said.then(|| piece(index, text, logprobs)).into_iter().collect()
    }

    fn silent(&self, index: usize, finish: Option<Finish>) -> CompletionChoice {
        CompletionChoice { finish_reason: finish.map(Finish::as_str), ..piece(index, String::new(), None) }
    }
}

fn piece(index: usize, text: String, logprobs: Option<CompletionLogprobs>) -> CompletionChoice {
    CompletionChoice { index, text, logprobs, finish_reason: None }
}
