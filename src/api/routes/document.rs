//! The OpenAPI document and two pages for people. The pages load nothing from elsewhere.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

use super::super::document::openapi;
use super::super::failures::PublicFailures;

/// The document, made once: it takes a while, and whoever asks needs no key.
static DOCUMENT: LazyLock<String> = LazyLock::new(openapi);

/// Gives this document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = "Operation",
    responses((status = 200, description = "This document.", body = Object), PublicFailures)
)]
pub(crate) async fn json() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

/// Shows this document in a browser.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "docs",
    tag = "Operation",
    responses((status = 200, description = "A page.", body = String, content_type = "text/html"), PublicFailures)
)]
pub(crate) async fn page() -> Html<&'static str> {
    Html(include_str!("../pages/docs.html"))
}

/// Shows a page on which a canvas can be watched as it settles.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "playground",
    tag = "Operation",
    responses((status = 200, description = "A page.", body = String, content_type = "text/html"), PublicFailures)
)]
pub(crate) async fn playground() -> Html<&'static str> {
    Html(include_str!("../pages/playground.html"))
}
