//! Shapes that break clients most often: nulls inside, parts on every role, and usage that adds up in every mode.

use serde_json::{Value, json};

use super::support::{App, MODEL, chat_body, hear};

/// An object with every field that the document knows of that type, each null.
fn nulls(schema: &str) -> Value {
    let document: Value = serde_json::from_str(&canvasd::api::openapi()).unwrap();
    let fields = document["components"]["schemas"][schema]["properties"].as_object();
    let fields = fields.unwrap_or_else(|| panic!("no schema {schema}"));
    fields.keys().map(|name| (name.clone(), Value::Null)).collect::<serde_json::Map<_, _>>().into()
}

fn with(mut object: Value, fields: Value) -> Value {
    object.as_object_mut().unwrap().extend(fields.as_object().cloned().unwrap_or_default());
    object
}

#[tokio::test]
async fn null_is_absent_inside_of_every_object_too() {
    let app = App::new();
    let part = with(nulls("ContentPart"), json!({"type": "text", "text": "Hm."}));
    let function = with(nulls("SentFunction"), json!({"name": "weather"}));
    let call = with(nulls("SentToolCall"), json!({"id": "c", "function": function}));
    let function = with(nulls("Function"), json!({"name": "weather"}));
    let tool = with(nulls("Tool"), json!({"type": "function", "function": function}));
    let message = |fields: Value| with(nulls("Message"), fields);
    let progress = json!({"include_diffusion_progress": nulls("ProgressOptions")});
    let body = json!({
        "model": MODEL,
        "messages": [
            message(json!({"role": "system", "content": [part]})),
            message(json!({"role": "assistant", "tool_calls": [call]})),
            message(json!({"role": "tool", "tool_call_id": "c", "content": "Hm."})),
            message(json!({"role": "user", "content": "hello"})),
        ],
        "tools": [tool], "stream_options": with(nulls("StreamOptions"), progress), "diffusion": nulls("DiffusionOptions"),
        "response_format": {"type": "text", "json_schema": null},
    });
    let reply = app.post("/v1/chat/completions", &body).await;
    assert_eq!(reply.headers.get("x-canvasd-ignored"), None);
    assert_eq!(reply.ok()["choices"][0]["message"]["content"], "Hello there.");
    let item = |fields: Value| with(nulls("InputItem"), fields);
    let body = json!({
        "input": [
            item(json!({"type": "function_call", "call_id": "c", "name": "weather"})),
            item(json!({"type": "function_call_output", "call_id": "c", "output": "Hm."})),
            item(json!({"type": "reasoning"})),
            item(json!({"role": "user", "content": "hello"})),
        ],
        "tools": [with(nulls("FunctionTool"), json!({"type": "function", "name": "weather"}))],
        "reasoning": nulls("ReasoningOptions"), "text": nulls("TextOptions"), "stream_options": nulls("StreamOptions"),
    });
    let reply = app.post("/v1/responses", &body).await;
    assert_eq!(reply.headers.get("x-canvasd-ignored"), None);
    assert_eq!(reply.ok()["output"][0]["content"][0]["text"], "Hello there.");
    for (path, schema, fields) in [
        ("/tokenize", "TokenizeRequest", json!({"prompt": "hello"})),
        ("/detokenize", "DetokenizeRequest", json!({"tokens": [1]})),
    ] {
        app.post(path, &with(nulls(schema), fields)).await.ok();
    }
}

