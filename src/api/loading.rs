//! What is answered before the model is loaded: that the process lives, and that everything else has to wait.

use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router, http::StatusCode};

use super::error::ApiError;
use super::meters::Meters;
use super::settings::ApiSettings;
use super::wire::other::Health;
use super::{dressed, edge};

/// After how long another try is worth it; a small model is loaded by then.
const WAIT: Duration = Duration::from_secs(5);

/// The service until there is a model for [`super::router`]. It asks for no key: it tells nothing that is worth one.
pub fn loading(settings: &ApiSettings) -> Router {
    let service = Router::new()
        .route("/health", get(alive))
        .fallback(not_yet)
        .method_not_allowed_fallback(edge::method_not_allowed);
    // Counts of its own, which nobody reads: the figures come with the model.
    dressed(service, settings, Arc::new(Meters::new()))
}

async fn alive() -> Json<Health> {
    Json(Health { status: "ok" })
}

async fn not_yet() -> ApiError {
    let message = "The model is still being loaded; try again later. GET /ready tells when requests are taken.";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("loading").retry_after(WAIT)
}
