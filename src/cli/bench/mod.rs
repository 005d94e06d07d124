//! `canvasd bench`: how fast a model is as a server of many, and how it bears them.
//!
//! A sweep over the number of requests at once, against the engine in this process or a server at a URL; the bare passes
//! of the model; a soak; a long prompt among running requests; the efforts side by side.

mod efforts;
mod http;
mod intrude;
mod options;
mod plot;
mod report;
mod soak;
pub(super) mod step;
mod target;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::options::{configure, push, start_log};
use super::signals::Signals;
use super::{CliError, block_on, tell, wire};
use crate::config::Config;
use crate::kernels::cpu::{Cpu, Path};
pub use options::Arguments;
use report::{Level, Report};
use target::{Question, Target};

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

/// Measures and reports.
pub fn run(arguments: Arguments) -> Result<(), CliError> {
    let most = arguments.concurrency.iter().copied().max().unwrap_or(1);
    let mut flags = arguments.model.overrides();
    // Every request is to be taken: what is measured is the engine, not the bound of its queue.
    push(&mut flags, "queue", &Some(most.max(256)));
    push(&mut flags, "max_running", &arguments.max_running);
    let config = configure(arguments.model.config.as_ref(), &flags)?;
    start_log(&config, "warn")?;
    if arguments.step {
        return steps(&arguments, &config);
    }
    if let Some(tokens) = arguments.intrude {
        let report = intrude::measure(&config, tokens, &arguments.encode_rows, arguments.repeats)?;
        return print(&arguments, || report.json(), || report.table());
    }
    block_on(async {
        let mut signals = Signals::new()?;
        let house = match arguments.url {
            Some(_) => None,
            None => Some(signals.or(move || wire::open(&config)).await.map_err(|_| CliError::Interrupted)??),
        };
        // All that may take long, a server that never answers included, is waited for beside the signals.
        let measured = async {
            let target = match (&arguments.url, &house) {
                (Some(url), _) => Target::server(url).await?,
                (None, Some(house)) => Target::engine(house),
                (None, None) => return Err(CliError::EngineStopped),
            };
            ask(&arguments, &Arc::new(target), most).await
        };
        let result = tokio::select! {
            done = measured => done,
            _ = signals.next() => Err(CliError::Interrupted),
        };
        if let Some(house) = house {
            house.leave();
        }
        result
    })
}

/// The measurements that ask for answers.
async fn ask(arguments: &Arguments, target: &Arc<Target>, most: usize) -> Result<(), CliError> {
    if let Some(requests) = arguments.soak {
        let plan = soak::Plan { requests, streams: most, seed: arguments.seed };
        let report = soak::run(&plan, target).await?;
        print(arguments, || report.json(), || report.table())?;
        return report.verdict();
    }
    if let Some(path) = &arguments.efforts {
        let questions = efforts::Quiz::read(path)?;
        let plan = efforts::Plan { streams: most, seeds: arguments.repeats, max_tokens: arguments.max_tokens };
        let report = efforts::measure(&questions, &plan, target).await?;
        return print(arguments, || report.json(), || report.table());
    }
    let report = sweep(arguments, target).await?;
    print(arguments, || report.json(), || report.table())?;
    if let Some(path) = &arguments.plot {
        let what = format!("the plot cannot be written to {}", path.display());
        std::fs::write(path, plot::svg(&report)).map_err(CliError::io(what))?;
    }
    Ok(())
}

/// Times bare passes.
fn steps(arguments: &Arguments, config: &Config) -> Result<(), CliError> {
    let threads = wire::threads(config);
    // Before the model takes memory: its threads are idle, and so is the memory.
    let peak = Cpu::new(threads, wire::instructions(config))?.peak();
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
        path: model.path().map_or("candle", Path::name),
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
    print(arguments, || report.json(), || report.table())
}

fn print(
    arguments: &Arguments,
    json: impl FnOnce() -> serde_json::Value,
    table: impl FnOnce() -> String,
) -> Result<(), CliError> {
    let text = if arguments.json { format!("{:#}\n", json()) } else { table() };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::io("the report cannot be printed"))
}

async fn sweep(arguments: &Arguments, target: &Arc<Target>) -> Result<Report, CliError> {
    // What is touched for the first time (pages of memory, caches of the template) is not part of any level.
    target.ask(&question(arguments, 0)).await?;
    let mut levels = Vec::new();
    for &concurrency in &arguments.concurrency {
        levels.push(level(arguments, target, concurrency).await?);
        if !arguments.json {
            tell(format_args!("{concurrency} requests at once: done"));
        }
    }
    Ok(Report { model: target.model().to_owned(), place: target.place().to_owned(), levels })
}

/// The sweep's request number `number`.
fn question(arguments: &Arguments, number: usize) -> Question {
    let seed = arguments.seed.wrapping_add(number as u64);
    Question::chat(PROMPTS[number % PROMPTS.len()], seed, arguments.max_tokens)
}

/// One level of the sweep.
async fn level(arguments: &Arguments, target: &Arc<Target>, concurrency: usize) -> Result<Level, CliError> {
    let total = arguments.total.unwrap_or(concurrency * arguments.requests);
    let before = target.counters().await?;
    let begun = Instant::now();
    let questions: Arc<[Question]> = (0..total).map(|number| question(arguments, number)).collect();
    let samples = in_turn(concurrency, total, |number| {
        let (target, questions) = (target.clone(), questions.clone());
        async move { target.ask(&questions[number]).await }
    })
    .await?;
    let took = begun.elapsed().max(Duration::from_nanos(1));
    Ok(Level::new(concurrency, took, &samples, before, target.counters().await?))
}

/// Keeps `streams` of the tasks 0 … `total` − 1 running until all are done; their results come in no order.
async fn in_turn<T, F>(streams: usize, total: usize, task: impl Fn(usize) -> F) -> Result<Vec<T>, CliError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, CliError>> + Send + 'static,
{
    let mut running = tokio::task::JoinSet::new();
    let mut results = Vec::with_capacity(total);
    let mut next = 0;
    loop {
        while next < total && running.len() < streams {
            running.spawn(task(next));
            next += 1;
        }
        let Some(ended) = running.join_next().await else { break };
        // A task that panicked has said so already; its result is missing, which must not pass as one.
        results.push(ended.map_err(|error| CliError::Measurement(format!("a measuring task ended early: {error}")))??);
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_ends_early_is_no_mistake_of_the_user() {
        let ended = block_on(in_turn(2, 5, |number| async move {
            assert_ne!(number, 3, "on purpose");
            Ok(number)
        }));
        let error = ended.unwrap_err();
        assert!(matches!(error, CliError::Measurement(_)) && error.exit_code() == 1, "{error}");
        let mut all = block_on(in_turn(2, 5, |number| async move { Ok(number) })).unwrap();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
    }
}