#[tokio::test]
async fn parts_are_valid_on_every_role() {
    let app = App::new();
    let call = json!([{"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]);
    for role in ["system", "developer", "user", "assistant", "tool"] {
        let said = |content: Value| {
            let user = json!({"role": "user", "content": "hello"});
            let messages = match role {
                // A result answers a call, and nothing else does.
                "tool" => json!([
                    {"role": "assistant", "content": null, "tool_calls": call},
                    {"role": role, "content": content, "tool_call_id": "c"},
                    user
                ]),
                _ => json!([{"role": role, "content": content}, user]),
            };
            json!({"messages": messages})
        };
        let text = app.post("/tokenize", &said(json!("two parts"))).await.ok();
        let parts = json!([{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]);
        assert_eq!(app.post("/tokenize", &said(parts.clone())).await.ok()["count"], text["count"], "{role}");
        let reply = app.post("/v1/chat/completions", &said(parts)).await.ok();
        assert_eq!(reply["choices"][0]["message"]["content"], "Hello there.", "{role}");
    }
}

#[tokio::test]
async fn usage_adds_up_in_every_mode() {
    let app = App::new();
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    for (path, body, sums) in [
        ("/v1/chat/completions", chat_body("story", json!({"seed": 1})), true),
        ("/v1/chat/completions", chat_body("think", json!({"n": 3, "seed": 1})), true),
        ("/v1/chat/completions", chat_body("both", json!({"tools": tools})), true),
        ("/v1/chat/completions", chat_body("story", json!({"stop": "gentle"})), true),
        ("/v1/chat/completions", chat_body("babble", json!({"max_tokens": 21, "n": 2})), true),
        ("/v1/completions", json!({"prompt": ["hello", "story"], "n": 2, "max_tokens": 40}), true),
        ("/v1/completions", json!({"prompt": "dice", "best_of": 4, "seed": 1}), false),
        ("/v1/completions", json!({"prompt": "hello", "echo": true}), true),
    ] {
        let check = |usage: &Value| {
            let of = |field: &str| usage[field].as_u64().unwrap();
            assert_eq!(of("total_tokens"), of("prompt_tokens") + of("completion_tokens"), "{usage}");
            let thought = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
            assert!(thought <= of("completion_tokens") && of("completion_tokens") > 0);
            let diffusion = &usage["diffusion"];
            let forward = diffusion["tokens_per_forward"].as_f64().unwrap() * diffusion["steps"].as_f64().unwrap();
            assert!((forward - of("completion_tokens") as f64).abs() < 1e-6, "{usage}");
        };
        let whole = app.post(path, &body).await.ok();
        check(&whole["usage"]);
        if !sums {
            continue;
        }
        let streamed = with(body.clone(), json!({"stream": true, "stream_options": {"include_usage": true}}));
        let events = app.post(path, &streamed).await.events();
        let usage = &events.last().unwrap()["usage"];
        check(usage);
        for field in ["prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details"] {
            assert_eq!(usage[field], whole["usage"][field], "{path} {body}");
        }
    }
    // Choices of one request cost what they cost one by one.
    let three = app
        .post(
            "/v1/chat/completions",
            &chat_body(
                "dice",
                json!({"n": 3, "seed": 4, "stream": true,
        "stream_options": {"include_usage": true}}),
            ),
        )
        .await
        .events();
    let texts: Vec<String> = (0..3).map(|index| hear(&three, index).content).collect();
    let mut sum = 0;
    for text in &texts {
        sum += app.post("/tokenize", &json!({"prompt": text})).await.ok()["count"].as_u64().unwrap();
    }
    // `<bos>` in front of each text stands for the end token behind each answer.
    assert_eq!(three.last().unwrap()["usage"]["completion_tokens"], sum);
}

/// It is written down in pieces; a small one is not.
#[tokio::test]
async fn a_large_answer_is_what_its_choices_are() {
    let app = App::new();
    let fields = |n: usize| json!({"n": n, "seed": 3, "logprobs": true, "top_logprobs": 20, "max_tokens": 16});
    let large = app.chat("story", fields(40)).await;
    assert_eq!(large.headers["content-type"], "application/json");
    assert!(large.headers.get("content-length").is_none() && large.body.len() > 500_000);
    let (large, small) = (large.ok(), app.chat("story", fields(1)).await.ok());
    let keys = |reply: &Value| reply.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&large), keys(&small));
    assert_eq!((&large["service_tier"], &large["choices"][0]), (&small["service_tier"], &small["choices"][0]));
    assert_eq!(large["usage"]["completion_tokens"], 40 * 16);
    for (index, choice) in large["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        let entries = choice["logprobs"]["content"].as_array().unwrap();
        assert!(
            entries.len() == 16 && entries.iter().all(|entry| entry["top_logprobs"].as_array().unwrap().len() == 20)
        );
    }
}
