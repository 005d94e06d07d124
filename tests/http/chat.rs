//! `POST /v1/chat/completions` in one piece: every field has its effect or its refusal.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::support::{ALIAS, App, MODEL, STORY, ids};

fn content(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("no content: {reply}"))
}

#[tokio::test]
async fn an_answer_has_the_shape_that_clients_expect() {
    let app = App::new();
    let mut reply = app.chat("hello", json!({"seed": 7})).await.ok();
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(reply["created"].as_u64().unwrap() > 1_700_000_000);
    for volatile in ["id", "created", "system_fingerprint"] {
        reply[volatile] = json!("…");
    }
    let steps = reply["usage"]["diffusion"]["steps"].take();
    assert!(steps.as_u64().unwrap() >= 4);
    reply["usage"]["diffusion"]["tokens_per_forward"] = json!("…");
    let tokens = ids("Hello there.").len() + 1;
    let prompt = ids("<bos><|turn>user\nhello<turn|>\n<|turn>model\n").len();
    assert_eq!(
        reply,
        json!({
            "id": "…", "object": "chat.completion", "created": "…", "model": MODEL,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there.", "refusal": null},
                "logprobs": null,
                "finish_reason": "stop"
            }],
            "usage": {
                "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens,
                "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
                "diffusion": {"canvases": 1, "steps": null, "tokens_per_forward": "…", "forced_commits": 0}
            },
            "system_fingerprint": "…", "service_tier": "default"
        })
    );
}

#[tokio::test]
async fn the_fingerprint_is_constant_and_the_id_is_not() {
    let app = App::new();
    let (one, two) = (app.chat("hello", json!({})).await.ok(), app.chat("hello", json!({})).await.ok());
    assert_eq!(one["system_fingerprint"], two["system_fingerprint"]);
    assert_eq!(one["system_fingerprint"], App::new().chat("hello", json!({})).await.ok()["system_fingerprint"]);
    assert_ne!(one["id"], two["id"]);
}

#[tokio::test]
async fn a_seed_gives_the_same_text_and_no_seed_another() {
    let app = App::new();
    let ask = async |fields: Value| content(&app.chat("dice", fields).await.ok()).to_owned();
    assert_eq!(ask(json!({"seed": 5})).await, ask(json!({"seed": 5})).await);
    assert_eq!(ask(json!({"seed": -5})).await, ask(json!({"seed": -5})).await);
    let mut texts = HashSet::new();
    for _ in 0..6 {
        texts.insert(ask(json!({"temperature": 1})).await);
    }
    assert!(texts.len() > 1, "{texts:?}");
    // Temperature 0 alone is reproducible too.
    assert_eq!(ask(json!({"temperature": 0})).await, ask(json!({"temperature": 0.0})).await);
}

