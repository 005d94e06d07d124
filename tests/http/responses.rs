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

/// The items of an output without their ids.
fn items(response: &Value) -> Vec<Value> {
    let mut items = response["output"].as_array().unwrap().clone();
    for item in &mut items {
        (item["id"], item["call_id"]) = (Value::Null, Value::Null);
    }
    items
}

/// What kinds of items an output holds, in order.
fn kinds(response: &Value) -> Vec<&str> {
    response["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect()
}

/// The events of a stream: names and data, in that order.
fn events(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!(reply.headers["content-type"], "text/event-stream", "{}", reply.body);
    let blocks = reply.body.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    let events: Vec<(String, Value)> = blocks
        .map(|block| {
            let lines = block.strip_prefix("event: ").and_then(|block| block.split_once("\ndata: "));
            let (name, data) = lines.unwrap_or_else(|| panic!("no event: {block}"));
            (name.to_owned(), serde_json::from_str(data).unwrap())
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
    let fields = json!({
        "instructions": "Be kind.", "metadata": {"a": "b"}, "store": true, "seed": 1, "user": "ann", "service_tier": "auto",
        "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "none", "summary": "auto"}, "truncation": "disabled",
        "text": {"format": {"type": "text"}, "verbosity": "low"}, "parallel_tool_calls": true, "max_tool_calls": 3, "tools": [],
        "tool_choice": "auto", "background": false, "top_logprobs": 0, "safety_identifier": "x", "prompt_cache_key": "k",
        "prompt_cache_retention": "24h", "stream_options": {"include_obfuscation": false}
    });
    let reply = respond(&app, json!("hello"), fields).await;
    assert_eq!(reply.headers.get("x-canvasd-ignored"), None);
    let reply = reply.ok();
    assert_eq!(reply["reasoning"], json!({"effort": "none", "summary": null}));
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
    assert_eq!(usage["input_tokens_details"], json!({"cached_tokens": 0, "cache_write_tokens": 0}));
    let fields = json!({"tool_choice": "none", "reasoning": {"effort": "max"}});
    let reply = respond(&app, json!("hello"), fields).await.ok();
    assert_eq!((&reply["tool_choice"], &reply["reasoning"]["effort"]), (&json!("none"), &json!("max")));
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
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
    assert!(cut.iter().any(|(name, data)| name == "canvasd.diffusion.progress" && data["diffusion"]["v"] == 1));
    let crash = stream("crash", json!({})).await;
    let (name, last) = crash.last().unwrap();
    assert_eq!((name.as_str(), &last["code"]), ("error", &json!("model_failed")));
    assert_eq!(last["error"]["message"], last["message"]);
}

fn weather() -> Value {
    json!([{"type": "function", "name": "weather", "description": "Tells the weather.", "strict": false,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}])
}

/// Of each call in an output: its name and arguments.
fn calls(response: &Value) -> Vec<(&str, &str)> {
    let items = response["output"].as_array().unwrap().iter().filter(|item| item["type"] == "function_call");
    items.map(|item| (item["name"].as_str().unwrap(), item["arguments"].as_str().unwrap())).collect()
}

const PARIS: (&str, &str) = ("weather", "{\"city\":\"Paris\"}");
const ROME: (&str, &str) = ("weather", "{\"city\":\"Rome\"}");

#[tokio::test]
async fn functions_are_called_and_their_outputs_come_back() {
    let app = App::new();
    let first = respond(&app, json!("look"), json!({"tools": weather()})).await.ok();
    assert_eq!(
        (&first["status"], &first["tools"], &first["tool_choice"]),
        (&json!("completed"), &weather(), &json!("auto"))
    );
    assert_eq!(first["output"][0]["content"][0]["text"], "A look.\n");
    assert_eq!(calls(&first), [PARIS]);
    let call = &first["output"][1];
    assert_eq!(call["status"], "completed");
    assert!(call["id"].as_str().unwrap().starts_with("fc_") && call["call_id"].as_str().unwrap().starts_with("call_"));
    // The output and the result go back as they came; the call belongs to the turn before it.
    let mut items = vec![json!({"role": "user", "content": "look"})];
    items.extend(first["output"].as_array().unwrap().iter().cloned());
    items.push(json!({"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}));
    items.push(json!({"role": "user", "content": "hello"}));
    assert_eq!(text(&respond(&app, json!(items), json!({"tools": weather()})).await.ok()), "Hello there.");
    let spelled = async |path: &str, body: Value| app.post(path, &body).await.ok()["usage"].clone();
    let as_items = spelled("/v1/responses", json!({"input": items, "tools": weather()})).await;
    let chat_tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let as_messages = json!({"tools": chat_tools, "messages": [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "A look.\n", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Paris\"}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "user", "content": "hello"}
    ]});
    let as_messages = spelled("/v1/chat/completions", as_messages).await;
    assert_eq!(as_items["input_tokens"], as_messages["prompt_tokens"]);
    // Only calls: no message. The result may be parts, and the call may stand first.
    let both = respond(&app, json!("both"), json!({"tools": weather()})).await.ok();
    assert_eq!((calls(&both), both["output"].as_array().unwrap().len()), (vec![PARIS, ROME], 2));
    let one = respond(&app, json!("both"), json!({"tools": weather(), "parallel_tool_calls": false})).await.ok();
    assert_eq!((calls(&one), &one["parallel_tool_calls"]), (vec![PARIS], &json!(false)));
    let alone = json!([
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": ""},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "hello"}]},
        {"role": "user", "content": "hello"}
    ]);
    assert_eq!(text(&respond(&app, alone, json!({})).await.ok()), "Hello there.");
    // Hidden tools, and what cannot be read as a call.
    for (input, fields) in
        [("call", json!({"tools": weather(), "tool_choice": "none"})), ("broken", json!({"tools": weather()}))]
    {
        let reply = respond(&app, json!(input), fields).await.ok();
        assert!(calls(&reply).is_empty() && text(&reply).contains("weather"), "{reply}");
    }
}

#[tokio::test]
async fn calls_are_streamed_with_the_documented_events() {
    let app = App::new();
    let fields = json!({"tools": weather(), "stream": true});
    let events = events(&respond(&app, json!("look"), fields).await);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names, expected);
    let last = &events.last().unwrap().1["response"];
    assert_eq!(calls(last), [PARIS]);
    let (added, done) = (&events[8].1["item"], &events[11].1["item"]);
    assert_eq!((&added["arguments"], &added["status"], &added["id"]), (&json!(""), &json!("in_progress"), &done["id"]));
    assert_eq!(done, &last["output"][1]);
    for (name, data) in &events[8..12] {
        assert_eq!(data["output_index"], 1, "{name}");
    }
    assert_eq!((&events[9].1["delta"], &events[9].1["item_id"]), (&done["arguments"], &done["id"]));
    assert_eq!((&events[10].1["arguments"], &events[10].1["name"]), (&done["arguments"], &done["name"]));
}

#[tokio::test]
async fn a_whole_answer_holds_the_items_of_its_stream() {
    let app = App::new();
    for input in ["mixed", "look", "both", "between", "think", "story"] {
        let whole = respond(&app, json!(input), json!({"tools": weather()})).await.ok();
        let streamed = events(&respond(&app, json!(input), json!({"tools": weather(), "stream": true})).await);
        assert_eq!(items(&whole), items(&streamed.last().unwrap().1["response"]), "{input}");
    }
    assert_eq!(respond(&app, json!("crash"), json!({})).await.refused(500)["code"], "model_failed");
}

#[tokio::test]
async fn items_stand_in_the_order_in_which_the_model_wrote_them() {
    let app = App::new();
    // A call and the beginning of a text in the first canvas, and the text's end in the second.
    let whole = respond(&app, json!("mixed"), json!({"tools": weather()})).await.ok();
    assert_eq!(kinds(&whole), ["function_call", "message"]);
    assert_eq!((calls(&whole), text(&whole).as_str()), (vec![PARIS], STORY));
    let stream = events(&respond(&app, json!("mixed"), json!({"tools": weather(), "stream": true})).await);
    let added = stream.iter().filter(|(name, _)| name == "response.output_item.added");
    let added: Vec<&str> = added.map(|(_, data)| data["item"]["type"].as_str().unwrap()).collect();
    assert_eq!(added, ["function_call", "message"]);
    // Text between two calls in one canvas or two; a call that is left out does not part it from what follows.
    let whole = respond(&app, json!("between"), json!({"tools": weather()})).await.ok();
    assert_eq!(kinds(&whole), ["function_call", "message", "function_call"]);
    assert_eq!((calls(&whole), text(&whole).as_str()), (vec![PARIS, ROME], " then "));
    let whole = respond(&app, json!("between"), json!({"tools": weather(), "parallel_tool_calls": false})).await.ok();
    assert_eq!((kinds(&whole), calls(&whole)), (vec!["function_call", "message"], vec![PARIS]));
}

#[tokio::test]
async fn what_is_said_between_a_call_and_its_output_belongs_to_the_calling_message() {
    let app = App::new();
    let said = |text: &str| json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]});
    let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "weather", "arguments": "{}"});
    let output = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "sunny"});
    let sent = |id: &str| json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": "{}"}});
    let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "sunny"});
    let user = |text: &str| json!({"role": "user", "content": text});
    let chat_tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    for (items, messages) in [
        (
            vec![call("a"), said(STORY), output("a")],
            vec![json!({"role": "assistant", "content": STORY, "tool_calls": [sent("a")]}), result("a")],
        ),
        (
            vec![call("a"), said(" then "), call("b"), output("a"), output("b")],
            vec![
                json!({"role": "assistant", "content": " then ", "tool_calls": [sent("a"), sent("b")]}),
                result("a"),
                result("b"),
            ],
        ),
        (
            vec![
                json!({"role": "assistant", "content": "A fox "}),
                call("a"),
                said("lived."),
                output("a"),
                said("Yes."),
            ],
            vec![
                json!({"role": "assistant", "content": "A fox lived.", "tool_calls": [sent("a")]}),
                result("a"),
                json!({"role": "assistant", "content": "Yes."}),
            ],
        ),
        (
            vec![call("a"), json!({"role": "assistant", "content": "A fox "}), said("lived."), output("a")],
            vec![json!({"role": "assistant", "content": "A fox lived.", "tool_calls": [sent("a")]}), result("a")],
        ),
    ] {
        let history = |middle: Vec<Value>| [vec![user("mixed")], middle, vec![user("hello")]].concat();
        let body = json!({"input": history(items), "tools": weather()});
        let by_items = app.post("/v1/responses", &body).await.ok();
        assert_eq!(text(&by_items), "Hello there.");
        let body = json!({"messages": history(messages), "tools": chat_tools});
        let by_messages = app.post("/v1/chat/completions", &body).await.ok();
        assert_eq!(by_items["usage"]["input_tokens"], by_messages["usage"]["prompt_tokens"], "{body}");
    }
    // An output goes back as it came, its result behind it.
    let first = respond(&app, json!("mixed"), json!({"tools": weather()})).await.ok();
    let mut items = vec![user("mixed")];
    items.extend(first["output"].as_array().unwrap().iter().cloned());
    items.extend([output(first["output"][0]["call_id"].as_str().unwrap()), user("hello")]);
    assert_eq!(text(&respond(&app, json!(items), json!({"tools": weather()})).await.ok()), "Hello there.");
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let app = App::new();
    for (fields, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (json!({"input": [{"type": "message", "role": "tool", "content": "x"}]}), "input[0].role"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "input[0].content[0]",
        ),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"temperature": 9}), "temperature"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"name": "f"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"tools": [{"type": "function", "name": "two words"}]}), "tools[0].name"),
        (json!({"tools": [{"type": "function", "name": "f", "parameters": []}]}), "tools[0].parameters"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "name": "f"}}), "tool_choice.name"),
        (json!({"input": [{"type": "function_call", "name": "f"}]}), "input[0].call_id"),
        (json!({"input": [{"type": "function_call", "call_id": "c"}]}), "input[0].name"),
        (
            json!({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]}),
            "input[0].arguments",
        ),
        (json!({"input": [{"type": "function_call_output", "output": "x"}]}), "input[0].call_id"),
        (json!({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}), "input[0].call_id"),
        (
            json!({"input": [
                {"type": "function_call", "call_id": "c", "name": "f"}, {"type": "function_call_output", "call_id": "c"}
            ]}),
            "input[1].output",
        ),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"include": ["reasoning.encrypted_content", "x"]}), "include"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"text": {"format": {"type": "json_schema"}}}), "text.format.name"),
        (json!({"reasoning": {"effort": "endless"}}), "reasoning.effort"),
    ] {
        let error = respond(&app, json!("hello"), fields.clone()).await.refused(400);
        assert_eq!(error["param"], param, "{fields}: {error}");
    }
    let result = json!([{"role": "tool", "tool_call_id": "c", "content": "x"}]);
    let error = respond(&app, result, json!({})).await.refused(400);
    assert!(error["message"].as_str().unwrap().contains("function_call_output"), "{error}");
    let document: Value = serde_json::from_str(&canvasd::api::openapi()).unwrap();
    let mut body = json!({});
    for name in document["components"]["schemas"]["ResponsesRequest"]["properties"].as_object().unwrap().keys() {
        body[name] = Value::Null;
    }
    body["input"] = json!("hello");
    assert_eq!(text(&app.post("/v1/responses", &body).await.ok()), "Hello there.");
}

#[tokio::test]
async fn a_thought_that_comes_back_has_fields_of_its_own_only() {
    let app = App::new();
    let thought = json!({"type": "reasoning", "id": "rs_1", "status": "completed", "encrypted_content": null,
        "summary": [{"type": "summary_text", "text": "It thinks."}],
        "content": [{"type": "reasoning_text", "text": "The fox asks."}]});
    let history =
        |thought: Value| json!([{"role": "user", "content": "think"}, thought, {"role": "user", "content": "hello"}]);
    let reply = respond(&app, history(thought.clone()), json!({})).await;
    assert_eq!(reply.headers.get("x-canvasd-ignored"), None);
    assert_eq!(text(&reply.ok()), "Hello there.");
    for (field, value) in [("role", "user"), ("arguments", "{}"), ("name", "f"), ("call_id", "c"), ("output", "x")] {
        let mut odd = thought.clone();
        odd[field] = json!(value);
        let error = respond(&app, history(odd), json!({})).await.refused(400);
        assert_eq!(error["param"], format!("input[1].{field}"));
    }
}
