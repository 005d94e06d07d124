//! `canvasd bench --intrude`: what a long prompt costs those who are running when it arrives.
//!
//! Eight requests denoise without end; a prompt arrives; how long the eight wait from step to step is compared with
//! before, for one or more budgets of prompt rows per pass. The passes are timed where they happen, around the model.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::PROMPTS;
use crate::cli::{CliError, block_on, wire};
use crate::config::Config;
use crate::diffusion::Sampler;
use crate::pass::{Capacity, Denoiser, EngineError, Limits, Output, Pass, Segment, SegmentError, SlotId};
use crate::prompt::{Chat, Message, Role, Text};
use crate::scheduler::{Choice, CommitGate, Engine, Event, Handle, Job, Settings, Verdict};

/// Requests that run when the prompt arrives.
const RUNNING: usize = 8;

/// Passes before each long prompt: what the eight are used to.
const CALM: usize = 40;

/// One pass that had steps in it.
#[derive(Debug, Clone)]
struct Stamp {
    end: Instant,
    slots: Vec<SlotId>,
}

/// A model that notes when it was used.
struct Timed<D> {
    inner: D,
    stamps: Stamps,
}

#[derive(Debug, Clone, Default)]
struct Stamps(Arc<Mutex<Vec<Stamp>>>);

impl Stamps {
    /// Pushing cannot leave a list half done, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Vec<Stamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Denoiser> Denoiser for Timed<D> {
    fn limits(&self) -> &Limits {
        self.inner.limits()
    }

    fn reserve(&mut self, capacity: Capacity) -> Result<(), EngineError> {
        self.inner.reserve(capacity)
    }

    fn run(&mut self, pass: &Pass) -> Result<Vec<Result<Output, SegmentError>>, EngineError> {
        let answer = self.inner.run(pass);
        let slots = pass.segments.iter().filter_map(|segment| match segment {
            Segment::Denoise { slot, .. } => Some(*slot),
            Segment::Encode { .. } => None,
        });
        self.stamps.lock().push(Stamp { end: Instant::now(), slots: slots.collect() });
        answer
    }
}

/// Never ends a text.
struct Endless;

impl CommitGate for Endless {
    fn commit(&mut self, _: &[u32]) -> Verdict {
        Verdict::Continue
    }
}

/// What one budget gave.
#[derive(Debug)]
struct Measured {
    encode_rows: usize,
    /// Waits from step to step before a long prompt, ascending, milliseconds.
    before: Vec<f64>,
    /// The same from its arrival to its first step.
    during: Vec<f64>,
    /// From its arrival to its first step, ascending, milliseconds.
    first_step: Vec<f64>,
}

/// All budgets.
#[derive(Debug)]
pub struct Intrusion {
    model: String,
    threads: usize,
    tokens: usize,
    canvas: usize,
    rows: Vec<Measured>,
}

/// Measures each budget with an engine of its own.
pub fn measure(config: &Config, tokens: usize, budgets: &[usize], repeats: usize) -> Result<Intrusion, CliError> {
    let budgets = if budgets.is_empty() { vec![config.encode_rows] } else { budgets.to_vec() };
    let threads = wire::threads(config);
    let mut report = Intrusion { model: String::new(), threads, tokens, canvas: 0, rows: Vec::new() };
    for encode_rows in budgets {
        // The eight need room for the canvases they commit meanwhile.
        let (model, parts) = wire::load_for(config, threads, 2 * tokens + 8192)?;
        let name = parts.name.clone();
        let text = Text::new(parts.text).map_err(|source| CliError::Text { name, source })?;
        let settings = Settings { encode_rows, ..wire::settings(config, model.limits()) };
        (report.model, report.canvas) = (parts.name, model.limits().canvas);
        let stamps = Stamps::default();
        let engine = Engine::start(Box::new(Timed { inner: model, stamps: stamps.clone() }), settings)?;
        let scene = Scene { handle: engine.handle(), text, sampler: parts.sampler, stamps, tokens };
        let measured = block_on(scene.play(encode_rows, repeats))?;
        report.rows.push(measured);
    }
    Ok(report)
}

struct Scene {
    handle: Handle,
    text: Text,
    sampler: Sampler,
    stamps: Stamps,
    tokens: usize,
}

impl Scene {
    async fn play(&self, encode_rows: usize, repeats: usize) -> Result<Measured, CliError> {
        let mut readers = Vec::new();
        for (number, prompt) in PROMPTS.iter().take(RUNNING).enumerate() {
            readers.push(tokio::spawn(drain(self.companion(prompt, number as u64)?)));
        }
        let mut measured = Measured { encode_rows, before: Vec::new(), during: Vec::new(), first_step: Vec::new() };
        for number in 0..repeats {
            let from = self.calm().await?;
            let arrival = Instant::now();
            let mut reader = self.submit(self.intruder(number))?;
            while let Some(event) = reader.next().await {
                if let Event::Failed(error) = event {
                    return Err(error.into());
                }
            }
            let end = Instant::now();
            let stamps = self.stamps.lock().clone();
            let (before, during) = gaps(stamps.get(from..).unwrap_or_default(), arrival, end);
            measured.before.extend(before);
            measured.during.extend(during);
            measured.first_step.push(milliseconds(end - arrival));
        }
        for list in [&mut measured.before, &mut measured.during, &mut measured.first_step] {
            list.sort_by(f64::total_cmp);
        }
        readers.iter().for_each(tokio::task::JoinHandle::abort);
        Ok(measured)
    }

