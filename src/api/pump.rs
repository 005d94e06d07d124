//! The one event pump: from the scheduler's events of all choices to text, calls, logprobs, progress and usage.
//!
//! Chat, completions and responses, streamed or not, all read from here; they differ only in how they write it down.
//! Text leaves in the order of its commits; drafts in between are provisional and may be left out. A choice that had nothing
//! when the time was over does not take the others' text with it: it ends without text, unless all of them are like it.

use std::collections::VecDeque;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use uuid::Uuid;

use super::calls::Calls;
use super::drafts::{Bounds, Drafting};
use super::error::ApiError;
use super::order::Delivery;
use super::wire::progress::ProgressFrame;
use super::wire::usage::{CompletionTokens, DiffusionUsage, PromptTokens, Usage};
use crate::prompt::{Channel, Delta, Dialect, TextReader};
use crate::scheduler::{ChoiceUsage, CommittedToken, Event, FinishReason, JobError, Reader};

/// What happens to a choice.
#[derive(Debug)]
pub(crate) enum Beat {
    /// A canvas is on its way.
    Progress(ProgressFrame),
    /// Text has become final.
    Commit(Commit),
    /// The choice is complete and has cost that; nothing of it follows.
    Finished(Finish, Cost),
    /// The choice broke off, and with it the request.
    Failed(ApiError),
}

/// What one commit adds to a choice; either list may be empty.
#[derive(Debug)]
pub(crate) struct Commit {
    /// In the order in which the model wrote them.
    pub passages: Vec<Passage>,
    /// The tokens of which it has become certain where they go.
    pub tokens: Vec<Said>,
}

impl Commit {
    fn is_empty(&self) -> bool {
        self.passages.is_empty() && self.tokens.is_empty()
    }
}

/// A stretch of an answer.
#[derive(Debug)]
pub(crate) enum Passage {
    Reasoning(String),
    Content(String),
    Call(Call),
}

/// Passages by channel, for those who keep them apart.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    pub reasoning: String,
    pub content: String,
    pub calls: Vec<Call>,
}

impl Extend<Passage> for Channels {
    fn extend<T: IntoIterator<Item = Passage>>(&mut self, passages: T) {
        for passage in passages {
            match passage {
                Passage::Reasoning(text) => self.reasoning.push_str(&text),
                Passage::Content(text) => self.content.push_str(&text),
                Passage::Call(call) => self.calls.push(call),
            }
        }
    }
}

impl From<Vec<Passage>> for Channels {
    fn from(passages: Vec<Passage>) -> Channels {
        let mut channels = Channels::default();
        channels.extend(passages);
        channels
    }
}

/// A committed token and where it went.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub channel: Channel,
    pub token: CommittedToken,
}

/// A tool call of the model.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Number within the choice.
    pub index: usize,
    pub id: String,
    pub name: String,
    /// JSON.
    pub arguments: String,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
    ToolCalls,
}

impl Finish {
    /// As in `finish_reason`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
        }
    }
}

/// A whole choice.
#[derive(Debug)]
pub(crate) struct Answer {
    pub channels: Channels,
    pub tokens: Vec<Said>,
    pub finish: Finish,
}

/// All choices of a request as one stream of beats. Dropping it cancels what is still running.
pub(crate) struct Pump {
    voices: SelectAll<BoxStream<'static, (usize, Sound)>>,
    tally: Tally,
    /// Choices that had nothing when their time was over, held back until another has said something.
    late: VecDeque<usize>,
    /// Whether any choice has.
    spoken: bool,
}

/// What comes from a choice: what happens to it, or why it broke off.
type Sound = Result<Beat, JobError>;

impl Pump {
    /// `choices` voices per prompt, in order.
    pub(crate) fn new(voices: Vec<Voice>, prompt_sizes: Vec<usize>, choices: usize) -> Pump {
        Pump::of(voices.into_iter().map(Voice::into_stream).collect(), prompt_sizes, choices)
    }

