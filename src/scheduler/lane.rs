//! One choice on its way through the engine: its text so far, the canvas being denoised, and what it holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::front::Place;
use super::job::{
    Choice, ChoiceUsage, CommitGate, Committed, CommittedToken, Draft, Drafts, FinishReason, Job, LastStep, Penalties,
    Phase, Verdict,
};
use super::kv::{Holding, Pages};
use super::reader::Outlet;
use crate::diffusion::{Canvas, Key, Observation, ObservationError, Sampler, StepOutcome, Structure, StructureError};
use crate::pass::{CANDIDATES, Candidate, Conditioning, Draw, Head, Row, Segment, SlotId};

/// Names a choice in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LaneId(pub(super) usize);

/// The order of service: lower goes first. A request's further choices, in whichever of its jobs, stand behind as many
/// later requests as [`Tag::TURNS`] says for each, so that one request with many choices does not shut out the rest, and
/// everybody is overtaken by a bounded number of others only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Tag {
    turn: u64,
    arrival: u64,
    index: usize,
}

impl Tag {
    /// Later requests that go before each further choice of a request.
    const TURNS: u64 = 8;

    /// The tag of a choice by the numbers of its request and of its job in the order of arrival, and its own among the
    /// choices of its request.
    pub(super) fn new(request: u64, arrival: u64, index: usize) -> Self {
        Tag { turn: request + Self::TURNS * index as u64, arrival, index }
    }
}

/// What the choices of a job have in common.
pub(super) struct Common {
    pub(super) prompt: Arc<[u32]>,
    pub(super) resume_points: Vec<usize>,
    pub(super) max_tokens: usize,
    pub(super) sampler: Sampler,
    pub(super) draw: Draw,
    pub(super) bias: Arc<[(u32, f32)]>,
    pub(super) penalties: Penalties,
    pub(super) top_k: u8,
    pub(super) drafts: Drafts,
    pub(super) submitted: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) vocabulary: u32,
    pub(super) canvas: usize,
    /// Canvases that `max_tokens` and the context allow.
    pub(super) most_canvases: usize,
}

impl Common {
    /// Splits a job into what its choices share and the choices.
    pub(super) fn new(job: Job, submitted: Instant, limits: &crate::pass::Limits) -> (Common, Vec<Choice>) {
        let room = limits.context.saturating_sub(job.prompt.len()) / limits.canvas;
        let common = Common {
            most_canvases: job.max_tokens.div_ceil(limits.canvas).min(room).max(1),
            prompt: job.prompt,
            resume_points: job.resume_points,
            max_tokens: job.max_tokens,
            sampler: job.sampler,
            draw: job.draw,
            bias: job.bias,
            penalties: job.penalties,
            top_k: job.top_k,
            drafts: job.drafts,
            submitted,
            deadline: job.timeout.and_then(|timeout| submitted.checked_add(timeout)),
            vocabulary: limits.vocabulary as u32,
            canvas: limits.canvas,
        };
        (common, job.choices)
    }
}

/// What a choice holds while it runs.
pub(super) struct Stay {
    pub(super) slot: SlotId,
    pub(super) holding: Holding,
    /// Pages this choice was admitted with a claim to.
    pub(super) need: Pages,
    /// Whether its whole text has been encoded once since admission, so that only canvases are left to encode.
    pub(super) settled: bool,
    /// Whether it stood back for another choice that encodes the same tokens.
    pub(super) stood_back: bool,
    /// Whether the holding changed since the step's segment was made.
    pub(super) stale: bool,
    /// Tokens encoded once the pass being planned is done.
    pub(super) planned: usize,
    /// Whether the pass being planned has a segment of this choice.
    pub(super) in_pass: bool,
    /// The entry of the pass whose encode this choice's step reads although another choice owns it.
    pub(super) depends: Option<usize>,
}

