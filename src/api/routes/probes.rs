//! Probes and figures for those who operate the server. They never wait for the model.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::super::error::{ApiError, ErrorBody};
use super::super::failures::{PublicFailures, ReadFailures};
use super::super::state::AppState;
use super::super::wire::other::{Health, Version};
use crate::scheduler::State as EngineState;

/// Says that the process lives: its model is being loaded, its engine runs, or is finishing what it has begun.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = "Operation",
    responses(
        (status = 200, description = "It lives.", body = Health),
        PublicFailures,
        (status = 503, description = "Its engine has stopped; the process is about to end.", body = ErrorBody)
    )
)]
pub(crate) async fn health(State(state): State<AppState>) -> Result<Json<Health>, ApiError> {
    match state.engine().state() {
        EngineState::Ready | EngineState::Draining => Ok(Json(Health { status: "ok" })),
        EngineState::Stopped => Err(stopped()),
    }
}

fn stopped() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "The engine has stopped.").code("engine_stopped")
}

/// Says whether requests are taken: the model is loaded and the server is not shutting down.
#[utoipa::path(
    get,
    path = "/ready",
    operation_id = "ready",
    tag = "Operation",
    responses(
        (status = 200, description = "Requests are taken.", body = Health),
        PublicFailures,
        (
            status = 503,
            description = "The model is still being loaded (`Retry-After` says when to try again), the server is \
                           shutting down, or its engine has stopped.",
            body = ErrorBody
        )
    )
)]
pub(crate) async fn ready(State(state): State<AppState>) -> Result<Json<Health>, ApiError> {
    match state.engine().state() {
        EngineState::Ready => Ok(Json(Health { status: "ok" })),
        EngineState::Draining => {
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "The server is shutting down.");
            Err(error.code("shutting_down"))
        }
        EngineState::Stopped => Err(stopped()),
    }
}

/// Says what is running.
#[utoipa::path(
    get,
    path = "/version",
    operation_id = "version",
    tag = "Operation",
    responses((status = 200, description = "Version and model.", body = Version), PublicFailures)
)]
pub(crate) async fn version(State(state): State<AppState>) -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION"),
        model: state.card().id.clone(),
        system_fingerprint: state.fingerprint().to_owned(),
    })
}

/// The text form that every scraper reads.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Its successor, for those who ask for it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Figures in the Prometheus text form, or in the OpenMetrics one where `Accept` names it.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "Operation",
    responses(
        (status = 200, description = "The figures.", content((String = "text/plain"), (String = "application/openmetrics-text"))),
        ReadFailures
    )
)]
pub(crate) async fn metrics(State(state): State<AppState>, headers: HeaderMap) -> Response {
    // The engine's text ends with OpenMetrics' end mark, which has to be the last line of all.
    let engine = state.engine().metrics();
    let engine = engine.trim_end();
    let engine = engine.strip_suffix("# EOF").unwrap_or(engine).trim_end();
    let text = format!("{engine}\n{}", state.meters().render());
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if accepted.flat_map(|value| value.split(',')).any(is_open_metrics) {
        return ([(header::CONTENT_TYPE, OPEN_METRICS)], format!("{text}# EOF\n")).into_response();
    }
    ([(header::CONTENT_TYPE, CLASSIC)], classic(&text)).into_response()
}

/// Whether a part of an `Accept` header names OpenMetrics and does not rule it out.
fn is_open_metrics(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
    named && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
}

/// OpenMetrics text as the older form has it: a counter is described under the name of its samples, and units are not
/// told.
fn classic(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let counted = kind.strip_suffix(" counter");
            let suffix = if counted.is_some() { "_total" } else { "" };
            if let Some((name, what)) = help.take().and_then(|help: &str| help.strip_prefix("# HELP ")?.split_once(' '))
            {
                out.push_str(&format!("# HELP {name}{suffix} {what}\n"));
            }
            match counted {
                Some(name) => out.push_str(&format!("# TYPE {name}_total counter\n")),
                None => out.push_str(&format!("# TYPE {kind}\n")),
            }
        } else if !line.starts_with("# UNIT ") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_names_counters_by_their_samples() {
        let open = "# HELP a_b Things.\n# TYPE a_b counter\n# UNIT a_b things\na_b_total{x=\"y\"} 1\n\
                    # HELP c Level.\n# TYPE c gauge\nc 2\n";
        let older = "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total{x=\"y\"} 1\n\
                     # HELP c Level.\n# TYPE c gauge\nc 2\n";
        assert_eq!(classic(open), older);
    }

    #[test]
    fn the_newer_form_is_for_those_who_name_it() {
        assert!(is_open_metrics(" application/openmetrics-text;version=1.0.0;q=0.5"));
        for other in ["text/plain", "*/*", "application/openmetrics-text; q=0", ""] {
            assert!(!is_open_metrics(other), "{other}");
        }
    }
}
