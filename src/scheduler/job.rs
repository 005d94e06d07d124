//! What goes into the scheduler and what comes out of it: plain data, free of tensors and of HTTP.

use std::sync::Arc;
use std::time::Duration;

use crate::diffusion::{Sampler, Structure, StructureError};
use crate::pass::{Candidate, Draw};

/// One request, or one prompt of it: the prompt, and one or more choices that continue it independently and share its encode.
pub struct Job {
    /// Token ids of the prompt, at least one.
    pub prompt: Arc<[u32]>,
    /// Prefix lengths (in tokens, ascending, `≤ prompt.len()`) that a later request is likely to share, such as the end
    /// of the system turn. The end of the prompt is always one.
    pub resume_points: Vec<usize>,
    /// The choices, in index order; at least one.
    pub choices: Vec<Choice>,
    /// Choices of the jobs before this one of the same request, with which it is handed in: its own stand behind those of
    /// later requests as if they were further choices of the first job.
    pub choices_before: usize,
    /// Most tokens committed per choice, at least 1; exact, never rounded up to a canvas.
    pub max_tokens: usize,
    /// How canvases are denoised.
    pub sampler: Sampler,
    /// How sampled tokens are drawn.
    pub draw: Draw,
    /// The user's biases; ids ascend and are unique.
    pub bias: Arc<[(u32, f32)]>,
    /// Penalties on tokens already committed, frozen for a canvas.
    pub penalties: Penalties,
    /// Candidates recorded per committed token, 0 to 64.
    pub top_k: u8,
    /// Time from submission to the last commit.
    pub timeout: Option<Duration>,
    /// How often drafts are wanted.
    pub drafts: Drafts,
}

impl Job {
    /// A job with the checkpoint's own draw, and nothing else asked for: no bias, penalties, candidates, drafts or
    /// time limit.
    pub fn plain(prompt: impl Into<Arc<[u32]>>, choices: Vec<Choice>, max_tokens: usize, sampler: Sampler) -> Job {
        Job {
            prompt: prompt.into(),
            resume_points: Vec::new(),
            choices,
            choices_before: 0,
            max_tokens,
            sampler,
            draw: Draw::Scaled { temperature: 1.0, top_p: 1.0 },
            bias: Arc::from([]),
            penalties: Penalties::default(),
            top_k: 0,
            timeout: None,
            drafts: Drafts::Off,
        }
    }
}

/// One continuation of a job's prompt.
pub struct Choice {
    /// Seed of all its random draws.
    pub seed: u64,
    /// Distinguishes the choices of one seed; part of the random key.
    pub stream: u32,
    /// Decides at each commit whether the text is complete.
    pub gate: Box<dyn CommitGate>,
    /// What the text must be, where it may not be anything.
    pub structure: Option<Box<dyn Structure>>,
}

/// Penalties as in the OpenAI API: `bias −= presence·[count > 0] + frequency·count`, counted over this choice's
/// committed tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Penalties {
    /// −2 to 2.
    pub presence: f32,
    /// −2 to 2.
    pub frequency: f32,
}

/// How often a draft is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Drafts {
    /// Never.
    #[default]
    Off,
    /// While the choice waits, when it is admitted, and after every n-th step of a canvas; n ≥ 1.
    Every(u32),
}

/// Decides, on the engine's thread and before another pass is spent, whether a choice is complete: end tokens and stop
/// strings. Implemented by `prompt`.
pub trait CommitGate: Send {
    /// Looks at the tokens just committed (already cut to `max_tokens`), which follow those of earlier calls.
    fn commit(&mut self, tokens: &[u32]) -> Verdict;
}

