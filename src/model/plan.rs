//! One pass, checked and put in order: which rows run, where they stand, which pages they read and write.
//!
//! Everything the scheduler says is compared with [`Limits`] and [`Capacity`] here, once; behind this module indices
//! are good. Knows no tensor.

use std::collections::HashSet;
use std::ops::Range;

use super::config::LayerKind;
use crate::pass::{
    CANDIDATES, Capacity, Conditioning, Draw, EngineError, Head, KvView, Limits, PageId, Pass, Segment, SegmentError,
};

/// A pass's rows: all encode rows first, then all denoise rows, each in segment order.
pub(super) struct Plan<'a> {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Position of each row.
    pub positions: Vec<u32>,
    /// Encode rows; the denoise rows follow.
    pub encode_rows: usize,
    /// The encode segments, in row order.
    pub encodes: Vec<Span<'a>>,
    /// The denoise segments, in row order.
    pub denoises: Vec<(Span<'a>, Canvas<'a>)>,
    /// What is wrong with each segment of the pass; those do not run.
    pub refused: Vec<Option<SegmentError>>,
}

/// Consecutive rows of one segment.
pub(super) struct Span<'a> {
    /// Index of the segment within the pass.
    pub segment: usize,
    /// Its rows within the plan.
    pub rows: Range<usize>,
    /// Its prefix (and, for an encode, its own pages).
    pub kv: &'a KvView,
    /// Numbers of the full layers' pages.
    pub full: Vec<u32>,
    /// Numbers of the sliding layers' pages.
    pub sliding: Vec<u32>,
}

/// What a denoise segment has beside its rows.
pub(super) struct Canvas<'a> {
    pub slot: usize,
    pub conditioning: Conditioning,
    pub uniforms: &'a [f32],
    pub head: &'a Head,
}

/// What the plan is checked against.
pub(super) struct Bounds<'a> {
    pub limits: &'a Limits,
    pub capacity: &'a Capacity,
    /// Which slots hold a soft embedding.
    pub filled: &'a [bool],
    /// Whether any layer slides.
    pub slides: bool,
}

impl<'a> Plan<'a> {
    /// # Errors
    /// [`EngineError::Capacity`] when the pass has more rows than were reserved.
    pub fn of(pass: &'a Pass, bounds: &Bounds<'_>) -> Result<Plan<'a>, EngineError> {
        let rows = pass.segments.iter().fold(0usize, |n, s| n.saturating_add(s.rows()));
        if rows > bounds.capacity.rows {
            return Err(EngineError::Capacity(format!("{rows} rows in a pass, {} reserved", bounds.capacity.rows)));
        }
        let mut refused = vec![None; pass.segments.len()];
        let mut slots = HashSet::new();
        let mut written = HashSet::new();
        for (segment, refusal) in pass.segments.iter().zip(&mut refused) {
            let checked = match segment {
                Segment::Encode { kv, tokens } => bounds.encode(kv, tokens, &mut written),
                Segment::Denoise { kv, slot, conditioning, tokens, uniforms, head } => {
                    bounds.denoise(kv, slot.0, *conditioning, tokens, uniforms, head, &mut slots)
                }
            };
            *refusal = checked.err().map(SegmentError::Refused);
        }
        Ok(Plan::ordered(pass, refused))
    }

    fn ordered(pass: &'a Pass, refused: Vec<Option<SegmentError>>) -> Plan<'a> {
        let mut plan = Plan {
            tokens: Vec::new(),
            positions: Vec::new(),
            encode_rows: 0,
            encodes: Vec::new(),
            denoises: Vec::new(),
            refused,
        };
        let good = |plan: &Plan<'a>, i: usize| plan.refused.get(i).is_some_and(Option::is_none);
        for (i, segment) in pass.segments.iter().enumerate() {
            if let Segment::Encode { kv, tokens } = segment
                && good(&plan, i)
            {
                let span = plan.span(i, kv, tokens);
                plan.encodes.push(span);
            }
        }
        plan.encode_rows = plan.tokens.len();
        for (i, segment) in pass.segments.iter().enumerate() {
            if let Segment::Denoise { kv, slot, conditioning, tokens, uniforms, head } = segment
                && good(&plan, i)
            {
                let span = plan.span(i, kv, tokens);
                let canvas = Canvas { slot: slot.0 as usize, conditioning: *conditioning, uniforms, head };
                plan.denoises.push((span, canvas));
            }
        }
        plan
    }

    fn span(&mut self, segment: usize, kv: &'a KvView, tokens: &[u32]) -> Span<'a> {
        let first = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((kv.len..kv.len + tokens.len()).map(|p| p as u32));
        let numbers = |pages: &[PageId]| pages.iter().map(|page| page.0).collect();
        Span { segment, rows: first..self.tokens.len(), kv, full: numbers(&kv.full), sliding: numbers(&kv.sliding) }
    }
}

impl Span<'_> {
    /// Page numbers of a layer kind, and the position of the first page's first token.
    pub fn pages(&self, kind: LayerKind) -> (&[u32], usize) {
        match kind {
            LayerKind::Full => (&self.full, 0),
            LayerKind::Sliding => (&self.sliding, self.kv.sliding_from),
        }
    }
}

