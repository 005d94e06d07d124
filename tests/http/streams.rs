//! Streams of server-sent events: order, form, progress, and the same text as in one piece.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use canvasd::api::ApiSettings;
use canvasd::scheduler::Settings;
use serde_json::{Value, json};

use super::log::catch;
use super::support::{App, STORY, chat_body, hear};

async fn stream(app: &App, message: &str, fields: Value) -> Vec<Value> {
    let mut body = chat_body(message, fields);
    body["stream"] = json!(true);
    app.post("/v1/chat/completions", &body).await.events()
}

#[tokio::test]
async fn chunks_come_in_the_order_that_clients_expect() {
    let app = App::new();
    let events = stream(&app, "story", json!({"n": 3})).await;
    for (index, event) in events[..3].iter().enumerate() {
        let role = json!({"role": "assistant", "content": ""});
        assert_eq!(
            event["choices"][0],
            json!({"index": index, "delta": role, "logprobs": null, "finish_reason": null})
        );
    }
    for event in &events[3..] {
        assert!(event["choices"][0]["delta"].get("role").is_none(), "{event}");
    }
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        for constant in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(event[constant], events[0][constant]);
        }
        assert!(event.get("usage").is_none() && event.get("diffusion").is_none(), "{event}");
        assert_eq!(event["choices"].as_array().unwrap().len(), 1);
    }
    for index in 0..3 {
        let heard = hear(&events, index);
        assert_eq!((heard.content.as_str(), heard.finish.as_str()), (STORY, "stop"));
    }
    let finishes = events.iter().filter(|event| !event["choices"][0]["finish_reason"].is_null());
    assert_eq!(finishes.clone().count(), 3);
    assert!(finishes.into_iter().all(|event| event["choices"][0]["delta"] == json!({})));
}

#[tokio::test]
async fn the_usage_chunk_comes_last_and_on_request_only() {
    let app = App::new();
    let mut events = stream(&app, "story", json!({"stream_options": {"include_usage": true}, "seed": 1})).await;
    let last = events.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    let whole = app.chat("story", json!({"seed": 1})).await.ok();
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][field], whole["usage"][field]);
    }
    assert!(events.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
}

