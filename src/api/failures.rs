//! Which errors an endpoint can answer with, for the OpenAPI document: the handlers name one of these.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

/// Errors of endpoints that take a body.
pub(crate) struct Failures;

/// Errors of endpoints that only tell something.
pub(crate) struct ReadFailures;

/// Errors of endpoints that need no key.
pub(crate) struct PublicFailures;

const ALL: [(&str, &str); 10] = [
    ("400", "The request cannot be honoured; `param` names the field."),
    ("401", "The API key is missing or wrong."),
    ("404", "There is no such model or path."),
    ("405", "The path does not answer this method."),
    ("408", "The request took too long to arrive."),
    ("413", "The body is too large."),
    ("415", "The body is not sent as JSON."),
    ("429", "The queue is full; `Retry-After` says when to try again."),
    ("500", "The server failed."),
    ("503", "The time was over before the first step, or the server is shutting down, or its engine has stopped."),
];

fn failures(statuses: &[&str]) -> BTreeMap<String, RefOr<Response>> {
    let chosen = ALL.iter().filter(|(status, _)| statuses.contains(status));
    let response = |description: &str| {
        let body: RefOr<Schema> = Ref::from_schema_name("ErrorBody").into();
        let content = ContentBuilder::new().schema(Some(body)).build();
        ResponseBuilder::new().description(description).content("application/json", content).build()
    };
    chosen.map(|(status, description)| ((*status).to_owned(), response(description).into())).collect()
}

impl IntoResponses for Failures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        failures(&ALL.map(|(status, _)| status))
    }
}

impl IntoResponses for ReadFailures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        failures(&["401", "404", "405", "500"])
    }
}

impl IntoResponses for PublicFailures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        failures(&["405", "500"])
    }
}
