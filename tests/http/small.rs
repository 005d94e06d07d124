//! Models, tokens, probes and figures.

use axum::body::Body;
use axum::http::{Request, header};
use serde_json::json;
use tower::ServiceExt;

use super::support::{ALIAS, App, MODEL, Reply, STORY, ids};

#[tokio::test]
async fn models_are_listed_and_found() {
    let app = App::new();
    let list = app.get("/v1/models").await.ok();
    assert_eq!(list["object"], "list");
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, [MODEL, ALIAS]);
    for (path, id) in [("parrots/grey", MODEL), ("parrots%2Fgrey", MODEL), ("parrots%2fgrey", MODEL), (ALIAS, ALIAS)] {
        let model = app.get(&format!("/v1/models/{path}")).await.ok();
        assert_eq!((&model["id"], &model["root"], &model["object"]), (&json!(id), &json!(MODEL), &json!("model")));
        assert_eq!((&model["max_model_len"], &model["canvas_length"]), (&json!(640), &json!(16)));
        assert!(model["created"].is_u64() && model["owned_by"].is_string());
    }
    for path in ["gpt-5", "parrots", "parrots/grey/more", "%00"] {
        let error = app.get(&format!("/v1/models/{path}")).await.refused(404);
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    }
}

#[tokio::test]
async fn text_becomes_tokens_and_text_again() {
    let app = App::new();
    let reply = app.post("/tokenize", &json!({"prompt": STORY, "return_token_strs": true})).await.ok();
    let mut expected = ids("<bos>");
    expected.extend(ids(STORY));
    assert_eq!(reply["tokens"], json!(expected));
    assert_eq!(reply["count"], expected.len());
    assert_eq!(reply["token_strs"].as_array().unwrap().len(), expected.len());
    let text = app.post("/detokenize", &json!({"tokens": ids(STORY)})).await.ok();
    assert_eq!(text["prompt"], STORY);
    let chat = app.post("/tokenize", &json!({"messages": [{"role": "user", "content": "hello"}]})).await.ok();
    assert_eq!(chat["tokens"], json!(ids("<bos><|turn>user\nhello<turn|>\n<|turn>model\n")));
    assert!(chat.get("token_strs").is_none());
    let told = json!({"messages": [{"role": "user", "content": "hello"}], "tools": [{"type": "function", "function": {"name": "f"}}],
        "chat_template_kwargs": {"enable_thinking": true, "unread": 1}});
    let told = app.post("/tokenize", &told).await;
    assert_eq!(told.headers["x-canvasd-ignored"], "chat_template_kwargs.unread");
    let begin = "<bos><|turn>system\n<|think|>\n<turn|>\n<|tool>declaration:f<tool|><|turn>user\n";
    assert!(told.ok()["tokens"].as_array().unwrap().starts_with(json!(ids(begin)).as_array().unwrap()));
    let beside = json!({"prompt": "hello", "tools": [], "chat_template_kwargs": {"enable_thinking": true}});
    let beside = app.post("/tokenize", &beside).await;
    assert_eq!(beside.headers["x-canvasd-ignored"], "chat_template_kwargs, tools");
    assert_eq!(beside.ok()["tokens"], json!(ids("<bos>hello")));
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "messages": []}), "prompt"),
        ("/tokenize", json!({"messages": []}), "messages"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [1_000_000]}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
    ] {
        assert_eq!(app.post(path, &body).await.refused(400)["param"], param);
        let unknown = json!({"model": "other", "prompt": "a", "tokens": [1]});
        app.post(path, &unknown).await.refused(404);
    }
}

#[tokio::test]
async fn probes_and_figures_answer() {
    let app = App::new();
    assert_eq!(app.get("/health").await.ok(), json!({"status": "ok"}));
    assert_eq!(app.get("/ready").await.ok(), json!({"status": "ok"}));
    let version = app.get("/version").await.ok();
    assert_eq!((&version["version"], &version["model"]), (&json!(env!("CARGO_PKG_VERSION")), &json!(MODEL)));
    app.chat("hello", json!({})).await.ok();
    let metrics = app.get("/metrics").await;
    assert!(metrics.status.is_success());
    let counted = "canvasd_http_requests_total{method=\"POST\",route=\"/v1/chat/completions\",status=\"200\"} 1";
    assert!(metrics.body.contains(counted), "{}", metrics.body);
    assert_eq!(metrics.headers[header::CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    assert!(metrics.body.contains("# TYPE canvasd_http_requests_total counter\n") && !metrics.body.contains("# EOF"));
    for line in metrics.body.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let value = line.rsplit(' ').next().unwrap();
        value.parse::<f64>().unwrap_or_else(|_| panic!("no figure: {line}"));
    }
}

#[tokio::test]
async fn figures_come_as_open_metrics_to_those_who_ask_for_it() {
    let app = App::new();
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    let request = Request::get("/metrics").header(header::ACCEPT, accept).body(Body::empty()).unwrap();
    let metrics = Reply::of(app.send(request).await).await;
    assert_eq!(metrics.headers[header::CONTENT_TYPE], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(metrics.body.ends_with("\n# EOF\n") && metrics.body.matches("# EOF").count() == 1);
    assert!(metrics.body.contains("# TYPE canvasd_http_requests counter\n"));
}

#[tokio::test]
async fn health_and_readiness_are_red_once_the_engine_has_stopped() {
    let App { router, engine } = App::new();
    drop(engine);
    for path in ["/health", "/ready"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let reply = Reply::of(router.clone().oneshot(request).await.expect("infallible")).await;
        assert_eq!(reply.refused(503)["code"], "engine_stopped", "{path}");
    }
}