#[tokio::test]
async fn n_choices_come_in_order_and_differ() {
    let app = App::new();
    let reply = app.chat("dice", json!({"n": 5, "seed": 1})).await.ok();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let texts: HashSet<&str> = choices.iter().map(|c| c["message"]["content"].as_str().unwrap()).collect();
    assert!(texts.len() > 1);
    // The first choice is what the seed gives alone, and the prompt counts once.
    let alone = app.chat("dice", json!({"seed": 1})).await.ok();
    assert_eq!(choices[0]["message"], alone["choices"][0]["message"]);
    assert_eq!(reply["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn token_limits_are_exact() {
    let app = App::new();
    for (most, fields) in [
        (1, json!({"max_tokens": 1})),
        (16, json!({"max_tokens": 16})),
        (17, json!({"max_completion_tokens": 17})),
        (3, json!({"max_completion_tokens": 3, "max_tokens": 9})),
    ] {
        let reply = app.chat("babble", fields).await.ok();
        assert_eq!(reply["usage"]["completion_tokens"], most);
        assert_eq!(reply["choices"][0]["finish_reason"], "length");
    }
    // The context is a limit too, and max_tokens beyond it none that is refused.
    let reply =
        app.chat("babble", json!({"max_tokens": 1_000_000, "diffusion": {"max_denoising_steps": 1}})).await.ok();
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    // Whole canvases have to fit.
    assert!((640 - 16..=640).contains(&reply["usage"]["total_tokens"].as_u64().unwrap()));
}

#[tokio::test]
async fn stop_strings_cut_exactly_wherever_canvases_end() {
    let app = App::new();
    for stop in ["time", "gentle fox", "The fox lived in", "every day.", " "] {
        let reply = app.chat("story", json!({"stop": stop})).await.ok();
        assert_eq!(content(&reply), &STORY[..STORY.find(stop).unwrap()], "{stop:?}");
        assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    }
    let reply = app.chat("story", json!({"stop": ["nowhere", "forest", "fox lived"]})).await.ok();
    assert_eq!(content(&reply), &STORY[..STORY.find("fox lived").unwrap()]);
    // What was held back for a stop string that never comes is flushed.
    let reply = app.chat("story", json!({"stop": ["every day.!", "day. And"]})).await.ok();
    assert_eq!(content(&reply), STORY);
}

#[tokio::test]
async fn logprobs_belong_to_the_content_and_spell_it() {
    let app = App::new();
    let reply = app.chat("umlaut", json!({"logprobs": true, "top_logprobs": 2})).await.ok();
    let entries = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8))
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), content(&reply));
    for entry in entries {
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]));
        assert!(top[1]["logprob"].as_f64() <= top[0]["logprob"].as_f64());
    }
    assert!(reply["choices"][0]["logprobs"]["refusal"].is_null());
    // Thoughts and markers have none.
    let reply = app.chat("think", json!({"logprobs": true})).await.ok();
    let entries = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let text: String = entries.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(text, "It is a fox.");
    assert_eq!(entries[0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn a_bias_moves_the_text() {
    let app = App::new();
    let first = ids("Hello there.")[0];
    let mut bias = serde_json::Map::new();
    bias.insert(first.to_string(), json!(-100));
    let text = app.chat("hello", json!({"logit_bias": bias, "temperature": 0})).await.ok();
    assert_ne!(content(&text), "Hello there.");
    assert!(!content(&text).starts_with("Hello"));
}

#[tokio::test]
async fn penalties_count_what_was_committed() {
    let app = App::new();
    let plain = app.chat("babble", json!({"max_tokens": 48, "temperature": 0})).await.ok();
    // 2 is the distance to the neighbour: presence alone makes a tie, with frequency the neighbour wins.
    let fields = json!({"max_tokens": 48, "temperature": 0, "presence_penalty": 2, "frequency_penalty": 2});
    let penalised = app.chat("babble", fields).await.ok();
    let (plain, penalised) = (content(&plain), content(&penalised));
    assert_ne!(plain, penalised);
    // Frozen for a canvas: the first one is as without.
    let canvas = &plain[..plain.len() / 3];
    assert!(penalised.starts_with(canvas), "{penalised:?} begins as {canvas:?}");
}

#[tokio::test]
async fn thoughts_go_to_their_own_field() {
    let app = App::new();
    let reply = app.chat("think", json!({})).await.ok();
    assert_eq!(content(&reply), "It is a fox.");
    assert_eq!(reply["choices"][0]["message"]["reasoning_content"], "The fox asks.");
    assert!(reply["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
    // An empty thought leaves no trace.
    let reply = app.chat("blank", json!({})).await.ok();
    assert_eq!(content(&reply), "Nothing to think.");
    assert!(reply["choices"][0]["message"].get("reasoning_content").is_none());
    // Whether the template is told shows in the prompt.
    let tokens = async |fields| app.chat("think", fields).await.ok()["usage"]["prompt_tokens"].as_u64().unwrap();
    let without = tokens(json!({"reasoning_effort": "none"})).await;
    assert!(tokens(json!({"reasoning_effort": "max"})).await > without);
    let both = json!({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(tokens(both).await, without);
}

fn weather() -> Value {
    json!([{"type": "function", "function": {
        "name": "weather", "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}, "strict": false
    }}])
}

#[tokio::test]
async fn tool_calls_are_parsed_and_their_ids_come_back() {
    let app = App::new();
    let reply = app.chat("call", json!({"tools": weather()})).await.ok();
    let message = &reply["choices"][0]["message"];
    assert_eq!(reply["choices"][0]["finish_reason"], "tool_calls");
    assert!(message["content"].is_null());
    let call = &message["tool_calls"][0];
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"], json!({"name": "weather", "arguments": "{\"city\":\"Paris\"}"}));
    assert!(call.get("index").is_none());
    // The answer and the result as history.
    let history = json!({"model": MODEL, "tools": weather(), "messages": [
        {"role": "user", "content": "call"},
        message,
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny"},
        {"role": "user", "content": "hello"}
    ]});
    assert_eq!(content(&app.post("/v1/chat/completions", &history).await.ok()), "Hello there.");
}

#[tokio::test]
async fn several_calls_come_in_one_turn() {
    let app = App::new();
    let reply = app.chat("both", json!({"tools": weather(), "tool_choice": "auto"})).await.ok();
    let calls = reply["choices"][0]["message"]["tool_calls"].as_array().unwrap();
    let cities: Vec<&str> = calls.iter().map(|call| call["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(cities, ["{\"city\":\"Paris\"}", "{\"city\":\"Rome\"}"]);
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    let one = app.chat("both", json!({"tools": weather(), "parallel_tool_calls": false})).await.ok();
    assert_eq!(one["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_strict_tool_gets_calls_that_fit_and_no_others() {
    let app = App::new();
    for (city, fits) in [(json!({"type": "string"}), true), (json!({"enum": ["Rome"]}), false)] {
        let parameters = json!({"type": "object", "properties": {"city": city}, "additionalProperties": false});
        let function = json!({"name": "weather", "strict": true, "parameters": parameters});
        let tools = json!([{"type": "function", "function": function}]);
        let reply = app.chat("call", json!({"tools": tools})).await.ok();
        let (message, reason) = (&reply["choices"][0]["message"], &reply["choices"][0]["finish_reason"]);
        assert_eq!(message.get("tool_calls").is_some(), fits);
        assert_eq!(reason, if fits { "tool_calls" } else { "stop" });
        assert!(fits || message["content"].as_str().unwrap().contains("Paris"), "{reply}");
        let mut flat = function;
        flat["type"] = json!("function");
        let reply = app.post("/v1/responses", &json!({"input": "call", "tools": [flat]})).await.ok();
        assert_eq!(reply["output"][0]["type"], if fits { "function_call" } else { "message" });
    }
}

#[tokio::test]
async fn a_call_that_is_none_is_content() {
    let app = App::new();
    let reply = app.chat("broken", json!({"tools": weather()})).await.ok();
    assert!(content(&reply).contains("weather Paris"));
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert!(reply["choices"][0]["message"].get("tool_calls").is_none());
    // Without tools there are no calls.
    for fields in [json!({}), json!({"tools": weather(), "tool_choice": "none"}), json!({"tools": []})] {
        let reply = app.chat("call", fields).await.ok();
        assert!(reply["choices"][0]["message"].get("tool_calls").is_none());
        assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn every_role_and_every_way_to_write_content_is_taken() {
    let app = App::new();
    let part = |text: &str| json!([{"type": "text", "text": text}]);
    for messages in [
        json!([{"role": "system", "content": "hello"}]),
        json!([{"role": "developer", "content": "hello"}]),
        json!([{"role": "user", "content": part("hello"), "name": "ann"}]),
        json!([{"role": "system", "content": part("Be kind.")}, {"role": "user", "content": "hello"}]),
        json!([
            {"role": "user", "content": "Hi"},
            // As an SDK dumps it.
            {"role": "assistant", "content": "Hi", "refusal": null, "annotations": [], "audio": null,
             "function_call": null, "tool_calls": null, "reasoning_content": "Hm.", "reasoning": "Hm."},
            {"role": "user", "content": [{"type": "input_text", "text": "he"}, {"type": "text", "text": "llo", "cache_control": null}]}
        ]),
        json!([{"role": "assistant", "content": null}, {"role": "user", "content": "hello"}]),
        json!([{"role": "assistant", "content": null, "refusal": "No."}, {"role": "user", "content": "hello"}]),
    ] {
        let reply = app.post("/v1/chat/completions", &json!({"model": MODEL, "messages": messages})).await;
        assert_eq!(content(&reply.ok()), "Hello there.", "{messages}");
    }
}

#[tokio::test]
async fn accepted_fields_change_nothing() {
    let app = App::new();
    let plain = app.chat("hello", json!({"seed": 3})).await.ok();
    let reply = app
        .chat(
            "hello",
            json!({
                "seed": 3, "user": "ann", "metadata": {"a": "b"}, "store": true, "service_tier": "auto",
                "safety_identifier": "x", "prompt_cache_key": "k", "prompt_cache_retention": "24h", "verbosity": "low",
                "prediction": {"type": "content", "content": "Hello"}, "modalities": ["text"],
                "response_format": {"type": "text"}, "parallel_tool_calls": true, "tool_choice": "none",
                "stream": false, "stream_options": {"include_usage": true, "include_obfuscation": false},
                "top_logprobs": 0, "logprobs": false, "diffusion": {"effort": "balanced", "timeout_ms": 60000},
                "diffusing": true
            }),
        )
        .await;
    assert_eq!(reply.headers.get("x-canvasd-ignored"), None);
    assert_eq!(reply.ok()["choices"], plain["choices"]);
}

#[tokio::test]
async fn null_is_absent_in_every_field() {
    let app = App::new();
    let document: Value = serde_json::from_str(&canvasd::api::openapi()).unwrap();
    let fields = document["components"]["schemas"]["ChatRequest"]["properties"].as_object().unwrap();
    assert!(fields.len() > 30);
    let mut body = json!({});
    for name in fields.keys() {
        body[name] = Value::Null;
    }
    body["messages"] = json!([{"role": "user", "content": "hello"}]);
    let reply = app.post("/v1/chat/completions", &body).await;
    assert_eq!(content(&reply.ok()), "Hello there.");
}

#[tokio::test]
async fn unknown_fields_are_taken_and_named() {
    let app = App::new();
    let reply = app
        .post(
            "/v1/chat/completions",
            &json!({
                "model": MODEL, "min_p": 0.1, "messages": [{"role": "user", "content": "hello", "mood": "good"}],
                "stream_options": {"colour": 1}, "chat_template_kwargs": {"unread": 1, "enable_thinking": false}
            }),
        )
        .await;
    assert_eq!(
        reply.headers["x-canvasd-ignored"],
        "chat_template_kwargs.unread, messages[0].mood, min_p, stream_options.colour"
    );
    assert_eq!(content(&reply.ok()), "Hello there.");
}

#[tokio::test]
async fn the_model_is_known_by_its_names_and_no_other() {
    let app = App::new();
    for model in [json!(MODEL), json!(ALIAS), Value::Null] {
        let reply = app.chat("hello", json!({"model": model})).await.ok();
        assert_eq!(reply["model"], MODEL);
    }
    let error = app.chat("hello", json!({"model": "gpt-5"})).await.refused(404);
    assert_eq!((&error["param"], &error["code"]), (&json!("model"), &json!("model_not_found")));
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let app = App::new();
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let called = |arguments: &str| {
        let call = json!({"id": "c", "function": {"name": "f", "arguments": arguments}});
        json!({"messages": [{"role": "assistant", "tool_calls": [call]}]})
    };
    for (fields, param) in [
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hello"}), "messages"),
        (json!({"messages": [null]}), "messages[0]"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "messages[0].content[0].text"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            "messages[0].content[0]",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
            "messages[0].content[0]",
        ),
        (json!({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}), "messages[0].content[0].type"),
        (json!({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]}), "messages[0].audio"),
        (
            json!({"messages": [{"role": "assistant", "content": "x", "function_call": {}}]}),
            "messages[0].function_call",
        ),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
        (json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}), "messages[0].tool_call_id"),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}]}),
            "messages[0].tool_calls",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]}),
            "messages[0].tool_calls[0].id",
        ),
        (called("["), "messages[0].tool_calls[0].function.arguments"),
        (called("[]"), "messages[0].tool_calls[0].function.arguments"),
        (called("1"), "messages[0].tool_calls[0].function.arguments"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"n": -1}), "n"),
        (json!({"n": 1.5}), "n"),
        (json!({"seed": "x"}), "seed"),
        (json!({"seed": 1e30}), "seed"),
        (json!({"temperature": "warm"}), "temperature"),
        (json!({"temperature": 2.5}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"stop": ["1", "2", "3", "4", "5"]}), "stop"),
        (json!({"stop": "a".repeat(1_000_000), "n": 32}), "stop"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logit_bias": {"999999": 1}}), "logit_bias.999999"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": "perhaps"}), "tool_choice"),
        (json!({"tool_choice": {"name": "f"}}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "retrieval"}}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "allowed_tools"}}), "tool_choice"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice.name"),
        (json!({"tool_choice": {"type": "function", "function": {}}}), "tool_choice.function.name"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), "tool_choice.function.name"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
        (json!({"tools": [{}]}), "tools[0].type"),
        (tool(json!({})), "tools[0].function.name"),
        (tool(json!({"name": "two words"})), "tools[0].function.name"),
        (
            tool(json!({"name": "f", "strict": true, "parameters": {"properties": {"a": {"pattern": "x"}}}})),
            "tools[0].function.parameters",
        ),
        (tool(json!({"name": "f", "parameters": "none"})), "tools[0].function.parameters"),
        (json!({"reasoning_effort": "extreme"}), "reasoning_effort"),
        (json!({"chat_template_kwargs": {"enable_thinking": "yes"}}), "chat_template_kwargs.enable_thinking"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"audio": {"voice": "x"}}), "audio"),
        (json!({"functions": []}), "functions"),
        (json!({"function_call": "auto"}), "function_call"),
        (json!({"web_search_options": {}}), "web_search_options"),
        (json!({"diffusion": {"effort": "heroic"}}), "diffusion.effort"),
        (json!({"diffusion": {"max_denoising_steps": 5000}}), "diffusion.max_denoising_steps"),
        (json!({"stream_options": {"include_diffusion_progress": 3}}), "stream_options.include_diffusion_progress"),
    ] {
        let error = app.chat("hello", fields.clone()).await.refused(400);
        assert_eq!(error["param"], param, "{fields}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn what_the_template_cannot_do_is_refused_by_the_name_that_the_client_used() {
    const PLAIN: &str =
        "{% for m in messages %}<|turn>{{ m['role'] }}\n{{ m['content'] }}<turn|>\n{% endfor %}{{ '<|turn>model\n' }}";
    let app = App::speaking(PLAIN);
    let switch = json!({"chat_template_kwargs": {"enable_thinking": true}});
    for (fields, param) in [
        (json!({"reasoning_effort": "high"}), "reasoning_effort"),
        (switch, "chat_template_kwargs.enable_thinking"),
        (json!({"tools": weather()}), "tools"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs"),
    ] {
        let error = app.chat("hello", fields.clone()).await.refused(400);
        assert_eq!(error["param"], param, "{fields}: {error}");
        let name = param.rsplit('.').next().unwrap_or_default();
        assert!(error["message"].as_str().unwrap().contains(name), "{error}");
    }
    let body = json!({"input": "hello", "reasoning": {"effort": "low"}});
    assert_eq!(app.post("/v1/responses", &body).await.refused(400)["param"], "reasoning.effort");
    for fields in [json!({"reasoning_effort": "none"}), json!({"chat_template_kwargs": {"enable_thinking": false}})] {
        assert_eq!(content(&app.chat("hello", fields).await.ok()), "Hello there.");
    }
    let refusing = App::speaking("{{ raise_exception('Roles must alternate') }}");
    let error = refusing.chat("hello", json!({})).await.refused(400);
    assert!(
        error["param"] == "messages" && error["message"].as_str().unwrap().contains("Roles must alternate"),
        "{error}"
    );
    let body = json!({"input": "hello"});
    assert_eq!(refusing.post("/v1/responses", &body).await.refused(400)["param"], "input");
}

#[tokio::test]
async fn a_second_turn_finds_its_prefix() {
    let app = App::new();
    let long = format!("{} hello", "The fox lived in a forest. ".repeat(12));
    let first = app.chat(&long, json!({})).await.ok();
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let second = app.chat(&long, json!({})).await.ok();
    assert!(second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0, "{second}");
    assert_eq!(first["choices"], second["choices"]);
}
