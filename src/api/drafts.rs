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
use crate::scheduler::{Draft, Phase};

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
    /// The last draft of this canvas, shown or not: its numbers close the canvas.
    last: Option<Draft>,
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
            last: None,
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
                // The frame of a commit goes out with the event, which is about to come.
                Ordering::Equal if held.phase == Phase::Commit => self.last = self.held.take(),
                Ordering::Equal => {
                    sleep_until(self.not_before).await;
                    if self.drafts.has_changed().unwrap_or(false) {
                        // Something newer came in the meantime.
                        self.last = self.held.take();
                    } else if let Some(draft) = self.held.take() {
                        return draft;
                    }
                }
            }
        }
    }

    /// The frame that ends a canvas of so many steps and tokens; its delta follows.
    pub(crate) fn committed(&mut self, steps: usize, tokens: usize) -> ProgressFrame {
        let mut frame = match self.held.take_if(|held| held.canvas == self.commits).or_else(|| self.last.take()) {
            Some(draft) => self.frame(&draft),
            None => self.blank(),
        };
        frame.phase = phase_name(Phase::Commit);
        frame.step = steps;
        self.put(&mut frame, String::new());
        self.commits += 1;
        self.offset += tokens;
        self.last = None;
        frame
    }

    fn show(&mut self, draft: Draft, text: &TextReader) -> ProgressFrame {
        let room = self.bounds.max_tokens.saturating_sub(draft.offset_tokens);
        let tokens = &draft.tokens[..draft.tokens.len().min(room)];
        let read = text.draft(tokens);
        let mut frame = self.frame(&draft);
        frame.channel = self.channel_name(read.channel);
        self.put(&mut frame, read.text);
        self.not_before = Instant::now() + self.plan.pause;
        self.last = Some(draft);
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

    /// Everything but the text.
    fn frame(&mut self, draft: &Draft) -> ProgressFrame {
        ProgressFrame {
            canvas: draft.canvas,
            offset_tokens: draft.offset_tokens,
            phase: phase_name(draft.phase),
            step: draft.step,
            max_steps: draft.max_steps,
            settled: draft.settled,
            changed: draft.changed,
            mean_entropy: if draft.mean_entropy.is_finite() { draft.mean_entropy } else { 0.0 },
            batch: draft.batch,
            elapsed_ms: milliseconds(draft.elapsed),
            ..self.blank()
        }
    }

    /// A frame of this canvas of which nothing is known.
    fn blank(&mut self) -> ProgressFrame {
        let seq = self.seq;
        self.seq += 1;
        ProgressFrame {
            v: 1,
            r#type: "progress",
            choice: self.choice,
            seq,
            canvas: self.commits,
            offset_tokens: self.offset,
            phase: phase_name(Phase::Queued),
            step: 0,
            max_steps: self.bounds.max_steps,
            settled: 0,
            changed: 0,
            mean_entropy: 0.0,
            batch: 0,
            elapsed_ms: 0,
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
        Phase::Commit => "commit",
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
