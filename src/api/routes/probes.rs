//! Probes and figures for those who operate the server. They never wait for the model.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::super::document::{PublicFailures, ReadFailures};
use super::super::error::{ApiError, ErrorBody};
use super::super::state::AppState;
use super::super::wire::other::{Health, Version};
use crate::scheduler::State as EngineState;

/// Says that the process lives.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = "Operation",
    responses((status = 200, description = "It lives.", body = Health), PublicFailures)
)]
pub(crate) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Says whether requests are taken: the model is loaded and the server is not shutting down.
#[utoipa::path(
    get,
    path = "/ready",
    operation_id = "ready",
    tag = "Operation",
    responses(
        (status = 200, description = "Requests are taken.", body = Health),
        (status = 503, description = "The server is shutting down or its engine has stopped.", body = ErrorBody),
        PublicFailures
    )
)]
pub(crate) async fn ready(State(state): State<AppState>) -> Result<Json<Health>, ApiError> {
    let (message, code) = match state.engine().state() {
        EngineState::Ready => return Ok(Json(Health { status: "ok" })),
        EngineState::Draining => ("The server is shutting down.", "shutting_down"),
        EngineState::Stopped => ("The engine has stopped.", "engine_stopped"),
    };
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code(code))
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

/// The text form that Prometheus reads.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Figures in the OpenMetrics text form.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "Operation",
    responses((status = 200, description = "The figures.", body = String, content_type = "application/openmetrics-text"), ReadFailures)
)]
pub(crate) async fn metrics(State(state): State<AppState>) -> Response {
    // The engine's text ends with OpenMetrics' end mark, which has to be the last line of all.
    let engine = state.engine().metrics();
    let engine = engine.trim_end();
    let engine = engine.strip_suffix("# EOF").unwrap_or(engine).trim_end();
    let text = format!("{engine}\n{}# EOF\n", state.meters().render());
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}
