//! The log: `tracing` events as lines on standard error. Metrics live with the scheduler, who has something to count.
//!
//! May use `config`; is called once, by `cli`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directives make no sense.
    #[error(
        "log = {directives:?} is not understood; use a level such as \"info\", or \"info,canvasd::scheduler=debug\""
    )]
    Directives {
        /// What was asked for.
        directives: String,
        /// What the parser says.
        source: tracing_subscriber::filter::ParseError,
    },
    /// A log exists already.
    #[error("the log is already set up: {0}")]
    Twice(String),
}

/// Sends events that pass `directives` to standard error.
pub fn start(directives: &str, format: LogFormat) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(directives)
        .map_err(|source| LogError::Directives { directives: directives.into(), source })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written would be reported on the same standard error, and that by a macro that panics:
        // with a full disk behind the log every request would die of its own log line.
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| LogError::Twice(error.to_string()))
}
