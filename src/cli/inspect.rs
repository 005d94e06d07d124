//! `canvasd inspect`: what a checkpoint is, and whether it takes the memory that it should.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::{RangedU64ValueParser, TypedValueParser};

use super::bench::step::{self, memory::Memory};
use super::{CliError, fetch, wire};
use crate::checkpoint::{self, Checkpoint, Inspection, Source, gib};
use crate::model::{DiffusionGemma, LoadOptions, Precision};
use crate::pass::Denoiser;

/// Options of `canvasd inspect`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder, .gguf file or name on the hub, which is downloaded [default: the small model inside the program].
    #[arg(value_name = "MODEL")]
    model: Option<String>,

    /// Show it as it would be with its matrices in blocks of this type.
    #[arg(long, value_name = "TYPE")]
    quantize: Option<String>,

    /// Load it, run it, and print the memory that it takes beside what was planned.
    #[arg(long)]
    measure: bool,

    /// With --measure: positions of each request, the canvas included.
    #[arg(long, value_name = "N", default_value_t = 1024, requires = "measure")]
    positions: usize,

    /// With --measure: requests at once.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "measure", value_parser = requests())]
    requests: usize,
}

/// As many requests as a server could run at once at most.
fn requests() -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(1..=1 << 16)
}

/// Prints the description; no tensor is read unless it is to be measured.
pub fn run(arguments: &Arguments) -> Result<(), CliError> {
    let quantization = wire::quantization(arguments.quantize.as_deref())?;
    let source = Source::parse(arguments.model.as_deref())?;
    let checkpoint = wire::quantized(fetch::open(&source, fetch::Form::plain())?, quantization)?;
    let inspection = Inspection::of(&checkpoint, checkpoint::available());
    print(&inspection.to_string())?;
    if arguments.measure { measure(&checkpoint, arguments.positions, arguments.requests) } else { Ok(()) }
}

fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::io("the description cannot be printed"))
}

/// Loads the model, fills so many requests and denoises their canvases, watching what this process holds.
fn measure(checkpoint: &Checkpoint, positions: usize, requests: usize) -> Result<(), CliError> {
    let threads = wire::threads(&crate::config::Config::default());
    let options = LoadOptions { threads, precision: Precision::Bytes, ..Default::default() };
    let needs = checkpoint.needs(&options);
    let canvas = checkpoint.config.canvas;
    if positions <= canvas || positions > needs.context {
        let why = format!("--positions must be above the canvas, {canvas}, and at most {}", needs.context);
        return Err(CliError::Usage(why));
    }
    if let Some(free) = checkpoint::available() {
        needs.check(free, positions, requests)?;
    }
    let begun = Instant::now();
    let load = || DiffusionGemma::load(&checkpoint.config, checkpoint.weights.as_ref(), &options);
    let (model, loading) = watched(load);
    let mut model = model.map_err(|source| CliError::Load { name: checkpoint.id.clone(), source })?;
    let (took, kept) = (begun.elapsed(), Held::now());
    // Keys and values of a request that fills its positions, and its canvas.
    let plan = step::Plan {
        canvases: vec![requests],
        prefixes: vec![positions - canvas],
        statistics: vec![step::Statistics::Flat],
        repeats: 1,
        encode: 0,
    };
    let (passes, serving) = watched(|| step::measure(&mut model, &plan));
    passes?;
    let (Some(kept), Some(loading), Some(serving)) = (kept, loading, serving) else {
        return Err(CliError::Measurement("this system does not tell how much memory a process holds".to_owned()));
    };
    let limits = model.limits();
    let row = |what: &str, planned: u64, taken: u64| format!("  {what:<28}{:>14}{:>14}\n", gib(planned), gib(taken));
    print(&format!(
        "\n  measured with {requests} request(s) of {positions} positions and {threads} threads; loaded in {:.1} s\n\
         \x20 {:<28}{:>14}{:>14}\n{}{}{}\
         \x20 pages of the model's files: at most {} at once, {} left after loading\n\
         \x20 keys and values are kept at {} a page of {} positions\n",
        took.as_secs_f64(),
        "",
        "planned",
        "taken",
        row("while loading, at most", needs.while_loading(), loading.own),
        row("kept after loading", needs.while_loading().saturating_sub(needs.loading), kept.own),
        row("while computing, at most", needs.total(positions, requests), serving.own),
        gib(loading.files),
        gib(kept.files),
        gib(limits.full_page_bytes.saturating_add(limits.sliding_page_bytes)),
        limits.page_tokens,
    ))
}

/// Memory that this process holds.
struct Held {
    /// Its own, which cannot be taken back.
    own: u64,
    /// Pages of mapped files, which can.
    files: u64,
}

impl Held {
    fn now() -> Option<Held> {
        let memory = Memory::now()?;
        Some(Held { own: memory.anonymous.saturating_add(memory.shared), files: memory.files })
    }
}

/// Does the work, and tells the most that this process held meanwhile, looking every few milliseconds.
fn watched<T>(work: impl FnOnce() -> T) -> (T, Option<Held>) {
    let (own, files, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let look = || {
        if let Some(now) = Held::now() {
            own.fetch_max(now.own, Ordering::Relaxed);
            files.fetch_max(now.files, Ordering::Relaxed);
        }
    };
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                look();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        // Ends the watch even if the work panics.
        let _over = Over(&over);
        let done = work();
        look();
        done
    });
    let most = Held { own: own.into_inner(), files: files.into_inner() };
    (done, (most.own > 0).then_some(most))
}

/// Sets its flag when it goes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
