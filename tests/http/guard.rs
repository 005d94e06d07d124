//! Keys, other origins, limits and headers.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use canvasd::api::{ApiSettings, Keys, loading};
use canvasd::scheduler::Settings;
use serde_json::{Value, json};

use super::log::catch;
use super::support::{App, Reply, chat_body, hear};

fn app(settings: ApiSettings) -> App {
    App::with(settings, Settings::default())
}

async fn get(app: &App, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Reply::of(app.send(request.body(Body::empty()).unwrap()).await).await
}

#[tokio::test]
async fn a_key_is_asked_for_where_there_is_one() {
    let app = app(ApiSettings { keys: Keys::new(["sesame", "other"]), ..ApiSettings::default() });
    for path in ["/v1/models", "/v1/models/x", "/metrics"] {
        let reply = get(&app, path, &[]).await;
        assert_eq!(reply.refused(401)["code"], "missing_api_key");
        assert_eq!(reply.headers[header::WWW_AUTHENTICATE], "Bearer");
        for wrong in ["Bearer sesam", "Bearer ", "Bearer sesame2", "Basic sesame", "sesame"] {
            get(&app, path, &[("authorization", wrong)]).await.refused(401);
        }
    }
    app.chat("hello", json!({})).await.refused(401);
    for key in ["Bearer sesame", "bearer other"] {
        get(&app, "/v1/models", &[("authorization", key)]).await.ok();
    }
    // Probes and pages need none.
    for path in ["/health", "/ready", "/version", "/openapi.json"] {
        get(&app, path, &[]).await.ok();
    }
}

