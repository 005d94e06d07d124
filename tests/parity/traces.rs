//! Whole generations replayed with the reference's own random draws: accepted masks, canvases, argmax, stop flags and
//! final sequences must be *equal*.
//!
//! Self-conditioning is injected from the reference's logits of the step before, so that a difference of rounding is
//! not fed back. Traces that a fixture calls calm also run free: where experts are chosen, most do not, because fed-back
//! rounding tips a choice sooner or later, and from there on two runs are two different ones.

use canvasd::diffusion::{Canvas, Key, Observation, Sampler};
use canvasd::model::{LoadOptions, probe};
use canvasd::pass::{Conditioning, KvView};
use serde_json::Value;

use super::cases::BOUND;
use super::fixture::{Fixture, Numbers, all, committed};
use super::world::{World, Worst, close, rows};

/// What a step sees of the step before.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Feedback {
    /// The reference's logits.
    Injected,
    /// What our own sweep left in the slot.
    Own,
}

/// Feeding rounding back makes it grow a little from step to step even on calm weights.
const FREE_BOUND: f32 = 2e-3;

#[test]
fn traces_equal_the_reference() {
    let mut skipped = 0;
    for fixture in all() {
        if fixture.is_rounded() {
            // Which positions such a reference accepts is decided by its own rounding of entropies.
            match fixture.names("traces").len() {
                0 => {}
                traces => println!("skipped: {traces} traces of {}, computed in bf16", fixture.name),
            }
            continue;
        }
        skipped += replay(&fixture, Feedback::Injected, probe::Tuning::default());
        let twins = probe::Tuning { operations: probe::Operations::Twins, ..Default::default() };
        replay(&fixture, Feedback::Injected, twins);
    }
    if skipped > 0 {
        println!("skipped: {skipped} image traces; images are not served yet");
    }
}

#[test]
fn traces_with_other_tiles_equal_the_reference() {
    for fixture in committed() {
        let vocabulary = fixture.checkpoint().config.vocabulary;
        for tile in [96, 128, vocabulary] {
            let tuning = probe::Tuning { vocabulary_tile: Some(tile), ..Default::default() };
            replay(&fixture, Feedback::Injected, tuning);
        }
    }
}

#[test]
fn free_running_traces_equal_the_reference() {
    for fixture in &all() {
        let calm = match &fixture.info["calm"] {
            Value::Bool(true) => fixture.names("traces"),
            Value::Array(names) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
            _ => continue,
        };
        replay_named(fixture, calm, Feedback::Own, probe::Tuning::default());
    }
}

fn replay(fixture: &Fixture, feedback: Feedback, tuning: probe::Tuning) -> usize {
    replay_named(fixture, fixture.names("traces"), feedback, tuning)
}

fn replay_named(fixture: &Fixture, names: Vec<String>, feedback: Feedback, tuning: probe::Tuning) -> usize {
    let mut worst = Worst::default();
    let (mut skipped, mut steps) = (0, 0);
    for name in names {
        if name.contains("image") {
            skipped += 1;
            continue;
        }
        let world = World::load(&fixture.checkpoint(), &LoadOptions::default(), tuning);
        let info = fixture.info["traces"][&name].clone();
        let mut trace = Trace { fixture, name, info, world, worst: &mut worst, feedback, steps: 0 };
        trace.run();
        steps += trace.steps;
    }
    println!("{} {feedback:?} {tuning:?}: {steps} steps equal, {worst:?}", fixture.name);
    assert!(steps > 10, "{}: hardly a step was compared", fixture.name);
    skipped
}

struct Trace<'a> {
    fixture: &'a Fixture,
    name: String,
    info: Value,
    world: World,
    worst: &'a mut Worst,
    feedback: Feedback,
    steps: usize,
}

/// One row of the reference's batch.
struct Line {
    /// Row number, which is also the slot.
    row: usize,
    kv: KvView,
    /// What the next pass has to encode before the canvas is looked at.
    pending: Vec<u32>,
    /// The whole sequence so far, padding included.
    sequence: Vec<u32>,
    ended: bool,
}

