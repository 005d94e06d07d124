//! A body means what it says: no array for an object, no key twice, and no field that is dropped without a word.

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

#[tokio::test]
async fn a_field_of_another_kind_is_refused() {
    let app = App::new();
    let part = |part: Value| (CHAT, json!({"messages": [{"role": "user", "content": [part]}]}));
    let item = |item: Value| ("/v1/responses", json!({"input": [item, {"role": "user", "content": "hello"}]}));
    let call = json!({"type": "function_call", "call_id": "c", "name": "f"});
    let answered = |result: Value| ("/v1/responses", json!({"input": [call, result]}));
    let output = |field: &str| {
        let mut result = json!({"type": "function_call_output", "call_id": "c", "output": "x"});
        result[field] = json!("user");
        answered(result)
    };
    let text = "messages[0].content[0]";
    for ((path, body), param) in [
        (part(json!({"type": "text", "text": "x", "image_url": {"url": "x"}})), format!("{text}.image_url")),
        (part(json!({"type": "input_text", "text": "x", "input_audio": {}})), format!("{text}.input_audio")),
        (part(json!({"type": "text", "text": "x", "file": {}})), format!("{text}.file")),
        (part(json!({"type": "text", "text": "x", "refusal": "y"})), format!("{text}.refusal")),
        (part(json!({"type": "refusal", "text": "x", "refusal": "y"})), format!("{text}.text")),
        (part(json!({"type": "refusal", "refusal": "y", "file": {}})), format!("{text}.file")),
        (
            (CHAT, json!({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]})),
            "messages[0].tool_call_id".into(),
        ),
        (item(json!({"role": "user", "content": "x", "call_id": "c"})), "input[0].call_id".into()),
        (item(json!({"role": "user", "content": "x", "arguments": "{}"})), "input[0].arguments".into()),
        (item(json!({"role": "user", "content": "x", "output": "x"})), "input[0].output".into()),
        (
            item(json!({"type": "function_call", "call_id": "c", "name": "f", "content": "x"})),
            "input[0].content".into(),
        ),
        (item(json!({"type": "function_call", "call_id": "c", "name": "f", "output": "x"})), "input[0].output".into()),
        (output("name"), "input[1].name".into()),
        (output("arguments"), "input[1].arguments".into()),
        (output("content"), "input[1].content".into()),
        (output("role"), "input[1].role".into()),
    ] {
        let error = app.post(path, &body).await.refused(400);
        assert_eq!(error["param"], json!(param), "{body}: {error}");
    }
}

#[tokio::test]
async fn a_name_reaches_the_template_from_either_endpoint() {
    let app = App::speaking(
        "{% for m in messages %}<|turn>{{ m['role'] }}\n{{ m['name'] or '' }}{{ m['content'] }}<turn|>\n{% endfor %}\
         {{ '<|turn>model\n' }}",
    );
    let message = |name: &str| json!([{"role": "user", "content": " hello", "name": name}]);
    for name in ["", "Ann and Bob and Carl"] {
        let chat = app.post(CHAT, &json!({"messages": message(name)})).await.ok();
        let responses = app.post("/v1/responses", &json!({"input": message(name)})).await.ok();
        assert_eq!(chat["usage"]["prompt_tokens"], responses["usage"]["input_tokens"], "{name}");
    }
    let tokens = async |name| app.post("/v1/responses", &json!({"input": message(name)})).await.ok()["usage"].clone();
    let (without, with) = (tokens("").await, tokens("Ann and Bob and Carl").await);
    assert!(with["input_tokens"].as_u64() > without["input_tokens"].as_u64());
}