/// What a [`CommitGate`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on with another canvas.
    Continue,
    /// The text is complete.
    Finish {
        /// How many of the tokens just given belong to the answer, an end token that ends it included.
        keep: usize,
        /// Why.
        reason: FinishReason,
    },
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens`, the context or the deadline was reached.
    Length,
    /// The model called tools and waits for their results.
    ToolCalls,
}

/// What a choice tells its reader, in order. Nothing follows `Finished` or `Failed`.
#[derive(Debug, Clone)]
pub enum Event {
    /// A canvas is final.
    Committed(Committed),
    /// The choice is complete.
    Finished(Finished),
    /// The choice ended without completing; what was committed before stays valid.
    Failed(JobError),
}

/// A final canvas, cut to what belongs to the answer.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Number of the canvas within its choice, from 0.
    pub canvas: usize,
    /// The tokens; may be empty when the canvas begins with what ends the text.
    pub tokens: Vec<CommittedToken>,
    /// Denoising steps this canvas took.
    pub steps: usize,
    /// What the last of them did.
    pub last_step: LastStep,
    /// From submission to the commit.
    pub elapsed: Duration,
}

/// A committed token with what the last step knew of it.
#[derive(Debug, Clone)]
pub struct CommittedToken {
    /// The token id.
    pub id: u32,
    /// Natural log-probability at the last completed step, under that step's temperature and biases.
    pub logprob: f32,
    /// The best candidates with their log-probabilities in `logit`, best first; `Job::top_k` of them.
    pub top: Vec<Candidate>,
}

/// The end of a choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// What it cost.
    pub usage: ChoiceUsage,
}

/// What one choice cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ChoiceUsage {
    /// Prompt tokens whose keys and values were already there when the job was admitted.
    pub cached_tokens: usize,
    /// Tokens committed and kept.
    pub completion_tokens: usize,
    /// Canvases denoised.
    pub canvases: usize,
    /// Denoising steps, all canvases together.
    pub steps: usize,
    /// Canvases committed by the deadline instead of by convergence or the step limit.
    pub forced_commits: usize,
}

/// The newest provisional state of a choice; replaces the one before.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// What is happening.
    pub phase: Phase,
    /// Number of the canvas, from 0.
    pub canvas: usize,
    /// Position of the canvas's first token within the answer.
    pub offset_tokens: usize,
    /// Steps done on this canvas.
    pub step: usize,
    /// Most steps a canvas may take.
    pub max_steps: usize,
    /// The argmax canvas; empty before the first step.
    pub tokens: Arc<[u32]>,
    /// What the last of them did; zeros before the first.
    pub last_step: LastStep,
    /// Since submission.
    pub elapsed: Duration,
}

/// What the last step of a canvas did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LastStep {
    /// Positions accepted.
    pub settled: usize,
    /// Positions whose argmax differs from the step before; all of them in the first step.
    pub changed: usize,
    /// Mean entropy of the canvas, nats.
    pub mean_entropy: f32,
    /// Canvases in the pass that made it.
    pub batch: usize,
}

/// What a choice is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waiting for admission.
    Queued,
    /// The prompt is being encoded.
    Encode,
    /// A canvas is being denoised.
    Denoise,
}

/// Why a submitted job is not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The queue is at its bound; try again later.
    #[error("{} ({queued} requests, {choices} choices wait); try again in about {} s", no_room(*jobs), retry_after.as_secs())]
    QueueFull {
        /// Jobs that were to be taken together: more than one are an array's prompts.
        jobs: usize,
        /// Requests waiting.
        queued: usize,
        /// Choices waiting, those of admitted requests too.
        choices: usize,
        /// Estimated time until a place is free, in whole seconds and at least one: what every client is told.
        retry_after: Duration,
    },
    /// It can never fit.
    #[error("{what}: {needed} needed, {available} available")]
    NeverFits {
        /// The resource, in words for the user.
        what: &'static str,
        /// What the job needs.
        needed: u64,
        /// What there is in all.
        available: u64,
    },
    /// The job itself makes no sense (no prompt, a token beyond the vocabulary); says what.
    #[error("{0}")]
    Invalid(String),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// The engine has stopped after an internal error.
    #[error("the engine has stopped")]
    Stopped,
}

/// An array may be too long for a queue that has room for others.
fn no_room(jobs: usize) -> String {
    match jobs {
        1 => "the queue is full".to_owned(),
        _ => format!("the queue has no room for {jobs} prompts together"),
    }
}

/// Why a running choice ended without completing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum JobError {
    /// The deadline passed while there was no draft of the first canvas: no step of it was complete, or those that were
    /// had been thrown away when the choice was set back.
    #[error("the deadline passed before there was a draft to commit")]
    DeadlineExceeded,
    /// The model failed on this request.
    #[error("the model failed: {0}")]
    Model(String),
    /// The structure that the text must have could not be followed.
    #[error("{0}")]
    Structure(#[from] StructureError),
    /// The server shut down before the choice was complete.
    #[error("the server shut down before the answer was complete")]
    ShutDown,
    /// The engine stopped.
    #[error("the engine has stopped")]
    Stopped,
}
