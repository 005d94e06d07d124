//! Every answer that is no success has the envelope, whoever made it.

use axum::body::Body;
use axum::http::{Method, Request, header};
use serde_json::{Value, json};

use super::support::{App, Reply, chat_body};

#[tokio::test]
async fn the_frameworks_own_errors_are_enveloped() {
    let app = App::new();
    let send = async |method: &str, path: &str, kind: Option<&str>, body: &str| {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        Reply::of(app.send(request.body(Body::from(body.to_owned())).unwrap()).await).await
    };
    assert_eq!(send("GET", "/nowhere", None, "").await.refused(404)["code"], "not_found");
    send("POST", "/v1/chat", None, "").await.refused(404);
    send("GET", "/v1/models/", None, "").await.refused(404);
    let error = send("GET", "/v1/models/%FF%FE", None, "").await.refused(400);
    assert!(error["param"] == "model" && error["message"].as_str().unwrap().contains("UTF-8"), "{error}");
    let document: Value = serde_json::from_str(&canvasd::api::openapi()).unwrap();
    assert!(document["paths"]["/v1/models/{model}"]["get"]["responses"]["400"].is_object());
    for (method, path) in
        [("GET", "/v1/chat/completions"), ("DELETE", "/v1/models"), ("PUT", "/health"), ("BREW", "/tokenize")]
    {
        let reply = send(method, path, None, "").await;
        assert_eq!(reply.refused(405)["code"], "method_not_allowed");
        assert!(reply.headers.contains_key(header::ALLOW));
    }
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonp")] {
        send("POST", "/v1/completions", kind, "{}").await.refused(415);
    }
    for kind in ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"] {
        send("POST", "/v1/completions", Some(kind), "{\"prompt\":\"hello\"}").await.ok();
    }
}

