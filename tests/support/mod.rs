//! A scripted model without weights that trusts nobody.
//!
//! What it "computes" depends on everything a real model depends on: every token of the prefix, the canvas, the random
//! numbers, the temperature, the biases and what the slot carried. Every cell of a page remembers its token, its
//! position and a hash of all tokens before it; each segment's view is checked cell by cell. So any wrong sharing,
//! missing page or mixed-up slot is either reported as a violation or leads to another text.
#![allow(dead_code)]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use canvasd::pass::{
    Candidate, Capacity, Conditioning, Denoiser, EngineError, Head, KvView, Limits, Output, PageId, Pass, Row, Segment,
    SegmentError, SlotId,
};

/// Limits of a small model: canvas 8, pages of 4, window 6.
pub fn limits() -> Limits {
    Limits {
        canvas: 8,
        vocabulary: 97,
        context: 256,
        window: 6,
        page_tokens: 4,
        full_page_bytes: 100,
        sliding_page_bytes: 100,
        slot_bytes: 10,
        row_bytes: 1,
    }
}

/// What the model saw.
#[derive(Debug, Default)]
pub struct Log {
    /// What the scheduler did wrong.
    pub violations: Vec<String>,
    /// Rows encoded and canvases denoised, by pass.
    pub passes: Vec<(usize, usize)>,
}

/// What goes wrong in a pass.
pub enum Fault {
    /// Nothing.
    None,
    /// This segment fails.
    Segment(usize),
    /// This segment's last row is not a number.
    NotANumber(usize),
    /// The whole pass fails.
    Pass,
    /// The model panics.
    Panic,
}

/// Says what the canvas that follows a prefix holds in the end.
pub type Voice = Arc<dyn Fn(&[u32]) -> Vec<u32> + Send + Sync>;

type Faults = Box<dyn FnMut(&Pass) -> Fault + Send>;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Cell {
    token: u32,
    position: usize,
    chain: u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    prefix: u64,
    hash: u64,
    step: u64,
    /// Steps until the canvas settles.
    wanted: u64,
    settled: u64,
}

/// The scripted model.
pub struct Scripted {
    limits: Limits,
    capacity: Option<Capacity>,
    full: Vec<Vec<Option<Cell>>>,
    sliding: Vec<Vec<Option<Cell>>>,
    slots: Vec<Option<Slot>>,
    log: Arc<Mutex<Log>>,
    voice: Option<Voice>,
    fault: Option<Faults>,
    steps: std::ops::RangeInclusive<u64>,
    pause: Duration,
}

impl Scripted {
    /// A model whose texts are hashes of everything before them, settling after 1 to 5 steps.
    pub fn new(limits: Limits) -> Self {
        Scripted {
            limits,
            capacity: None,
            full: Vec::new(),
            sliding: Vec::new(),
            slots: Vec::new(),
            log: Arc::default(),
            voice: None,
            fault: None,
            steps: 1..=5,
            pause: Duration::ZERO,
        }
    }

    /// Lets canvases end as `voice` says; what it leaves open is filled with token 0.
    pub fn with_voice(mut self, voice: impl Fn(&[u32]) -> Vec<u32> + Send + Sync + 'static) -> Self {
        self.voice = Some(Arc::new(voice));
        self
    }

    /// Steps after which canvases settle; the sampler's stability threshold comes on top.
    pub fn with_steps(mut self, steps: std::ops::RangeInclusive<u64>) -> Self {
        self.steps = steps;
        self
    }

    /// Asks before each pass what goes wrong in it.
    pub fn with_faults(mut self, fault: impl FnMut(&Pass) -> Fault + Send + 'static) -> Self {
        self.fault = Some(Box::new(fault));
        self
    }

    /// Real time that each pass takes.
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// What the model saw; stays readable while an engine owns the model.
    pub fn log(&self) -> Arc<Mutex<Log>> {
        self.log.clone()
    }

    fn violation(&self, what: String) -> SegmentError {
        self.log.lock().expect("the log").violations.push(what.clone());
        SegmentError::Refused(what)
    }

    fn cell(&self, pool: &[Vec<Option<Cell>>], pages: &[PageId], from: usize, position: usize) -> Option<Cell> {
        let offset = position.checked_sub(from)?;
        let page = pages.get(offset / self.limits.page_tokens)?;
        *pool.get(page.0 as usize)?.get(offset % self.limits.page_tokens)?
    }

