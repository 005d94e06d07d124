//! Which errors an endpoint can answer with, for the OpenAPI document: the handlers name one of these.

use std::collections::BTreeMap;
use std::iter::once;

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
    ("415", "The body is not sent as JSON, or is compressed."),
    ("429", "The queue is full; `Retry-After` says when to try again."),
    ("500", "The server failed."),
    (
        "503",
        "The model is still being loaded (`Retry-After` says when to try again), the time was over before the first \
         step, the server is shutting down, or its engine has stopped.",
    ),
];

/// Why an endpoint that does not ask the engine may be unavailable.
const LOADING: (&str, &str) = ("503", "The model is still being loaded; `Retry-After` says when to try again.");

/// Those of [`ALL`] with one of the statuses, and [`LOADING`].
fn while_loading(statuses: &[&str]) -> BTreeMap<String, RefOr<Response>> {
    failures(ALL.into_iter().filter(|(status, _)| statuses.contains(status)).chain(once(LOADING)))
}

fn failures(chosen: impl Iterator<Item = (&'static str, &'static str)>) -> BTreeMap<String, RefOr<Response>> {
    let response = |description: &str| {
        let body: RefOr<Schema> = Ref::from_schema_name("ErrorBody").into();
        let content = ContentBuilder::new().schema(Some(body)).build();
        ResponseBuilder::new().description(description).content("application/json", content).build()
    };
    chosen.map(|(status, description)| (status.to_owned(), response(description).into())).collect()
}

impl IntoResponses for Failures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        failures(ALL.into_iter())
    }
}

impl IntoResponses for ReadFailures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        while_loading(&["401", "404", "405", "500"])
    }
}

impl IntoResponses for PublicFailures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        while_loading(&["405", "500"])
    }
}
