//! The vocabulary head as one streaming sweep over the tied table: row statistics, the draw, the best candidates and
//! the next soft embedding, with never more than one tile of logits.
//!
//! Rows are independent and tiles fold in the order of the vocabulary, so that a row's results do not depend on its
//! company or on the threads.

mod draw;
mod soft;
mod state;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::{
    soft::Soft,
    state::{Cap, Capped, RowState, Spread, Weigh},
};
use super::{
    Cpu,
    bytes::Vnni,
    layout::{PANEL, row_block},
    memory::{Scratch, Shared},
    operand::{Operand, PackedRows},
    pack::{Columns, PackedMatrix},
    pairs::Pairs,
    path::Checked,
};
use crate::KernelError;

/// Rows of one parallel call at most: more would push a tile of logits out of the second cache level.
const GROUP: usize = 256;
/// Panels of a tile at most: sums of bytes over more might leave 32 bits.
const MOST_PANELS: usize = 1024;
/// Logits of a row are padded to whole numbers of these.
const STRIDE: usize = 64;

/// Most candidates that are kept per row, and among which `top_p` cuts. The same number is `pass::CANDIDATES`, which this crate
/// cannot see; `model` refuses to be built where they differ.
pub const CANDIDATES: usize = 64;

/// How a row's token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draw {
    /// The most likely token.
    Argmax,
    /// From `softmax(z / temperature)`, by the row's uniform number in the order of the vocabulary; with `top_p < 1`
    /// from the smallest set of best candidates whose probabilities reach it, as far as they are of the 64 best.
    Scaled {
        /// `> 0`; 1 draws from the step's own distribution.
        temperature: f32,
        /// In `(0, 1]`.
        top_p: f32,
    },
}

/// Consecutive rows (one canvas) that share how they are read.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// How many rows.
    pub rows: usize,
    /// The step's temperature t, `> 0`.
    pub temperature: f32,
    /// How tokens are drawn.
    pub draw: Draw,
    /// One number in `[0, 1)` per row; may be empty where `draw` is `Argmax`.
    pub uniforms: &'a [f32],
    /// Added after the softcap, before the temperature; ids ascend. Minus infinity forbids a token.
    pub bias: &'a [(u32, f32)],
    /// Candidates to report per row, at most 64.
    pub top_k: usize,
}

/// Sees a row's part of a tile: the row, the first token, and the logits after the softcap, before bias and temperature.
/// Called from any thread, in the order of the vocabulary for each row.
pub type Watch<'a> = dyn Fn(usize, usize, &[f32]) + Sync + 'a;

/// What to sweep with.
#[derive(Clone, Copy)]
pub struct Sweep<'a> {
    /// Logits become `cap · tanh(logit / cap)`.
    pub softcap: Option<f32>,
    /// Vocabulary entries per tile, rounded up to a multiple of 32, at most 32,768. 256 is a good size; results agree for all up to
    /// rounding.
    pub tile: usize,
    /// The soft embedding leaves out tokens whose probability is below `e^−negligible` of the best one seen so far in
    /// that row. 28 loses nothing that f32 could show, even of 262,144 such tokens.
    pub negligible: f32,
    /// All rows, in order.
    pub heads: &'a [Head<'a>],
    /// For comparison with a reference; `None` otherwise.
    pub watch: Option<&'a Watch<'a>>,
    /// Counts the time of the sweep's parts; `None` spares the clock.
    pub times: Option<&'a SweepTimes>,
}

/// Time that the parts of sweeps took, all threads together.
#[derive(Debug, Default)]
pub struct SweepTimes {
    logits: AtomicU64,
    statistics: AtomicU64,
    soft: AtomicU64,
}

impl SweepTimes {
    /// Products of rows with the table.
    pub fn logits(&self) -> Duration {
        Duration::from_nanos(self.logits.load(Ordering::Relaxed))
    }