#[tokio::test]
async fn streamed_and_whole_answers_are_equal() {
    let app = App::new();
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    for (message, fields) in [
        ("story", json!({"seed": 4})),
        ("dice", json!({"seed": 4})),
        ("umlaut", json!({"seed": 4, "logprobs": true})),
        ("think", json!({})),
        ("story", json!({"stop": ["lived in a"], "logprobs": true})),
        ("babble", json!({"max_tokens": 37})),
        ("both", json!({"tools": tools})),
        ("mixed", json!({"tools": tools, "logprobs": true})),
        ("call", json!({"tools": tools, "parallel_tool_calls": false})),
    ] {
        let whole = app.chat(message, fields.clone()).await.ok();
        let heard = hear(&stream(&app, message, fields).await, 0);
        let choice = &whole["choices"][0];
        assert_eq!(heard.content, choice["message"]["content"].as_str().unwrap_or_default());
        assert_eq!(heard.reasoning, choice["message"]["reasoning_content"].as_str().unwrap_or_default());
        assert_eq!(heard.finish, choice["finish_reason"].as_str().unwrap());
        assert_eq!(heard.logprobs, choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
        let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        assert_eq!(heard.calls.len(), calls.len());
        for (index, (streamed, call)) in heard.calls.iter().zip(&calls).enumerate() {
            assert_eq!(streamed["index"], index);
            assert_eq!(streamed["function"], call["function"]);
            assert!(streamed["id"].is_string() && streamed["type"] == "function");
        }
    }
}

#[tokio::test]
async fn a_commit_is_one_delta_per_channel() {
    let app = App::new();
    let events = stream(&app, "story", json!({})).await;
    let deltas =
        events.iter().filter(|event| event["choices"][0]["delta"]["content"].as_str().is_some_and(|t| !t.is_empty()));
    let usage = app.chat("story", json!({})).await.ok()["usage"].clone();
    assert!(deltas.count() <= usage["diffusion"]["canvases"].as_u64().unwrap() as usize);
}

/// Progress frames, in order.
fn frames(events: &[Value]) -> Vec<Value> {
    events.iter().filter_map(|event| event.get("diffusion").cloned()).collect()
}

#[tokio::test]
async fn progress_shows_drafts_and_leaves_the_text_alone() {
    let app = App::new();
    let plain = hear(&stream(&app, "babble", json!({"seed": 2, "max_tokens": 40})).await, 0);
    let options = json!({"include_diffusion_progress": {"every": 1, "mode": "text", "max_hz": 1000}});
    let events = stream(&app, "babble", json!({"seed": 2, "max_tokens": 40, "stream_options": options})).await;
    assert_eq!(hear(&events, 0), plain);
    let frames = frames(&events);
    assert!(frames.len() > 4, "{frames:?}");
    for (seq, frame) in frames.iter().enumerate() {
        assert_eq!((&frame["v"], &frame["type"], &frame["choice"]), (&json!(1), &json!("progress"), &json!(0)));
        assert_eq!(frame["seq"], seq);
        assert_eq!(frame["max_steps"], 12);
        assert!(["queued", "encode", "denoise", "commit"].contains(&frame["phase"].as_str().unwrap()));
        assert!(frame["text"].is_string() && frame.get("edits").is_none());
    }
    for event in events.iter().filter(|event| event.get("diffusion").is_some()) {
        assert_eq!(event["choices"][0]["delta"], json!({}));
    }
    // Each canvas ends with one commit, which the delta follows, and canvases never go back.
    let canvases: Vec<u64> = frames.iter().map(|frame| frame["canvas"].as_u64().unwrap()).collect();
    assert!(canvases.is_sorted(), "{canvases:?}");
    let commits: Vec<u64> = frames
        .iter()
        .filter(|frame| frame["phase"] == "commit")
        .map(|frame| frame["canvas"].as_u64().unwrap())
        .collect();
    assert_eq!(commits, (0..commits.len() as u64).collect::<Vec<_>>());
    for pair in events.windows(2).filter(|pair| pair[0]["diffusion"]["phase"] == "commit") {
        assert!(pair[1].get("diffusion").is_none(), "a commit's delta follows it");
    }
    assert!(frames.iter().any(|frame| frame["phase"] == "denoise" && frame["text"] != ""));
    assert!(frames.iter().filter(|frame| frame["phase"] == "commit").all(|frame| frame["text"] == ""));
}

#[tokio::test]
async fn edits_rebuild_the_drafts_and_stats_hold_no_text() {
    let app = App::new();
    let ask = async |mode: &str| {
        let options = json!({"include_diffusion_progress": {"mode": mode, "max_hz": 1000}});
        frames(&stream(&app, "babble", json!({"seed": 2, "max_tokens": 40, "stream_options": options})).await)
    };
    let mut screen: Vec<char> = Vec::new();
    let mut seen = false;
    for frame in ask("edits").await {
        assert!(frame.get("text").is_none());
        for edit in frame["edits"].as_array().unwrap() {
            let (at, remove) = (edit["at"].as_u64().unwrap() as usize, edit["remove"].as_u64().unwrap() as usize);
            screen.splice(at..at + remove, edit["insert"].as_str().unwrap().chars());
        }
        let text: String = screen.iter().collect();
        seen |= text.contains("one two three");
        if frame["phase"] == "commit" {
            assert_eq!(text, "");
        }
    }
    assert!(seen);
    let stats = ask("stats").await;
    assert!(!stats.is_empty());
    assert!(stats.iter().all(|frame| frame.get("text").is_none() && frame.get("edits").is_none()));
}

/// Whatever drafts were seen on the way, and whether any was.
#[tokio::test]
async fn a_commit_tells_of_the_canvas_last_step() {
    let app = App::new();
    for max_hz in [0.001, 1000.0] {
        let options = json!({"include_diffusion_progress": {"mode": "stats", "max_hz": max_hz}});
        let commits = async |steps: u64| {
            let fields = json!({"seed": 1, "stream_options": options, "diffusion": {"max_denoising_steps": steps}});
            let mut frames = frames(&stream(&app, "story", fields).await);
            frames.retain(|frame| frame["phase"] == "commit");
            assert!(frames.len() > 1, "{frames:?}");
            frames
        };
        for frame in commits(12).await {
            let numbers = json!([frame["settled"], frame["changed"], frame["mean_entropy"], frame["batch"]]);
            assert_eq!(numbers, json!([16, 0, 0.0, 1]), "{frame}");
            assert!(frame["step"].as_u64().unwrap() > 4, "{frame}");
        }
        // Cut short after the first of four steps: a quarter is known, and one position is taken at a risk.
        for frame in commits(1).await {
            let numbers = json!([frame["settled"], frame["changed"], frame["mean_entropy"], frame["batch"]]);
            assert_eq!(numbers, json!([5, 16, 1.5, 1]), "{frame}");
            assert_eq!((&frame["step"], &frame["max_steps"]), (&json!(1), &json!(1)));
        }
    }
}

#[tokio::test]
async fn progress_keeps_to_its_rate() {
    let app = App::new();
    let options = json!({"include_diffusion_progress": {"max_hz": 0.001}});
    let events = stream(&app, "babble", json!({"max_tokens": 60, "stream_options": options})).await;
    let drafts = frames(&events).into_iter().filter(|frame| frame["phase"] != "commit").count();
    assert!(drafts <= 1, "{drafts} drafts in less than 1,000 s");
    // The short way to ask.
    assert!(!frames(&stream(&app, "story", json!({"diffusing": true})).await).is_empty());
    let off = json!({"diffusing": true, "stream_options": {"include_diffusion_progress": false}});
    assert!(frames(&stream(&app, "story", off).await).is_empty());
}

#[tokio::test]
async fn an_error_in_the_middle_ends_the_stream() {
    let app = App::new();
    let mut body = chat_body("crash", json!({"stream": true}));
    for (path, body) in [
        ("/v1/chat/completions", body.take()),
        ("/v1/completions", json!({"prompt": "crash", "max_tokens": 40, "stream": true})),
    ] {
        let reply = app.post(path, &body).await;
        let events = reply.raw_events();
        let error: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(error["error"]["type"], "server_error", "{}", reply.body);
        assert_eq!(error["error"]["code"], "model_failed");
        assert!(events.len() > 1, "the first canvas came");
        assert!(!reply.body.contains("[DONE]"));
    }
    // In one piece it is a status.
    assert_eq!(app.chat("fail", json!({})).await.refused(500)["code"], "model_failed");
    // The server goes on.
    app.chat("hello", json!({})).await.ok();
}

/// Its head was answered and logged with 200.
#[tokio::test]
async fn a_stream_that_breaks_off_is_logged_with_its_id() {
    let app = App::new();
    let caught = catch();
    for (path, body) in [
        ("/v1/chat/completions", chat_body("crash", json!({"stream": true}))),
        ("/v1/completions", json!({"prompt": "crash", "max_tokens": 40, "stream": true})),
        ("/v1/responses", json!({"input": "crash", "stream": true})),
    ] {
        let reply = app.post(path, &body).await;
        let id = reply.headers["x-request-id"].to_str().unwrap();
        let told = caught.with(id);
        assert_eq!(told.len(), 2, "the head and the end: {told:?}");
        assert!(told[0].contains("INFO") && told[0].contains("status=200"), "{told:?}");
        assert!(told[1].contains("WARN") && told[1].contains("broke off: The model failed: "), "{told:?}");
    }
    // One that is complete has nothing to add.
    let reply = app.post("/v1/chat/completions", &chat_body("hello", json!({"stream": true}))).await;
    assert_eq!(caught.with(reply.headers["x-request-id"].to_str().unwrap()).len(), 1);
}

/// Its client has left, or was given up because it read nothing.
#[tokio::test]
async fn a_stream_whose_connection_ends_is_logged_with_its_id() {
    let app = App::new();
    let caught = catch();
    let body = chat_body("babble", json!({"stream": true, "max_tokens": 4000})).to_string();
    let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
    let response = app.send(request.body(Body::from(body)).unwrap()).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    drop(response);
    let told = caught.with(&id);
    assert_eq!(told.len(), 2, "the head and the end: {told:?}");
    assert!(told[1].contains("WARN") && told[1].contains("broke off: its connection ended"), "{told:?}");
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let settings = ApiSettings { keep_alive: Duration::from_millis(10), ..ApiSettings::default() };
    let app = App::with(settings, Settings::default());
    let body = chat_body("babble", json!({"stream": true, "max_tokens": 64}));
    let reply = app.post("/v1/chat/completions", &body).await;
    assert!(reply.body.contains(": keep-alive\n\n"), "{}", reply.body);
    assert_eq!(hear(&reply.events(), 0).finish, "length");
}

#[tokio::test]
async fn a_time_limit_commits_what_there_is() {
    let app = App::new();
    let fields = json!({"diffusion": {"timeout_ms": 150, "max_denoising_steps": 1024}, "max_tokens": 600});
    let reply = app.chat("babble", fields).await.ok();
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() < 600);
}
