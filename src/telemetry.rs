//! The log: `tracing` events as lines on standard error. Metrics live with the scheduler, who has something to count.
//!
//! May use `config`; is called once, by `cli`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::LogFormat;

/// Crates of the program that log, by which an event's target begins.
const SOURCES: [&str; 9] =
    ["canvasd", "axum", "axum_core", "rustls", "tokenizers", "tower", "tower_http", "ureq", "ureq_proto"];

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directives make no sense.
    #[error(
        "log = {directives:?}: {why}; use off, error, warn, info, debug, trace or \"info,canvasd::scheduler=debug\""
    )]
    Directives {
        /// What was asked for.
        directives: String,
        /// What is wrong with it.
        why: String,
    },
    /// A log exists already.
    #[error("the log is already set up: {0}")]
    Twice(String),
}

/// Sends events that pass `directives` to standard error.
pub fn start(directives: &str, format: LogFormat) -> Result<(), LogError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(directives)?)
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

/// Which events pass. The parser takes any word that is no level for a target, so a level misspelt would silence the log,
/// and a target misspelt would show nothing.
fn filter(directives: &str) -> Result<EnvFilter, LogError> {
    let wrong = |why: String| LogError::Directives { directives: directives.into(), why };
    let parts = || directives.split(',').map(str::trim).filter(|part| !part.is_empty());
    if let Some(word) = parts().find(|part| !is_level(part) && !is_source(part)) {
        return Err(wrong(format!("{word:?} is neither a level nor a part of the program that logs")));
    }
    // The parser itself takes white space for a part of the word.
    EnvFilter::try_new(parts().collect::<Vec<_>>().join(",")).map_err(|error| wrong(error.to_string()))
}

fn is_level(word: &str) -> bool {
    word.parse::<LevelFilter>().is_ok()
}

/// Whether events of that target can come; a span and a level may stand behind it.
fn is_source(word: &str) -> bool {
    let target = word.split(['[', '=']).next().unwrap_or(word);
    let source = target.split("::").next().unwrap_or(target);
    (target.is_empty() && word.contains('[')) || SOURCES.contains(&source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_understood() {
        for directives in [
            "info",
            "WARN",
            "off",
            "3",
            "canvasd",
            "canvasd::scheduler",
            "info,canvasd::scheduler=debug",
            " info , canvasd=debug ,",
            "warn,tower_http",
            "error,ureq_proto=trace",
            "[span]",
            "canvasd[span{field=1}]=debug",
        ] {
            assert!(filter(directives).is_ok(), "{directives}");
        }
        assert_eq!(filter(" info , canvasd=debug ").unwrap().to_string(), "canvasd=debug,info");
    }

    #[test]
    fn a_misspelt_level_is_refused_with_what_to_write() {
        for directives in [
            "warning",
            "inof",
            "info,debgu",
            "inof,canvasd=debug",
            "canvas",
            "canvas=debug",
            "info,cnavasd::scheduler=debug",
            "inof[span]",
            "canvasd=loud",
        ] {
            let error = filter(directives).unwrap_err().to_string();
            assert!(error.contains(&format!("{directives:?}")) && error.contains("info, debug"), "{error}");
        }
        assert!(filter("info,debgu").unwrap_err().to_string().contains("\"debgu\" is neither"));
    }
}
