//! A model that says what it is told: after a prompt that holds a cue, the cue's answer.
//!
//! It keeps the tokens that encode segments write, page by page, as a real model keeps keys and values; so a wrong page
//! or position shows as a wrong answer. Logits are 10 for the answer's token, 8 for its neighbour and 0 for the others,
//! plus the biases; a canvas settles from left to right over a few steps.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use canvasd::pass::{
    Candidate, Capacity, Conditioning, Denoiser, Draw, EngineError, Head, KvView, Limits, Output, Pass, Row, Segment,
    SegmentError,
};

pub const CANVAS: usize = 16;
const PAGE: usize = 16;
/// Steps until a canvas is settled.
const STEPS: usize = 4;

/// What the parrot does on a cue.
#[derive(Clone)]
pub enum Act {
    /// Says these tokens, then ends.
    Say(Vec<u32>),
    /// Says these tokens over and over, a pass taking that long.
    Babble(Vec<u32>, Duration),
    /// Says one of these, chosen by its first random number, then ends.
    Dice(Vec<Vec<u32>>),
    /// Says these tokens until so many are committed, then fails.
    Fail(Vec<u32>, usize),
}

pub struct Script {
    /// Cues in tokens, and what to do.
    pub cues: Vec<(Vec<u32>, Act)>,
    /// What ends the prompt of a conversation.
    pub model_turn: Vec<u32>,
    pub end: u32,
}

pub struct Parrot {
    limits: Limits,
    script: Arc<Script>,
    pages: HashMap<u32, [u32; PAGE]>,
    /// Steps done and the first random number, by slot.
    slots: HashMap<u32, (usize, f32)>,
}

impl Parrot {
    pub fn new(vocabulary: usize, script: Arc<Script>) -> Parrot {
        let limits = Limits {
            canvas: CANVAS,
            vocabulary,
            context: 640,
            window: 64,
            page_tokens: PAGE,
            full_page_bytes: 1024,
            sliding_page_bytes: 1024,
            slot_bytes: 64,
            row_bytes: 64,
        };
        Parrot { limits, script, pages: HashMap::new(), slots: HashMap::new() }
    }

    fn read(&self, kv: &KvView) -> Vec<u32> {
        (0..kv.len).map(|at| self.pages[&kv.full[at / PAGE].0][at % PAGE]).collect()
    }

    fn write(&mut self, kv: &KvView, tokens: &[u32]) {
        for (offset, token) in tokens.iter().enumerate() {
            let at = kv.len + offset;
            self.pages.entry(kv.full[at / PAGE].0).or_insert([0; PAGE])[at % PAGE] = *token;
        }
    }

    /// What to do after this prefix, and how many tokens of it are answer.
    fn act(&self, prefix: &[u32]) -> (Act, usize) {
        let last = |cue: &[u32]| prefix.windows(cue.len()).rposition(|window| window == cue).map(|at| at + cue.len());
        let prompt = last(&self.script.model_turn);
        let cued = self.script.cues.iter().filter_map(|(cue, act)| Some((last(cue)?, act)));
        let cued = cued.filter(|(end, _)| prompt.is_none_or(|prompt| *end <= prompt)).max_by_key(|(end, _)| *end);
        match cued {
            None => (Act::Say(vec![self.script.end]), prefix.len() - prompt.unwrap_or(prefix.len())),
            Some((end, act)) => (act.clone(), prefix.len() - prompt.unwrap_or(end)),
        }
    }

    fn denoise(
        &mut self,
        kv: &KvView,
        slot: u32,
        fresh: bool,
        uniforms: &[f32],
        head: &Head,
    ) -> Result<Output, SegmentError> {
        if fresh {
            self.slots.insert(slot, (0, uniforms[0]));
        }
        let (step, dice) = self
            .slots
            .get_mut(&slot)
            .map(|state| {
                state.0 += 1;
                *state
            })
            .expect("a slot is fresh first");
        let (act, said) = self.act(&self.read(kv));
        let end = self.script.end;
        let target = |position: usize| match &act {
            Act::Say(tokens) => tokens.get(said + position).copied().unwrap_or(end),
            Act::Babble(tokens, _) => tokens[(said + position) % tokens.len()],
            Act::Dice(all) => {
                let chosen = &all[(dice * all.len() as f32) as usize];
                chosen.get(said + position).copied().unwrap_or(end)
            }
            Act::Fail(tokens, _) => tokens[(said + position) % tokens.len()],
        };
        match &act {
            Act::Babble(_, pause) => std::thread::sleep(*pause),
            Act::Fail(_, after) if said >= *after => return Err(SegmentError::NotFinite { row: 0 }),
            _ => {}
        }
        let settled = CANVAS * step / STEPS;
        let vocabulary = self.limits.vocabulary as u32;
        let row = |position: usize| {
            if position >= settled {
                let noise = (position as u32 * 7 + step as u32 * 13 + 100) % vocabulary;
                return row(noise, vocabulary, 2.0, head, uniforms[position]);
            }
            row(target(position), vocabulary, 0.0, head, uniforms[position])
        };
        Ok(Output::Denoised((0..CANVAS).map(row).collect()))
    }
}

/// A row that prefers `target`.
fn row(target: u32, vocabulary: u32, entropy: f32, head: &Head, uniform: f32) -> Row {
    let mut logits: HashMap<u32, f32> = [(target, 10.0), ((target + 1) % vocabulary, 8.0)].into();
    for token in 200..264 {
        logits.entry(token).or_insert(0.0);
    }
    for (token, bias) in head.bias.iter() {
        *logits.entry(*token).or_insert(0.0) += bias;
    }
    let mut top: Vec<Candidate> =
        logits.into_iter().map(|(token, logit)| Candidate { token, logit: logit / head.temperature }).collect();
    top.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
    let max = top[0].logit;
    let lse = max + top.iter().map(|candidate| (candidate.logit - max).exp()).sum::<f32>().ln();
    let argmax = top[0].token;
    let sampled = match head.draw {
        Draw::Argmax => argmax,
        Draw::Scaled { .. } => top[(uniform * 2.0) as usize].token,
    };
    top.truncate(head.top_k.into());
    Row { argmax, sampled, max, lse, entropy, top }
}

impl Denoiser for Parrot {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn reserve(&mut self, _: Capacity) -> Result<(), EngineError> {
        Ok(())
    }

    fn run(&mut self, pass: &Pass) -> Result<Vec<Result<Output, SegmentError>>, EngineError> {
        for segment in &pass.segments {
            if let Segment::Encode { kv, tokens } = segment {
                self.write(kv, tokens);
            }
        }
        let answer = |segment: &Segment| match segment {
            Segment::Encode { .. } => Ok(Output::Encoded),
            Segment::Denoise { kv, slot, conditioning, uniforms, head, .. } => {
                self.denoise(kv, slot.0, *conditioning == Conditioning::Fresh, uniforms, head)
            }
        };
        Ok(pass.segments.iter().map(answer).collect())
    }
}
