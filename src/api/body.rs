//! Reading a JSON body: the only way a request's fields come in.
//!
//! Says where a body is wrong (line, column and field), treats `null` as absent (the wire types are made of `Option`),
//! accepts fields it does not know and remembers their names. Never panics, never reads more than the limit.

use std::collections::BTreeSet;
use std::time::Instant;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::error::ApiError;
use super::exact::Exact;
use super::state::AppState;

/// Names the fields of a request that had no effect because nobody here knows them.
pub(crate) const IGNORED: HeaderName = HeaderName::from_static("x-canvasd-ignored");

/// Most field names that the header lists, and most bytes they take together.
const IGNORED_FIELDS: usize = 32;
const IGNORED_BYTES: usize = 1024;
/// Stands at the end of a list that lacks some of them.
const MORE: &str = "...";
/// Most characters of a field's own name, which may itself be a document, and of its whole path: so short that several fit.
const LONGEST_NAME: usize = 64;
const LONGEST_PATH: usize = 256;
/// How many times the limit is read of a body that is too large.
const DISCARDED: usize = 4;

/// A parsed body.
pub(crate) struct Body<T> {
    /// What it says.
    pub value: T,
    /// What of it nobody understood.
    pub ignored: Ignored,
    /// When the request's head was there, and its body on the way.
    pub arrived: Instant,
}

/// Paths of unknown fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ignored {
    paths: BTreeSet<String>,
    /// Whether there were more than can be listed.
    more: bool,
}

impl Ignored {
    /// One more field without effect: `name`, within what `parent` names where that is not empty.
    pub(crate) fn add(&mut self, parent: &str, name: &str) {
        self.add_path(joined(parent, name));
    }

    fn add_path(&mut self, path: String) {
        let path: String = path.chars().take(LONGEST_PATH).collect();
        if self.paths.len() < IGNORED_FIELDS {
            self.paths.insert(path);
        } else {
            self.more |= !self.paths.contains(&path);
        }
    }

    /// Lists the fields in the response's header; does nothing when there are none.
    pub(crate) fn attach(&self, mut response: Response) -> Response {
        let mut list = String::new();
        let mut more = self.more;
        for path in &self.paths {
            // A field name may hold anything; a header may not.
            let path: String = path.chars().map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '?' }).collect();
            if list.len() + path.len() > IGNORED_BYTES {
                // A shorter one behind it may fit.
                more = true;
                continue;
            }
            list += if list.is_empty() { "" } else { ", " };
            list += &path;
        }
        if more {
            list = format!("{list}, {MORE}");
        }
        if !self.paths.is_empty()
            && let Ok(value) = HeaderValue::try_from(list)
        {
            response.headers_mut().insert(IGNORED, value);
        }
        response
    }
}

/// A field's path, its own name cut.
fn joined(parent: &str, name: &str) -> String {
    let name: String = name.chars().take(LONGEST_NAME).collect();
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

impl<T: DeserializeOwned> FromRequest<AppState> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let arrived = Instant::now();
        let settings = state.settings();
        check_content_type(request.headers())?;
        check_encoding(request.headers())?;
        let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let announced = announced.and_then(|length| length.parse::<usize>().ok()).unwrap_or(0);
        if announced > settings.body_limit.saturating_mul(DISCARDED) {
            return Err(too_large(settings.body_limit));
        }
        let reading = read(request.into_body(), settings.body_limit);
        let bytes = match tokio::time::timeout(settings.body_timeout, reading).await {
            Err(_) => return Err(ApiError::of_status(StatusCode::REQUEST_TIMEOUT)),
            Ok(read) => read?,
        };
        Ok(Body { arrived, ..parse(&bytes)? })
    }
}

/// Collects a body of at most `limit` bytes. What is too large is still taken in for a while, and thrown away, so that
/// a client which sends before it reads gets to see the refusal.
async fn read(mut body: axum::body::Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut arrived = 0usize;
    while let Some(frame) = body.frame().await {
        let broken = |_| ApiError::new(StatusCode::BAD_REQUEST, "The request body broke off.").code("body_broken");
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        arrived = arrived.saturating_add(data.len());
        if arrived <= limit {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
        }
        if arrived > limit.saturating_mul(DISCARDED) {
            break;
        }
    }
    if arrived <= limit {
        return Ok(bytes);
    }
    Err(too_large(limit))
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("The request body is larger than {limit} bytes.");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("body_too_large")
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    match essence.as_deref() {
        Some("application/json") => Ok(()),
        Some(other) if other.starts_with("application/") && other.ends_with("+json") => Ok(()),
        _ => Err(ApiError::of_status(StatusCode::UNSUPPORTED_MEDIA_TYPE)),
    }
}

