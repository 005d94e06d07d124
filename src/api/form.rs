//! The form an answer must have: from `response_format`, `text.format` and a call that is demanded to a language that the
//! answer is held to.

use serde_json::{Value, json};

use super::calls::Expected;
use super::error::ApiError;
use super::prompts::of_prompt;
use super::state::AppState;
use super::wire::options::{JsonSchemaFormat, ResponseFormat};
use super::wire::responses::TextFormat;
use crate::prompt::{Blueprint, Form, Instead, PromptError, Text};

/// A form asked for, and where the request asks for it.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked {
    form: Form,
    path: &'static str,
}

/// Of a chat request; `None` is any text.
pub(crate) fn of_chat(format: Option<ResponseFormat>) -> Result<Option<Asked>, ApiError> {
    const SCHEMA: &str = "response_format.json_schema";
    let Some(format) = format else { return Ok(None) };
    refuse_beside(format.r#type.as_deref(), format.json_schema.is_some(), SCHEMA)?;
    let schema = || {
        let JsonSchemaFormat { name, schema, .. } = format.json_schema.ok_or_else(|| ApiError::missing(SCHEMA))?;
        named(name, "response_format.json_schema.name")?;
        schema.ok_or_else(|| ApiError::missing("response_format.json_schema.schema"))
    };
    asked(format.r#type.as_deref(), "response_format", "response_format.json_schema.schema", schema)
}

/// Of a request to `/v1/responses`.
pub(crate) fn of_responses(format: Option<TextFormat>) -> Result<Option<Asked>, ApiError> {
    let Some(format) = format else { return Ok(None) };
    refuse_beside(format.r#type.as_deref(), format.schema.is_some(), "text.format.schema")?;
    let schema = || {
        named(format.name, "text.format.name")?;
        format.schema.ok_or_else(|| ApiError::missing("text.format.schema"))
    };
    asked(format.r#type.as_deref(), "text.format", "text.format.schema", schema)
}

/// Refuses a schema beside a type that holds to none.
fn refuse_beside(kind: Option<&str>, schema: bool, path: &str) -> Result<(), ApiError> {
    match kind {
        Some(kind @ ("text" | "json_object")) if schema => {
            let message =
                format!("The type '{kind}' holds to no schema; ask for 'json_schema', or leave '{path}' out.");
            Err(ApiError::invalid(path, message))
        }
        _ => Ok(()),
    }
}

fn asked(
    kind: Option<&str>,
    path: &'static str,
    schema_path: &'static str,
    schema: impl FnOnce() -> Result<Value, ApiError>,
) -> Result<Option<Asked>, ApiError> {
    match kind {
        None => Err(ApiError::missing(&format!("{path}.type"))),
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Asked { form: Form::Json, path })),
        Some("json_schema") => {
            let schema = schema()?;
            if !schema.is_object() && !schema.is_boolean() {
                return Err(ApiError::invalid(
                    schema_path,
                    format!("'{schema_path}' must be a JSON Schema, an object."),
                ));
            }
            Ok(Some(Asked { form: Form::Schema(schema), path: schema_path }))
        }
        Some(other) => {
            let message =
                format!("'{path}.type' must be 'text', 'json_object' or 'json_schema', got {}.", json!(other));
            Err(ApiError::invalid(format!("{path}.type"), message))
        }
    }
}

/// The original API demands a name; nothing here needs it.
fn named(name: Option<String>, path: &str) -> Result<(), ApiError> {
    match name {
        Some(name) if !name.is_empty() => Ok(()),
        _ => Err(ApiError::missing(path)),
    }
}

/// Where a request describes what may be called.
const TOOLS: &str = "tools";

/// The language that an answer is held to, if to any: of what is asked for, or calls in its place where they are offered;
/// where a call is demanded, of that. Takes the processor for long where the schema is large.
pub(crate) async fn blueprint(
    state: &AppState,
    asked: Option<Asked>,
    expected: Expected,
) -> Result<Option<Blueprint>, ApiError> {
    if asked.is_none() && !matches!(expected, Expected::Demanded(_)) {
        return Ok(None);
    }
    let text = state.text().clone();
    let compiled = state.aside().run(move || compiled(&text, asked, expected)).await?;
    compiled.map_err(|(error, path)| of_prompt(&error, path))
}

/// The same, with what an error is about.
fn compiled(
    text: &Text,
    asked: Option<Asked>,
    expected: Expected,
) -> Result<Option<Blueprint>, (PromptError, &'static str)> {
    let alone =
        |asked: &Asked| text.blueprint(asked.form.clone(), Instead::Nothing).map_err(|error| (error, asked.path));
    match (asked, expected) {
        (asked, Expected::Demanded(tools)) => {
            // The call comes in its place, but nothing is asked for that could not be.
            asked.as_ref().map(alone).transpose()?;
            text.blueprint(Form::Call(tools), Instead::Nothing).map(Some).map_err(|error| (error, TOOLS))
        }
        (Some(asked), Expected::Offered(tools)) => {
            let both = text.blueprint(asked.form.clone(), Instead::Calls(tools));
            // What cannot be held to by itself is at fault; otherwise it is the tools.
            both.map(Some).or_else(|error| alone(&asked).and(Err((error, TOOLS))))
        }
        (asked, Expected::Nothing | Expected::Offered(_)) => asked.as_ref().map(alone).transpose(),
    }
}