impl Bounds<'_> {
    fn encode(&self, kv: &KvView, tokens: &[u32], written: &mut HashSet<(LayerKind, usize)>) -> Result<(), String> {
        if tokens.is_empty() {
            return Err("an encode segment without tokens".into());
        }
        self.tokens(tokens)?;
        let end = self.view(kv, tokens.len())?;
        self.pages(kv, end)?;
        let mut rows = Vec::with_capacity(2 * tokens.len());
        for position in kv.len..end {
            let row = kv.row(LayerKind::Full, position, self.limits.page_tokens);
            rows.push((LayerKind::Full, row.ok_or("the view lacks a page")?));
            if self.slides {
                let row = kv.row(LayerKind::Sliding, position, self.limits.page_tokens);
                rows.push((LayerKind::Sliding, row.ok_or("the view lacks a sliding page")?));
            }
        }
        if rows.iter().any(|row| written.contains(row)) {
            return Err("another segment of the pass writes the same positions of a page".into());
        }
        let before = written.len();
        let count = rows.len();
        written.extend(rows);
        if written.len() != before + count {
            return Err("the view names one page twice".into());
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // The fields of one segment.
    fn denoise(
        &self,
        kv: &KvView,
        slot: u32,
        conditioning: Conditioning,
        tokens: &[u32],
        uniforms: &[f32],
        head: &Head,
        slots: &mut HashSet<u32>,
    ) -> Result<(), String> {
        if tokens.len() != self.limits.canvas || uniforms.len() != tokens.len() {
            return Err(format!(
                "a canvas of {} tokens with {} uniform numbers; this model's has {}",
                tokens.len(),
                uniforms.len(),
                self.limits.canvas
            ));
        }
        self.tokens(tokens)?;
        self.view(kv, tokens.len())?;
        self.pages(kv, kv.len)?;
        head_is_valid(head, self.limits.vocabulary)?;
        if let Some(u) = uniforms.iter().find(|u| !(0.0..1.0).contains(*u)) {
            return Err(format!("the uniform number {u} is outside [0, 1)"));
        }
        if slot as usize >= self.capacity.slots {
            return Err(format!("slot {slot} of {}", self.capacity.slots));
        }
        if conditioning == Conditioning::Carried && self.filled.get(slot as usize) != Some(&true) {
            return Err(format!("slot {slot} holds no soft embedding to carry on from"));
        }
        if !slots.insert(slot) {
            return Err(format!("slot {slot} is used by two segments of the pass"));
        }
        Ok(())
    }

    fn tokens(&self, tokens: &[u32]) -> Result<(), String> {
        match tokens.iter().find(|&&t| t as usize >= self.limits.vocabulary) {
            Some(t) => Err(format!("token {t} is outside the vocabulary of {}", self.limits.vocabulary)),
            None => Ok(()),
        }
    }

    /// Where the segment's rows end.
    fn view(&self, kv: &KvView, rows: usize) -> Result<usize, String> {
        match kv.len.checked_add(rows) {
            Some(end) if end <= self.limits.context => Ok(end),
            _ => Err(format!("position {} and {rows} rows exceed the context of {}", kv.len, self.limits.context)),
        }
    }

    /// Pages for the positions below `end` that anybody may read or write.
    fn pages(&self, kv: &KvView, end: usize) -> Result<(), String> {
        let page = self.limits.page_tokens;
        covered("full", &kv.full, 0, end, page, self.capacity.full_pages)?;
        if !self.slides {
            return Ok(());
        }
        let oldest = kv.len.saturating_sub(self.limits.window.saturating_sub(1));
        if !kv.sliding_from.is_multiple_of(page) || kv.sliding_from > oldest {
            return Err(format!(
                "sliding pages begin at {}, which is no multiple of {page} at or below {oldest}",
                kv.sliding_from
            ));
        }
        covered("sliding", &kv.sliding, kv.sliding_from, end, page, self.capacity.sliding_pages)
    }
}

fn covered(
    kind: &str,
    pages: &[PageId],
    from: usize,
    end: usize,
    page_tokens: usize,
    capacity: usize,
) -> Result<(), String> {
    let needed = end.saturating_sub(from).div_ceil(page_tokens);
    let Some(used) = pages.get(..needed) else {
        return Err(format!("{} {kind} pages, {needed} needed", pages.len()));
    };
    match used.iter().find(|p| p.0 as usize >= capacity) {
        Some(p) => Err(format!("{kind} page {} of {capacity}", p.0)),
        None => Ok(()),
    }
}

fn head_is_valid(head: &Head, vocabulary: usize) -> Result<(), String> {
    let positive = |x: f32| x.is_finite() && x > 0.0;
    if !positive(head.temperature) {
        return Err(format!("temperature {}", head.temperature));
    }
    if let Draw::Scaled { temperature, top_p } = head.draw
        && !(positive(temperature) && top_p > 0.0 && top_p <= 1.0)
    {
        return Err(format!("a draw with temperature {temperature} and top_p {top_p}"));
    }
    if usize::from(head.top_k) > CANDIDATES {
        return Err(format!("top_k {}, at most {CANDIDATES} are recorded", head.top_k));
    }
    let ascend = head.bias.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let inside = head.bias.last().is_none_or(|last| (last.0 as usize) < vocabulary);
    if !(ascend && inside && head.bias.iter().all(|b| b.1.is_finite())) {
        return Err("biases must be finite, their tokens ascending, unique and inside the vocabulary".into());
    }
    Ok(())
}

impl KvView {
    /// Row of a position within the pool of its layer kind.
    pub(super) fn row(&self, kind: LayerKind, position: usize, page_tokens: usize) -> Option<usize> {
        let (pages, offset) = match kind {
            LayerKind::Full => (&self.full, position),
            LayerKind::Sliding => (&self.sliding, position.checked_sub(self.sliding_from)?),
        };
        pages.get(offset / page_tokens).map(|page| page.0 as usize * page_tokens + offset % page_tokens)
    }
}

/// Prefix positions that the rows of a segment may see on a layer kind.
///
/// An encode row at position p sees `p − W < t ≤ p` on sliding layers and `t ≤ p` on full ones; every row of a canvas
/// sees the same last W−1 positions of the prefix, or all of it (the model's reference, sections 3.4 and 3.5).
pub(super) fn visible(kind: LayerKind, window: usize, kv: &KvView, mode: Mode) -> Range<usize> {
    let reach = window.saturating_sub(1);
    match (kind, mode) {
        (LayerKind::Full, Mode::Encode { position }) => 0..position + 1,
        (LayerKind::Full, Mode::Denoise) => 0..kv.len,
        (LayerKind::Sliding, Mode::Encode { position }) => position.saturating_sub(reach)..position + 1,
        (LayerKind::Sliding, Mode::Denoise) => kv.len.saturating_sub(reach)..kv.len,
    }
}

/// A row's mode, as far as attention asks.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    /// Causal, at this position.
    Encode { position: usize },
    /// Anywhere in a canvas.
    Denoise,
}