/// Refuses a compressed body, which would otherwise be taken for broken JSON.
fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let listed = headers.get_all(header::CONTENT_ENCODING).iter();
    let plain = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
    let mut codings = listed.flat_map(|value| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    match codings.find(|coding| !plain(coding)) {
        None => Ok(()),
        Some(coding) => {
            let coding: String = String::from_utf8_lossy(coding).chars().take(40).collect();
            let message =
                format!("The encoding '{coding}' of the request body is not supported; send the body uncompressed.");
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).code("unsupported_encoding"))
        }
    }
}

/// Parses a body that arrives now; a byte order mark in front is skipped.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Body<T>, ApiError> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let wrong = |message: String| ApiError::new(StatusCode::BAD_REQUEST, message);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(wrong("The request body is empty; a JSON object is expected.".into()).code("invalid_json"));
    }
    // An array is read to its end first: the parser would stop at its bracket, and what is broken JSON should be told so.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err(match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
            Ok(_) => {
                wrong("The request body is wrong: invalid type: array, expected an object.".into()).code("invalid_type")
            }
            Err(error) => wrong(format!("The request body is not valid JSON: {error}.")).code("invalid_json"),
        });
    }
    let (mut ignored, arrived) = (Ignored::default(), Instant::now());
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut note = |path: serde_ignored::Path<'_>| ignored.add_path(plain_path(&path));
    let watching = serde_ignored::Deserializer::new(Exact(&mut json), &mut note);
    let value = serde_path_to_error::deserialize(watching).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            Category::Data if path == "." => {
                wrong(format!("The request body is wrong: {}.", in_json_words(&inner))).code("invalid_type")
            }
            Category::Data => {
                wrong(format!("Invalid value at '{path}': {}.", in_json_words(&inner))).at(path).code("invalid_type")
            }
            Category::Syntax | Category::Eof | Category::Io => {
                wrong(format!("The request body is not valid JSON: {inner}.")).code("invalid_json")
            }
        }
    })?;
    json.end().map_err(|error| wrong(format!("The request body is not valid JSON: {error}.")).code("invalid_json"))?;
    Ok(Body { value, ignored, arrived })
}

/// A complaint about a value in the words of JSON rather than of this program's types.
pub(crate) fn in_json_words(error: &serde_json::Error) -> String {
    const EXPECTED: [(&str, &str); 8] = [
        ("usize", "a whole number, at least 0"),
        ("u32", "a whole number, at least 0"),
        ("u64", "a whole number, at least 0"),
        ("f64", "a number"),
        ("a sequence", "an array"),
        ("a map", "an object"),
        ("struct ", "an object"),
        ("a boolean", "true or false"),
    ];
    let message = error.to_string().replace("unknown variant", "unknown value");
    let place = format!(" at line {} column {}", error.line(), error.column());
    let (clause, place) = match message.strip_suffix(&place) {
        // Before anything was read: the place says nothing.
        Some(clause) if error.column() == 0 => (clause, ""),
        Some(clause) => (clause, place.as_str()),
        None => (message.as_str(), ""),
    };
    // What was expected stands last; anything in front of it may be a quotation.
    let Some((found, expected)) = clause.rsplit_once(", expected ") else { return format!("{clause}{place}") };
    let known = EXPECTED
        .iter()
        .find(|(ours, _)| if ours.ends_with(' ') { expected.starts_with(ours) } else { expected == *ours });
    format!("{}, expected {}{place}", found_in_json_words(found), known.map_or(expected, |(_, json)| json))
}

/// The part of a complaint that says what was found.
fn found_in_json_words(found: &str) -> String {
    match (found, found.strip_prefix("invalid type: floating point ")) {
        ("invalid type: sequence", _) => "invalid type: array".to_owned(),
        ("invalid type: map", _) => "invalid type: object".to_owned(),
        (_, Some(number)) => format!("invalid type: number {number}"),
        (other, None) => other.to_owned(),
    }
}