#[tokio::test]
async fn other_origins_may_what_is_configured() {
    let listed = app(ApiSettings {
        cors_origins: vec!["http://localhost:3000".into()],
        keys: Keys::new(["sesame"]),
        ..ApiSettings::default()
    });
    let preflight = async |app: &App, origin: &str| {
        let request = Request::options("/v1/chat/completions")
            .header(header::ORIGIN, origin)
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,content-type,x-stainless-os");
        Reply::of(app.send(request.body(Body::empty()).unwrap()).await).await
    };
    let reply = preflight(&listed, "http://localhost:3000").await;
    assert_eq!(reply.status.as_u16(), 200);
    assert_eq!(reply.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "http://localhost:3000");
    let allowed = reply.headers[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap().to_lowercase();
    assert!(allowed.contains("authorization") && allowed.contains("x-stainless-os"));
    assert!(!preflight(&listed, "http://evil.example").await.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    let any = app(ApiSettings { cors_origins: vec!["*".into()], ..ApiSettings::default() });
    assert_eq!(preflight(&any, "http://x.example").await.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    let reply = get(&any, "/v1/models", &[("origin", "http://x.example")]).await;
    let exposed = reply.headers[header::ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap();
    assert!(exposed.contains("x-request-id") && exposed.contains("x-canvasd-ignored"));
    let none = app(ApiSettings::default());
    let reply = get(&none, "/v1/models", &[("origin", "http://x.example")]).await;
    assert!(!reply.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
}

#[tokio::test]
async fn every_answer_has_its_id_and_time() {
    let app = app(ApiSettings::default());
    for path in ["/health", "/nowhere", "/v1/models"] {
        let reply = get(&app, path, &[("x-request-id", "mine-42")]).await;
        assert_eq!(reply.headers["x-request-id"], "mine-42");
        reply.headers["openai-processing-ms"].to_str().unwrap().parse::<u64>().unwrap();
        let reply = get(&app, path, &[("x-request-id", "not a plain id")]).await;
        assert!(reply.headers["x-request-id"].to_str().unwrap().starts_with("req_"));
    }
    let reply = app.post("/v1/chat/completions", &chat_body("hello", json!({"stream": true}))).await;
    assert!(reply.headers.contains_key("x-request-id") && reply.headers["cache-control"] == "no-cache");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_counted_and_logged() {
    let app = app(ApiSettings::default());
    let caught = catch();
    let request = Request::post("/v1/chat/completions")
        .header("content-type", "application/json")
        .header("x-request-id", "mine-43")
        .body(Body::from(chat_body("babble", json!({"max_tokens": 400})).to_string()));
    let asked = app.send(request.unwrap());
    assert!(
        tokio::time::timeout(Duration::from_millis(20), asked).await.is_err(),
        "too fast an answer to leave before"
    );
    let told = caught.with("mine-43");
    assert!(told.len() == 1 && told[0].contains("status=499") && told[0].contains("ended before"), "{told:?}");
    let metrics = get(&app, "/metrics", &[]).await.body;
    let count = "canvasd_http_requests_total{method=\"POST\",route=\"/v1/chat/completions\",status=\"499\"} 1\n";
    assert!(metrics.contains(count), "{metrics}");
    let head = "canvasd_http_head_seconds_count{route=\"/v1/chat/completions\"}";
    assert!(!metrics.contains(head), "there was no head: {metrics}");
}

#[tokio::test]
async fn a_body_has_its_limit() {
    let app = app(ApiSettings { body_limit: 1000, ..ApiSettings::default() });
    let body = |length: usize| format!("{{\"prompt\":\"hello\",\"user\":\"{}\"}}", "x".repeat(length));
    app.post_bytes("/v1/completions", body(500).into()).await.ok();
    for length in [1000, 3000, 100_000] {
        assert_eq!(app.post_bytes("/v1/completions", body(length).into()).await.refused(413)["code"], "body_too_large");
    }
    // Announced is enough.
    let request = Request::post("/v1/completions")
        .header("content-type", "application/json")
        .header("content-length", "99999999");
    Reply::of(app.send(request.body(Body::empty()).unwrap()).await).await.refused(413);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let app = app(ApiSettings { body_timeout: Duration::from_millis(50), ..ApiSettings::default() });
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let request = Request::post("/v1/completions").header("content-type", "application/json");
    let reply = Reply::of(app.send(request.body(Body::from_stream(never)).unwrap()).await).await;
    assert_eq!(reply.refused(408)["code"], "timeout");
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let app = App::with(ApiSettings::default(), Settings { queue: 1, max_running: 1, ..Settings::default() });
    let body = chat_body("babble", json!({"max_tokens": 400, "stream": true}));
    let mut held = Vec::new();
    let mut refused = None;
    for _ in 0..8 {
        let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
        let response = app.send(request.body(Body::from(body.to_string())).unwrap()).await;
        if response.status().is_success() {
            held.push(response);
        } else {
            refused = Some(Reply::of(response).await);
            break;
        }
    }
    let refused = refused.expect("a queue of one is full at some time");
    assert_eq!(refused.refused(429)["code"], "queue_full");
    let seconds = refused.headers[header::RETRY_AFTER].to_str().unwrap();
    assert!(seconds.parse::<u64>().unwrap() >= 1);
    assert!(refused.body.contains(&format!("in about {seconds} s")), "{seconds}: {}", refused.body);
    // Probes go on, and dropping the streams makes room.
    get(&app, "/health", &[]).await.ok();
    get(&app, "/v1/models", &[]).await.ok();
    drop(held);
    for attempt in 0.. {
        if app.chat("hello", json!({})).await.status.is_success() {
            break;
        }
        assert!(attempt < 200, "dropped streams never made room");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn time_that_is_over_before_the_first_step_is_a_503() {
    let app = App::with(ApiSettings::default(), Settings { max_running: 1, ..Settings::default() });
    let busy = Request::post("/v1/chat/completions").header("content-type", "application/json");
    let body = chat_body("babble", json!({"max_tokens": 400, "stream": true}));
    let busy = app.send(busy.body(Body::from(body.to_string())).unwrap()).await;
    let fields = json!({"diffusion": {"timeout_ms": 1}});
    assert_eq!(app.chat("hello", fields.clone()).await.refused(503)["code"], "deadline_exceeded");
    // In a stream, whose head is on its way already, as an event.
    let body = chat_body("hello", json!({"stream": true, "diffusion": {"timeout_ms": 1}}));
    let events = app.post("/v1/chat/completions", &body).await.raw_events();
    assert!(events.last().unwrap().contains("deadline_exceeded"), "{events:?}");
    drop(busy);
    // The server's own limit holds without a request's. Without any the text would fill the context, with `length` too.
    let app = app_with_limit(Duration::from_millis(1));
    let reply = app.chat("babble", json!({})).await;
    if reply.status.as_u16() != 503 {
        let reply = reply.ok();
        assert_eq!(reply["choices"][0]["finish_reason"], "length");
        assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() < 100, "{reply}");
    }
}

/// One choice at a time, and time for some of the first one's canvases: its text is not lost with the choices that never
/// got a step.
#[tokio::test]
async fn choices_without_a_step_end_empty_beside_others() {
    let app = App::with(ApiSettings::default(), Settings { max_running: 1, ..Settings::default() });
    let limit = json!({"timeout_ms": 400});
    let finishes = |choices: &Value| -> Vec<Value> {
        choices.as_array().unwrap().iter().map(|choice| choice["finish_reason"].clone()).collect()
    };
    let reply = app.chat("babble", json!({"n": 3, "max_tokens": 600, "diffusion": limit})).await.ok();
    assert_eq!(finishes(&reply["choices"]), ["length", "length", "length"]);
    let said = |choice: usize| reply["choices"][choice]["message"]["content"].as_str().unwrap();
    assert!(said(0).starts_with(" one two three") || said(0).starts_with("one two three"), "{reply}");
    assert_eq!((said(1), said(2)), ("", ""));
    let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((1..600).contains(&tokens), "{reply}");
    // The same in a stream, which is complete.
    let body = chat_body("babble", json!({"n": 3, "max_tokens": 600, "diffusion": limit, "stream": true}));
    let events = app.post("/v1/chat/completions", &body).await.events();
    let heard: Vec<_> = (0..3).map(|index| hear(&events, index)).collect();
    assert!(heard[0].content.contains("one two three"), "{heard:?}");
    assert!(heard.iter().all(|heard| heard.finish == "length"));
    assert!(heard[1].content.is_empty() && heard[2].content.is_empty());
    // Further prompts are choices of the request too, and the best of several is one that says something.
    let fields = json!({"max_tokens": 600, "diffusion": limit});
    let reply = app.complete(json!(["babble", "babble"]), fields).await.ok();
    assert_eq!(finishes(&reply["choices"]), ["length", "length"]);
    let fields = json!({"max_tokens": 600, "diffusion": limit, "best_of": 2, "n": 1});
    let reply = app.complete("babble", fields).await.ok();
    assert!(reply["choices"][0]["text"].as_str().unwrap().contains("one two three"), "{reply}");
    // Where none has begun, there is nothing to save.
    let busy = Request::post("/v1/chat/completions").header("content-type", "application/json");
    let body = chat_body("babble", json!({"max_tokens": 400, "stream": true}));
    let busy = app.send(busy.body(Body::from(body.to_string())).unwrap()).await;
    let fields = json!({"n": 3, "diffusion": {"timeout_ms": 1}});
    assert_eq!(app.chat("hello", fields).await.refused(503)["code"], "deadline_exceeded");
    drop(busy);
}

/// Time that is over in the middle of a canvas: what is there is the answer, and the usage says so.
#[tokio::test]
async fn time_that_is_over_commits_the_draft() {
    let app = App::new();
    for timeout_ms in (8..).take(200) {
        let reply = app.chat("babble", json!({"max_tokens": 4000, "diffusion": {"timeout_ms": timeout_ms}})).await;
        if reply.status.as_u16() == 503 {
            continue;
        }
        let answer = reply.ok();
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        // It may be over just between two canvases, where there is nothing to force.
        match answer["usage"]["diffusion"]["forced_commits"].as_u64() {
            Some(0) => {}
            Some(1) => return assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty()),
            other => panic!("{other:?} forced commits"),
        }
    }
    panic!("no canvas was ever cut short");
}

/// The body takes longer to come than the answer may.
#[tokio::test]
async fn the_time_of_a_request_counts_from_its_head() {
    let app = App::new();
    let body = chat_body("hello", json!({"diffusion": {"timeout_ms": 50}})).to_string();
    let late = futures_util::stream::once(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, std::io::Error>(body.into_bytes())
    });
    let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
    let reply = Reply::of(app.send(request.body(Body::from_stream(late)).unwrap()).await).await;
    assert_eq!(reply.refused(503)["code"], "deadline_exceeded");
}

fn app_with_limit(request_timeout: Duration) -> App {
    app(ApiSettings { request_timeout, ..ApiSettings::default() })
}

#[tokio::test]
async fn chat_without_a_limit_gets_the_configured_one() {
    let app = app(ApiSettings { default_max_tokens: Some(5), ..ApiSettings::default() });
    let said = async |path: &str, body: serde_json::Value| app.post(path, &body).await.ok()["usage"].clone();
    let chat = |fields| chat_body("babble", fields);
    assert_eq!(said("/v1/chat/completions", chat(json!({}))).await["completion_tokens"], 5);
    assert_eq!(said("/v1/chat/completions", chat(json!({"max_tokens": 9}))).await["completion_tokens"], 9);
    assert_eq!(said("/v1/responses", json!({"input": "babble"})).await["output_tokens"], 5);
    // Completions have their own.
    assert_eq!(said("/v1/completions", json!({"prompt": "babble"})).await["completion_tokens"], 16);
}

#[tokio::test]
async fn a_draining_server_takes_no_more() {
    let app = App::new();
    let App { router, engine } = app;
    engine.drain(Duration::from_secs(1)).await;
    let ask = async |request: Request<Body>| {
        Reply::of(tower::ServiceExt::oneshot(router.clone(), request).await.unwrap()).await
    };
    ask(Request::get("/ready").body(Body::empty()).unwrap()).await.refused(503);
    // Drained, the engine is gone, and the process is about to be.
    ask(Request::get("/health").body(Body::empty()).unwrap()).await.refused(503);
    let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
    ask(request.body(Body::from(chat_body("hello", json!({})).to_string())).unwrap()).await.refused(503);
}

#[tokio::test]
async fn before_the_model_is_loaded_only_health_is_well() {
    let settings =
        ApiSettings { keys: Keys::new(["sesame"]), cors_origins: vec!["*".into()], ..ApiSettings::default() };
    let ask = async |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).header(header::ORIGIN, "http://x.example");
        let request = request.header("x-request-id", "mine-42").body(Body::empty()).unwrap();
        Reply::of(tower::ServiceExt::oneshot(loading(&settings), request).await.unwrap()).await
    };
    let health = ask("GET", "/health").await;
    assert_eq!(health.ok(), json!({"status": "ok"}));
    assert_eq!(ask("PUT", "/health").await.refused(405)["code"], "method_not_allowed");
    for (method, path) in [("GET", "/ready"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/")] {
        let reply = ask(method, path).await;
        let error = reply.refused(503);
        assert_eq!((&error["code"], &error["type"]), (&json!("loading"), &json!("server_error")), "{path}");
        assert_eq!(reply.headers[header::RETRY_AFTER], "5");
        assert_eq!(reply.headers["x-request-id"], "mine-42");
        assert_eq!(reply.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    }
}