    /// Checks all that a row at `view.len` may see; returns the prefix's tokens and hash.
    fn read(&self, view: &KvView) -> Result<(Vec<u32>, u64), String> {
        let seen_from = view.len.saturating_sub(self.limits.window.saturating_sub(1));
        if !view.sliding_from.is_multiple_of(self.limits.page_tokens) || view.sliding_from > seen_from {
            return Err(format!("a view of {} tokens slides from {}", view.len, view.sliding_from));
        }
        let mut tokens = Vec::with_capacity(view.len);
        let mut chain = 0;
        for position in 0..view.len {
            let Some(cell) = self.cell(&self.full, &view.full, 0, position) else {
                return Err(format!("position {position} of {} is nowhere", view.len));
            };
            chain = mix(chain, u64::from(cell.token));
            if cell != (Cell { token: cell.token, position, chain }) {
                return Err(format!("position {position} of {} belongs to another text: {cell:?}", view.len));
            }
            if position >= seen_from
                && self.cell(&self.sliding, &view.sliding, view.sliding_from, position) != Some(cell)
            {
                return Err(format!("the window before {} lacks position {position}", view.len));
            }
            tokens.push(cell.token);
        }
        Ok((tokens, chain))
    }

    fn encode(
        &mut self,
        view: &KvView,
        tokens: &[u32],
        written: &mut HashSet<(bool, u32, usize)>,
    ) -> Result<(), String> {
        let (_, mut chain) = self.read(view)?;
        if tokens.is_empty() {
            return Err("an encode without tokens".into());
        }
        for (i, &token) in tokens.iter().enumerate() {
            let position = view.len + i;
            chain = mix(chain, u64::from(token));
            let cell = Some(Cell { token, position, chain });
            let size = self.limits.page_tokens;
            let pools = [
                (true, &mut self.full, view.full.get(position / size)),
                (false, &mut self.sliding, view.sliding.get((position - view.sliding_from) / size)),
            ];
            for (is_full, pool, page) in pools {
                let Some(page) = page else { return Err(format!("no page for position {position}")) };
                let Some(cells) = pool.get_mut(page.0 as usize) else {
                    return Err(format!("{page:?} is beyond the capacity"));
                };
                if !written.insert((is_full, page.0, position % size)) {
                    return Err(format!("{page:?} is written twice at {position}"));
                }
                cells[position % size] = cell;
                // What lay behind is lost, as far as anybody may rely on it.
                cells[position % size + 1..].fill(None);
            }
        }
        Ok(())
    }

    fn denoise(&mut self, segment: &Segment) -> Result<Vec<Row>, String> {
        let Segment::Denoise { kv, slot, conditioning, tokens, uniforms, head } = segment else {
            return Err("not a denoise segment".into());
        };
        let (prefix_tokens, prefix) = self.read(kv)?;
        if tokens.len() != self.limits.canvas || uniforms.len() != tokens.len() {
            return Err(format!("a canvas of {} tokens and {} uniforms", tokens.len(), uniforms.len()));
        }
        let before = self.slots.get(slot.0 as usize).ok_or(format!("{slot:?} is beyond the capacity"))?;
        let mut state = match (conditioning, before) {
            (Conditioning::Fresh, _) => Slot { prefix, hash: prefix, step: 0, wanted: 0, settled: 0 },
            (Conditioning::Carried, Some(before)) if before.prefix == prefix => *before,
            (Conditioning::Carried, _) => return Err(format!("{slot:?} carries another canvas")),
        };
        state.hash = mix(state.hash, u64::from(head.temperature.to_bits()));
        for (token, uniform) in tokens.iter().zip(uniforms) {
            state.hash = mix(state.hash, u64::from(*token) << 32 | u64::from(uniform.to_bits()));
        }
        for (token, bias) in head.bias.iter() {
            state.hash = mix(state.hash, u64::from(*token) << 32 | u64::from(bias.to_bits()));
        }
        if state.step == 0 {
            let (low, high) = (*self.steps.start(), *self.steps.end());
            state.wanted = low + state.hash % (high - low + 1);
        }
        state.step += 1;
        let settled = state.step >= state.wanted;
        if state.step == state.wanted {
            state.settled = state.hash;
        }
        let text = self.voice.as_ref().filter(|_| settled).map(|voice| voice(&prefix_tokens));
        let rows = (0..tokens.len()).map(|i| self.row(i, &state, text.as_deref(), head)).collect();
        self.slots[slot.0 as usize] = Some(state);
        Ok(rows)
    }