    /// Softcap, exponentials, sums and candidates.
    pub fn statistics(&self) -> Duration {
        Duration::from_nanos(self.statistics.load(Ordering::Relaxed))
    }

    /// Probabilities times the table.
    pub fn soft(&self) -> Duration {
        Duration::from_nanos(self.soft.load(Ordering::Relaxed))
    }
}

/// Moves on from part to part of a sweep, where somebody counts.
struct Laps<'a> {
    times: Option<(&'a SweepTimes, Instant)>,
}

impl<'a> Laps<'a> {
    fn begin(times: Option<&'a SweepTimes>) -> Laps<'a> {
        Laps { times: times.map(|times| (times, Instant::now())) }
    }

    /// Counts the time since the last lap for a part.
    fn lap(&mut self, part: impl Fn(&SweepTimes) -> &AtomicU64) {
        if let Some((times, since)) = &mut self.times {
            let now = Instant::now();
            let nanoseconds = u64::try_from((now - *since).as_nanos()).unwrap_or(u64::MAX);
            part(times).fetch_add(nanoseconds, Ordering::Relaxed);
            *since = now;
        }
    }
}

/// A token and its z.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token id.
    pub token: u32,
    /// `(softcapped logit + bias) / t`.
    pub logit: f32,
}

/// What one row yields: statistics of `z = (softcapped logits + bias) / t`.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// The most likely token, the lowest id on ties.
    pub argmax: u32,
    /// The token drawn.
    pub sampled: u32,
    /// The argmax's z.
    pub max: f32,
    /// `ln Σ exp z`.
    pub lse: f32,
    /// Entropy of `softmax(z)` in nats, `≥ 0`.
    pub entropy: f32,
    /// The best candidates, best first, ties by lower id.
    pub top: Vec<Candidate>,
    /// False where a logit was infinite or not a number; nothing else of the row means anything then.
    pub finite: bool,
}

/// Everything that the rows of one parallel call share.
struct Job<'a> {
    path: Checked,
    pairs: Option<Pairs>,
    bytes: Option<Vnni>,
    operand: Operand,
    hidden: &'a [f32],
    table: &'a PackedMatrix,
    sweep: &'a Sweep<'a>,
    hints: &'a [u32],
    /// Panels per tile.
    panels: usize,
}

impl Cpu {
    /// Sweeps `hidden[rows, h]` over `table[vocabulary, h]`. Where `soft` (`[rows, h]`) is given it receives
    /// `softmax(z) · table`, the table unscaled.
    pub fn sweep(
        &self,
        hidden: &[f32],
        table: &PackedMatrix,
        sweep: &Sweep<'_>,
        soft: Option<&mut [f32]>,
    ) -> Result<Vec<Statistics>, KernelError> {
        self.sweep_from(hidden, table, sweep, &[], soft)
    }