/// One choice.
pub(super) struct Lane {
    pub(super) common: Arc<Common>,
    /// Number of its job.
    pub(super) family: u64,
    pub(super) tag: Tag,
    pub(super) outlet: Outlet,
    gate: Box<dyn CommitGate>,
    structure: Option<Box<dyn Structure>>,
    seed: u64,
    stream: u32,
    /// The prompt and the committed canvases, whole; empty before the first admission.
    pub(super) ids: Vec<u32>,
    /// Without a position before the first admission: many choices may wait.
    pub(super) canvas: Canvas,
    /// What the canvas's last step did.
    pub(super) last_step: LastStep,
    /// What the canvas's last step saw, and the log-probabilities of its most likely tokens.
    seen: Vec<Observation>,
    logprobs: Vec<f32>,
    /// The last step's best candidates with their log-probabilities; empty unless the job records any or has a structure.
    top: Vec<Vec<Candidate>>,
    /// When the canvas began.
    pub(super) began: Instant,
    bias: Arc<[(u32, f32)]>,
    counts: BTreeMap<u32, u32>,
    pub(super) usage: ChoiceUsage,
    pub(super) stay: Option<Stay>,
    /// Held until the first admission.
    pub(super) place: Option<Place>,
    /// The denoise segment, kept between passes for its memory. `None` while the model has it.
    segment: Option<Segment>,
}

/// What follows from a commit.
pub(super) enum Next {
    Canvas,
    Finish(FinishReason),
    /// The gate panicked.
    Broken,
    /// The structure cannot be followed into another canvas.
    Astray(StructureError),
}

/// A step's rows cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Observation(#[from] ObservationError),
    #[error(transparent)]
    Structure(#[from] StructureError),
}

/// The log-probability of a token that is none of a position's best, as the original API has it.
const UNKNOWN_LOGPROB: f32 = -9999.0;

impl Lane {
    pub(super) fn new(common: Arc<Common>, choice: Choice, family: u64, tag: Tag, ends: (Outlet, Place)) -> Self {
        let Choice { seed, stream, gate, structure } = choice;
        let (outlet, place) = ends;
        let key = Key { seed, choice: stream, canvas: 0 };
        Lane {
            canvas: Canvas::from_tokens(common.sampler, key, Vec::new(), common.vocabulary),
            last_step: LastStep::default(),
            began: common.submitted,
            bias: common.bias.clone(),
            common,
            family,
            tag,
            outlet,
            gate,
            structure,
            seed,
            stream,
            ids: Vec::new(),
            seen: Vec::new(),
            logprobs: Vec::new(),
            top: Vec::new(),
            counts: BTreeMap::new(),
            usage: ChoiceUsage::default(),
            stay: None,
            place: Some(place),
            segment: None,
        }
    }

    /// Prepares the ids when the choice is about to be admitted for the first time.
    pub(super) fn fill_ids(&mut self) {
        if self.ids.is_empty() {
            self.ids.extend_from_slice(&self.common.prompt);
        }
    }

