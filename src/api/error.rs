//! Every refusal and failure as the client sees it: one type, one envelope, one table of statuses.
//!
//! The other rooms' errors become an [`ApiError`] here and nowhere else. A failure that would come back on a second
//! try is never a 5xx, because clients retry those.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::scheduler::{JobError, Refusal, StructureError};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorObject,
}

/// What went wrong, in OpenAI's shape.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorObject {
    /// For people: names the field and what it may be.
    pub message: String,
    /// The class of the error.
    #[schema(examples("invalid_request_error"))]
    pub r#type: String,
    /// The field at fault, as a path into the request.
    #[schema(required = true, examples("messages[0].role"))]
    pub param: Option<String>,
    /// A fixed word for programs.
    #[schema(required = true, examples("missing_required_parameter"))]
    pub code: Option<String>,
}

/// A request that got no answer, or an answer that broke off.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

/// What an [`ApiError`]'s response carries in its extensions, so that the outer layers can tell the API's own errors
/// from those that the HTTP framework made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Enveloped;

impl ApiError {
    /// An error of that status.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// 400: the field at `param` cannot be honoured as it stands.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message).at(param).code("invalid_value")
    }

    /// 400: the field at `param` asks for something this server does not do.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message).at(param).code("unsupported_parameter")
    }

    /// 400: a field without which there is nothing to do.
    pub(crate) fn missing(param: &str) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, format!("Missing required parameter: '{param}'."))
            .at(param)
            .code("missing_required_parameter")
    }

    /// 404: no such model.
    pub(crate) fn model_not_found(asked: &str, served: &str) -> ApiError {
        let shown: String = asked.chars().take(200).collect();
        ApiError::new(StatusCode::NOT_FOUND, format!("The model '{shown}' does not exist; this server has '{served}'."))
            .at("model")
            .code("model_not_found")
    }

    /// What the framework answered with a bare status, in words.
    pub(crate) fn of_status(status: StatusCode) -> ApiError {
        let (message, code) = match status {
            StatusCode::NOT_FOUND => ("There is nothing at this path; GET /openapi.json lists what is.", "not_found"),
            StatusCode::METHOD_NOT_ALLOWED => {
                ("This path does not answer that method; the Allow header says which.", "method_not_allowed")
            }
            StatusCode::REQUEST_TIMEOUT => ("The request took too long to arrive.", "timeout"),
            StatusCode::PAYLOAD_TOO_LARGE => ("The request body is too large.", "body_too_large"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                ("The request body must be JSON, sent with 'Content-Type: application/json'.", "unsupported_media_type")
            }
            StatusCode::INTERNAL_SERVER_ERROR => ("The server failed on this request.", "internal_error"),
            status if status.is_server_error() => ("The server cannot answer now.", "server_error"),
            _ => ("The request could not be understood.", "invalid_request"),
        };
        ApiError::new(status, message).code(code)
    }

    /// The same error, pointing at a field.
    pub(crate) fn at(mut self, param: impl Into<String>) -> ApiError {
        self.param = Some(param.into());
        self
    }

    /// The same error with a word for programs.
    pub(crate) fn code(mut self, code: &'static str) -> ApiError {
        self.code = Some(code);
        self
    }

    /// The same error, with the time after which another try is worth it.
    pub(crate) fn retry_after(mut self, wait: Duration) -> ApiError {
        self.retry_after = Some(wait);
        self
    }

    /// The scheduler took no job; `prompt` is the field that held the prompt.
    pub(crate) fn refused(refusal: &Refusal, prompt: &str) -> ApiError {
        let message = sentence(&refusal.to_string());
        match refusal {
            Refusal::QueueFull { retry_after, .. } => {
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).code("queue_full").retry_after(*retry_after)
            }
            Refusal::NeverFits { .. } => {
                ApiError::new(StatusCode::BAD_REQUEST, message).at(prompt).code("context_length_exceeded")
            }
            Refusal::Invalid(_) => ApiError::new(StatusCode::BAD_REQUEST, message).at(prompt).code("invalid_value"),
            Refusal::Draining => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
                .code("shutting_down")
                .retry_after(Duration::from_secs(5)),
            Refusal::Stopped => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("engine_stopped"),
        }
    }

    /// HTTP status.
    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The envelope.
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: clip(&self.message, 1000),
                r#type: kind(self.status).into(),
                param: self.param.as_deref().map(|param| clip(param, 200)),
                code: self.code.map(str::to_owned),
            },
        }
    }
}

impl From<&JobError> for ApiError {
    fn from(error: &JobError) -> ApiError {
        let (status, code) = match error {
            JobError::DeadlineExceeded => (StatusCode::SERVICE_UNAVAILABLE, "deadline_exceeded"),
            JobError::Model(_) => (StatusCode::INTERNAL_SERVER_ERROR, "model_failed"),
            JobError::Structure(StructureError::TooComplex(_)) => (StatusCode::BAD_REQUEST, "structure_too_complex"),
            JobError::Structure(StructureError::Astray(_)) => (StatusCode::INTERNAL_SERVER_ERROR, "structure_failed"),
            JobError::ShutDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            JobError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "engine_stopped"),
        };
        ApiError::new(status, sentence(&error.to_string())).code(code)
    }
}

/// The other rooms' errors are clauses; a client gets sentences.
pub(crate) fn sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str().trim_end_matches('.')),
        None => String::new(),
    }
}

/// The first `most` characters: a message may quote the request, and a request may be large.
fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The class of an error, from its status.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::REQUEST_TIMEOUT => "timeout_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(wait) = self.retry_after {
            // Whole seconds, and at least one: zero would invite a busy loop.
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Enveloped);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_rooms_say_becomes_a_sentence() {
        let full = Refusal::QueueFull { jobs: 1, queued: 1, choices: 2, retry_after: Duration::from_secs(3) };
        let large = Refusal::NeverFits { what: "the context in tokens", needed: 2, available: 1 };
        let refusals =
            [full, large, Refusal::Invalid("the prompt is empty".into()), Refusal::Draining, Refusal::Stopped];
        let failures = [
            JobError::DeadlineExceeded,
            JobError::Model("row 0 is damaged".into()),
            JobError::Structure(StructureError::TooComplex("that takes too long".into())),
            JobError::ShutDown,
            JobError::Stopped,
        ];
        let refusals = refusals.iter().map(|refusal| ApiError::refused(refusal, "prompt"));
        for error in refusals.chain(failures.iter().map(ApiError::from)) {
            let message = error.body().error.message;
            assert!(message.starts_with(char::is_uppercase) && message.ends_with('.'), "{message}");
        }
        assert_eq!(ApiError::from(&failures[1]).body().error.message, "The model failed: row 0 is damaged.");
        // A second try would end the same.
        assert_eq!(ApiError::from(&failures[2]).status(), StatusCode::BAD_REQUEST);
    }
}