    /// The same with a guess per row at its most likely token, such as the canvas's own: whatever is negligible beside
    /// the guess is left out of the soft embedding from the first tile on, instead of from the best one's tile. A good
    /// guess on peaked rows saves most of the soft embedding's work; a bad one costs nothing. `hints` is empty or has
    /// one token per row.
    pub fn sweep_from(
        &self,
        hidden: &[f32],
        table: &PackedMatrix,
        sweep: &Sweep<'_>,
        hints: &[u32],
        soft: Option<&mut [f32]>,
    ) -> Result<Vec<Statistics>, KernelError> {
        let width = table.inputs();
        let plain = usize::from(table.columns() == Columns::Plain);
        KernelError::expect("plain matrices as vocabulary table", 1, plain)?;
        KernelError::below("vocabulary entries", 0, table.outputs())?;
        let rows = super::rows::whole_rows("rows of the vocabulary head", hidden.len(), width)?;
        KernelError::expect("rows of the heads", sweep.heads.iter().map(|head| head.rows).sum(), rows)?;
        for head in sweep.heads {
            head.check(table.outputs())?;
        }
        if !hints.is_empty() {
            KernelError::expect("guesses", rows, hints.len())?;
        }
        for &hint in hints {
            KernelError::below("guessed token", hint as usize, table.outputs())?;
        }
        if let Some(soft) = &soft {
            KernelError::expect("soft embeddings", hidden.len(), soft.len())?;
        }
        if rows == 0 {
            return Ok(Vec::new());
        }
        let panels = sweep.tile.div_ceil(PANEL).clamp(1, table.panels().min(MOST_PANELS));
        let job = Job {
            path: self.checked(),
            pairs: self.engines.pairs,
            bytes: self.engines.bytes,
            operand: self.operand(table),
            hidden,
            table,
            sweep,
            hints,
            panels,
        };
        let soft = soft.map(Shared::new);
        // As many groups for each thread: three for two threads would leave one of them waiting.
        let groups = rows.div_ceil(GROUP).next_multiple_of(self.threads());
        let group = rows.div_ceil(groups).max(1);
        let mut results: Vec<Vec<Statistics>> = vec![Vec::new(); rows.div_ceil(group)];
        let to = Shared::new(&mut results);
        self.pool().run(rows.div_ceil(group), |index| {
            let rows = row_block(rows, group, index);
            // SAFETY: each call has rows of its own.
            let soft = soft.map(|soft| unsafe { soft.part(rows.start * width, rows.len() * width) });
            let statistics = job.run(rows, soft);
            // SAFETY: each call has an entry of its own.
            unsafe { *to.get().add(index) = statistics };
        })?;
        Ok(results.into_iter().flatten().collect())
    }
}

impl Head<'_> {
    fn check(&self, vocabulary: usize) -> Result<(), KernelError> {
        if self.draw != Draw::Argmax {
            KernelError::expect("uniform numbers", self.rows, self.uniforms.len())?;
        }
        KernelError::below("candidates per row", self.top_k, CANDIDATES + 1)?;
        for (token, _) in self.bias {
            KernelError::below("token of a bias", *token as usize, vocabulary)?;
        }
        Ok(())
    }
}

