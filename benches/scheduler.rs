//! What the scheduler itself costs per pass, and one canvas's step in `diffusion`, with a model that costs nothing.
//!
//! Two figures are wanted: at most 50 µs of bookkeeping per pass at 64 canvases of 256 positions, and at most 15 µs per
//! canvas in `diffusion`. The bookkeeping is `pass` less `diffusion`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use canvasd::diffusion::{Canvas, Key, Observation, Sampler};
use canvasd::pass::{Limits, Output, Row, Segment};
use canvasd::scheduler::{Choice, CommitGate, Core, Job, Settings, Ticket, Verdict};
use criterion::{Criterion, criterion_group, criterion_main};

const CANVAS: usize = 256;
const CANVASES: usize = 64;
const VOCABULARY: u32 = 262_144;

struct Endless;

impl CommitGate for Endless {
    fn commit(&mut self, _: &[u32]) -> Verdict {
        Verdict::Continue
    }
}

fn limits() -> Limits {
    Limits {
        canvas: CANVAS,
        vocabulary: VOCABULARY as usize,
        context: 1 << 20,
        window: 1024,
        page_tokens: 64,
        full_page_bytes: 1,
        sliding_page_bytes: 1,
        slot_bytes: 1,
        row_bytes: 1,
    }
}

/// A canvas half settled: what a step in the middle of a canvas looks like.
fn rows(salt: u32) -> Vec<Row> {
    (0..CANVAS as u32)
        .map(|i| {
            let entropy =
                if i % 2 == 0 { 0.0001 * (i % 17) as f32 } else { 0.5 + ((i * 37 + salt) % 101) as f32 * 0.05 };
            Row { argmax: i, sampled: i + salt % 7, max: 1.0, lse: 1.5, entropy, top: Vec::new() }
        })
        .collect()
}

fn endless() -> Sampler {
    Sampler { max_steps: Sampler::MAX_STEPS, ..Sampler::default() }
}

fn job(seed: u64) -> Job {
    let prompt: Vec<u32> = (0..500).map(|i| (i * 7 + seed as u32) % 1000).collect();
    Job::plain(prompt, vec![Choice { seed, stream: 0, gate: Box::new(Endless), structure: None }], 100_000, endless())
}

struct Machine {
    core: Core,
    now: Instant,
    _tickets: Vec<Ticket>,
}

impl Machine {
    /// 64 requests, all of them denoising.
    fn new() -> Machine {
        let now = Instant::now();
        let settings = Settings { max_running: CANVASES, kv_bytes: 1 << 16, encode_rows: 4096, ..Settings::default() };
        let (core, _) = Core::new(&limits(), &settings, now).expect("the settings fit");
        let mut machine = Machine { core, now, _tickets: Vec::new() };
        let front = machine.core.front();
        for seed in 0..CANVASES as u64 {
            let (submission, ticket) = front.accept(job(seed), now).expect("taken");
            machine.core.arrive(submission);
            machine._tickets.push(ticket);
        }
        while machine.pass().1 < CANVASES {}
        machine
    }

    /// Time spent in the machine, and canvases in the pass.
    fn pass(&mut self) -> (Duration, usize) {
        let begun = Instant::now();
        self.core.plan(self.now);
        let planned = begun.elapsed();
        let answers: Vec<_> = self
            .core
            .pass()
            .segments
            .iter()
            .enumerate()
            .map(|(i, segment)| {
                Ok(match segment {
                    Segment::Encode { .. } => Output::Encoded,
                    Segment::Denoise { .. } => Output::Denoised(rows(i as u32)),
                })
            })
            .collect();
        let canvases = answers.iter().filter(|answer| matches!(answer, Ok(Output::Denoised(_)))).count();
        self.now += Duration::from_millis(10);
        let begun = Instant::now();
        self.core.apply(Ok(answers), self.now);
        (planned + begun.elapsed(), canvases)
    }
}

fn benches(c: &mut Criterion) {
    // A process that has loaded a model has freed large buffers, after which glibc stops giving the top of its heap back
    // to the system at every opportunity. Without this every pass would measure that.
    drop(black_box(vec![1u8; 16 << 20]));
    let mut machine = Machine::new();
    c.bench_function("pass/64 canvases of 256", |b| {
        b.iter_custom(|n| (0..n).map(|_| machine.pass().0).sum());
    });

    // As the scheduler does it: from the rows' narrow form.
    let narrow = |row: &Row| Observation { argmax: row.argmax, sampled: row.sampled, entropy: row.entropy };
    let seen: Vec<Vec<Observation>> =
        (0..CANVASES as u32).map(|salt| rows(salt).iter().map(narrow).collect()).collect();
    let mut canvases: Vec<Canvas> = (0..CANVASES as u64)
        .map(|seed| Canvas::new(endless(), Key { seed, choice: 0, canvas: 0 }, CANVAS, VOCABULARY))
        .collect();
    let mut uniforms = vec![Vec::new(); CANVASES];
    c.bench_function("diffusion/64 canvases of 256", |b| {
        b.iter(|| {
            for ((canvas, seen), uniforms) in canvases.iter_mut().zip(&seen).zip(&mut uniforms) {
                canvas.uniforms(uniforms);
                black_box(canvas.apply(seen.iter().copied()).expect("good"));
            }
        });
    });
}

criterion_group!(all, benches);
criterion_main!(all);