    /// Leaves the queue when the choice is admitted for the first time, and begins its canvas; whether it was that.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let first = self.place.take().is_some();
        if first {
            self.renew_canvas();
            self.began = now;
        }
        first
    }

    /// Makes the canvas under way one without a step.
    fn renew_canvas(&mut self) {
        let key = Key { seed: self.seed, choice: self.stream, canvas: self.usage.canvases as u32 };
        self.canvas = Canvas::new(self.common.sampler, key, self.common.canvas, self.common.vocabulary);
        self.last_step = LastStep::default();
    }

    /// Whether another canvas may follow the current one.
    pub(super) fn may_go_on(&self) -> bool {
        self.usage.canvases + 1 < self.common.most_canvases
    }

    /// Whether nothing but the prompt is to be encoded yet.
    pub(super) fn is_first_canvas(&self) -> bool {
        self.usage.canvases == 0
    }

    /// Whether the reader is so far behind that no further canvas may begin.
    pub(super) fn is_paused(&self) -> bool {
        self.canvas.step() == 0 && self.outlet.is_full()
    }

    /// Throws the current canvas's steps away; the same random numbers will lead to the same text.
    pub(super) fn restart_canvas(&mut self) {
        if self.canvas.step() > 0 {
            self.renew_canvas();
            if let Some(structure) = &mut self.structure {
                structure.restart();
            }
        }
    }

    /// The step's segment, made of the one before.
    pub(super) fn take_segment(&mut self) -> Option<Segment> {
        let stay = self.stay.as_mut()?;
        let mut segment = self.segment.take().unwrap_or_else(|| Segment::Denoise {
            kv: Default::default(),
            slot: stay.slot,
            conditioning: Conditioning::Fresh,
            tokens: Vec::new(),
            uniforms: Vec::new(),
            head: Head { temperature: 1.0, draw: self.common.draw, bias: self.bias.clone(), top_k: 0 },
        });
        if let Segment::Denoise { kv, slot, conditioning, tokens, uniforms, head } = &mut segment {
            if std::mem::take(&mut stay.stale) {
                *slot = stay.slot;
                kv.clone_from(&stay.holding.view);
                kv.len = stay.planned;
            }
            if self.canvas.step() == 0 {
                *conditioning = Conditioning::Fresh;
                head.bias = self.bias.clone();
                head.top_k = if self.structure.is_some() { CANDIDATES as u8 } else { self.common.top_k };
                uniforms.resize(self.common.canvas, 0.0);
            } else {
                *conditioning = Conditioning::Carried;
            }
            tokens.clear();
            tokens.extend_from_slice(self.canvas.tokens());
            head.temperature = self.canvas.temperature();
            if self.common.draw != Draw::Argmax {
                self.canvas.uniforms(uniforms);
            }
        }
        Some(segment)
    }

    pub(super) fn return_segment(&mut self, segment: Segment) {
        self.segment = Some(segment);
    }

    /// Takes what the model said of the canvas. Its rows are many and wide: they are read once, into what `diffusion` looks
    /// at and what a commit needs, and dropped while they are warm.
    pub(super) fn step(&mut self, rows: Vec<Row>) -> Result<StepOutcome, StepError> {
        self.seen.clear();
        self.logprobs.clear();
        let narrow = |row: &Row| Observation { argmax: row.argmax, sampled: row.sampled, entropy: row.entropy };
        self.seen.extend(rows.iter().map(narrow));
        self.logprobs.extend(rows.iter().map(|row| row.max - row.lse));
        if !self.logprobs.iter().fold(true, |finite, logprob| finite & logprob.is_finite()) {
            let position = self.logprobs.iter().position(|logprob| !logprob.is_finite()).unwrap_or_default();
            return Err(ObservationError::NotFinite { position }.into());
        }
        self.canvas.hold(&mut self.seen);
        let mut outcome = self.canvas.apply(self.seen.iter().copied())?;
        if self.common.top_k > 0 || self.structure.is_some() {
            self.top.clear();
            self.top.extend(rows.into_iter().map(log_probabilities));
        }
        if let Some(structure) = &mut self.structure {
            let candidates = |position: usize| self.top[position].iter().map(|candidate| candidate.token);
            outcome = self.canvas.bend(outcome, structure.as_mut(), candidates)?;
        }
        Ok(outcome)
    }

    /// Makes the canvas fit the structure the text must have, if there is one, before it is committed.
    pub(super) fn settle(&mut self) -> Result<(), StructureError> {
        let Some(structure) = &mut self.structure else { return Ok(()) };
        let candidates = |position: usize| self.top[position].iter().map(|candidate| candidate.token);
        self.canvas.settle(structure.as_mut(), candidates)?;
        // What stands instead of the model's own choice has that token's probability.
        for (position, &token) in self.canvas.argmax().iter().enumerate() {
            if token != self.seen[position].argmax || self.canvas.pinned(position).is_some() {
                let known = self.top[position].iter().find(|candidate| candidate.token == token);
                self.logprobs[position] = known.map_or(UNKNOWN_LOGPROB, |candidate| candidate.logit);
            }
        }
        Ok(())
    }

    /// The first tokens of the canvas as the last step saw them.
    fn committed_tokens(&mut self, keep: usize) -> Vec<CommittedToken> {
        let mut top = self.top.drain(..);
        let recorded = usize::from(self.common.top_k);
        let mut best = || {
            let mut top = top.next().unwrap_or_default();
            top.truncate(recorded);
            top
        };
        let seen = self.canvas.argmax().iter().zip(&self.logprobs).take(keep);
        seen.map(|(&id, &logprob)| CommittedToken { id, logprob, top: best() }).collect()
    }

    /// Makes the current canvas final: cuts it to what belongs to the answer, tells the reader, and prepares the next
    /// canvas if there is one.
    pub(super) fn commit(&mut self, forced: bool, now: Instant) -> (Next, usize) {
        let room = self.common.max_tokens - self.usage.completion_tokens;
        let cut = self.canvas.argmax().len().min(room);
        let gate = std::panic::AssertUnwindSafe(|| self.gate.commit(&self.canvas.argmax()[..cut]));
        let Ok(verdict) = std::panic::catch_unwind(gate) else { return (Next::Broken, 0) };
        let (keep, reason) = match verdict {
            Verdict::Continue => (cut, None),
            Verdict::Finish { keep, reason } => (keep.min(cut), Some(reason)),
        };
        let number = self.usage.canvases;
        self.usage.canvases += 1;
        self.usage.steps += self.canvas.step();
        self.usage.completion_tokens += keep;
        self.usage.forced_commits += usize::from(forced);
        let tokens = self.committed_tokens(keep);
        self.outlet.commit(Committed {
            canvas: number,
            tokens,
            steps: self.canvas.step(),
            last_step: self.last_step,
            elapsed: now.saturating_duration_since(self.common.submitted),
        });
        let full = self.usage.completion_tokens >= self.common.max_tokens;
        let last = full || forced || self.usage.canvases >= self.common.most_canvases;
        if let Some(reason) = reason.or(last.then_some(FinishReason::Length)) {
            return (Next::Finish(reason), keep);
        }
        if let Some(structure) = &mut self.structure
            && let Err(error) = structure.commit(self.canvas.argmax())
        {
            return (Next::Astray(error), keep);
        }
        self.begin_canvas(now);
        (Next::Canvas, keep)
    }

    fn begin_canvas(&mut self, now: Instant) {
        self.ids.extend_from_slice(self.canvas.argmax());
        self.count(self.usage.canvases - 1);
        self.renew_canvas();
        self.began = now;
    }

    /// Counts the tokens of a canvas just committed and freezes the penalties for the next one.
    fn count(&mut self, canvas: usize) {
        let penalties = self.common.penalties;
        if penalties == Penalties::default() {
            return;
        }
        let start = self.common.prompt.len() + canvas * self.common.canvas;
        for &token in &self.ids[start..] {
            *self.counts.entry(token).or_default() += 1;
        }
        self.bias = penalised(&self.common.bias, &self.counts, penalties);
    }

    /// Publishes a draft if this job wants one now.
    pub(super) fn draft(&self, phase: Phase, now: Instant) -> bool {
        let step = self.canvas.step();
        let wanted = match self.common.drafts {
            Drafts::Off => false,
            Drafts::Every(every) => phase != Phase::Denoise || (step as u32).is_multiple_of(every),
        };
        if wanted {
            self.outlet.draft(Draft {
                phase,
                canvas: self.usage.canvases,
                offset_tokens: self.usage.completion_tokens,
                step,
                max_steps: self.common.sampler.max_steps,
                tokens: self.canvas.argmax().into(),
                last_step: self.last_step,
                elapsed: now.saturating_duration_since(self.common.submitted),
            });
        }
        wanted
    }
}

