//! The command line: what `canvasd` can be asked to do. Wires the rooms together and owns no logic of theirs.
//!
//! May use every room. Each command is a module with its arguments and a `run` function; [`wire`] makes the model, the
//! text room and the scheduler from the configuration.

mod bench;
mod descriptors;
mod error;
mod fetch;
mod generate;
mod health;
mod inspect;
mod listen;
mod openapi;
mod options;
mod quantize;
mod screen;
mod serve;
mod signals;
mod stall;
mod wire;

use std::error::Error;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use error::{CliError, ModelArgument};
use signals::Signals;

use crate::config::LogFormat;
use crate::telemetry;

const EXAMPLES: &str = "\
Examples:
  canvasd serve                                  serve the small model inside the program on 127.0.0.1:8000
  canvasd serve --model /models/diffusiongemma   serve a checkpoint in Hugging Face layout
  canvasd serve --model owner/name:Q4_K_M        serve a GGUF file of a repository on the model hub
  canvasd generate \"Tell me a story.\"            watch the canvas settle on the terminal
  echo \"What is the capital of France?\" | canvasd generate > answer.txt

Every option of `canvasd serve --help` can also stand in a configuration file (--config) or in the environment, where
--port is CANVASD_PORT; flags beat the environment, which beats the file. API keys come from CANVASD_API_KEY or a file.

Exit codes:
  0    done (for `serve`: stopped by SIGTERM or ctrl-C, and drained)
  1    the work failed
  2    the command line or the configuration is wrong
  3    the model cannot be loaded
  4    the address cannot be listened on
  130  interrupted (for `serve`: by a second signal, which stops it without draining)";

/// Serves text-diffusion language models behind the OpenAI HTTP API.
///
/// A block of random tokens, the canvas, is denoised in parallel over a few steps; finished canvases follow each other
/// from left to right. A small model is inside the program, so that everything can be tried without a download.
#[derive(Debug, Parser)]
#[command(name = "canvasd", version, after_long_help = EXAMPLES, after_help = "`canvasd --help` shows examples.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model behind the OpenAI HTTP API.
    Serve(serve::Arguments),
    /// Generate one answer; on a terminal the canvas can be seen settling.
    Generate(generate::Arguments),
    /// Measure speed: a sweep over the number of requests at once, in this process or against a server.
    Bench(Box<bench::Arguments>),
    /// Download a model from the hub ahead of time, or go on with a download that was cut off.
    Fetch(fetch::Arguments),
    /// Say what a checkpoint is, and what memory it takes.
    Inspect(inspect::Arguments),
    /// Write a smaller version of a checkpoint as a GGUF file.
    Quantize(quantize::Arguments),
    /// Print the OpenAPI document of the server.
    Openapi,
    /// Ask a running server whether it is well (for container health checks).
    Health(health::Arguments),
}

impl Command {
    fn model(&self) -> ModelArgument {
        match self {
            Command::Fetch(_) | Command::Quantize(_) => ModelArgument::Required,
            Command::Serve(_)
            | Command::Generate(_)
            | Command::Bench(_)
            | Command::Inspect(_)
            | Command::Openapi
            | Command::Health(_) => ModelArgument::Optional,
        }
    }
}

/// Runs the program with the process's own arguments.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let model = command.model();
    let result = match command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Generate(arguments) => generate::run(arguments),
        Command::Bench(arguments) => bench::run(*arguments),
        Command::Fetch(arguments) => until_stopped(move || fetch::run(&arguments)),
        Command::Inspect(arguments) => until_stopped(move || inspect::run(&arguments)),
        Command::Quantize(arguments) => quantize::run(arguments),
        Command::Openapi => openapi::run(),
        Command::Health(arguments) => health::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, model);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs a command on a runtime for sockets, signals and timers. Two threads are plenty: what computes has threads of its
/// own. Work that the command has given up is not waited for: it ends with the process.
fn block_on<T>(command: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("canvasd-io")
        .enable_all()
        .build()
        .map_err(CliError::io("the runtime cannot start"))?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

/// Does a command's work, which blocks, unless SIGTERM or ctrl-C comes first.
fn until_stopped(work: impl FnOnce() -> Result<(), CliError> + Send + 'static) -> Result<(), CliError> {
    // These commands read no configuration; what the rooms warn of is to be seen all the same.
    telemetry::start("warn", LogFormat::Text)?;
    block_on(async {
        let done = Signals::new()?.or(work).await;
        done.unwrap_or_else(|_| {
            if std::io::stderr().is_terminal() {
                // The cursor may stand behind a bar of progress.
                tell("");
            }
            Err(CliError::Interrupted)
        })
    })
}

/// Prints an error, its causes, and what to do next.
fn report(error: &CliError, model: ModelArgument) {
    tell(format_args!("canvasd: {error}"));
    let mut cause = error.source();
    let mut last = error.to_string();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Some errors repeat their cause in their own words; once is enough.
        if !last.contains(&text) {
            tell(format_args!("  because: {text}"));
        }
        last = text;
        cause = inner.source();
    }
    if let Some(advice) = error.advice(model) {
        tell(format_args!("  {advice}"));
    }
}

/// Writes a line to standard error, if it can be written: the exit code and the work matter more.
fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
