//! The `diffusion` object of a progress chunk.

use serde::Serialize;
use utoipa::ToSchema;

/// How a canvas stands. Provisional: text arrives for good in deltas only.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ProgressFrame {
    /// Version of this object: 1.
    pub v: u32,
    /// `progress`.
    pub r#type: &'static str,
    /// The choice it is about.
    pub choice: usize,
    /// Counts the progress chunks of this choice, from 0.
    pub seq: u64,
    /// Number of the canvas, from 0.
    pub canvas: usize,
    /// Tokens of the answer before this canvas.
    pub offset_tokens: usize,
    /// `queued`, `encode`, `denoise` or `commit`; the text of a `commit` is empty, its delta follows.
    pub phase: &'static str,
    /// Steps done on this canvas.
    pub step: usize,
    /// Most steps it may take.
    pub max_steps: usize,
    /// Positions accepted in the last step.
    pub settled: usize,
    /// Positions whose best token changed in the last step.
    pub changed: usize,
    /// Mean entropy of the canvas in nats.
    pub mean_entropy: f32,
    /// Canvases that shared the last pass.
    pub batch: usize,
    /// Milliseconds since the request was queued.
    pub elapsed_ms: u64,
    /// What the draft is shown of: `tool` where it ends within a call; otherwise `content` as soon as it holds any of the
    /// answer, then `tool`, then `reasoning`. `raw` in completions.
    pub channel: &'static str,
    /// The draft's text in that channel, without what it holds for others; the next frame of the same choice and canvas
    /// replaces it. Mode `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Changes that turn the draft before into this one, each made in the text that the one before it has left; an empty
    /// draft precedes the first. Mode `edits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edits: Option<Vec<Edit>>,
}

/// A replacement within a draft.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Edit {
    /// Where, in Unicode code points from the draft's start.
    pub at: usize,
    /// Code points taken away there.
    pub remove: usize,
    /// Text put there instead.
    pub insert: String,
}
