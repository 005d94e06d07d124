//! `canvasd bench --step`: what single passes cost, by canvases in the pass and tokens before them, and where the time
//! goes, without scheduler or text: the model alone.

pub(in crate::cli) mod memory;
mod report;
mod work;

use std::time::{Duration, Instant};

use crate::cli::CliError;
use crate::model::{DiffusionGemma, Operation, Splits};
pub use memory::Memory;
pub use report::StepReport;

use crate::pass::{Capacity, Conditioning, Denoiser, Draw, Head, KvView, Limits, PageId, Pass, Segment, SlotId};

/// Rows of one encode chunk.
const CHUNK: usize = 1024;

/// How spread the vocabulary's probabilities are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Statistics {
    /// The sampler's first temperature, where random weights give flat softmaxes: the worst case for the soft embedding.
    Flat,
    /// A temperature so low that they are as peaked as on a settled canvas.
    Peaked,
}

impl Statistics {
    fn temperature(self) -> f32 {
        match self {
            Statistics::Flat => 0.8,
            Statistics::Peaked => 0.01,
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Statistics::Flat => "flat",
            Statistics::Peaked => "peaked",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Canvases in one pass, one measurement for each.
    pub canvases: Vec<usize>,
    /// Tokens encoded before the canvas, one measurement for each.
    pub prefixes: Vec<usize>,
    /// One measurement for each.
    pub statistics: Vec<Statistics>,
    /// Passes timed per measurement.
    pub repeats: usize,
    /// Tokens whose encoding is timed by itself, in chunks of 1,024.
    pub encode: usize,
}

/// A model whose passes can be taken apart.
pub trait Timed: Denoiser {
    /// Sets every operation's stopwatch to zero and lets it run.
    fn start_clock(&mut self);
    /// What each operation has taken since.
    fn clock(&self) -> Splits<Duration>;
}

impl Timed for DiffusionGemma {
    fn start_clock(&mut self) {
        DiffusionGemma::start_clock(self);
    }

    fn clock(&self) -> Splits<Duration> {
        DiffusionGemma::clock(self)
    }
}

/// One measurement of denoise passes.
#[derive(Debug, Clone)]
pub struct Measured {
    canvases: usize,
    prefix: usize,
    statistics: Statistics,
    /// Milliseconds of each timed pass, ascending.
    steps: Vec<f64>,
    /// Milliseconds of each operation, the mean of the timed passes.
    splits: Splits<f64>,
}

impl Measured {
    /// The value that `share` of the passes do not exceed.
    fn quantile(&self, share: f64) -> f64 {
        let at = (share * self.steps.len().saturating_sub(1) as f64).round() as usize;
        self.steps.get(at).copied().unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    fn mean(&self) -> f64 {
        self.steps.iter().sum::<f64>() / self.steps.len() as f64
    }
}

/// What encoding took.
#[derive(Debug, Clone)]
pub struct Encoded {
    tokens: usize,
    milliseconds: f64,
    /// Milliseconds of each operation.
    splits: Splits<f64>,
}

impl Encoded {
    fn rate(&self) -> f64 {
        self.tokens as f64 / self.milliseconds * 1e3
    }
}

/// Everything that was measured.
#[derive(Debug)]
pub struct Findings {
    encoded: Option<Encoded>,
    steps: Vec<Measured>,
}

/// Times every combination that the model's context can hold.
pub fn measure(model: &mut dyn Timed, plan: &Plan) -> Result<Findings, CliError> {
    let limits = model.limits().clone();
    let most = plan.canvases.iter().copied().max().unwrap_or(1);
    let fits = |prefix: usize| prefix.checked_add(limits.canvas).is_some_and(|end| end <= limits.context);
    let deepest = plan.prefixes.iter().copied().filter(|prefix| fits(*prefix)).max();
    let Some(deepest) = deepest else {
        return Err(CliError::Usage(format!("no --prefix leaves room for a canvas in {} positions", limits.context)));
    };
    let encode = plan.encode.min(limits.context);
    let pages = Pages::new(&limits, deepest.max(encode));
    let capacity = Capacity {
        full_pages: pages.full * most,
        sliding_pages: pages.sliding * most,
        slots: most,
        rows: CHUNK.max(most * limits.canvas),
    };
    model.reserve(capacity)?;
    let encoded = match encode {
        0 => None,
        tokens => {
            // The first pass touches memory for the first time.
            fill(model, &limits, &pages, 0, 1)?;
            Some(fill(model, &limits, &pages, 0, tokens)?)
        }
    };
    let mut steps = Vec::new();
    for &prefix in plan.prefixes.iter().filter(|prefix| **prefix <= deepest) {
        for request in 0..most {
            fill(model, &limits, &pages, request, prefix)?;
        }
        for &canvases in &plan.canvases {
            for &statistics in &plan.statistics {
                steps.push(denoise(model, &limits, &pages, (canvases, prefix, statistics), plan.repeats)?);
            }
        }
    }
    Ok(Findings { encoded, steps })
}

fn milliseconds(splits: &Splits<Duration>, passes: usize) -> Splits<f64> {
    let mut means = Splits::default();
    for operation in Operation::ALL {
        *means.of_mut(operation) = splits.of(operation).as_secs_f64() * 1e3 / passes.max(1) as f64;
    }
    means
}

/// Encodes `prefix` tokens of one request.
fn fill(
    model: &mut dyn Timed,
    limits: &Limits,
    pages: &Pages,
    request: usize,
    prefix: usize,
) -> Result<Encoded, CliError> {
    model.start_clock();
    let begun = Instant::now();
    let mut done = 0;
    while done < prefix {
        let rows = CHUNK.min(prefix - done);
        let kv = pages.view(limits, request, done, rows);
        let tokens = tokens(limits, rows, (request * prefix + done) as u64);
        run(model, Pass { segments: vec![Segment::Encode { kv, tokens }] })?;
        done += rows;
    }
    let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
    Ok(Encoded { tokens: prefix, milliseconds, splits: self::milliseconds(&model.clock(), 1) })
}

/// Times `repeats` denoise passes; one more before them is not counted.
fn denoise(
    model: &mut dyn Timed,
    limits: &Limits,
    pages: &Pages,
    (canvases, prefix, statistics): (usize, usize, Statistics),
    repeats: usize,
) -> Result<Measured, CliError> {
    let mut steps = Vec::with_capacity(repeats);
    for round in 0..=repeats {
        let segment = |request: usize| Segment::Denoise {
            kv: pages.view(limits, request, prefix, 0),
            slot: SlotId(request as u32),
            conditioning: if round == 0 { Conditioning::Fresh } else { Conditioning::Carried },
            tokens: tokens(limits, limits.canvas, (round * canvases + request) as u64),
            uniforms: vec![0.5; limits.canvas],
            head: Head {
                temperature: statistics.temperature(),
                draw: Draw::Scaled { temperature: 1.0, top_p: 1.0 },
                bias: [].into(),
                top_k: 0,
            },
        };
        let pass = Pass { segments: (0..canvases).map(segment).collect() };
        if round == 1 {
            model.start_clock();
        }
        let took = run(model, pass)?;
        if round > 0 {
            steps.push(took.as_secs_f64() * 1e3);
        }
    }
    steps.sort_by(f64::total_cmp);
    let splits = milliseconds(&model.clock(), repeats);
    Ok(Measured { canvases, prefix, statistics, steps, splits })
}

fn run(model: &mut dyn Timed, pass: Pass) -> Result<Duration, CliError> {
    let begun = Instant::now();
    let outputs = model.run(&pass)?;
    let took = begun.elapsed();
    outputs.into_iter().try_for_each(|output| output.map(drop))?;
    Ok(took)
}

/// Token ids spread over the vocabulary, so that every expert gets its share.
fn tokens(limits: &Limits, count: usize, from: u64) -> Vec<u32> {
    let mixed = |index: u64| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) % limits.vocabulary.max(1) as u64;
    (0..count as u64).map(|index| mixed(from * 7919 + index + 1) as u32).collect()
}

/// Pages of each request: all of its full ones, and a ring of sliding ones that holds the window and a chunk.
struct Pages {
    full: usize,
    sliding: usize,
}

impl Pages {
    fn new(limits: &Limits, deepest: usize) -> Pages {
        let all = deepest.div_ceil(limits.page_tokens) + 1;
        Pages { full: all, sliding: ((limits.window + CHUNK).div_ceil(limits.page_tokens) + 2).min(all) }
    }

    /// Where request number `request` finds its first `len` tokens and the `rows` that an encode will add.
    fn view(&self, limits: &Limits, request: usize, len: usize, rows: usize) -> KvView {
        let size = limits.page_tokens;
        let first = len.saturating_sub(limits.window.saturating_sub(1)) / size;
        let end = (len + rows).div_ceil(size);
        let id = |pool: usize, page: usize| PageId((request * pool + page % pool) as u32);
        KvView {
            full: (0..end).map(|page| id(self.full, page)).collect(),
            sliding: (first..end).map(|page| id(self.sliding, page)).collect(),
            sliding_from: first * size,
            len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::{EngineError, Output, SegmentError};

    fn limits() -> Limits {
        Limits {
            canvas: 8,
            vocabulary: 100,
            context: 4096,
            window: 20,
            page_tokens: 16,
            full_page_bytes: 1,
            sliding_page_bytes: 1,
            slot_bytes: 1,
            row_bytes: 1,
        }
    }

    /// Checks every view as the model would, and writes down which pages hold which positions.
    #[derive(Default)]
    struct Book {
        limits: Option<Limits>,
        capacity: Option<Capacity>,
        sliding: std::collections::HashMap<PageId, usize>,
        passes: usize,
    }

    impl Denoiser for Book {
        fn limits(&self) -> &Limits {
            self.limits.as_ref().expect("set by the test")
        }

        fn reserve(&mut self, capacity: Capacity) -> Result<(), EngineError> {
            self.capacity = Some(capacity);
            Ok(())
        }

        fn run(&mut self, pass: &Pass) -> Result<Vec<Result<Output, SegmentError>>, EngineError> {
            let (limits, capacity) = (self.limits.clone().unwrap(), self.capacity.unwrap());
            self.passes += 1;
            assert!(pass.segments.iter().map(Segment::rows).sum::<usize>() <= capacity.rows);
            for segment in &pass.segments {
                let (kv, end) = match segment {
                    Segment::Encode { kv, tokens } => (kv, kv.len + tokens.len()),
                    Segment::Denoise { kv, .. } => (kv, kv.len),
                };
                assert!(kv.full.len() * limits.page_tokens >= end);
                assert!(kv.full.iter().all(|page| (page.0 as usize) < capacity.full_pages));
                assert!(kv.sliding_from <= kv.len.saturating_sub(limits.window - 1));
                assert!(kv.sliding_from + kv.sliding.len() * limits.page_tokens >= end);
                for (index, page) in kv.sliding.iter().enumerate() {
                    assert!((page.0 as usize) < capacity.sliding_pages);
                    let position = kv.sliding_from + index * limits.page_tokens;
                    // A page that holds earlier tokens of the window must still be the one written for them.
                    if position < kv.len {
                        assert_eq!(self.sliding.get(page), Some(&position));
                    } else {
                        self.sliding.insert(*page, position);
                    }
                }
            }
            Ok(pass.segments.iter().map(|_| Ok(Output::Encoded)).collect())
        }
    }

    impl Timed for Book {
        fn start_clock(&mut self) {
            self.passes = 0;
        }

        fn clock(&self) -> Splits<Duration> {
            let mut splits = Splits::default();
            *splits.of_mut(Operation::Mlp) = Duration::from_millis(self.passes as u64);
            splits
        }
    }

    #[test]
    fn splits_are_means_of_the_timed_passes() {
        let mut book = Book { limits: Some(limits()), ..Book::default() };
        let plan =
            Plan { canvases: vec![1], prefixes: vec![5], statistics: vec![Statistics::Flat], repeats: 4, encode: 1500 };
        let found = measure(&mut book, &plan).unwrap();
        // The scripted clock counts a millisecond per pass.
        assert_eq!(*found.steps[0].splits.of(Operation::Mlp), 1.0);
        assert_eq!(*found.encoded.unwrap().splits.of(Operation::Mlp), 2.0);
    }

    #[test]
    fn views_are_what_a_model_expects_at_every_depth() {
        let mut book = Book { limits: Some(limits()), ..Book::default() };
        let plan = Plan {
            canvases: vec![1, 3],
            prefixes: vec![0, 5, 16, 3000, 9000],
            statistics: vec![Statistics::Flat, Statistics::Peaked],
            repeats: 2,
            encode: 2500,
        };
        let found = measure(&mut book, &plan).unwrap();
        // 9000 does not fit into the context and is left out.
        assert_eq!(found.steps.len(), 4 * 2 * 2);
        assert!(found.steps.iter().all(|one| one.steps.len() == 2));
        assert_eq!(found.encoded.as_ref().map(|encoded| encoded.tokens), Some(2500));
        let none = Plan { prefixes: vec![9000, usize::MAX], ..plan };
        assert!(measure(&mut book, &none).is_err());
    }
}
