//! `canvasd bench`: how fast a model is as a server of many: a sweep over the number of requests at once, against the
//! engine in this process or a server at a URL; or the bare passes of the model.

mod http;
mod plot;
mod report;
mod step;
mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use super::options::{self, ModelOptions, push};
use super::signals::Signals;
use super::{CliError, runtime, wire};
use crate::config::Config;
use crate::kernels::cpu::Cpu;
use crate::telemetry;
use report::{Level, Report};
use target::{Sample, Target};

/// What is asked: short answers, lists, and texts of several canvases, as users mix them. Real words, because the
/// number of denoising steps depends on the text.
const PROMPTS: [&str; 12] = [
    "Tell me a story about a fox and a lantern.",
    "What is the capital of France?",
    "Write a poem about a cat.",
    "List the days of the week.",
    "Tell me a story about a mouse who wants to see the sea.",
    "How does a diffusion model work?",
    "What color is a banana?",
    "Explain step by step how you work.",
    "Write a poem about the moon.",
    "What is the opposite of hot?",
    "Tell me a story about two friends and a boat.",
    "What is a volcano?",
];

/// Options of `canvasd bench`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,

    /// Measure the server at this address instead of an engine in this process, such as http://127.0.0.1:8000; the key
    /// for it comes from CANVASD_API_KEY.
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "device", "dtype", "threads"])]
    url: Option<String>,

    /// How many requests run at once, one measurement for each.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4,8,16,32", value_parser = count)]
    concurrency: Vec<usize>,

    /// Requests per place at once: at concurrency 4 and 6 here, 24 requests are measured.
    #[arg(long, value_name = "N", default_value = "6", value_parser = count)]
    requests: usize,

    /// Most tokens of one answer.
    #[arg(long, value_name = "N", default_value = "256", value_parser = count)]
    max_tokens: usize,

    /// Seed of the first request; each further one takes the next.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Time bare passes of the model, without scheduler and text, instead of requests.
    #[arg(long, conflicts_with_all = ["url", "plot"])]
    step: bool,

    /// With --step: canvases in one pass, one measurement for each.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4", value_parser = count)]
    canvases: Vec<usize>,

    /// With --step: tokens before the canvas, one measurement for each; what the context cannot hold is left out.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "0,512,2048,8192")]
    prefix: Vec<usize>,

    /// With --step: how spread the vocabulary's probabilities are, one measurement for each.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', default_value = "flat,peaked")]
    statistics: Vec<step::Statistics>,

    /// With --step: passes timed per measurement.
    #[arg(long, value_name = "N", default_value = "5", value_parser = count)]
    repeats: usize,

    /// With --step: tokens of a prompt whose encoding is timed, in chunks of 1,024; 0 for none.
    #[arg(long, value_name = "N", default_value = "2048")]
    encode: usize,

    /// Print the result as JSON on standard output instead of a table.
    #[arg(long)]
    json: bool,

    /// Draw the curve into this file, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=100_000).contains(count))
        .ok_or_else(|| "a number from 1 to 100000 is wanted".into())
}

/// Measures and reports.
pub fn run(arguments: Arguments) -> Result<(), CliError> {
    let most = arguments.concurrency.iter().copied().max().unwrap_or(1);
    let mut flags = arguments.model.overrides();
    if arguments.model.log.is_none() {
        push(&mut flags, "log", &Some("warn"));
    }
    // Every request is to be taken: what is measured is the engine, not the bound of its queue.
    push(&mut flags, "queue", &Some(most.max(256)));
    let config = options::configure(arguments.model.config.as_ref(), &flags)?;
    telemetry::start(&config.log, config.log_format)?;
    if arguments.step {
        return steps(&arguments, &config);
    }
    let house = match arguments.url {
        Some(_) => None,
        None => Some(wire::open(&config)?),
    };
    runtime()?.block_on(async {
        let target = match (&arguments.url, &house) {
            (Some(url), _) => Target::server(url).await?,
            (None, Some(house)) => Target::engine(house),
            (None, None) => return Err(CliError::EngineStopped),
        };
        let target = Arc::new(target);
        let mut signals = Signals::new().map_err(CliError::io("signals cannot be received"))?;
        let report = tokio::select! {
            report = sweep(&arguments, &target) => report?,
            _ = signals.next() => return Err(CliError::Interrupted),
        };
        present(&arguments, &report)
    })
}

/// Times bare passes.
fn steps(arguments: &Arguments, config: &Config) -> Result<(), CliError> {
    let threads = wire::threads(config);
    // Before the model takes memory: its threads are idle, and so is the memory.
    let cpu = Cpu::new(threads, None).map_err(|error| CliError::Pass(error.to_string()))?;
    let (peak, path) = (cpu.peak(), cpu.path().name());
    drop(cpu);
    let begun = Instant::now();
    let (mut model, parts) = wire::load(config, threads)?;
    let (load, loaded) = (begun.elapsed(), step::Memory::now());
    let plan = step::Plan {
        canvases: arguments.canvases.clone(),
        prefixes: arguments.prefix.clone(),
        statistics: arguments.statistics.clone(),
        repeats: arguments.repeats,
        encode: arguments.encode,
    };
    let found = step::measure(&mut model, &plan)?;
    let report = step::StepReport {
        model: parts.name,
        threads,
        path,
        precision: model.precision(),
        kv: model.kv_element(),
        shape: parts.shape,
        weights: model.weight_bytes(),
        peak,
        load,
        loaded,
        end: step::Memory::now(),
        found,
    };
    if arguments.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

fn present(arguments: &Arguments, report: &Report) -> Result<(), CliError> {
    if arguments.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
    }
    if let Some(path) = &arguments.plot {
        let what = format!("the plot cannot be written to {}", path.display());
        std::fs::write(path, plot::svg(report)).map_err(CliError::io(what))?;
    }
    Ok(())
}

async fn sweep(arguments: &Arguments, target: &Arc<Target>) -> Result<Report, CliError> {
    // What is touched for the first time (pages of memory, caches of the template) is not part of any level.
    target.ask(PROMPTS[0], arguments.seed, arguments.max_tokens).await?;
    let mut levels = Vec::new();
    for &concurrency in &arguments.concurrency {
        levels.push(level(arguments, target, concurrency).await?);
        if !arguments.json {
            eprintln!("{} requests at once: done", concurrency);
        }
    }
    Ok(Report { model: target.model().to_owned(), place: target.place().to_owned(), levels })
}

/// Keeps `concurrency` requests running until all are done.
async fn level(arguments: &Arguments, target: &Arc<Target>, concurrency: usize) -> Result<Level, CliError> {
    let total = concurrency * arguments.requests;
    let next = Arc::new(AtomicUsize::new(0));
    let before = target.counters().await?;
    let begun = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (target, next) = (target.clone(), next.clone());
        let (seed, max_tokens) = (arguments.seed, arguments.max_tokens);
        workers.spawn(async move {
            let mut samples = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return Ok::<_, CliError>(samples);
                }
                let prompt = PROMPTS[number % PROMPTS.len()];
                samples.push(target.ask(prompt, seed.wrapping_add(number as u64), max_tokens).await?);
            }
        });
    }
    let mut samples: Vec<Sample> = Vec::with_capacity(total);
    while let Some(ended) = workers.join_next().await {
        // A worker that panicked has said so already; its samples are missing, which must not pass as a result.
        samples.extend(ended.map_err(|error| CliError::Usage(format!("a measuring task ended early: {error}")))??);
    }
    let took = begun.elapsed().max(Duration::from_nanos(1));
    Ok(Level::new(concurrency, took, &samples, before, target.counters().await?))
}
