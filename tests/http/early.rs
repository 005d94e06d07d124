//! What is refused before work is done for it.

use axum::body::Body;
use axum::http::Request;
use canvasd::api::ApiSettings;
use canvasd::scheduler::Settings;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::support::{App, Reply, chat_body};

/// A form that is found to be none when it is compiled; as chat and responses have it.
fn unenforceable() -> Value {
    let schema = json!({"type": "nonsense"});
    json!({"type": "json_schema", "name": "n", "schema": schema, "json_schema": {"name": "n", "schema": schema}})
}

#[tokio::test]
async fn a_text_that_cannot_fit_is_refused_by_its_bytes_and_one_that_fits_never() {
    let app = App::new();
    // The longest token has 16 bytes, and a prompt at most 624 tokens.
    let long = "x".repeat(16 * 624 + 1);
    for (path, body, param) in [
        ("/v1/completions", json!({"prompt": ["x", long]}), "prompt"),
        ("/v1/chat/completions", chat_body(&long, json!({})), "messages"),
        ("/v1/responses", json!({"input": long}), "input"),
    ] {
        let error = app.post(path, &body).await.refused(400);
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!("context_length_exceeded")));
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("has at least 62") && message.contains("shorten it to at most 624,"), "{message}");
    }
    let dense = "<|tool_response>".repeat(623);
    app.complete(dense, json!({"max_tokens": 1, "diffusion": {"max_denoising_steps": 1}})).await.ok();
}

#[tokio::test]
async fn more_than_the_context_is_cut_into_tokens_but_not_any_amount() {
    let app = App::new();
    let reply = app.post("/tokenize", &json!({"prompt": "x ".repeat(20_000)})).await.ok();
    assert!(reply["count"].as_u64().unwrap() > 640);
    let long = "x".repeat((1 << 20) + 1);
    for (body, param) in
        [(json!({"prompt": long}), "prompt"), (json!({"messages": [{"role": "user", "content": long}]}), "messages")]
    {
        let error = app.post("/tokenize", &body).await.refused(400);
        assert_eq!(error["param"], param);
        assert!(error["message"].as_str().unwrap().ends_with("send it in parts."), "{error}");
    }
}

#[tokio::test]
async fn an_engine_that_takes_nothing_is_told_of_before_the_work() {
    let App { router, engine } = App::new();
    drop(engine);
    for (path, body) in [
        ("/v1/chat/completions", chat_body("hello", json!({"response_format": unenforceable()}))),
        ("/v1/responses", json!({"input": "hello", "text": {"format": unenforceable()}})),
    ] {
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.body(Body::from(body.to_string())).unwrap();
        let reply = Reply::of(router.clone().oneshot(request).await.expect("infallible")).await;
        assert_eq!(reply.refused(503)["code"], "engine_stopped", "{path}");
    }
}

#[tokio::test]
async fn a_full_queue_is_told_of_before_the_work() {
    let app = App::with(ApiSettings::default(), Settings { queue: 1, max_running: 1, ..Settings::default() });
    let fields = json!({"response_format": unenforceable()});
    app.chat("hello", fields.clone()).await.refused(400);
    let body = chat_body("babble", json!({"max_tokens": 400, "stream": true})).to_string();
    let mut held = Vec::new();
    loop {
        let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
        let response = app.send(request.body(Body::from(body.clone())).unwrap()).await;
        if !response.status().is_success() {
            break;
        }
        held.push(response);
    }
    assert_eq!(app.chat("hello", fields).await.refused(429)["code"], "queue_full");
    let metrics = app.get("/metrics").await.body;
    assert!(metrics.contains("canvasd_requests_total{outcome=\"queue_full\"} 2\n"), "{metrics}");
}
