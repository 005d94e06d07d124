//! A body means what it says: no array for an object, and no key twice.

use serde_json::{Value, json};

use super::support::{App, chat_body};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_array_is_no_object() {
    let app = App::new();
    let chat = |fields: Value| (CHAT, chat_body("hello", fields));
    for ((path, body), param) in [
        (chat(json!({"stream_options": [true, null, null]})), "stream_options"),
        (
            chat(json!({"stream_options": {"include_diffusion_progress": [1, "text", 2]}})),
            "stream_options.include_diffusion_progress",
        ),
        (chat(json!({"response_format": ["text", null]})), "response_format"),
        (chat(json!({"tools": [["function", ["f", "desc", {}, false]]]})), "tools[0]"),
        (chat(json!({"tools": [{"type": "function", "function": ["f", "desc", {}, false]}]})), "tools[0].function"),
        (chat(json!({"diffusion": ["fast", 1, null, null, null, null]})), "diffusion"),
        (chat(json!({"messages": [["user", "hello"]]})), "messages[0]"),
        (chat(json!({"messages": [{"role": "user", "content": [["text", "hello"]]}]})), "messages[0].content[0]"),
        (chat(json!({"messages": [{"role": {"user": null}, "content": "hello"}]})), "messages[0].role"),
        (("/v1/responses", json!({"input": [["message", "user", "hello"]]})), "input[0]"),
        (("/v1/responses", json!({"input": "hello", "text": [{"type": "text"}, null]})), "text"),
        (("/v1/responses", json!({"input": "hello", "reasoning": ["low", null, null]})), "reasoning"),
        (("/tokenize", json!({"messages": [["user", "hello"]]})), "messages[0]"),
    ] {
        let error = app.post(path, &body).await.refused(400);
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!("invalid_type")), "{body}: {error}");
    }
}

#[tokio::test]
async fn a_key_stands_once() {
    let app = App::new();
    let post = async |path: &str, first: &str, field: &str| {
        app.post_bytes(path, format!("{{{first},\"max_tokens\":1,{field}}}").into_bytes()).await
    };
    let messages = "\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]";
    for (path, first) in [(CHAT, messages), ("/v1/completions", "\"prompt\":\"hello\"")] {
        let error = post(path, first, "\"logit_bias\":{\"5\":-100,\"5\":100}").await.refused(400);
        assert!(error["param"] == "logit_bias" && error["message"].as_str().unwrap().contains("`5`"), "{error}");
        post(path, first, "\"logit_bias\":{\"5\":-100,\"6\":100}").await.ok();
    }
    let switch = "\"chat_template_kwargs\":{\"enable_thinking\":true,\"enable_thinking\":false}";
    assert_eq!(post(CHAT, messages, switch).await.refused(400)["param"], "chat_template_kwargs");
    // What has no effect has none, twice too.
    let reply = post(CHAT, messages, "\"spam\":{\"a\":1,\"a\":2},\"spam\":3").await;
    assert_eq!(reply.headers["x-canvasd-ignored"], "spam");
    reply.ok();
}
