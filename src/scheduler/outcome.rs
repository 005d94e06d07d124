//! What follows from a pass: pages published, canvases stepped and committed, choices ended.

use std::time::Instant;

use super::core::{Core, Entry};
use super::job::{FinishReason, Finished, JobError, LastStep, Phase};
use super::kv::Pages;
use super::lane::{Lane, LaneId, Next, StepError};
use super::metrics::{CanvasFigures, End, Outcome};
use super::settings::need;
use crate::diffusion::{Progress, StepOutcome, StructureError};
use crate::pass::{EngineError, Output, SegmentError};

/// A prompt gets a resume point at least every so many tokens.
const RESUME_EVERY: usize = 1024;

/// What a model answers to a pass.
pub type Answer = Result<Vec<Result<Output, SegmentError>>, EngineError>;

impl Core {
    /// Takes what the model answered to the planned pass, at the time it did so.
    pub fn apply(&mut self, answer: Answer, now: Instant) {
        self.figures.duration = now.saturating_duration_since(self.now);
        self.durations.add(self.figures.duration);
        self.front.metrics().pass(&self.figures);
        self.now = now;
        self.return_segments();
        let mut entries = std::mem::take(&mut self.entries);
        match answer {
            Ok(outputs) if outputs.len() == entries.len() => self.apply_outputs(&entries, outputs),
            Ok(outputs) => {
                self.fail_all(&entries, &format!("{} answers to {} segments", outputs.len(), entries.len()));
            }
            Err(error) => self.fail_all(&entries, &error.to_string()),
        }
        entries.clear();
        self.entries = entries;
        self.note_levels();
    }

    /// Gives each choice its segment back, whose memory serves the next step.
    pub(super) fn return_segments(&mut self) {
        let mut segments = std::mem::take(&mut self.pass.segments);
        for (segment, entry) in segments.drain(..).zip(&self.entries) {
            if let Entry::Step { lane } = *entry
                && let Some(lane) = self.lanes.get_mut(lane.0).and_then(Option::as_mut)
            {
                lane.return_segment(segment);
            }
        }
        self.pass.segments = segments;
    }

    /// The pass as a whole failed: nobody in it can go on, everybody else can.
    fn fail_all(&mut self, entries: &[Entry], why: &str) {
        for entry in entries {
            let (Entry::Encode { lane, .. } | Entry::Step { lane }) = *entry;
            self.fail(lane, JobError::Model(why.to_owned()));
        }
    }

    fn apply_outputs(&mut self, entries: &[Entry], outputs: Vec<Result<Output, SegmentError>>) {
        let mut failed: Vec<(usize, String)> = Vec::new();
        for (index, (entry, output)) in entries.iter().zip(outputs).enumerate() {
            let (Entry::Encode { lane: id, .. } | Entry::Step { lane: id }) = *entry;
            // A choice whose encode failed has ended already.
            let Some(lane) = self.get(id) else { continue };
            let depends = lane.stay.as_ref().and_then(|stay| stay.depends);
            let inherited = failed.iter().find(|(entry, _)| Some(*entry) == depends).map(|(_, why)| why.clone());
            let result = match (*entry, output) {
                _ if inherited.is_some() => Err(inherited.unwrap_or_default()),
                (Entry::Encode { end, .. }, Ok(Output::Encoded)) => {
                    self.encoded(id, end);
                    Ok(())
                }
                (Entry::Step { .. }, Ok(Output::Denoised(rows))) => self.step(id, rows),
                (_, Ok(_)) => Err("an answer of the wrong kind".to_owned()),
                (_, Err(error)) => Err(error.to_string()),
            };
            if let Err(why) = result {
                failed.push((index, why.clone()));
                self.fail(id, JobError::Model(why));
            }
        }
    }

    fn encoded(&mut self, id: LaneId, end: usize) {
        let (lane, store) = self.lane_and_store(id);
        let Some(stay) = &mut lane.stay else { return };
        let (common, whole) = (&lane.common, lane.ids.len());
        let is_point = |range: std::ops::Range<usize>| {
            range.start.next_multiple_of(RESUME_EVERY) < range.end
                || [common.prompt.len(), whole].iter().any(|point| range.contains(point))
                || common.resume_points.iter().any(|point| range.contains(point))
        };
        store.encoded(&mut stay.holding, &lane.ids, end, is_point);
        stay.stale = true;
        stay.settled |= end == whole;
    }

    fn step(&mut self, id: LaneId, rows: Vec<crate::pass::Row>) -> Result<(), String> {
        let (now, batch) = (self.now, self.figures.canvases);
        let lane = self.lane_mut(id);
        let outcome = match lane.step(rows) {
            Ok(outcome) => outcome,
            Err(StepError::Observation(error)) => return Err(error.to_string()),
            Err(StepError::Structure(error)) => {
                self.fail(id, error.into());
                return Ok(());
            }
        };
        let StepOutcome { settled, changed, mean_entropy, progress } = outcome;
        lane.last_step = LastStep { settled, changed, mean_entropy, batch };
        let drafted = lane.draft(Phase::Denoise, now);
        if drafted {
            self.first_draft(id);
        }
        if progress.is_done() {
            self.commit(id, false);
        }
        Ok(())
    }

