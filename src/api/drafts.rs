//! Progress frames of one choice: which drafts are shown, when, and in which form.
//!
//! A draft is shown only while its canvas is the one after the commits read so far; older ones are stale, newer ones
//! wait for the commit that explains them. Late drafts are left out, never queued.

use std::cmp::Ordering;
use std::future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::edits::edits;
use super::order::ProgressPlan;
use super::wire::options::ProgressMode;
use super::wire::progress::ProgressFrame;
use crate::prompt::{Channel, Dialect, TextReader};
use crate::scheduler::{Committed, Draft, LastStep, Phase};

/// What drafts are measured by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most tokens of the answer: a draft shows none beyond.
    pub max_tokens: usize,
    /// Most steps of a canvas.
    pub max_steps: usize,
}

/// Makes the progress frames of one choice.
pub(crate) struct Drafting {
    choice: usize,
    drafts: watch::Receiver<Option<Draft>>,
    plan: ProgressPlan,
    dialect: Dialect,
    bounds: Bounds,
    /// Tokens of the answer before the canvas under way.
    offset: usize,
    /// Commits read so far, which is the number of the canvas under way.
    commits: usize,
    /// A draft that is not shown yet.
    held: Option<Draft>,
    /// What is on the client's screen for this canvas.
    shown: String,
    not_before: Instant,
    seq: u64,
}

impl Drafting {
    pub(crate) fn new(
        choice: usize,
        drafts: watch::Receiver<Option<Draft>>,
        plan: ProgressPlan,
        dialect: Dialect,
        bounds: Bounds,
    ) -> Drafting {
        Drafting {
            choice,
            drafts,
            plan,
            dialect,
            bounds,
            offset: 0,
            commits: 0,
            held: None,
            shown: String::new(),
            not_before: Instant::now(),
            seq: 0,
        }
    }

    /// The next frame. Never ends where there is none, and may be dropped at any time.
    pub(crate) async fn next(drafting: &mut Option<Drafting>, text: &TextReader) -> ProgressFrame {
        match drafting {
            None => future::pending().await,
            Some(drafting) => {
                let draft = drafting.wait().await;
                drafting.show(draft, text)
            }
        }
    }

    /// Waits until a draft may be shown.
    async fn wait(&mut self) -> Draft {
        loop {
            let Some(held) = &self.held else {
                if self.drafts.changed().await.is_err() {
                    // The engine has let go; the events say how it ended.
                    return future::pending().await;
                }
                self.held = self.drafts.borrow_and_update().clone();
                continue;
            };
            match held.canvas.cmp(&self.commits) {
                Ordering::Less => self.held = None,
                // Its canvas's predecessor is committed but not read yet: the event will wake the voice.
                Ordering::Greater => return future::pending().await,
                Ordering::Equal => {
                    sleep_until(self.not_before).await;
                    if self.drafts.has_changed().unwrap_or(false) {
                        // Something newer came in the meantime.
                        self.held = None;
                    } else if let Some(draft) = self.held.take() {
                        return draft;
                    }
                }
            }
        }
    }

    /// The frame that ends a canvas; its delta follows. Which drafts were read makes no difference to it.
    pub(crate) fn committed(&mut self, committed: &Committed) -> ProgressFrame {
        let mut frame = self.frame("commit", committed.steps, committed.last_step, committed.elapsed);
        self.put(&mut frame, String::new());
        self.commits += 1;
        self.offset += committed.tokens.len();
        frame
    }

    fn show(&mut self, draft: Draft, text: &TextReader) -> ProgressFrame {
        let room = self.bounds.max_tokens.saturating_sub(draft.offset_tokens);
        let tokens = &draft.tokens[..draft.tokens.len().min(room)];
        let read = text.draft(tokens);
        let mut frame = self.frame(phase_name(draft.phase), draft.step, draft.last_step, draft.elapsed);
        frame.channel = self.channel_name(read.channel);
        self.put(&mut frame, read.text);
        self.not_before = Instant::now() + self.plan.pause;
        frame
    }

    /// Puts the draft's text into the frame as the client wants it.
    fn put(&mut self, frame: &mut ProgressFrame, text: String) {
        match self.plan.mode {
            ProgressMode::Text => frame.text = Some(text),
            ProgressMode::Edits => {
                frame.edits = Some(edits(&self.shown, &text));
                self.shown = text;
            }
            ProgressMode::Stats => {}
        }
    }

    /// Everything but the text, of the canvas under way.
    fn frame(&mut self, phase: &'static str, step: usize, last: LastStep, elapsed: Duration) -> ProgressFrame {
        let seq = self.seq;
        self.seq += 1;
        ProgressFrame {
            v: 1,
            r#type: "progress",
            choice: self.choice,
            seq,
            canvas: self.commits,
            offset_tokens: self.offset,
            phase,
            step,
            max_steps: self.bounds.max_steps,
            settled: last.settled,
            changed: last.changed,
            mean_entropy: if last.mean_entropy.is_finite() { last.mean_entropy } else { 0.0 },
            batch: last.batch,
            elapsed_ms: milliseconds(elapsed),
            channel: self.channel_name(Channel::Content),
            text: None,
            edits: None,
        }
    }

    fn channel_name(&self, channel: Channel) -> &'static str {
        match (self.dialect, channel) {
            (Dialect::Raw, _) => "raw",
            (_, Channel::Reasoning) => "reasoning",
            (_, Channel::Tool) => "tool",
            (_, Channel::Content | Channel::Marker) => "content",
        }
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Queued => "queued",
        Phase::Encode => "encode",
        Phase::Denoise => "denoise",
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scheduler's events and drafts have two ways, and which comes first is chance.
    #[test]
    fn a_commit_has_its_own_numbers_whatever_drafts_were_read() {
        let last_step = LastStep { settled: 60, changed: 3, mean_entropy: 0.25, batch: 7 };
        let committed =
            Committed { canvas: 0, tokens: Vec::new(), steps: 9, last_step, elapsed: Duration::from_millis(120) };
        let draft = |step, last_step| Draft {
            phase: Phase::Denoise,
            canvas: 0,
            offset_tokens: 0,
            step,
            max_steps: 12,
            tokens: [1, 2, 3].into(),
            last_step,
            elapsed: Duration::from_millis(100),
        };
        let older = LastStep { settled: 5, changed: 50, mean_entropy: 2.0, batch: 1 };
        for held in [None, Some(draft(0, LastStep::default())), Some(draft(8, older)), Some(draft(9, last_step))] {
            let (_sender, drafts) = watch::channel(None);
            let plan = ProgressPlan { every: 1, mode: ProgressMode::Stats, pause: Duration::ZERO };
            let bounds = Bounds { max_tokens: 64, max_steps: 12 };
            let mut drafting = Drafting::new(0, drafts, plan, Dialect::Raw, bounds);
            drafting.held = held;
            let frame = drafting.committed(&committed);
            assert_eq!((frame.phase, frame.canvas, frame.step, frame.max_steps), ("commit", 0, 9, 12));
            assert_eq!((frame.settled, frame.changed, frame.mean_entropy), (60, 3, 0.25));
            assert_eq!((frame.batch, frame.elapsed_ms), (7, 120));
        }
    }
}
