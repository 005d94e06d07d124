//! The OpenAPI document, made from the handlers and the wire types.

use serde_json::{Value, json};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::error::{ErrorBody, ErrorObject};
use super::routes::{chat, completions, document, models, probes, responses, tokens};

/// The document as JSON text: what `openapi/openapi.json` holds and `GET /openapi.json` answers.
pub fn openapi() -> String {
    // The document is built from literals; a test makes it.
    let mut document = serde_json::to_value(Document::openapi()).expect("the document is JSON");
    describe_events(&mut document);
    format!("{document:#}\n")
}

/// Says of every stream what an event is: text, which holds the JSON that the handlers name.
fn describe_events(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value.get_mut("schema").filter(|_| key == "text/event-stream") {
                    Some(schema) => *schema = event_of(schema.take()),
                    None => describe_events(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(describe_events),
        _ => {}
    }
}

/// An event whose data is JSON: what the handler names, or an error's envelope where the answer breaks off. A stream of
/// chunks ends with `[DONE]`.
fn event_of(data: Value) -> Value {
    let chunks = data["$ref"].as_str().is_some_and(|name| name.contains("Chunk"));
    let data = json!({"anyOf": [data, {"$ref": "#/components/schemas/ErrorBody"}]});
    let json = json!({"type": "string", "contentMediaType": "application/json", "contentSchema": data});
    let data = if chunks { json!({"anyOf": [json, {"type": "string", "const": "[DONE]"}]}) } else { json };
    json!({
        "type": "object",
        "description": "One server-sent event.",
        "required": ["data"],
        "properties": {"event": {"type": "string", "description": "Its name, where it has one."}, "data": data}
    })
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "canvasd",
        description = "Text-diffusion language models behind the OpenAI HTTP API. Fields that are not listed are \
                       accepted, have no effect, and are named in the response header `x-canvasd-ignored`, up to 32 of \
                       them in about 1,024 bytes; a list that lacks some ends with `...`. `null` is the same as \
                       absence."
    ),
    paths(
        chat::chat,
        completions::completions,
        responses::responses,
        models::list,
        models::retrieve,
        tokens::tokenize,
        tokens::detokenize,
        probes::health,
        probes::ready,
        probes::version,
        probes::metrics,
        document::json,
        document::page,
        document::playground,
    ),
    components(schemas(ErrorBody, ErrorObject)),
    tags(
        (name = "Generation", description = "Text from the model."),
        (name = "Models", description = "What can be asked for."),
        (name = "Tokens", description = "Between text and tokens."),
        (name = "Operation", description = "For those who run the server."),
    ),
    modifiers(&Keys)
)]
struct Document;

/// Adds the bearer keys, and says of each operation that can answer 401 that it wants one, where the server has any.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("key", scheme);
        let items = document.paths.paths.values_mut();
        for operation in items.flat_map(|item| [&mut item.get, &mut item.post]).flatten() {
            if operation.responses.responses.contains_key("401") {
                let key = SecurityRequirement::new("key", Vec::<String>::new());
                operation.security = Some(vec![SecurityRequirement::default(), key]);
            }
        }
    }
}
