//! `POST /v1/responses`: the stateless subset.

use serde_json::{Value, json};

use super::support::{App, MODEL, Reply, STORY};

async fn respond(app: &App, input: Value, fields: Value) -> Reply {
    let mut body = json!({"model": MODEL, "input": input});
    body.as_object_mut().unwrap().extend(fields.as_object().cloned().unwrap_or_default());
    app.post("/v1/responses", &body).await
}

/// The text, as the SDKs' `output_text` has it.
fn text(response: &Value) -> String {
    let items = response["output"].as_array().unwrap().iter().filter(|item| item["type"] == "message");
    let parts = items.flat_map(|item| item["content"].as_array().unwrap());
    parts.map(|part| part["text"].as_str().unwrap()).collect()
}

/// The events of a stream: names and data.
fn events(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!(reply.headers["content-type"], "text/event-stream", "{}", reply.body);
    let blocks = reply.body.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    let events: Vec<(String, Value)> = blocks
        .map(|block| {
            let (mut name, mut data) = (String::new(), Value::Null);
            for line in block.lines() {
                if let Some(value) = line.strip_prefix("event: ") {
                    name = value.to_owned();
                } else if let Some(value) = line.strip_prefix("data: ") {
                    data = serde_json::from_str(value).unwrap();
                }
            }
            (name, data)
        })
        .collect();
    for (sequence, (name, data)) in events.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(sequence)));
    }
    events
}

#[tokio::test]
async fn an_answer_has_the_shape_that_clients_expect() {
    let app = App::new();
    let fields = json!({"instructions": "Be kind.", "metadata": {"a": "b"}, "store": true, "seed": 1});
    let reply = respond(&app, json!("hello"), fields).await.ok();
    assert!(reply["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!((&reply["object"], &reply["status"]), (&json!("response"), &json!("completed")));
    assert_eq!((&reply["instructions"], &reply["metadata"]), (&json!("Be kind."), &json!({"a": "b"})));
    assert_eq!((&reply["store"], &reply["error"], &reply["tools"]), (&json!(false), &Value::Null, &json!([])));
    let item = &reply["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    let part = json!({"type": "output_text", "text": "Hello there.", "annotations": [], "logprobs": []});
    assert_eq!(item["content"], json!([part]));
    let usage = &reply["usage"];
    let sum = usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
}

#[tokio::test]
async fn an_input_is_a_text_or_messages() {
    let app = App::new();
    let first = respond(&app, json!("think"), json!({})).await.ok();
    assert_eq!(first["output"][0]["type"], "reasoning");
    assert_eq!(first["output"][0]["content"][0]["text"], "The fox asks.");
    assert_eq!(text(&first), "It is a fox.");
    // The output goes back as it came.
    let mut items = vec![json!({"role": "user", "content": "think"})];
    items.extend(first["output"].as_array().unwrap().iter().cloned());
    items.push(json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}));
    assert_eq!(text(&respond(&app, json!(items), json!({})).await.ok()), "Hello there.");
}

#[tokio::test]
async fn a_stream_has_the_documented_events_and_the_same_text() {
    let app = App::new();
    let whole = respond(&app, json!("story"), json!({"seed": 3})).await.ok();
    let events = events(&respond(&app, json!("story"), json!({"seed": 3, "stream": true})).await);
    let names: Vec<&str> =
        events.iter().map(|(name, _)| name.as_str()).filter(|name| !name.ends_with("delta")).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names, expected);
    let deltas = events.iter().filter(|(name, _)| name == "response.output_text.delta");
    assert_eq!(deltas.map(|(_, data)| data["delta"].as_str().unwrap()).collect::<String>(), STORY);
    let last = &events.last().unwrap().1["response"];
    assert_eq!(text(last), text(&whole));
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    assert_eq!(events[0].1["response"]["id"], last["id"]);
    for (name, data) in &events {
        if name.contains("content_part") || name.contains("output_text") {
            assert_eq!((&data["output_index"], &data["content_index"]), (&json!(0), &json!(0)));
            assert_eq!(data["item_id"], last["output"][0]["id"]);
        }
    }
}

#[tokio::test]
async fn thoughts_limits_progress_and_errors_are_streamed() {
    let app = App::new();
    let stream = async |input: &str, mut fields: Value| {
        fields["stream"] = json!(true);
        events(&respond(&app, json!(input), fields).await)
    };
    let thought = stream("think", json!({})).await;
    assert!(thought.iter().any(|(name, data)| name == "response.reasoning_text.delta" && data["output_index"] == 0));
    assert!(thought.iter().any(|(name, data)| name == "response.output_text.delta" && data["output_index"] == 1));
    let cut = stream("babble", json!({"max_output_tokens": 20, "diffusing": true})).await;
    let (name, last) = cut.last().unwrap();
    assert_eq!((name.as_str(), &last["response"]["status"]), ("response.incomplete", &json!("incomplete")));
    assert_eq!(last["response"]["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(last["response"]["usage"]["output_tokens"], 20);
    assert!(cut.iter().any(|(name, data)| name == "canvasd.diffusion.progress" && data["diffusion"]["v"] == 1));
    let crash = stream("crash", json!({})).await;
    let (name, last) = crash.last().unwrap();
    assert_eq!((name.as_str(), &last["code"]), ("error", &json!("model_failed")));
    assert_eq!(last["error"]["message"], last["message"]);
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let app = App::new();
    for (fields, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "input[0].content[0]",
        ),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"temperature": 9}), "temperature"),
        (json!({"tools": [{"type": "web_search"}]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"include": ["x"]}), "include"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"text": {"format": {"type": "json_schema"}}}), "text.format.type"),
        (json!({"reasoning": {"effort": "endless"}}), "reasoning.effort"),
    ] {
        let error = respond(&app, json!("hello"), fields.clone()).await.refused(400);
        assert_eq!(error["param"], param, "{fields}: {error}");
    }
    let document: Value = serde_json::from_str(&canvasd::api::openapi()).unwrap();
    let mut body = json!({});
    for name in document["components"]["schemas"]["ResponsesRequest"]["properties"].as_object().unwrap().keys() {
        body[name] = Value::Null;
    }
    body["input"] = json!("hello");
    assert_eq!(text(&app.post("/v1/responses", &body).await.ok()), "Hello there.");
}
