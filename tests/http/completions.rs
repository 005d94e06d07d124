//! `POST /v1/completions`: every field has its effect or its refusal.

use canvasd::api::ApiSettings;
use canvasd::scheduler::Settings;
use serde_json::{Value, json};

use super::support::{App, MODEL, STORY, ids};

fn texts(reply: &Value) -> Vec<&str> {
    reply["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_answer_has_the_shape_that_clients_expect() {
    let app = App::new();
    let mut reply = app.complete("hello", json!({})).await.ok();
    assert!(reply["id"].as_str().unwrap().starts_with("cmpl-"));
    for volatile in ["id", "created", "system_fingerprint", "usage"] {
        assert!(!reply[volatile].take().is_null());
    }
    assert_eq!(
        reply,
        json!({
            "id": null, "object": "text_completion", "created": null, "model": MODEL, "system_fingerprint": null,
            "choices": [{"index": 0, "text": "Hello there.", "logprobs": null, "finish_reason": "stop"}],
            "usage": null
        })
    );
}

#[tokio::test]
async fn a_prompt_has_four_forms() {
    let app = App::new();
    let (hello, umlaut) = (ids("<bos>hello"), ids("<bos>umlaut"));
    let story = "Grüße 😀 aus Köln — größer als ½.";
    for (prompt, expected) in [
        (json!("hello"), vec!["Hello there."]),
        (json!(["hello", "umlaut"]), vec!["Hello there.", story]),
        (json!(hello), vec!["Hello there."]),
        (json!([umlaut, hello]), vec![story, "Hello there."]),
    ] {
        let reply = app.complete(prompt, json!({"max_tokens": 60})).await.ok();
        assert_eq!(texts(&reply), expected);
        let usage = &reply["usage"];
        let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
        assert_eq!(usage["total_tokens"], sum);
    }
    // Text and its tokens are the same prompt.
    let by_text = app.complete("hello", json!({"seed": 1})).await.ok();
    let by_tokens = app.complete(json!(hello), json!({"seed": 1})).await.ok();
    assert_eq!(by_text["usage"]["prompt_tokens"], by_tokens["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn several_prompts_get_what_each_gets_alone() {
    let app = App::new();
    let reply = app.complete(json!(["dice", "hello", "dice"]), json!({"n": 2, "seed": 9})).await.ok();
    let alone = app.complete("dice", json!({"n": 2, "seed": 9})).await.ok();
    assert_eq!(texts(&reply)[..2], texts(&alone));
    assert_eq!(texts(&reply)[4..], texts(&alone));
    let indexes: Vec<u64> = reply["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn sixteen_tokens_are_the_default() {
    let app = App::new();
    let reply = app.complete("babble", json!({})).await.ok();
    assert_eq!(
        (&reply["usage"]["completion_tokens"], &reply["choices"][0]["finish_reason"]),
        (&json!(16), &json!("length"))
    );
    let reply = app.complete("babble", json!({"max_tokens": 33})).await.ok();
    assert_eq!(reply["usage"]["completion_tokens"], 33);
    let reply = app.complete("story", json!({"max_tokens": 60, "stop": ["gentle"]})).await.ok();
    assert_eq!(texts(&reply), [&STORY[..STORY.find("gentle").unwrap()]]);
}

#[tokio::test]
async fn echo_puts_the_prompt_in_front() {
    let app = App::new();
    let reply = app.complete(json!(["say hello", "hello"]), json!({"echo": true})).await.ok();
    assert!(texts(&reply)[0].starts_with("say hello"));
    assert_eq!(texts(&reply)[1], "helloHello there.");
    let reply = app.post("/v1/completions", &json!({"prompt": "hello", "echo": true, "stream": true, "n": 2})).await;
    let events = reply.events();
    assert_eq!((&events[0]["choices"][0]["text"], &events[1]["choices"][0]["index"]), (&json!("hello"), &json!(1)));
    let said = |index: u64| -> String {
        let choices = events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
        choices.map(|choice| choice["text"].as_str().unwrap()).collect()
    };
    assert_eq!([said(0), said(1)], ["helloHello there.", "helloHello there."]);
}

#[tokio::test]
async fn logprobs_have_the_older_shape() {
    let app = App::new();
    let reply = app.complete("hello", json!({"logprobs": 3})).await.ok();
    let logprobs = &reply["choices"][0]["logprobs"];
    let length = |field: &str| logprobs[field].as_array().unwrap().len();
    let tokens = length("tokens");
    assert!(tokens > 1);
    assert_eq!([length("token_logprobs"), length("top_logprobs"), length("text_offset")], [tokens; 3]);
    let text: String = logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(text, "Hello there.");
    assert_eq!(logprobs["text_offset"][0], 0);
    let first = logprobs["tokens"][0].as_str().unwrap();
    assert_eq!(logprobs["text_offset"][1], first.chars().count());
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    assert_eq!(top[first], logprobs["token_logprobs"][0]);
    assert!((1..=3).contains(&top.len()) && top.contains_key(first));
    assert_eq!(
        app.complete("hello", json!({"logprobs": 0})).await.ok()["choices"][0]["logprobs"]["top_logprobs"][0],
        json!({})
    );
}

#[tokio::test]
async fn parts_of_characters_are_spelled_by_their_bytes_and_keep_their_place() {
    let app = App::new();
    let reply = app.complete("umlaut", json!({"logprobs": 2, "max_tokens": 60})).await.ok();
    let text: Vec<char> = texts(&reply)[0].chars().collect();
    let logprobs = &reply["choices"][0]["logprobs"];
    let mut parts = 0;
    for (at, token) in logprobs["tokens"].as_array().unwrap().iter().enumerate() {
        let token = token.as_str().unwrap();
        let offset = usize::try_from(logprobs["text_offset"][at].as_u64().unwrap()).unwrap();
        if token.starts_with("bytes:") {
            parts += 1;
            assert!(!text[offset].is_ascii(), "{token} at {offset}");
        } else {
            assert!(text[offset..].starts_with(&token.chars().collect::<Vec<_>>()), "{token:?} at {offset}");
        }
        let top = logprobs["top_logprobs"][at].as_object().unwrap();
        assert!(top.len() == 2 && top.contains_key(token), "{token:?}: {top:?}");
    }
    assert!(parts >= 4 && logprobs["tokens"].as_array().unwrap().contains(&json!("bytes:\\xf0")), "{logprobs}");
}

#[tokio::test]
async fn the_best_are_chosen_by_mean_logprob() {
    let app = App::new();
    let all = app.complete("dice", json!({"n": 4, "seed": 3, "logprobs": 0})).await.ok();
    let mean = |choice: &Value| {
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        logprobs.iter().map(|logprob| logprob.as_f64().unwrap()).sum::<f64>() / logprobs.len() as f64
    };
    let best = app.complete("dice", json!({"n": 2, "best_of": 4, "seed": 3, "logprobs": 0})).await.ok();
    let choices = best["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    assert_eq!((&choices[0]["index"], &choices[1]["index"]), (&json!(0), &json!(1)));
    assert!(mean(&choices[0]) >= mean(&choices[1]));
    for other in all["choices"].as_array().unwrap() {
        if !texts(&best).contains(&other["text"].as_str().unwrap()) {
            // The end token counts in the ranking and is not shown, hence the margin.
            assert!(mean(other) <= mean(&choices[1]) + 0.2);
        }
    }
    // Work that is thrown away is paid for all the same.
    assert_eq!(best["usage"]["completion_tokens"], all["usage"]["completion_tokens"]);
}

#[tokio::test]
async fn a_stream_adds_up_to_the_whole() {
    let app = App::new();
    let whole = app.complete("story", json!({"max_tokens": 60, "seed": 1, "logprobs": 2})).await.ok();
    let fields = json!({"prompt": "story", "max_tokens": 60, "seed": 1, "logprobs": 2, "stream": true,
        "stream_options": {"include_usage": true, "include_diffusion_progress": true}});
    let mut events = app.post("/v1/completions", &fields).await.events();
    let usage = events.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    let mut text = String::new();
    let mut offsets = Vec::new();
    for event in &events {
        assert_eq!(event["object"], "text_completion");
        text += event["choices"][0]["text"].as_str().unwrap();
        offsets.extend(event["choices"][0]["logprobs"]["text_offset"].as_array().cloned().unwrap_or_default());
        if let Some(frame) = event.get("diffusion") {
            assert_eq!((&event["choices"][0]["text"], &frame["channel"]), (&json!(""), &json!("raw")));
        }
    }
    assert!(events.iter().any(|event| event.get("diffusion").is_some()));
    assert_eq!(text, STORY);
    assert_eq!(json!(offsets), whole["choices"][0]["logprobs"]["text_offset"]);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

/// Where memory holds less than the model could have, it is not the model that is to blame.
#[tokio::test]
async fn a_prompt_beyond_the_context_is_told_what_bounds_it() {
    for (app, cut) in [(App::new(), false), (App::with_memory(24 << 10), true)] {
        let error = app.complete("fox ".repeat(1000), json!({})).await.refused(400);
        assert_eq!((&error["param"], &error["code"]), (&json!("prompt"), &json!("context_length_exceeded")));
        let message = error["message"].as_str().unwrap();
        assert_eq!(message.contains("this server's context of 640 tokens"), !cut, "{message}");
        assert_eq!(
            message.contains("The model's own has 640") && message.contains("raise kv_memory"),
            cut,
            "{message}"
        );
    }
}

/// What an idle server would refuse for ever is no matter of waiting.
#[tokio::test]
async fn more_prompts_than_the_queue_ever_takes_are_refused() {
    let app = App::with(ApiSettings::default(), Settings { queue: 4, max_running: 1, ..Settings::default() });
    let error = app.complete(json!(vec!["hello"; 8]), json!({})).await.refused(400);
    assert_eq!(error["param"], "prompt");
    assert!(error["message"].as_str().unwrap().contains("never takes more than 4:"), "{error}");
    assert_eq!(texts(&app.complete(json!(vec!["hello"; 4]), json!({})).await.ok()), ["Hello there."; 4]);
    // Eight times as many choices may wait as requests: the third prompt would find them there.
    let error = app.complete(json!(vec!["hello"; 3]), json!({"n": 16})).await.refused(400);
    assert!(error["param"] == "prompt" && error["message"].as_str().unwrap().contains("more than 2:"), "{error}");
    assert_eq!(texts(&app.complete(json!(vec!["hello"; 2]), json!({"n": 16})).await.ok()).len(), 32);
}

#[tokio::test]
async fn null_is_absent_in_every_field() {
    let app = App::new();
    let document: Value = serde_json::from_str(&canvasd::api::openapi()).unwrap();
    let mut body = json!({});
    for name in document["components"]["schemas"]["CompletionRequest"]["properties"].as_object().unwrap().keys() {
        body[name] = Value::Null;
    }
    body["prompt"] = json!("hello");
    assert_eq!(texts(&app.post("/v1/completions", &body).await.ok()), ["Hello there."]);
    let taken = json!({"user": "ann", "metadata": {}, "suffix": "", "stream": false});
    let reply = app.complete("hello", taken).await;
    assert_eq!(reply.headers.get("x-canvasd-ignored"), None);
    assert_eq!(texts(&reply.ok()), ["Hello there."]);
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let app = App::new();
    for (fields, param) in [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt[1]"),
        (json!({"prompt": [999_999]}), "prompt"),
        (json!({"prompt": [[1], [999_999]]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt[0]"),
        (json!({"prompt": vec!["a"; 200]}), "prompt"),
        (json!({"n": 0}), "n"),
        (json!({"n": 3, "best_of": 2}), "best_of"),
        (json!({"best_of": 200}), "best_of"),
        (json!({"best_of": 2, "stream": true}), "best_of"),
        (json!({"echo": true, "logprobs": 1}), "logprobs"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"suffix": "end"}), "suffix"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": ["x", "a".repeat(1025)]}), "stop"),
    ] {
        let error = app.complete("hello", fields.clone()).await.refused(400);
        assert_eq!(error["param"], param, "{fields}: {error}");
    }
}