    fn first_draft(&mut self, id: LaneId) {
        let (family, now) = (self.lane(id).family, self.now);
        if let Some(family) = self.families.get_mut(&family).filter(|family| !family.has_draft) {
            family.has_draft = true;
            self.front.metrics().first_draft(now.saturating_duration_since(family.submitted));
        }
    }

    /// Makes a choice's canvas final as it is; `forced` by the deadline, after which none follows.
    pub(super) fn commit(&mut self, id: LaneId, forced: bool) {
        let now = self.now;
        let lane = self.lane_mut(id);
        if let Err(error) = lane.settle() {
            return self.fail(id, error.into());
        }
        let (steps, began, positions) = (lane.canvas.step(), lane.began, lane.canvas.argmax().len());
        let end = match lane.canvas.progress() {
            Progress::Converged => End::Converged,
            Progress::OutOfSteps => End::StepLimit,
            Progress::Going => End::Deadline,
        };
        let (next, kept) = lane.commit(forced, now);
        let latency = now.saturating_duration_since(began);
        let wasted = positions - kept;
        self.front.metrics().canvas(&CanvasFigures { end, steps, latency, kept, wasted });
        self.first_text(id);
        match next {
            Next::Canvas => self.expect_canvas(id),
            Next::Finish(reason) => self.finish(id, reason),
            Next::Astray(error) => self.fail(id, error.into()),
            Next::Broken => self.fail(id, JobError::Model("the end of the text could not be decided".to_owned())),
        }
    }

    fn first_text(&mut self, id: LaneId) {
        let (family, now) = (self.lane(id).family, self.now);
        if let Some(family) = self.families.get_mut(&family).filter(|family| !family.has_text) {
            family.has_text = true;
            self.front.metrics().first_text(now.saturating_duration_since(family.submitted));
        }
    }

    /// A canvas waits to be encoded: promises the pages for it.
    fn expect_canvas(&mut self, id: LaneId) {
        let (geometry, rows, canvas) = (self.budget.geometry, self.budget.encode_rows, self.budget.limits.canvas);
        let lane = self.lane_mut(id);
        let pages: Pages = need(geometry, rows, lane.ids.len() + canvas, canvas);
        if let Some(stay) = &mut lane.stay {
            stay.need = pages;
            stay.stale = true;
        }
    }

    /// Ends a choice that is complete.
    pub(super) fn finish(&mut self, id: LaneId, reason: FinishReason) {
        let Some(mut lane) = self.take_out(id) else { return };
        let usage = lane.usage;
        self.front.metrics().choice(usage.completion_tokens, usage.steps);
        lane.outlet.finish(Finished { reason, usage });
        self.close_family(&lane, id, Outcome::Finished);
    }

    /// Ends a choice with an error.
    pub(super) fn fail(&mut self, id: LaneId, error: JobError) {
        let Some(mut lane) = self.take_out(id) else { return };
        let outcome = match &error {
            JobError::DeadlineExceeded => Outcome::Deadline,
            JobError::Model(_) | JobError::Structure(_) | JobError::Stopped => Outcome::Failed,
            JobError::ShutDown => Outcome::ShutDown,
        };
        self.log_failure(&lane, &error);
        lane.outlet.fail(error);
        self.close_family(&lane, id, outcome);
    }

    /// The model's failures are for whoever operates it, once for each job: its choices fail together, for one reason.
    fn log_failure(&self, lane: &Lane, error: &JobError) {
        let told = self.families.get(&lane.family).is_some_and(|family| family.outcome == Outcome::Failed);
        let (prompt_tokens, canvas) = (lane.common.prompt.len(), lane.usage.canvases);
        match error {
            JobError::Model(_) | JobError::Structure(StructureError::Astray(_)) if !told => {
                tracing::error!(prompt_tokens, canvas, "a request failed: {error}")
            }
            _ => tracing::debug!(prompt_tokens, canvas, "a choice failed: {error}"),
        }
    }

    /// Ends a choice whose reader is gone.
    pub(super) fn cancel(&mut self, id: LaneId) {
        let Some(mut lane) = self.take_out(id) else { return };
        self.front.metrics().cancelled();
        lane.outlet.abandon();
        self.close_family(&lane, id, Outcome::Cancelled);
    }

    /// Takes a choice out of every list and its pages and slot from it.
    fn take_out(&mut self, id: LaneId) -> Option<Lane> {
        let (tag, deadline) = self.get(id).map(|lane| (lane.tag, lane.common.deadline))?;
        self.leave(id);
        self.waiting.remove(&tag);
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id));
        }
        self.remove(id)
    }

    /// Notes that a choice of a job is gone, and the end of the job with its last one.
    fn close_family(&mut self, lane: &Lane, id: LaneId, outcome: Outcome) {
        let Some(family) = self.families.get_mut(&lane.family) else { return };
        family.members.retain(|&member| member != id);
        family.outcome = family.outcome.and(outcome);
        if family.members.is_empty() {
            if family.cached.is_none() {
                self.front.left_queue(None);
            }
            self.front.metrics().request(family.outcome);
            self.families.remove(&lane.family);
        }
    }
}