    /// Waits until all eight have made some steps together, and says from which pass on.
    async fn calm(&self) -> Result<usize, CliError> {
        let from = self.stamps.lock().len();
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let stamps = self.stamps.lock();
            let together = stamps[from..].iter().filter(|stamp| stamp.slots.len() == RUNNING).count();
            if together >= CALM {
                return Ok(from);
            }
            if stamps.len() > from + 100 * CALM {
                let why = format!("{RUNNING} requests never run together; is max_running below it?");
                return Err(CliError::Measurement(why));
            }
        }
    }

    /// A request that takes every step there is and never ends by itself.
    fn companion(&self, prompt: &str, seed: u64) -> Result<crate::scheduler::Reader, CliError> {
        let chat = Chat { messages: vec![Message::new(Role::User, prompt)], ..Chat::default() };
        let prompt = self.text.render(&chat).map_err(CliError::Prompt)?;
        let sampler = Sampler { confidence_threshold: f32::MIN_POSITIVE, ..self.sampler };
        self.submit(job(prompt.ids, seed, sampler, usize::MAX >> 1))
    }

    /// A long prompt that nobody has sent before, and one step.
    fn intruder(&self, number: usize) -> Job {
        let vocabulary = self.handle.limits().vocabulary.max(1) as u64;
        let mixed = |index: u64| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) % vocabulary;
        let ids = (0..self.tokens).map(|index| mixed((number * self.tokens + index + 1) as u64) as u32);
        job(ids.collect(), 1, Sampler { max_steps: 1, ..self.sampler }, 1)
    }

    fn submit(&self, job: Job) -> Result<crate::scheduler::Reader, CliError> {
        self.handle.submit(job)?.choices.pop().ok_or(CliError::EngineStopped)
    }
}

fn job(prompt: Vec<u32>, seed: u64, sampler: Sampler, max_tokens: usize) -> Job {
    Job::plain(prompt, vec![Choice { seed, stream: 0, gate: Box::new(Endless), structure: None }], max_tokens, sampler)
}

async fn drain(mut reader: crate::scheduler::Reader) {
    while reader.next().await.is_some() {}
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Waits from one step to the next of those who were there from the beginning: those that ended before `arrival`, and
/// those that ended between it and `end`.
fn gaps(stamps: &[Stamp], arrival: Instant, end: Instant) -> (Vec<f64>, Vec<f64>) {
    let (mut before, mut during) = (Vec::new(), Vec::new());
    let mut last: HashMap<SlotId, Instant> = HashMap::new();
    for stamp in stamps.iter().filter(|stamp| stamp.end <= end) {
        for slot in &stamp.slots {
            match last.insert(*slot, stamp.end) {
                Some(previous) if stamp.end <= arrival => before.push(milliseconds(stamp.end - previous)),
                Some(previous) => during.push(milliseconds(stamp.end - previous)),
                None => {}
            }
        }
    }
    (before, during)
}

impl Measured {
    fn figures(&self) -> [f64; 5] {
        let median = |list: &[f64]| list.get(list.len() / 2).copied().unwrap_or(f64::NAN);
        let (before, during) = (median(&self.before), median(&self.during));
        let largest = self.during.last().copied().unwrap_or(f64::NAN);
        [before, during, during / before, largest, largest / before]
    }
}

impl Intrusion {
    /// For programs.
    pub fn json(&self) -> Value {
        let row = |row: &Measured| {
            let [before, during, ratio, largest, largest_ratio] = row.figures();
            json!({
                "encode_rows": row.encode_rows,
                "step_ms_before": before,
                "step_ms_during": during,
                "ratio": ratio,
                "largest_gap_ms": largest,
                "largest_gap_ratio": largest_ratio,
                "first_step_ms": row.first_step.get(row.first_step.len() / 2),
                "prompts": row.first_step.len(),
            })
        };
        json!({
            "canvasd": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "threads": self.threads,
            "tokens": self.tokens,
            "running": RUNNING,
            "canvas": self.canvas,
            "budgets": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        use std::fmt::Write;
        let mut table = format!(
            "{}, {} threads: {RUNNING} requests of canvas {} are running when a prompt of {} tokens arrives\n\
             encode rows  step ms before  during        largest       its first step after ms\n",
            self.model, self.threads, self.canvas, self.tokens
        );
        for row in &self.rows {
            let [before, during, ratio, largest, largest_ratio] = row.figures();
            let first = row.first_step.get(row.first_step.len() / 2).copied().unwrap_or(f64::NAN);
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:>11}  {before:>14.1}  {:<12}  {:<12}  {first:>23.0}",
                row.encode_rows,
                format!("{during:.1} ({ratio:.2}×)"),
                format!("{largest:.1} ({largest_ratio:.2}×)"),
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_per_slot_and_told_apart_by_the_arrival() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let stamp = |ms, slots: &[u32]| Stamp { end: at(ms), slots: slots.iter().copied().map(SlotId).collect() };
        let stamps = [
            stamp(0, &[0, 1]),
            stamp(10, &[0, 1]),
            stamp(40, &[0]),
            stamp(70, &[0, 1, 2]),
            // After the end: not counted.
            stamp(90, &[0, 1, 2]),
        ];
        let (before, during) = gaps(&stamps, at(15), at(80));
        assert_eq!(before, [10.0, 10.0]);
        assert_eq!(during, [30.0, 30.0, 60.0]);
    }

    #[test]
    fn both_forms_hold_every_budget() {
        let row =
            |encode_rows| Measured { encode_rows, before: vec![2.0], during: vec![3.0, 5.0], first_step: vec![9.0] };
        let report = Intrusion { model: "m".into(), threads: 2, tokens: 9, canvas: 8, rows: vec![row(64), row(128)] };
        assert_eq!(report.table().lines().count(), 4);
        assert_eq!(report.json()["budgets"][1]["largest_gap_ratio"], 2.5);
    }
}
