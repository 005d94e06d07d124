//! What the scheduler and the model say to each other: plain data, and the [`Denoiser`] trait.
//!
//! A *pass* is one forward of the model over a ragged batch of *segments*: consecutive rows of one request in one mode.
//! The scheduler owns page numbers and slots, the model owns the bytes behind them. This module depends on nothing and
//! holds no behaviour beyond small accessors, so that a scripted model can stand in for the real one in tests.

use std::sync::Arc;

/// A page of the key/value cache, counted per pool: full and sliding layers have pools (and numbers) of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// A place for one canvas being denoised; the model keeps that canvas's soft embedding in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// What a loaded model is and what its resources cost; constant over its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of one canvas (256 for the published checkpoint).
    pub canvas: usize,
    /// Size of the vocabulary; every token id is below it.
    pub vocabulary: usize,
    /// Most positions one request may use, prompt and answer together.
    pub context: usize,
    /// Sliding window W in tokens: an encode row sees W keys with itself, a canvas row the last W−1 prefix positions.
    pub window: usize,
    /// Positions held by one page.
    pub page_tokens: usize,
    /// Bytes of one page of the full layers' pool, all full layers together.
    pub full_page_bytes: u64,
    /// Bytes of one page of the sliding layers' pool, all sliding layers together; 0 where no layer slides.
    pub sliding_page_bytes: u64,
    /// Bytes of one slot.
    pub slot_bytes: u64,
    /// Bytes of working memory per row of a pass.
    pub row_bytes: u64,
}

/// How much of each resource the scheduler will use; told to the model once, before the first pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Pages of the full layers' pool: ids below this number.
    pub full_pages: usize,
    /// Pages of the sliding layers' pool: ids below this number.
    pub sliding_pages: usize,
    /// Slots: ids below this number.
    pub slots: usize,
    /// Most rows in one pass, both modes together.
    pub rows: usize,
}

/// Where one request's encoded tokens lie.
///
/// `full[i]` holds positions `i·page_tokens ..`. `sliding[i]` holds positions `sliding_from + i·page_tokens ..`;
/// `sliding_from` is a multiple of `page_tokens` and at most `max(0, len − (W−1))` for the view to be usable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KvView {
    /// Pages of the full layers, oldest first.
    pub full: Vec<PageId>,
    /// Pages of the sliding layers, oldest first.
    pub sliding: Vec<PageId>,
    /// Position of the first token in `sliding[0]`.
    pub sliding_from: usize,
    /// Tokens encoded before this segment's rows; also the position of the segment's first row.
    pub len: usize,
}

/// What a denoise step knows of the step before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditioning {
    /// First step of a canvas: the soft embedding is zero.
    Fresh,
    /// The slot holds the soft embedding that the previous step left.
    Carried,
}

/// Most candidates that are recorded per row, and among which `top_p` cuts.
pub const CANDIDATES: usize = 64;

/// How the sampled token of a row is drawn. Only the draw depends on it: entropies, acceptance and self-conditioning
/// keep the step's own temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draw {
    /// The most likely token.
    Argmax,
    /// A draw from `softmax(logits / (t_step · temperature))`; when `top_p < 1`, from the smallest set of best tokens whose
    /// probabilities under it, those of the whole vocabulary, reach `top_p`, as far as they are of the row's [`CANDIDATES`] best.
    Scaled {
        /// Factor on the step's temperature, `> 0`; 1 is the checkpoint's own sampler.
        temperature: f32,
        /// Nucleus mass in `(0, 1]`.
        top_p: f32,
    },
}

/// What the vocabulary head does with the rows of one canvas.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// The step's temperature t, `> 0`: statistics are those of `softcapped logits / t`.
    pub temperature: f32,
    /// How `Row::sampled` is drawn.
    pub draw: Draw,
    /// Added to the logits after the softcap and before the temperature, for every row; ids ascend and are unique.
    pub bias: Arc<[(u32, f32)]>,
    /// How many candidates to record in `Row::top`, at most [`CANDIDATES`].
    pub top_k: u8,
}

/// Consecutive rows of one request in one mode.
#[derive(Debug, Clone, PartialEq)]
pub enum Segment {
    /// Causal: reads tokens and *writes* their keys and values at positions `kv.len ..`, for which the view already
    /// holds pages.
    Encode {
        /// Pages, covering the segment's own rows too.
        kv: KvView,
        /// The tokens to read, at least one.
        tokens: Vec<u32>,
    },
    /// Bidirectional over the canvas, reading the prefix; writes nothing but its slot.
    Denoise {
        /// The prefix. May include positions that an `Encode` of the *same pass* writes: within a layer all keys and
        /// values are written before any row attends.
        kv: KvView,
        /// Where the soft embedding lives.
        slot: SlotId,
        /// Whether the slot holds something yet.
        conditioning: Conditioning,
        /// The canvas, `Limits::canvas` tokens.
        tokens: Vec<u32>,
        /// One uniform number in `[0, 1)` per row, for the draw.
        uniforms: Vec<f32>,
        /// What to do at the vocabulary.
        head: Head,
    },
}

impl Segment {
    /// Rows this segment adds to the pass.
    pub fn rows(&self) -> usize {
        match self {
            Segment::Encode { tokens, .. } | Segment::Denoise { tokens, .. } => tokens.len(),
        }
    }
}

/// One forward over any mix of requests, lengths and modes. No two encode segments write the same position of a page,
/// no two denoise segments share a slot.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pass {
    /// The segments; outputs come in this order.
    pub segments: Vec<Segment>,
}

/// A token and its logit after bias and temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token id.
    pub token: u32,
    /// `(softcapped logit + bias) / t`; its log-probability is this minus the row's `lse`.
    pub logit: f32,
}

/// What one row of a canvas yields: statistics of `z = (softcapped logits + bias) / t`.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The most likely token, the lowest id on ties.
    pub argmax: u32,
    /// The token drawn.
    pub sampled: u32,
    /// `max z`, the argmax's logit.
    pub max: f32,
    /// `ln Σ exp z`.
    pub lse: f32,
    /// Entropy of `softmax(z)` in nats, `≥ 0`.
    pub entropy: f32,
    /// The `top_k` best candidates, best first, ties by lower id.
    pub top: Vec<Candidate>,
}

/// What one segment yields.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// The keys and values are written.
    Encoded,
    /// One row per canvas position.
    Denoised(Vec<Row>),
}

/// One segment failed; the others of its pass are good.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SegmentError {
    /// The logits of a row are not finite: the weights or the input are damaged.
    #[error("row {row} of the canvas has logits that are not finite")]
    NotFinite {
        /// Row within the segment.
        row: usize,
    },
    /// The segment contradicts [`Limits`] or [`Capacity`]: an error of the scheduler.
    #[error("segment refused: {0}")]
    Refused(String),
}

/// The whole pass failed; no output of it may be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The device or the tensor library reported an error.
    #[error("the device failed: {0}")]
    Device(String),
    /// More was asked than the model can hold.
    #[error("capacity refused: {0}")]
    Capacity(String),
}

/// A text-diffusion model: everything the scheduler knows of it.
pub trait Denoiser: Send {
    /// What the model is.
    fn limits(&self) -> &Limits;

    /// Makes room; called once, before the first pass.
    fn reserve(&mut self, capacity: Capacity) -> Result<(), EngineError>;

    /// Runs one pass and answers each segment in order.
    fn run(&mut self, pass: &Pass) -> Result<Vec<Result<Output, SegmentError>>, EngineError>;
}
