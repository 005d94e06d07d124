//! A large answer in one document, spelled choice by choice as its client takes it: all at once, it would take the memory of
//! the whole text beside what it is made from, and keep the thread of a connection from others for long.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::error::ApiError;
use super::sse::json;
use super::state::AppState;
use super::wire::answer::Answers;

/// Answers with that document. A client that leaves stops it.
pub(crate) fn respond<C: Serialize + Send + 'static>(state: AppState, mut answers: Answers<C>) -> Response {
    const PLACE: &str = r#""choices":["#;
    let choices = std::mem::take(&mut answers.choices);
    let frame = json(&answers);
    // No text within the frame has quotes that are not escaped.
    let place = frame.find(PLACE).expect("answers have choices") + PLACE.len();
    let (before, after) = frame.split_at(place);
    let ends = [before, after].map(|text| Bytes::copy_from_slice(text.as_bytes()));
    let [before, after] = ends.map(|bytes| stream::iter([Ok::<_, ApiError>(bytes)]));
    let choices = stream::iter(choices.into_iter().enumerate()).then(move |(index, choice)| {
        let state = state.clone();
        async move {
            let spell = move || format!("{}{}", if index == 0 { "" } else { "," }, json(&choice));
            state.aside().run(spell).await.map(Bytes::from)
        }
    });
    let mut response = Response::new(Body::from_stream(before.chain(choices).chain(after)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