    fn of(voices: Vec<BoxStream<'static, (usize, Sound)>>, prompt_sizes: Vec<usize>, choices: usize) -> Pump {
        let tally = Tally { prompt_sizes, choices, costs: vec![None; voices.len()] };
        Pump { voices: stream::select_all(voices), tally, late: VecDeque::new(), spoken: false }
    }

    /// How many choices there are.
    pub(crate) fn len(&self) -> usize {
        self.tally.costs.len()
    }

    /// What happens next, and to which choice; `None` when all are complete.
    pub(crate) async fn next(&mut self) -> Option<(usize, Beat)> {
        loop {
            if self.spoken
                && let Some(choice) = self.late.pop_front()
            {
                return Some((choice, Beat::Finished(Finish::Length, Cost::default())));
            }
            let failed = |error: &JobError| Beat::Failed(ApiError::from(error));
            match self.voices.next().await {
                Some((choice, Ok(beat))) => {
                    self.note(choice, &beat);
                    return Some((choice, beat));
                }
                Some((choice, Err(JobError::DeadlineExceeded))) => self.late.push_back(choice),
                Some((choice, Err(error))) => return Some((choice, failed(&error))),
                None => {
                    let first = std::mem::take(&mut self.late).pop_front()?;
                    return Some((first, failed(&JobError::DeadlineExceeded)));
                }
            }
        }
    }

    fn note(&mut self, choice: usize, beat: &Beat) {
        self.spoken |= matches!(beat, Beat::Commit(_) | Beat::Finished(..));
        if let (Beat::Finished(_, cost), Some(place)) = (beat, self.tally.costs.get_mut(choice)) {
            *place = Some(*cost);
        }
    }

    /// What it has cost; complete when [`Pump::next`] has said `None`.
    pub(crate) fn usage(&self) -> Usage {
        self.tally.usage()
    }

    /// Waits for all choices.
    pub(crate) async fn whole(mut self) -> Result<(Vec<Answer>, Usage), ApiError> {
        let blank = || Answer { channels: Channels::default(), tokens: Vec::new(), finish: Finish::Stop };
        let mut answers: Vec<Answer> = (0..self.len()).map(|_| blank()).collect();
        while let Some((choice, beat)) = self.next().await {
            let Some(answer) = answers.get_mut(choice) else { continue };
            match beat {
                Beat::Progress(_) => {}
                Beat::Commit(commit) => {
                    answer.channels.extend(commit.passages);
                    answer.tokens.extend(commit.tokens);
                }
                Beat::Finished(finish, _) => answer.finish = finish,
                Beat::Failed(error) => return Err(error),
            }
        }
        Ok((answers, self.usage()))
    }
}

/// What one choice cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    usage: ChoiceUsage,
    reasoning_tokens: usize,
}

/// What a request costs.
struct Tally {
    prompt_sizes: Vec<usize>,
    choices: usize,
    /// Of the choices that are complete; one that never began has none.
    costs: Vec<Option<Cost>>,
}

impl Tally {
    fn usage(&self) -> Usage {
        let sum = |of: fn(&Cost) -> usize| self.costs.iter().flatten().map(of).sum::<usize>();
        let prompt_tokens = self.prompt_sizes.iter().sum();
        let completion_tokens = sum(|cost| cost.usage.completion_tokens);
        let steps = sum(|cost| cost.usage.steps);
        // The choices of a prompt share its encode; the least any of them found is what an earlier request had left.
        let least = |costs: &[Option<Cost>]| costs.iter().flatten().map(|cost| cost.usage.cached_tokens).min();
        let cached = self.costs.chunks(self.choices.max(1)).map(least);
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokens { cached_tokens: cached.flatten().sum(), cache_write_tokens: 0 },
            completion_tokens_details: CompletionTokens { reasoning_tokens: sum(|cost| cost.reasoning_tokens) },
            diffusion: DiffusionUsage {
                canvases: sum(|cost| cost.usage.canvases),
                steps,
                tokens_per_forward: if steps == 0 { 0.0 } else { completion_tokens as f64 / steps as f64 },
                forced_commits: sum(|cost| cost.usage.forced_commits),
            },
        }
    }
}

