//! A folder's tokenizer and chat template.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::Tokenizer;

use super::error::{CheckpointError, shown};
use super::folder::Folder;

/// What a chat template needs beside the messages.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Chat {
    /// The template's Jinja source.
    pub(crate) template: Option<String>,
    /// Spelling of the beginning-of-text token.
    pub(crate) bos_token: Option<String>,
    /// Spelling of the end-of-text token.
    pub(crate) eos_token: Option<String>,
}

/// Reads tokenizer.json.
///
/// # Errors
/// Where it is missing or cannot be understood.
pub(crate) fn tokenizer(folder: &Folder) -> Result<Tokenizer, CheckpointError> {
    const FILE: &str = "tokenizer.json";
    let bytes = folder.read(FILE)?.ok_or_else(|| CheckpointError::Missing {
        folder: folder.to_string(),
        file: FILE.to_owned(),
        hint: "copy it from the model's repository; tokenizer.model files are not read".to_owned(),
    })?;
    let damaged = |why: String| CheckpointError::damaged(FILE, why);
    // The tokenizers crate takes for granted that the parts it reads a second time are JSON, and panics where they are not.
    serde_json::from_slice::<Json>(&bytes).map_err(|error| damaged(format!("it is not JSON: {error}")))?;
    catching(|| Tokenizer::from_bytes(&bytes).map_err(|error| error.to_string()))
        .map_err(|why| damaged(format!("no tokenizer: {}", shown(&why))))
}

/// What the tokenizers crate gives; a panic in it, which a file can bring about, is an error like others.
pub(crate) fn catching<T>(make: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make));
    caught.unwrap_or_else(|_| Err("its parts do not fit each other".to_owned()))
}

/// Any JSON text, read through to its end with every string decoded, and nothing kept.
struct Json;

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;
        impl<'de> Visitor<'de> for Anything {
            type Value = Json;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
                Ok(Json)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
                Ok(Json)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
                Ok(Json)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
                Ok(Json)
            }

            fn visit_str<E>(self, _: &str) -> Result<Json, E> {
                Ok(Json)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
                while list.next_element::<Json>()?.is_some() {}
                Ok(Json)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                while map.next_entry::<Json, Json>()?.is_some() {}
                Ok(Json)
            }
        }
        deserializer.deserialize_any(Anything)
    }
}

/// Reads chat_template.jinja, or the template inside tokenizer_config.json, and the special tokens named there.
///
/// # Errors
/// Where a file is there and cannot be understood.
pub(crate) fn chat(folder: &Folder) -> Result<Chat, CheckpointError> {
    const FILE: &str = "tokenizer_config.json";
    let config = folder.json(FILE)?.unwrap_or_default();
    let special = |key: &str| match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => match other.get("content").and_then(Value::as_str) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(wrong(FILE, key, "a token's spelling was expected")),
        },
    };
    let template = match folder.text("chat_template.jinja")? {
        Some(template) => Some(template),
        None => inline_template(FILE, config.get("chat_template"))?,
    };
    Ok(Chat { template, bos_token: special("bos_token")?, eos_token: special("eos_token")? })
}

/// The older place: one string, or a list of named templates of which `default` is the one for chat.
fn inline_template(file: &str, value: Option<&Value>) -> Result<Option<String>, CheckpointError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            let template = default.and_then(|entry| entry.get("template")).and_then(Value::as_str);
            template
                .map(|text| Some(text.to_owned()))
                .ok_or_else(|| wrong(file, "chat_template", "no entry is named default"))
        }
        Some(_) => Err(wrong(file, "chat_template", "a template or a list of named templates was expected")),
    }
}

fn wrong(file: &str, key: &str, why: &str) -> CheckpointError {
    CheckpointError::Value { file: file.to_owned(), key: key.to_owned(), why: why.to_owned() }
}
