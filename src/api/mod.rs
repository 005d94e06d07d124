//! HTTP: wire types, validation, errors, server-sent events, keys, the OpenAPI document.
//!
//! The only room that knows OpenAI's API and HTTP statuses. It turns requests into jobs for `scheduler` through
//! `prompt`'s text, and events back into responses; it knows no tensor.

mod aside;
mod body;
mod calls;
mod chunks;
mod conversation;
mod document;
mod drafts;
mod edge;
mod edits;
mod error;
mod exact;
mod failures;
mod form;
mod generation;
mod loading;
mod logprobs;
mod meters;
mod open_calls;
mod order;
mod pieces;
mod prompts;
mod pump;
mod routes;
mod settings;
mod sse;
mod state;
mod wire;

use std::sync::Arc;

use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Router, http::StatusCode};
use tower_http::catch_panic::CatchPanicLayer;

pub use document::openapi;
pub use loading::loading;
pub use settings::{ApiSettings, Keys, OpenDoor, check_door};
pub use state::{AppState, ModelCard};

use error::ApiError;
use meters::Meters;

/// The whole API as a service.
pub fn router(state: AppState) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(routes::chat::chat))
        .route("/v1/completions", post(routes::completions::completions))
        .route("/v1/responses", post(routes::responses::responses))
        .route("/v1/models", get(routes::models::list))
        // An id may hold slashes.
        .route("/v1/models/{*model}", get(routes::models::retrieve))
        .route("/tokenize", post(routes::tokens::tokenize))
        .route("/detokenize", post(routes::tokens::detokenize))
        .route("/metrics", get(routes::probes::metrics))
        .route_layer(from_fn_with_state(state.clone(), edge::authorize));
    let open = Router::new()
        .route("/health", get(routes::probes::health))
        .route("/ready", get(routes::probes::ready))
        .route("/version", get(routes::probes::version))
        .route("/openapi.json", get(routes::document::json))
        .route("/docs", get(routes::document::page))
        .route("/", get(routes::document::playground));
    let all = guarded
        .merge(open)
        .fallback(edge::not_found)
        .method_not_allowed_fallback(edge::method_not_allowed)
        .layer(CatchPanicLayer::custom(|_| ApiError::of_status(StatusCode::INTERNAL_SERVER_ERROR).into_response()))
        .layer(from_fn(edge::envelop));
    dressed(all, state.settings(), state.meters().clone()).with_state(state)
}

/// The service with what every answer gets, whoever gives it: leave for pages of other origins, an id, a count.
fn dressed<S: Clone + Send + Sync + 'static>(
    service: Router<S>,
    settings: &ApiSettings,
    meters: Arc<Meters>,
) -> Router<S> {
    let service = match edge::cors(&settings.cors_origins) {
        Some(cors) => service.layer(cors),
        None => service,
    };
    service.layer(from_fn_with_state(meters, edge::observe))
}