/// `messages[0].name` rather than serde_ignored's `messages.0.name` with marks for options.
fn plain_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", plain_path(parent)),
        Path::Map { parent, key } => joined(&plain_path(parent), key),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => plain_path(parent),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(default)]
        inner: Option<Vec<Inner>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        count: Option<u32>,
    }

    fn refused(body: &[u8]) -> crate::api::error::ErrorObject {
        match parse::<Outer>(body) {
            Ok(_) => panic!("{:?} was accepted", String::from_utf8_lossy(body)),
            Err(error) => {
                assert_eq!(error.status(), StatusCode::BAD_REQUEST);
                error.body().error
            }
        }
    }

    #[test]
    fn null_is_absent_and_unknown_fields_are_named() {
        let body = parse::<Outer>(br#"{"inner":[{"count":1,"spam":{"x":[1]}}],"eggs":null}"#).unwrap();
        assert_eq!(body.value.inner.unwrap()[0].count, Some(1));
        let response = body.ignored.attach(Response::default());
        assert_eq!(response.headers()[IGNORED], "eggs, inner[0].spam");
        let body = parse::<Outer>(b"\xEF\xBB\xBF {\"inner\":null}").unwrap();
        assert!(body.value.inner.is_none());
        assert!(!body.ignored.attach(Response::default()).headers().contains_key(IGNORED));
    }

    #[test]
    fn a_wrong_value_is_found_by_field_and_position() {
        let error = refused(br#"{"inner":[{"count":1},{"count":"two"}]}"#);
        assert_eq!(error.param.as_deref(), Some("inner[1].count"));
        assert!(error.message.contains("line 1 column"), "{}", error.message);
        assert_eq!(error.code.as_deref(), Some("invalid_type"));
    }

    #[test]
    fn what_is_expected_is_said_in_the_words_of_json() {
        for (body, expected) in [
            (&br#"[]"#[..], "invalid type: array, expected an object"),
            (br#" [null]"#, "invalid type: array, expected an object"),
            (br#"5"#, "invalid type: integer `5`, expected an object at line 1 column 1"),
            (br#"{"inner":5}"#, "invalid type: integer `5`, expected an array at line 1 column 10"),
            (br#"{"inner":[5]}"#, "invalid type: integer `5`, expected an object at line 1 column 11"),
            (
                br#"{"inner":[{"count":", expected f64"}]}"#,
                "invalid type: string \", expected f64\", expected a whole number, at least 0 at line 1 column 35",
            ),
            (
                br#"{"inner":[{"count":-1}]}"#,
                "invalid value: integer `-1`, expected a whole number, at least 0 at line 1 column 21",
            ),
            (br#"{"inner":{}}"#, "invalid type: object, expected an array at line 1 column 9"),
            (br#"{"inner":[[1]]}"#, "invalid type: array, expected an object at line 1 column 10"),
            (
                br#"{"inner":[{"count":1.5}]}"#,
                "invalid type: number `1.5`, expected a whole number, at least 0 at line 1 column 22",
            ),
            (
                br#"{"inner":[{"count":[]}]}"#,
                "invalid type: array, expected a whole number, at least 0 at line 1 column 19",
            ),
        ] {
            let message = refused(body).message;
            assert!(message.ends_with(&format!("{expected}.")), "{message}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let deep = "[".repeat(100_000);
        let deep_field = format!("{{\"unknown\":{}", "[".repeat(100_000));
        for body in [
            &b""[..],
            b"  ",
            b"{",
            b"{}{}",
            b"{\"inner\":[{\"count\":1e999}]}",
            b"{\"a\":\"\\ud800\",\"inner\":[{\"count\":\"\\ud800\"}]}",
            b"{\"inner\":\"\xff\"}",
            b"\xFF\xFE{\0}\0",
            b"{\"inner\":null,\"inner\":null}",
            deep.as_bytes(),
            deep_field.as_bytes(),
        ] {
            refused(body);
        }
    }

    #[test]
    fn the_header_of_ignored_fields_stays_small_and_legal() {
        let fields: Vec<String> = (0..500).map(|i| format!("\"{}é\\n,{i}\":1", "k".repeat(500))).collect();
        let body = parse::<Outer>(format!("{{{}}}", fields.join(",")).as_bytes()).unwrap();
        let response = body.ignored.attach(Response::default());
        assert!(response.headers()[IGNORED].len() <= 2 * IGNORED_BYTES);
    }

    #[test]
    fn a_list_of_ignored_fields_that_lacks_some_says_so() {
        let list = |fields: &[String]| {
            let body = format!("{{{}}}", fields.join(","));
            let response = parse::<Outer>(body.as_bytes()).unwrap().ignored.attach(Response::default());
            response.headers()[IGNORED].to_str().unwrap().to_owned()
        };
        let numbered = |count: usize| (0..count).map(|i| format!("\"f{i:02}\":1")).collect::<Vec<_>>();
        assert!(list(&numbered(IGNORED_FIELDS)).ends_with(", f31"));
        assert!(list(&numbered(61)).ends_with(", f31, ..."));
        assert_eq!(list(&numbered(61)).split(", ").count(), IGNORED_FIELDS + 1);
        let mut ignored = Ignored::default();
        for (parent, name) in [("kwargs", "k".repeat(1100)), ("", "zzz".into())] {
            ignored.add(parent, &name);
        }
        let response = ignored.attach(Response::default());
        assert_eq!(response.headers()[IGNORED], format!("kwargs.{}, zzz", "k".repeat(64)));
        for i in 0..8 {
            ignored.add(&format!("{i}{}", "p".repeat(300)), "x");
        }
        // What is too long keeps nothing that is shorter out of the list.
        let response = ignored.attach(Response::default());
        let list = response.headers()[IGNORED].to_str().unwrap();
        assert!(list.ends_with(", zzz, ...") && list.len() <= IGNORED_BYTES + 80, "{list}");
    }
}
