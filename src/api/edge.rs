//! What happens to every request and response, whatever the endpoint: ids, timing, keys, and the envelope for those
//! errors that the HTTP framework makes by itself.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};
use uuid::Uuid;

use super::body::IGNORED;
use super::error::{ApiError, Enveloped};
use super::meters::Meters;
use super::state::AppState;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING: HeaderName = HeaderName::from_static("openai-processing-ms");
const VERSION: HeaderName = HeaderName::from_static("openai-version");

/// Longest request id of a client that is echoed.
const LONGEST_ID: usize = 128;

/// Stands in counts and log for the status of an answer that its client did not wait for; never sent.
const LEFT: u16 = 499;

/// Gives the request an id, takes the time until the response's head, counts and logs it.
pub(crate) async fn observe(State(meters): State<Arc<Meters>>, request: Request, next: Next) -> Response {
    let visit = Visit::begin(meters, &request);
    let id = visit.id.clone();
    let mut response = next.run(request).await;
    let took = visit.answered(response.status());
    if let Some(asker) = response.extensions_mut().remove::<Asker>() {
        asker.is(&id);
    }
    let headers = response.headers_mut();
    headers.insert(PROCESSING, HeaderValue::from(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)));
    headers.insert(VERSION, HeaderValue::from_static("2020-10-01"));
    headers.insert(REQUEST_ID, id);
    response
}

/// A request on its way to the head of its answer. One that is dropped before, mostly because its client has hung up, is
/// counted and logged all the same.
struct Visit {
    meters: Arc<Meters>,
    id: HeaderValue,
    method: &'static str,
    route: String,
    start: Instant,
    status: Option<StatusCode>,
}

impl Visit {
    fn begin(meters: Arc<Meters>, request: &Request) -> Visit {
        Visit {
            meters,
            id: request_id(request.headers()),
            method: known_method(request.method()),
            route: request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned(),
            start: Instant::now(),
            status: None,
        }
    }

    /// The head is there, after the time returned.
    fn answered(mut self, status: StatusCode) -> Duration {
        self.status = Some(status);
        self.start.elapsed()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Visit { meters, id, method, route, start, status } = &*self;
        let (id, method, took) = (id.to_str().unwrap_or_default(), *method, start.elapsed());
        let ms = took.as_millis() as u64;
        match status.map(|status| status.as_u16()) {
            Some(status) => {
                meters.answered(method, route, status, took);
                tracing::info!(id, method, route, status, ms, "answered");
            }
            None => {
                meters.left(method, route, LEFT);
                tracing::info!(id, method, route, status = LEFT, ms, "the connection ended before the answer");
            }
        }
    }
}

/// Whose answer a stream is, for the log line of one that breaks off. A stream's maker puts it into the response's
/// extensions, where [`observe`] finds it: only there is the id known, and only with the body is it known how it ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker(Arc<OnceLock<HeaderValue>>);

impl Asker {
    fn is(&self, id: &HeaderValue) {
        // Nobody but `observe` says it, and that once.
        let _ = self.0.set(id.clone());
    }

    /// The request's id.
    pub(crate) fn id(&self) -> &str {
        self.0.get().and_then(|id| id.to_str().ok()).unwrap_or_default()
    }
}

/// The client's id if it is short and plain, otherwise a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |value: &&HeaderValue| {
        !value.is_empty() && value.len() <= LONGEST_ID && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get(REQUEST_ID).filter(plain).cloned().unwrap_or_else(|| {
        HeaderValue::try_from(format!("req_{}", Uuid::now_v7().simple()))
            .expect("hexadecimal digits are a header value")
    })
}

/// The method as a label: a client can make up any number of others.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Puts errors that did not come from the API itself into the envelope; their other headers stay.
pub(crate) async fn envelop(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let foreign = status.is_client_error() || status.is_server_error();
    if !foreign || response.extensions().get::<Enveloped>().is_some() {
        return response;
    }
    let mut enveloped = ApiError::of_status(status).into_response();
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            enveloped.headers_mut().insert(name, value.clone());
        }
    }
    enveloped
}

/// Lets a request with one of the keys in.
pub(crate) async fn authorize(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let keys = &state.settings().keys;
    if keys.is_empty() {
        return next.run(request).await;
    }
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| bearer_token(value.as_bytes()));
    let (message, code) = match bearer {
        Some(key) if keys.admit(key) => return next.run(request).await,
        Some(_) => ("The API key is wrong.", "invalid_api_key"),
        None => ("An API key is needed; send it as 'Authorization: Bearer KEY'.", "missing_api_key"),
    };
    ApiError::new(StatusCode::UNAUTHORIZED, message).code(code).into_response()
}

/// The token of `Bearer token`; the scheme's case is of no consequence.
fn bearer_token(header: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = header.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim_ascii())
}

/// What browser pages of other origins may do; `None` where they may nothing.
pub(crate) fn cors(origins: &[String]) -> Option<CorsLayer> {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        // The configuration has refused what is no header value.
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods(AllowMethods::list([Method::GET, Method::POST, Method::OPTIONS]))
        // Names each header that is asked for, `authorization` included, which a `*` would not cover.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, PROCESSING, IGNORED, header::RETRY_AFTER]);
    (!origins.is_empty()).then_some(layer)
}

/// Answers a path that nobody knows.
pub(crate) async fn not_found() -> ApiError {
    ApiError::of_status(StatusCode::NOT_FOUND)
}

/// Answers a method that a path does not know; axum adds the `Allow` header.
pub(crate) async fn method_not_allowed() -> ApiError {
    ApiError::of_status(StatusCode::METHOD_NOT_ALLOWED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_of_a_key_may_be_written_in_any_case() {
        assert_eq!(bearer_token(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer_token(b"bearer  abc "), Some(&b"abc"[..]));
        assert_eq!(bearer_token(b"Basic abc"), None);
        assert_eq!(bearer_token(b"Bearer"), None);
    }

    #[test]
    fn only_plain_request_ids_are_echoed() {
        let with = |id: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            request_id(&headers)
        };
        assert_eq!(with(b"mine-1"), "mine-1");
        for odd in [&b""[..], b"two words", "é".as_bytes(), &[b'x'; 200]] {
            assert!(with(odd).to_str().unwrap().starts_with("req_"));
        }
    }
}
