//! `canvasd fetch`: downloads a model ahead of time.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Instant;

use clap::Args;

use super::CliError;
use crate::checkpoint::{Hub, Phase, Progress, Source};

/// Options of `canvasd fetch`.
#[derive(Debug, Args)]
#[command(after_help = "The cache is that of the hub's own tools: HF_HUB_CACHE, HF_HOME, HF_TOKEN, HF_ENDPOINT and \
                        HF_HUB_OFFLINE are honoured.")]
pub struct Arguments {
    /// A name on the hub: owner/name, owner/name@revision, owner/name:file.gguf or owner/name:Q4_K_M.
    #[arg(value_name = "MODEL")]
    model: String,
}

/// Downloads what is missing and prints where it is.
pub fn run(arguments: &Arguments) -> Result<(), CliError> {
    let Source::Hub(name) = Source::parse(Some(&arguments.model))? else {
        let text = format!("{} is here already: only names on the hub (owner/name) are fetched", arguments.model);
        return Err(CliError::Usage(text));
    };
    let bar = Bar::new();
    let found = Hub::from_env().fetch(&name, &|progress| bar.show(progress))?;
    let path = match found {
        Source::Folder(path) | Source::Gguf(path) => path,
        Source::Demo | Source::Hub(_) => return Ok(()),
    };
    writeln!(std::io::stdout(), "{}", path.display()).map_err(CliError::io("the path cannot be printed"))
}

/// A source whose files are on this machine: what is missing of a name on the hub is downloaded, and shown.
pub fn present(source: Source) -> Result<Source, CliError> {
    let Source::Hub(name) = &source else { return Ok(source) };
    let bar = Bar::new();
    let hub = Hub::from_env();
    if hub.cached(name)?.is_none() {
        hub.fetch(name, &|progress| bar.show(progress))?;
    }
    Ok(source)
}

/// Shows a download: a line that moves on a terminal, a line now and then in a log.
struct Bar {
    terminal: bool,
    begun: Instant,
    /// Tenths last shown in a log.
    tenths: Mutex<Option<u64>>,
}

impl Bar {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), begun: Instant::now(), tenths: Mutex::new(None) }
    }

    fn show(&self, progress: &Progress) {
        let line = self.line(progress);
        // Progress that cannot be written is no reason to stop a download.
        let mut err = std::io::stderr().lock();
        if self.terminal {
            let end = if progress.phase == Phase::Done { "\n" } else { "" };
            let _ = write!(err, "\r\x1b[K{line}{end}").and_then(|()| err.flush());
            return;
        }
        let tenths = progress.done.saturating_mul(10) / progress.total.max(1);
        let Ok(mut last) = self.tenths.lock() else { return };
        if *last != Some(tenths) || progress.phase == Phase::Done {
            *last = Some(tenths);
            let _ = writeln!(err, "{line}");
        }
    }

    fn line(&self, progress: &Progress) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (done, total) = (mib(progress.done), mib(progress.total));
        let share = if total > 0.0 { 100.0 * done / total } else { 100.0 };
        match progress.phase {
            Phase::Done => format!("{total:.1} MiB complete"),
            Phase::Verify => format!("{share:3.0} %  {done:.1} of {total:.1} MiB  checking sums"),
            Phase::Transfer => {
                let seconds = self.begun.elapsed().as_secs_f64().max(1e-3);
                let resumed = if progress.resumed > 0 { "  (continued)" } else { "" };
                format!("{share:3.0} %  {done:.1} of {total:.1} MiB  after {seconds:.0} s{resumed}")
            }
        }
    }
}