#[tokio::test]
async fn json_errors_say_where() {
    let app = App::new();
    let path = "/v1/chat/completions";
    for body in [
        "",
        " ",
        "{",
        "{\"messages\":[}",
        "{\"model\":\"x\"} tail",
        "nonsense",
        "{\"a\":1e999}",
        "[1,2,3]",
        "\"hello\"",
        "null",
        "{\"user\":\"\\ud800\"}",
        "{\"user\":\"\\ud800\\u0041\"}",
    ] {
        app.post_bytes(path, body.into()).await.refused(400);
    }
    let error = app.post_bytes(path, b"{\"messages\":\n [{\"role\":\"user\",,}]}".to_vec()).await.refused(400);
    assert!(error["message"].as_str().unwrap().contains("line 2 column"), "{error}");
    assert_eq!(error["code"], "invalid_json");
    let error = app.post_bytes(path, b"{\n\"temperature\": \"hot\"}".to_vec()).await.refused(400);
    assert!(error["message"].as_str().unwrap().contains("line 2 column"), "{error}");
    assert_eq!(error["param"], "temperature");
    for body in [&b"\xff\xfe{\0}\0"[..], b"{\"user\":\"\xc3\x28\"}", b"{\"user\":\"a\nb\"}", b"\0{}"] {
        app.post_bytes(path, body.to_vec()).await.refused(400);
    }
    // Quoted input does not make the error long.
    let long = json!({"temperature": "x".repeat(100_000)}).to_string();
    assert!(app.post_bytes(path, long.into()).await.body.len() < 4000);
    let deep = format!("{{\"metadata\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
    app.post_bytes(path, deep.into()).await.refused(400);
}

#[tokio::test]
async fn odd_but_legal_text_is_text() {
    let app = App::new();
    for text in ["\u{0}", "a\u{0}b", "\u{feff}hello", "👩‍👩‍👧‍👦", "\u{202e}", "<|turn>user\n", "<bos>"]
    {
        app.chat(text, json!({"max_tokens": 4})).await.ok();
        app.complete(text, json!({"max_tokens": 4})).await.ok();
    }
    let mut marked = vec![0xEF, 0xBB, 0xBF];
    marked.extend_from_slice(b"{\"prompt\":\"hello\"}");
    assert_eq!(app.post_bytes("/v1/completions", marked).await.ok()["choices"][0]["text"], "Hello there.");
    let twice = b"{\"prompt\":\"hello\",\"prompt\":\"hello\"}".to_vec();
    app.post_bytes("/v1/completions", twice).await.refused(400);
}

#[tokio::test]
async fn a_compressed_body_is_told_so() {
    let app = App::new();
    let send = async |encodings: &[&str], body: &[u8]| {
        let mut request = Request::post("/v1/completions").header(header::CONTENT_TYPE, "application/json");
        for encoding in encodings {
            request = request.header(header::CONTENT_ENCODING, *encoding);
        }
        Reply::of(app.send(request.body(Body::from(body.to_vec())).unwrap()).await).await
    };
    let plain = b"{\"prompt\":\"hello\"}";
    for encodings in [&["gzip"][..], &["identity, br"], &["identity", "zstd"], &["GZIP"], &["x y"]] {
        let error = send(encodings, b"\x1f\x8b\x08\0\0\0").await.refused(415);
        assert!(error["message"].as_str().unwrap().contains("send the body uncompressed"), "{error}");
        assert_eq!(error["code"], "unsupported_encoding");
        send(encodings, plain).await.refused(415);
    }
    for encodings in [&["identity"][..], &["Identity"], &[""]] {
        send(encodings, plain).await.ok();
    }
}

#[tokio::test]
async fn an_error_says_what_to_do_next() {
    let app = App::new();
    let chat = "/v1/chat/completions";
    let ask = |fields: Value| chat_body("hello", fields);
    let called = |arguments: &str| {
        let call = json!({"id": "c", "function": {"name": "f", "arguments": arguments}});
        json!({"messages": [{"role": "assistant", "tool_calls": [call]}]})
    };
    let allowed = json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}});
    for (path, body, param, said) in [
        // A canvas has 16 tokens and the context 640.
        ("/v1/completions", json!({"prompt": vec![100; 625]}), "prompt", "has 625 tokens; shorten it to at most 624,"),
        ("/v1/completions", json!({"prompt": vec![100; 9999]}), "prompt", "shorten it to at most 624,"),
        (
            "/v1/completions",
            json!({"prompt": "x", "max_tokens": -1}),
            "max_tokens",
            "expected a whole number, at least 1",
        ),
        ("/v1/completions", json!({"prompt": "x", "best_of": -1}), "best_of", "expected a whole number, at least 1"),
        ("/v1/responses", json!({"input": "x", "max_output_tokens": -1}), "max_output_tokens", "at least 1"),
        (chat, ask(json!({"max_tokens": -1})), "max_tokens", "`-1`, expected a whole number, at least 1"),
        (chat, ask(json!({"max_tokens": 0})), "max_tokens", "must be at least 1, got 0"),
        (chat, ask(json!({"max_tokens": "1"})), "max_tokens", "expected a whole number, at least 1"),
        (chat, ask(json!({"n": -1})), "n", "expected a whole number, at least 1"),
        (chat, ask(json!({"top_logprobs": -1})), "top_logprobs", "expected a whole number, at least 0"),
        (chat, ask(json!({"diffusion": {"timeout_ms": -1}})), "diffusion.timeout_ms", "at least 1"),
        (chat, ask(json!({"user": {}})), "user", "invalid type: object, expected a string"),
        (chat, ask(json!({"user": []})), "user", "invalid type: array, expected a string"),
        (chat, ask(json!({"stop": {}})), "stop", "invalid type: object, expected a string or an array"),
        (chat, ask(json!({"n": 1.5})), "n", "invalid type: number `1.5`"),
        (chat, json!({"messages": [{"role": 5}]}), "messages[0].role", "invalid type: integer `5`, expected a string"),
        (
            chat,
            called("[]"),
            "messages[0].tool_calls[0].function.arguments",
            "of an object: invalid type: array, expected an object.",
        ),
        (chat, ask(json!({"tool_choice": {}})), "tool_choice.type", "Missing required parameter"),
        (
            chat,
            ask(json!({"tool_choice": {"type": "custom", "name": "f"}})),
            "tool_choice.type",
            "'required', or a function",
        ),
        (chat, ask(json!({"tool_choice": {"name": "f"}})), "tool_choice.type", "Missing required parameter"),
        (
            chat,
            ask(json!({"tool_choice": {"type": "function", "function": {"name": "a"}, "name": "b"}})),
            "tool_choice.name",
            "send one of them",
        ),
        (
            chat,
            json!({"messages": [{"role": "assistant", "content": "x", "reasoning_content": "a", "reasoning": "b"}]}),
            "messages[0].reasoning",
            "send one of them",
        ),
        (
            chat,
            called(r#"{"a": {"b": 1, "b": 2}}"#),
            "messages[0].tool_calls[0].function.arguments",
            "of an object: duplicate field `b`",
        ),
        (chat, ask(allowed.clone()), "tool_choice", "send only those"),
        (
            "/v1/responses",
            json!({"input": "x", "tool_choice": allowed["tool_choice"]}),
            "tool_choice",
            "send only those",
        ),
    ] {
        let error = app.post(path, &body).await.refused(400);
        let message = error["message"].as_str().unwrap();
        assert!(error["param"] == param && message.contains(said) && message.ends_with('.'), "{said}: {error}");
    }
    for body in [ask(json!({"max_tokens": 1, "n": 1})), ask(json!({"max_tokens": null, "n": null}))] {
        app.post(chat, &body).await.ok();
    }
    let fits = json!({"prompt": vec![100; 624], "max_tokens": 1, "diffusion": {"max_denoising_steps": 1}});
    app.post("/v1/completions", &fits).await.ok();
    let error = app.chat("fail", json!({})).await.refused(500);
    assert!(error["message"].as_str().unwrap().starts_with("The model failed: "), "{error}");
}

