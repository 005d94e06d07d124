//! `canvasd bench --step`: what single passes cost, by canvases in the pass and tokens before them, without scheduler or
//! text: the model alone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::work::Work;
use crate::cli::CliError;
use crate::kernels::cpu::Peak;
use crate::model::Config;
use crate::pass::{
    Capacity, Conditioning, Denoiser, Draw, EngineError, Head, KvView, Limits, Output, PageId, Pass, Segment, SlotId,
};

/// Rows of one encode chunk.
const CHUNK: usize = 1024;

/// The sampler's first temperature, where random weights give flat statistics (the worst case for the soft embedding),
/// and one so low that the statistics are as peaked as on a settled canvas.
const TEMPERATURES: [(&str, f32); 2] = [("flat", 0.8), ("peaked", 0.01)];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Canvases in one pass, one measurement for each.
    pub canvases: Vec<usize>,
    /// Tokens encoded before the canvas, one measurement for each.
    pub prefixes: Vec<usize>,
    /// Passes timed per measurement.
    pub repeats: usize,
}

/// One measurement.
#[derive(Debug, Clone)]
pub struct Measured {
    canvases: usize,
    prefix: usize,
    statistics: &'static str,
    /// Tokens per second of the encode that made the prefix; `None` without prefix.
    encode: Option<f64>,
    /// Milliseconds of each timed pass, ascending.
    steps: Vec<f64>,
}