impl<'a> Trace<'a> {
    fn get(&self, key: &str) -> &'a Numbers {
        self.fixture.get(&format!("trace.{}.{key}", self.name))
    }

    fn number(&self, key: &str) -> f64 {
        self.info[key].as_f64().unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }

    fn sampler(&self) -> Sampler {
        Sampler {
            max_steps: self.number("max_denoising_steps") as usize,
            t_min: self.number("t_min") as f32,
            t_max: self.number("t_max") as f32,
            entropy_bound: self.number("entropy_bound") as f32,
            stability_threshold: self.number("stability_threshold") as usize,
            confidence_threshold: self.number("confidence_threshold") as f32,
        }
    }

    fn run(&mut self) {
        let mut lines = self.lines();
        let canvases = self.info["canvases"].as_array().expect("canvases").clone();
        for (c, canvas) in canvases.iter().enumerate() {
            let steps = canvas["steps"].as_u64().expect("steps") as usize;
            for line in &mut lines {
                if line.ended {
                    line.sequence.extend(vec![0; self.world.limits.canvas]);
                } else {
                    self.canvas(c, steps, line);
                }
            }
        }
        let sequences = self.get("sequences");
        for line in &lines {
            assert_eq!(line.sequence, sequences.tokens(line.row), "{}: final sequence", self.name);
        }
    }

    fn lines(&self) -> Vec<Line> {
        let prompts = self.get("prompt_ids");
        let mask = self.fixture.has(&format!("trace.{}.attention_mask", self.name)).then(|| self.get("attention_mask"));
        let line = |row| {
            let sequence = prompts.tokens(row);
            let pads = mask.as_ref().map_or(0, |m| m.at(row).iter().take_while(|&&x| x == 0.0).count());
            Line { row, kv: KvView::default(), pending: sequence[pads..].to_vec(), sequence, ended: false }
        };
        (0..prompts.shape[0]).map(line).collect()
    }

    /// Denoises one canvas of one row, comparing every step.
    fn canvas(&mut self, c: usize, steps: usize, line: &mut Line) {
        let (row, vocabulary) = (line.row, self.world.limits.vocabulary as u32);
        let init = self.get(&format!("c{c}.init_canvas")).tokens(row);
        // The key draws nothing here: every draw is the reference's.
        let key = Key { seed: 0, choice: 0, canvas: c as u32 };
        let mut canvas = Canvas::from_tokens(self.sampler(), key, init, vocabulary);
        for s in 0..steps {
            let at = |key: &str| format!("c{c}.s{s}.{key}");
            assert_eq!(canvas.tokens(), self.get(&at("canvas_in")).tokens(row), "{}: {}", self.name, at("canvas_in"));
            if !canvas.progress().is_done() {
                self.step(c, s, line, &mut canvas);
            }
            for (key, found) in [("canvas_out", canvas.tokens()), ("argmax", canvas.argmax())] {
                assert_eq!(found, self.get(&at(key)).tokens(row), "{}: {}", self.name, at(key));
            }
            // The reference's flag is about convergence alone; running out of steps ends its loop.
            let finished = canvas.progress() == canvasd::diffusion::Progress::Converged;
            let wanted = self.get(&at("finished")).values[row] == 1.0;
            assert_eq!(finished, wanted, "{}: {}", self.name, at("finished"));
        }
        let mut result = canvas.argmax().to_vec();
        let ends = &self.info["eos_token_id"];
        let is_end = |t: &u32| ends.as_array().is_some_and(|all| all.iter().any(|e| e.as_u64() == Some((*t).into())));
        if let Some(end) = result.iter().position(is_end) {
            result[end + 1..].fill(0);
            line.ended = true;
        }
        line.sequence.extend_from_slice(&result);
        line.pending = result;
    }

    fn step(&mut self, c: usize, s: usize, line: &mut Line, canvas: &mut Canvas) {
        let (row, slot) = (line.row, line.row as u32);
        let mut segments = Vec::new();
        if !line.pending.is_empty() {
            // The last encode and the first step ride in the same pass.
            let pending = std::mem::take(&mut line.pending);
            segments.push(self.world.encode(&mut line.kv, &pending));
        }
        let conditioning = if s == 0 { Conditioning::Fresh } else { Conditioning::Carried };
        if s > 0 && self.feedback == Feedback::Injected {
            let before = self.get(&format!("c{c}.s{}.raw_logits", s - 1));
            let temperature = canvas.sampler().temperature(s - 1);
            let logits: Vec<f32> = before.at(row).iter().map(|z| z / temperature).collect();
            probe::inject_logits(&mut self.world.model, slot, &logits).expect("a slot");
        }
        segments.push(self.world.denoise(&line.kv, slot, conditioning, canvas.tokens(), canvas.temperature()));
        let (outputs, seen) = self.world.run(segments);
        let rows = rows(outputs.last().expect("an output"));

        let at = |key: &str| format!("c{c}.s{s}.{key}");
        let what = format!("{} {}", self.name, at("raw_logits"));
        let bound = if self.feedback == Feedback::Injected { BOUND } else { FREE_BOUND };
        let wanted = self.get(&at("raw_logits"));
        close(&what, &seen.logits.concat(), wanted.at(row), bound, &mut self.worst.logits, &mut self.worst.compared);
        let entropies: Vec<f32> = rows.iter().map(|r| r.entropy).collect();
        let wanted = self.get(&at("entropy"));
        // At temperature t a logit's error is multiplied by 1/t, and entropies weigh it with |z| besides.
        close(&what, &entropies, wanted.at(row), 20.0 * bound, &mut self.worst.entropy, &mut self.worst.compared);

        let sampled = self.get(&at("sampled")).tokens(row);
        let observations = rows.iter().zip(&sampled).map(|(r, &sampled)| Observation {
            argmax: r.argmax,
            sampled,
            entropy: r.entropy,
        });
        let renoise = self.get(&at("renoise")).tokens(row);
        canvas.apply_with(observations, &renoise).expect("good observations");
        let accepted: Vec<f32> = canvas.accepted().iter().map(|&a| f32::from(u8::from(a))).collect();
        assert_eq!(accepted, self.get(&at("accepted_mask")).at(row), "{}: {}", self.name, at("accepted_mask"));
        self.steps += 1;
    }
}