/// A row's candidates, their logits turned into log-probabilities.
fn log_probabilities(row: Row) -> Vec<Candidate> {
    let normalise = |candidate: Candidate| Candidate { logit: candidate.logit - row.lse, ..candidate };
    row.top.into_iter().map(normalise).collect()
}

/// The user's biases less the penalties on what was counted; ids ascend and are unique.
fn penalised(bias: &[(u32, f32)], counts: &BTreeMap<u32, u32>, penalties: Penalties) -> Arc<[(u32, f32)]> {
    let mut sum: BTreeMap<u32, f32> = bias.iter().copied().collect();
    for (&token, &count) in counts {
        *sum.entry(token).or_default() -= penalties.presence + penalties.frequency * count as f32;
    }
    sum.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_add_to_the_users_biases() {
        let bias = [(1, 2.0), (7, -1.0)];
        let counts = BTreeMap::from([(3, 2), (7, 1)]);
        let got = penalised(&bias, &counts, Penalties { presence: 0.5, frequency: 0.25 });
        assert_eq!(*got, [(1, 2.0), (3, -1.0), (7, -1.75)]);
    }

    #[test]
    fn further_choices_stand_behind_a_bounded_number_of_later_requests() {
        let first_of_later = |request| Tag::new(request, request + 2, 0);
        // Of the request's first job, and of its third.
        for third in [Tag::new(0, 0, 2), Tag::new(0, 2, 2)] {
            assert!(first_of_later(15) < third && third < first_of_later(17));
        }
        assert!(Tag::new(0, 0, 0) < first_of_later(1));
    }
}