impl Measured {
    fn median(&self) -> f64 {
        self.steps.get(self.steps.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Times every combination that the model's context can hold.
pub fn measure(model: &mut dyn Denoiser, plan: &Plan) -> Result<Vec<Measured>, CliError> {
    let limits = model.limits().clone();
    let most = plan.canvases.iter().copied().max().unwrap_or(1);
    let deepest = plan.prefixes.iter().copied().filter(|prefix| prefix + limits.canvas <= limits.context).max();
    let Some(deepest) = deepest else {
        return Err(CliError::Usage(format!("no --prefix leaves room for a canvas in {} positions", limits.context)));
    };
    let pages = Pages::new(&limits, deepest);
    let capacity = Capacity {
        full_pages: pages.full * most,
        sliding_pages: pages.sliding * most,
        slots: most,
        rows: CHUNK.max(most * limits.canvas),
    };
    model.reserve(capacity).map_err(failed)?;
    let mut found = Vec::new();
    for &prefix in plan.prefixes.iter().filter(|prefix| **prefix <= deepest) {
        let mut encode = None;
        for request in 0..most {
            let rate = fill(model, &limits, &pages, request, prefix)?;
            encode = encode.or(rate);
        }
        for &canvases in &plan.canvases {
            for (statistics, temperature) in TEMPERATURES {
                let steps = steps(model, &limits, &pages, (canvases, prefix, temperature), plan.repeats)?;
                found.push(Measured { canvases, prefix, statistics, encode, steps });
            }
        }
    }
    Ok(found)
}

/// Encodes `prefix` tokens of one request and gives tokens per second.
fn fill(
    model: &mut dyn Denoiser,
    limits: &Limits,
    pages: &Pages,
    request: usize,
    prefix: usize,
) -> Result<Option<f64>, CliError> {
    let begun = Instant::now();
    let mut done = 0;
    while done < prefix {
        let rows = CHUNK.min(prefix - done);
        let kv = pages.view(limits, request, done, rows);
        let tokens = tokens(limits, rows, (request * prefix + done) as u64);
        run(model, Pass { segments: vec![Segment::Encode { kv, tokens }] })?;
        done += rows;
    }
    Ok((prefix > 0).then(|| prefix as f64 / begun.elapsed().as_secs_f64()))
}

/// Milliseconds of `repeats` denoise passes, ascending; one more before them is not counted.
fn steps(
    model: &mut dyn Denoiser,
    limits: &Limits,
    pages: &Pages,
    (canvases, prefix, temperature): (usize, usize, f32),
    repeats: usize,
) -> Result<Vec<f64>, CliError> {
    let mut times = Vec::with_capacity(repeats);
    for round in 0..=repeats {
        let segment = |request: usize| Segment::Denoise {
            kv: pages.view(limits, request, prefix, 0),
            slot: SlotId(request as u32),
            conditioning: if round == 0 { Conditioning::Fresh } else { Conditioning::Carried },
            tokens: tokens(limits, limits.canvas, (round * canvases + request) as u64),
            uniforms: vec![0.5; limits.canvas],
            head: Head { temperature, draw: Draw::Scaled { temperature: 1.0, top_p: 1.0 }, bias: [].into(), top_k: 0 },
        };
        let pass = Pass { segments: (0..canvases).map(segment).collect() };
        let took = run(model, pass)?;
        if round > 0 {
            times.push(took.as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn run(model: &mut dyn Denoiser, pass: Pass) -> Result<Duration, CliError> {
    let begun = Instant::now();
    let outputs = model.run(&pass).map_err(failed)?;
    let took = begun.elapsed();
    for output in outputs {
        match output {
            Ok(Output::Encoded | Output::Denoised(_)) => {}
            Err(error) => return Err(CliError::Pass(error.to_string())),
        }
    }
    Ok(took)
}

fn failed(error: EngineError) -> CliError {
    CliError::Pass(error.to_string())
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

/// Everything measured, with what is needed to judge it.
pub struct StepReport {
    /// The model's name.
    pub model: String,
    /// Threads that computed.
    pub threads: usize,
    /// The model's shape.
    pub shape: Config,
    /// What the machine can do, measured just before.
    pub peak: Peak,
    /// The measurements.
    pub measured: Vec<Measured>,
}

impl StepReport {
    /// Operations per second of one measurement.
    fn rate(&self, one: &Measured) -> f64 {
        Work::of(&self.shape, one.prefix).total() * one.canvases as f64 / (one.median() / 1e3)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let step = |one: &Measured| {
            let work = Work::of(&self.shape, one.prefix);
            json!({
                "canvases": one.canvases,
                "prefix": one.prefix,
                "statistics": one.statistics,
                "step_ms": one.median(),
                "step_ms_min": one.steps.first(),
                "step_ms_max": one.steps.last(),
                "passes": one.steps.len(),
                "gflop_per_canvas": {
                    "layers": work.layers / 1e9, "attention": work.attention / 1e9, "vocabulary": work.vocabulary / 1e9,
                },
                "gflops": self.rate(one) / 1e9,
                "share_of_f32_peak": self.rate(one) / self.peak.flops,
                "encode_tokens_per_second": one.encode,
            })
        };
        json!({
            "canvasd": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "threads": self.threads,
            "canvas": self.shape.canvas,
            "peak": {"f32_gflops": self.peak.flops / 1e9, "read_gbytes_per_second": self.peak.read / 1e9},
            "steps": self.measured.iter().map(step).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        use std::fmt::Write;
        let mut table = format!(
            "{}, {} threads, canvas {}; this machine: {:.0} GFLOP/s in f32, reads {:.1} GB/s\n",
            self.model,
            self.threads,
            self.shape.canvas,
            self.peak.flops / 1e9,
            self.peak.read / 1e9
        );
        table.push_str("canvases  prefix  statistics  step ms  min … max          GFLOP/s  of peak  encode tokens/s\n");
        for one in &self.measured {
            let (least, most) = (one.steps.first().copied(), one.steps.last().copied());
            let spread = format!("{:.1} … {:.1}", least.unwrap_or(f64::NAN), most.unwrap_or(f64::NAN));
            let encode = one.encode.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:>8}  {:>6}  {:<10}  {:>7.1}  {spread:<17}  {:>7.0}  {:>6.0}%  {encode:>15}",
                one.canvases,
                one.prefix,
                one.statistics,
                one.median(),
                self.rate(one) / 1e9,
                self.rate(one) / self.peak.flops * 100.0
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

        fn run(&mut self, pass: &Pass) -> Result<Vec<Result<Output, crate::pass::SegmentError>>, EngineError> {
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

    #[test]
    fn views_are_what_a_model_expects_at_every_depth() {
        let mut book = Book { limits: Some(limits()), ..Book::default() };
        let plan = Plan { canvases: vec![1, 3], prefixes: vec![0, 5, 16, 3000, 9000], repeats: 2 };
        let measured = measure(&mut book, &plan).unwrap();
        // 9000 does not fit into the context and is left out.
        assert_eq!(measured.len(), 4 * 2 * 2);
        assert!(measured.iter().all(|one| one.steps.len() == 2 && one.encode.is_some() == (one.prefix > 0)));
        let shape = include_str!("../../../models/demo/config.json");
        let report = StepReport {
            model: "m".into(),
            threads: 1,
            shape: Config::from_json(&serde_json::from_str(shape).unwrap()).unwrap(),
            peak: Peak { flops: 1e11, read: 1e10 },
            measured,
        };
        assert_eq!(report.table().lines().count(), 2 + report.measured.len());
        let steps = report.json()["steps"].as_array().unwrap().clone();
        assert_eq!(steps.len(), report.measured.len());
        assert!(steps.iter().all(|step| step["gflops"].as_f64().is_some_and(|rate| rate > 0.0)));
        let none = Plan { prefixes: vec![9000], ..plan };
        assert!(measure(&mut book, &none).is_err());
    }
}