impl Job<'_> {
    fn run(&self, rows: Range<usize>, soft: Option<&mut [f32]>) -> Vec<Statistics> {
        let (width, vocabulary) = (self.table.inputs(), self.table.outputs());
        let operand = self.operand;
        let mut packed = Scratch::take(rows.len() * operand.width(width));
        operand.pack(rows.len(), width, |i| &self.hidden[(rows.start + i) * width..][..width], &mut packed);
        let packed = PackedRows { operand, data: &packed, rows: rows.len(), k: width };
        let mut states = self.states(rows.clone());
        for (state, row) in states.iter_mut().zip(rows.clone()) {
            if let Some(&hint) = self.hints.get(row) {
                state.refer(self.guess(hint, &self.hidden[row * width..][..width], state.head));
            }
        }
        let mut accumulator =
            soft.as_ref().map(|_| Soft::new(self.path, self.pairs, self.bytes, self.table, rows.len()));
        let stride = (self.panels * PANEL).next_multiple_of(STRIDE);
        let mut logits = Scratch::take(rows.len() * stride);
        let all = self.table.panels();
        let mut laps = Laps::begin(self.sweep.times);
        for first in (0..all).step_by(self.panels) {
            let panels = first..all.min(first + self.panels);
            let tile = first * PANEL..vocabulary.min(panels.end * PANEL);
            // SAFETY: `logits` belongs to this call and holds whole panels.
            unsafe { packed.times(self.table, panels.clone(), logits.as_mut_ptr(), stride) };
            laps.lap(|times| &times.logits);
            for (row, state) in states.iter_mut().enumerate() {
                let z = &mut logits[row * stride..][..panels.len() * PANEL];
                let head = &self.sweep.heads[state.head];
                let watch = self.sweep.watch.map(|watch| (watch, rows.start + row));
                let capped = self.finish_logits(z, &tile, head, watch);
                state.finite &= capped.finite;
                let factor = state.meet(z, tile.start as u32, capped.largest);
                let spread: Spread = self.path.run(Weigh {
                    z,
                    max: state.reference,
                    cut: self.sweep.negligible,
                    draw: state.draw_factor,
                });
                state.add(spread);
                if let (Some(accumulator), true) = (&mut accumulator, factor != 1.0) {
                    accumulator.scale(row, factor);
                }
            }
            laps.lap(|times| &times.statistics);
            if let Some(accumulator) = &mut accumulator {
                accumulator.add(panels, &mut logits, stride, |row| states[row].sum);
                laps.lap(|times| &times.soft);
            }
        }
        if let (Some(accumulator), Some(soft)) = (accumulator, soft) {
            for (row, (state, soft)) in states.iter().zip(soft.chunks_exact_mut(width)).enumerate() {
                accumulator.finish(row, state.sum as f32, soft);
            }
        }
        let results = states.into_iter().zip(rows);
        results.map(|(state, row)| self.conclude(state, &self.hidden[row * width..][..width])).collect()
    }

    /// One state per row.
    fn states(&self, rows: Range<usize>) -> Vec<RowState> {
        let mut states = Vec::with_capacity(rows.len());
        let mut start = 0;
        for (index, head) in self.sweep.heads.iter().enumerate() {
            let own = rows.start.max(start)..rows.end.min(start + head.rows);
            states.extend(own.map(|row| RowState::new(index, head, row - start)));
            start += head.rows;
        }
        states
    }

    /// z of the entries of some panels for one row, to the same bits as in the sweep.
    fn logits(&self, panels: Range<usize>, hidden: &[f32], head: usize) -> Scratch {
        let entries = panels.start * PANEL..self.table.outputs().min(panels.end * PANEL);
        let k = hidden.len();
        let mut packed = Scratch::take(self.operand.width(k));
        self.operand.pack(1, k, |_| hidden, &mut packed);
        let row = PackedRows { operand: self.operand, data: &packed, rows: 1, k };
        let mut z = Scratch::take(panels.len() * PANEL);
        // SAFETY: `z` belongs to this call and holds whole panels.
        unsafe { row.times(self.table, panels.clone(), z.as_mut_ptr(), panels.len() * PANEL) };
        self.finish_logits(&mut z, &entries, &self.sweep.heads[head], None);
        z
    }

    /// z of one token for one row.
    fn guess(&self, token: u32, hidden: &[f32], head: usize) -> f32 {
        let panel = token as usize / PANEL;
        self.logits(panel..panel + 1, hidden, head)[token as usize % PANEL]
    }

    /// Turns products into z: softcap, bias, temperature; padding becomes impossible.
    fn finish_logits(
        &self,
        z: &mut [f32],
        tile: &Range<usize>,
        head: &Head<'_>,
        watch: Option<(&Watch<'_>, usize)>,
    ) -> Capped {
        let (own, padding) = z.split_at_mut(tile.len());
        padding.fill(-1e30);
        let (cap, temperature) = (self.sweep.softcap, Some(head.temperature));
        let after = |at: usize| head.bias.partition_point(|(token, _)| (*token as usize) < at);
        let bias = &head.bias[after(tile.start)..after(tile.end)];
        if watch.is_none() && bias.is_empty() {
            return self.path.run(Cap { z: own, cap, temperature });
        }
        // The same to the last bit, with a stop between.
        let Capped { finite, .. } = self.path.run(Cap { z: own, cap, temperature: None });
        if let Some((watch, row)) = watch {
            watch(row, tile.start, own);
        }
        for (token, bias) in bias {
            // Finite, so that differences and products with it are.
            own[*token as usize - tile.start] += bias.max(-1e30);
        }
        let capped = self.path.run(Cap { z: own, cap: None, temperature });
        Capped { finite: finite && capped.finite, ..capped }
    }
}
