//! The OpenAPI document and the documentation say what the code does.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use axum::http::StatusCode;
use canvasd::api::{ApiSettings, Keys};
use canvasd::scheduler::Settings;
use serde_json::{Value, json};

use super::support::App;

/// Set to write the files instead of comparing them.
const UPDATE: &str = "CANVASD_UPDATE_DOCUMENTS";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn document() -> Value {
    serde_json::from_str(&canvasd::api::openapi()).expect("JSON")
}

/// Compares a file with what it should be, or writes it.
fn check(name: &str, expected: &str) {
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(path(name), expected).expect("a file that can be written");
    }
    let current = std::fs::read_to_string(path(name)).unwrap_or_default();
    assert!(current == expected, "{name} is stale: run {UPDATE}=1 cargo test --test http document");
}

#[test]
fn the_checked_in_document_is_current() {
    check("openapi/openapi.json", &canvasd::api::openapi());
}

/// Whoever operates the server reads there what a figure means.
#[tokio::test]
async fn every_metric_is_in_the_documentation() {
    let figures = App::new().get("/metrics").await.body;
    let names = figures.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let page = std::fs::read_to_string(path("docs/scheduling.md")).expect("a page");
    // A name ends where its labels begin: the beginning of a longer one says nothing.
    let told = |name: &str| ["`", "{"].iter().any(|end| page.contains(&format!("`{name}{end}")));
    let missing: Vec<&str> = names.filter(|name| !told(name)).collect();
    assert!(missing.is_empty(), "docs/scheduling.md lacks {missing:?}");
}

/// One table of fields, from the document.
fn table(document: &Value, schema: &str) -> String {
    let properties = document["components"]["schemas"][schema]["properties"].as_object();
    let properties = properties.unwrap_or_else(|| panic!("no schema {schema}"));
    let mut table = String::from("| field | type | what happens |\n|---|---|---|\n");
    for (name, property) in properties {
        let described = |value: &Value| value["description"].as_str().map(str::to_owned);
        let options = property["oneOf"].as_array();
        let description = described(property).or_else(|| options?.iter().find_map(described));
        let description = description.unwrap_or_else(|| panic!("{schema}.{name} is undocumented"));
        let line = description.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        writeln!(table, "| `{name}` | {} | {line} |", kind(property)).expect("a string");
    }
    table
}

/// A property's type in a word or two.
fn kind(property: &Value) -> String {
    if let Some(reference) = property["$ref"].as_str() {
        return reference.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if let Some(options) = property["oneOf"].as_array() {
        let kinds: Vec<String> = options.iter().map(kind).filter(|kind| kind != "null").collect();
        return kinds.join(" or ");
    }
    let of_items = || format!("array of {}", kind(&property["items"]));
    match &property["type"] {
        Value::String(kind) if kind == "array" => of_items(),
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) if kinds.contains(&json!("array")) => of_items(),
        Value::Array(kinds) => {
            let kinds: Vec<&str> = kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect();
            kinds.join(" or ")
        }
        _ => "any".into(),
    }
}

#[test]
fn the_documentation_lists_every_field() {
    let document = document();
    let file = std::fs::read_to_string(path("docs/api.md")).expect("docs/api.md");
    let mut expected = String::new();
    let mut rest = file.as_str();
    while let Some(at) = rest.find("<!-- fields of ") {
        let (before, after) = rest.split_at(at);
        let line = after.lines().next().expect("a line");
        let schema = line.trim_start_matches("<!-- fields of ").trim_end_matches(" -->");
        let end = after.find("<!-- end -->").unwrap_or_else(|| panic!("the table of {schema} has no end mark"));
        write!(expected, "{before}{line}\n{}", table(&document, schema)).expect("a string");
        rest = &after[end..];
    }
    expected.push_str(rest);
    check("docs/api.md", &expected);
}

#[test]
fn every_type_of_a_request_has_a_table() {
    let document = document();
    let mut waiting: Vec<String> = Vec::new();
    for operations in document["paths"].as_object().unwrap().values() {
        for operation in operations.as_object().unwrap().values() {
            waiting.extend(references(&operation["requestBody"]));
        }
    }
    let mut seen = BTreeSet::new();
    while let Some(name) = waiting.pop() {
        if seen.insert(name.clone()) {
            waiting.extend(references(&document["components"]["schemas"][&name]));
        }
    }
    let file = std::fs::read_to_string(path("docs/api.md")).expect("docs/api.md");
    for name in seen {
        let schema = &document["components"]["schemas"][&name];
        if schema["properties"].is_object() {
            assert!(file.contains(&format!("<!-- fields of {name} -->")), "docs/api.md has no table of {name}");
        }
    }
}

/// Names of the schemas that a value refers to.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match value.as_str() {
                Some(reference) if key == "$ref" => vec![reference.rsplit('/').next().unwrap_or_default().to_owned()],
                _ => references(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn every_documented_route_exists_and_every_reference_leads_somewhere() {
    let app = App::new();
    let document = document();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let path = path.replace("{model}", "parrots/grey");
            let reply = match method.as_str() {
                "get" => app.get(&path).await,
                "post" => app.post(&path, &json!({})).await,
                other => panic!("a test for {other} is missing"),
            };
            let status = reply.status.as_u16().to_string();
            assert_ne!(reply.status, StatusCode::NOT_FOUND, "{path}");
            assert_ne!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert!(operation["responses"].get(&status).is_some(), "{method} {path} answers {status}");
            assert!(operation["summary"].is_string() || operation["description"].is_string());
        }
    }
    for name in references(&document) {
        assert!(document["components"]["schemas"].get(&name).is_some(), "{name} is referred to and not there");
    }
    assert_eq!(app.get("/openapi.json").await.ok(), document);
}

#[tokio::test]
async fn the_document_says_which_operations_want_a_key() {
    let settings = ApiSettings { keys: Keys::new(["sesame"]), ..ApiSettings::default() };
    let app = App::with(settings, Settings::default());
    let mut guarded = 0;
    for (path, operations) in document()["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let path = path.replace("{model}", "parrots/grey");
            let reply = if method == "get" { app.get(&path).await } else { app.post(&path, &json!({})).await };
            // None, too: a server may have no keys.
            let wanted = if reply.status == StatusCode::UNAUTHORIZED { json!([{}, {"key": []}]) } else { Value::Null };
            assert_eq!(operation["security"], wanted, "{method} {path}");
            guarded += usize::from(wanted.is_array());
        }
    }
    assert_eq!(guarded, 8);
}

#[tokio::test]
async fn the_pages_load_nothing_from_elsewhere() {
    let app = App::new();
    for page in ["/", "/docs"] {
        let reply = app.get(page).await;
        assert_eq!(reply.headers["content-type"], "text/html; charset=utf-8");
        assert!(reply.body.len() > 1000, "{page} is a page");
        for foreign in ["src=\"http", "href=\"http", "@import", "url(http"] {
            assert!(!reply.body.contains(foreign), "{page} holds {foreign}");
        }
    }
}