/// How the choices of a request are passed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub dialect: Dialect,
    pub calls: Calls,
    pub delivery: Delivery,
    pub bounds: Bounds,
}

/// One choice: its events, its text, its drafts.
pub(crate) struct Voice {
    index: usize,
    reader: Reader,
    text: TextReader,
    calls: Calls,
    drafting: Option<Drafting>,
    /// Calls passed on so far.
    called: usize,
    /// Committed tokens of which the text's reader has not told yet where they go.
    untold: VecDeque<CommittedToken>,
    cost: Cost,
    ready: VecDeque<Sound>,
    state: VoiceState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VoiceState {
    Speaking,
    Done,
}

impl Voice {
    /// A choice that has not said anything yet.
    pub(crate) fn new(index: usize, reader: Reader, text: TextReader, manner: Manner) -> Voice {
        let drafting = match manner.delivery {
            Delivery::Stream { progress: Some(plan), .. } => {
                Some(Drafting::new(index, reader.drafts(), plan, manner.dialect, manner.bounds))
            }
            _ => None,
        };
        Voice {
            index,
            reader,
            text,
            calls: manner.calls,
            drafting,
            called: 0,
            untold: VecDeque::new(),
            cost: Cost::default(),
            ready: VecDeque::new(),
            state: VoiceState::Speaking,
        }
    }

    fn into_stream(self) -> BoxStream<'static, (usize, Sound)> {
        let index = self.index;
        stream::unfold(self, move |mut voice| async move { voice.next().await.map(|sound| ((index, sound), voice)) })
            .boxed()
    }

    async fn next(&mut self) -> Option<Sound> {
        loop {
            if let Some(sound) = self.ready.pop_front() {
                return Some(sound);
            }
            if self.state == VoiceState::Done {
                return None;
            }
            // Events first: a draft is only understood when all commits before its canvas have been read.
            tokio::select! {
                biased;
                event = self.reader.next() => self.take(event),
                frame = Drafting::next(&mut self.drafting, &self.text) => self.ready.push_back(Ok(Beat::Progress(frame))),
            }
        }
    }