    fn row(&self, i: usize, state: &Slot, text: Option<&[u32]>, head: &Head) -> Row {
        let settled = state.step >= state.wanted;
        let hash = mix(if settled { state.settled } else { state.hash }, i as u64);
        let vocabulary = self.limits.vocabulary as u64;
        let mut argmax = match text {
            Some(text) => text.get(i).copied().unwrap_or(0),
            None => (hash % vocabulary) as u32,
        };
        // A strong negative bias forbids a token, as it does in a real model.
        while head.bias.iter().any(|&(token, bias)| token == argmax && bias <= -50.0) {
            argmax = (argmax + 1) % self.limits.vocabulary as u32;
        }
        let entropy = if settled { 0.0001 } else { (hash >> 32) as u32 as f32 / u32::MAX as f32 };
        let lse = 0.25;
        let top = (0..u32::from(head.top_k).min(self.limits.vocabulary as u32))
            .map(|k| Candidate { token: (argmax + k) % self.limits.vocabulary as u32, logit: -(k as f32) })
            .collect();
        let sampled = if settled { argmax } else { (mix(hash, 1) % vocabulary) as u32 };
        Row { argmax, sampled, max: 0.0, lse, entropy, top }
    }
}

impl Denoiser for Scripted {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn reserve(&mut self, capacity: Capacity) -> Result<(), EngineError> {
        self.full = vec![vec![None; self.limits.page_tokens]; capacity.full_pages];
        self.sliding = vec![vec![None; self.limits.page_tokens]; capacity.sliding_pages];
        self.slots = vec![None; capacity.slots];
        self.capacity = Some(capacity);
        Ok(())
    }

    fn run(&mut self, pass: &Pass) -> Result<Vec<Result<Output, SegmentError>>, EngineError> {
        std::thread::sleep(self.pause);
        let fault = self.fault.as_mut().map_or(Fault::None, |fault| fault(pass));
        match fault {
            Fault::Pass => return Err(EngineError::Device("scripted".into())),
            Fault::Panic => panic!("scripted"),
            _ => {}
        }
        let capacity = self.capacity.ok_or(EngineError::Capacity("nothing reserved".into()))?;
        let rows: usize = pass.segments.iter().map(Segment::rows).sum();
        if rows > capacity.rows {
            self.violation(format!("{rows} rows, {} reserved", capacity.rows));
        }
        let mut outputs: Vec<Option<Result<Output, SegmentError>>> = vec![None; pass.segments.len()];
        let (mut written, mut slots, mut encoded, mut canvases) = (HashSet::new(), HashSet::<SlotId>::new(), 0, 0);
        // Within a layer, keys are written before any row attends: encodes come first wherever they stand.
        for (segment, output) in pass.segments.iter().zip(&mut outputs) {
            if let Segment::Encode { kv, tokens } = segment {
                encoded += tokens.len();
                let result = self.encode(kv, tokens, &mut written);
                *output = Some(result.map(|()| Output::Encoded).map_err(|what| self.violation(what)));
            }
        }
        for (segment, output) in pass.segments.iter().zip(&mut outputs) {
            if let Segment::Denoise { slot, .. } = segment {
                canvases += 1;
                let result = if slots.insert(*slot) { self.denoise(segment) } else { Err(format!("{slot:?} twice")) };
                *output = Some(result.map(Output::Denoised).map_err(|what| self.violation(what)));
            }
        }
        self.log.lock().expect("the log").passes.push((encoded, canvases));
        let mut outputs: Vec<_> = outputs.into_iter().flatten().collect();
        match fault {
            Fault::Segment(index) => outputs[index] = Err(SegmentError::NotFinite { row: 0 }),
            Fault::NotANumber(index) => {
                if let Ok(Output::Denoised(rows)) = &mut outputs[index] {
                    rows[0].entropy = f32::NAN;
                }
            }
            _ => {}
        }
        Ok(outputs)
    }
}

/// One step of a hash that depends on the order of what goes in.
pub fn mix(hash: u64, value: u64) -> u64 {
    let mut x = hash.rotate_left(5) ^ value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 32)
}