#[tokio::test]
async fn a_prompt_beyond_the_context_is_told_so() {
    let app = App::new();
    let error = app.chat(&"fox ".repeat(2000), json!({})).await.refused(400);
    assert_eq!((&error["param"], &error["code"]), (&json!("messages"), &json!("context_length_exceeded")));
}

#[tokio::test]
async fn a_number_beyond_32_bits_is_told_the_bound_that_it_breaks() {
    let app = App::new();
    let beyond = 1_u64 << 32;
    let chat = |fields: Value| ("/v1/chat/completions", chat_body("hello", fields));
    let progress = json!({"stream_options": {"include_diffusion_progress": {"every": beyond}}});
    let id = "expected a token id, a whole number below 2^32";
    for ((path, body), said) in [
        (chat(json!({"logprobs": true, "top_logprobs": beyond})), "must be between 0 and 20, got 4294967296."),
        (chat(progress), "must be between 1 and 1000, got 4294967296."),
        (("/v1/completions", json!({"prompt": "x", "logprobs": beyond})), "must be between 0 and 5, got 4294967296."),
        (("/v1/responses", json!({"input": "x", "top_logprobs": beyond})), "leave 'top_logprobs' out."),
        (("/v1/completions", json!({"prompt": [beyond]})), id),
        (("/v1/completions", json!({"prompt": [1, beyond]})), id),
        (("/v1/completions", json!({"prompt": [[1], [1, beyond]]})), id),
        (("/detokenize", json!({"tokens": [1, beyond]})), id),
        (("/detokenize", json!({"tokens": [beyond - 1]})), "ids of this model are below"),
    ] {
        let error = app.post(path, &body).await.refused(400);
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
    }
}