    /// Turns an event into beats.
    fn take(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Committed(committed)) => {
                if let Some(drafting) = &mut self.drafting {
                    self.ready.push_back(Ok(Beat::Progress(drafting.committed(&committed))));
                }
                let ids: Vec<u32> = committed.tokens.iter().map(|token| token.id).collect();
                self.untold.extend(committed.tokens);
                let deltas = self.text.push(&ids);
                let commit = self.commit(deltas);
                self.ready.push_back(Ok(Beat::Commit(commit)));
            }
            Some(Event::Finished(finished)) => {
                self.state = VoiceState::Done;
                let rest = self.text.finish();
                let commit = self.commit(rest);
                if !commit.is_empty() {
                    self.ready.push_back(Ok(Beat::Commit(commit)));
                }
                self.cost.usage = finished.usage;
                self.ready.push_back(Ok(Beat::Finished(self.finish(finished.reason), self.cost)));
            }
            Some(Event::Failed(error)) => self.fail(error),
            None => self.fail(JobError::Stopped),
        }
    }

    fn fail(&mut self, error: JobError) {
        self.state = VoiceState::Done;
        self.ready.push_back(Err(error));
    }

    /// What these deltas add, and the tokens that have become certain with them. Calls are numbered, and those that the
    /// request does not want are left out.
    fn commit(&mut self, deltas: Vec<Delta>) -> Commit {
        let mut passages = Vec::with_capacity(deltas.len());
        for delta in deltas {
            passages.push(match delta {
                Delta::Reasoning(text) => Passage::Reasoning(text),
                Delta::Content(text) => Passage::Content(text),
                Delta::ToolCall { .. } if self.calls == Calls::First && self.called > 0 => continue,
                Delta::ToolCall { name, arguments } => {
                    let (index, id) = (self.called, format!("call_{}", Uuid::now_v7().simple()));
                    self.called += 1;
                    Passage::Call(Call { index, id, name, arguments })
                }
            });
        }
        Commit { passages, tokens: self.said() }
    }

    /// The tokens of which the text's reader has just told where they go.
    fn said(&mut self) -> Vec<Said> {
        let channels = self.text.channels();
        self.cost.reasoning_tokens += channels.iter().filter(|channel| **channel == Channel::Reasoning).count();
        let tokens = std::iter::from_fn(|| self.untold.pop_front());
        channels.iter().zip(tokens).map(|(&channel, token)| Said { channel, token }).collect()
    }

    /// The reason as clients are told it: `tool_calls` exactly where there are calls to answer. A call that could not
    /// be read came out as content, and then the answer is an ordinary one.
    fn finish(&self, reason: FinishReason) -> Finish {
        match reason {
            FinishReason::Length => Finish::Length,
            FinishReason::Stop | FinishReason::ToolCalls if self.called > 0 => Finish::ToolCalls,
            FinishReason::Stop | FinishReason::ToolCalls => Finish::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of choices that say this, in words.
    async fn heard(sounds: Vec<(usize, Sound)>, choices: usize) -> (Vec<String>, Usage) {
        // One voice for all, so that the order is the test's; the others are silent.
        let mut voices = vec![stream::iter(sounds).boxed()];
        voices.extend((1..choices).map(|_| stream::empty().boxed()));
        let mut pump = Pump::of(voices, vec![5], choices);
        let mut heard = Vec::new();
        while let Some((choice, beat)) = pump.next().await {
            heard.push(match beat {
                Beat::Progress(_) => format!("{choice} progress"),
                Beat::Commit(_) => format!("{choice} commit"),
                Beat::Finished(finish, _) => format!("{choice} {}", finish.as_str()),
                Beat::Failed(error) => format!("{choice} failed: {}", error.body().error.code.unwrap_or_default()),
            });
        }
        (heard, pump.usage())
    }

    fn commit(choice: usize) -> (usize, Sound) {
        (choice, Ok(Beat::Commit(Commit { passages: Vec::new(), tokens: Vec::new() })))
    }

    fn finished(choice: usize) -> (usize, Sound) {
        let usage = ChoiceUsage { cached_tokens: 4, completion_tokens: 9, ..ChoiceUsage::default() };
        (choice, Ok(Beat::Finished(Finish::Length, Cost { usage, reasoning_tokens: 0 })))
    }

    fn late(choice: usize) -> (usize, Sound) {
        (choice, Err(JobError::DeadlineExceeded))
    }

    #[tokio::test]
    async fn a_choice_without_a_beginning_does_not_take_the_others_with_it() {
        let (said, usage) = heard(vec![late(2), commit(0), late(1), finished(0)], 3).await;
        assert_eq!(said, ["0 commit", "2 length", "1 length", "0 length"]);
        assert_eq!((usage.completion_tokens, usage.prompt_tokens_details.cached_tokens), (9, 4));
        let (said, _) = heard(vec![commit(0), finished(0), late(1)], 2).await;
        assert_eq!(said, ["0 commit", "0 length", "1 length"]);
    }

    #[tokio::test]
    async fn where_no_choice_has_begun_the_request_fails_once() {
        assert_eq!(heard(vec![late(1), late(0)], 2).await.0, ["1 failed: deadline_exceeded"]);
    }

    #[tokio::test]
    async fn other_failures_are_told_at_once() {
        let (said, _) = heard(vec![late(1), (0, Err(JobError::ShutDown))], 2).await;
        assert_eq!(said[0], "0 failed: shutting_down");
    }
}
