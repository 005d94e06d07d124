//! Answers that must fit a schema. The model is the parrot, which knows nothing of schemas and insists on its own words.

use serde_json::{Value, json};

use super::support::{App, MODEL};

fn format(schema: Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}})
}

fn city() -> Value {
    let properties = json!({"city": {"enum": ["Paris", "Rome"]}, "warm": {"type": "boolean"}});
    json!({"type": "object", "properties": properties, "required": ["city", "warm"], "additionalProperties": false})
}

fn is_city(value: &Value) -> bool {
    ["Paris", "Rome"].contains(&value["city"].as_str().unwrap_or_default()) && value["warm"].is_boolean()
}

fn content(answer: &Value) -> Value {
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop", "{answer}");
    serde_json::from_str(choice["message"]["content"].as_str().expect("content")).expect("JSON")
}

#[tokio::test]
async fn whatever_the_model_says_the_answer_fits() {
    let app = App::new();
    for cue in ["hello", "story", "umlaut", "think", "blank", "call", "dice", "anything"] {
        for seed in 0..3 {
            let answer = app.chat(cue, json!({"seed": seed, "response_format": format(city())})).await.ok();
            assert!(is_city(&content(&answer)), "{cue}: {answer}");
        }
    }
    let answer = app.chat("hello", json!({"response_format": {"type": "json_object"}, "max_tokens": 40})).await.ok();
    let text = answer["choices"][0]["message"]["content"].as_str().expect("content").to_owned();
    assert!(text.starts_with('{'), "{answer}");
    for schema in [json!(true), json!({}), json!({"const": "Hello there."})] {
        let answer = app.chat("hello", json!({"response_format": format(schema.clone()), "max_tokens": 40})).await;
        assert_eq!(answer.status.as_u16(), 200, "{schema}");
    }
}

#[tokio::test]
async fn what_fits_already_is_not_touched() {
    let app = App::new();
    let plain = app.chat("person", json!({"seed": 1})).await.ok();
    assert_eq!(plain["choices"][0]["message"]["content"], r#"{"name": "Anna", "age": 30}"#);
    let held = app.chat("person", json!({"seed": 1, "response_format": {"type": "json_object"}})).await.ok();
    assert_eq!((&held["choices"], &held["usage"]), (&plain["choices"], &plain["usage"]));
}

#[tokio::test]
async fn streamed_is_the_same_and_log_probabilities_are_of_what_stands_there() {
    let app = App::new();
    let fields = json!({"seed": 2, "response_format": format(city()), "logprobs": true, "top_logprobs": 2});
    let whole = app.chat("hello", fields.clone()).await.ok();
    let mut streamed = fields;
    streamed["stream"] = json!(true);
    let events = app.chat("hello", streamed).await.events();
    let pieces = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(json!(pieces.collect::<String>()), whole["choices"][0]["message"]["content"]);
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().expect("log-probabilities");
    let text: String = tokens.iter().map(|token| token["token"].as_str().expect("a token")).collect();
    assert_eq!(json!(text), whole["choices"][0]["message"]["content"]);
    for token in tokens {
        let logprob = token["logprob"].as_f64().expect("a number");
        assert!(logprob == -9999.0 || (-100.0..=0.0).contains(&logprob), "{token}");
        assert_eq!(token["top_logprobs"].as_array().map(Vec::len), Some(2), "{token}");
    }
}

#[tokio::test]
async fn choices_and_neighbours_change_nothing() {
    let app = App::new();
    let fields = |seed: u64| json!({"seed": seed, "response_format": format(city()), "n": 3});
    let alone = app.chat("dice", fields(5)).await.ok();
    let others = (0..6).map(|seed| app.chat("dice", fields(seed)));
    let together = futures_util::future::join_all(others).await;
    assert_eq!(together[5].ok()["choices"], alone["choices"]);
}

#[tokio::test]
async fn an_answer_that_is_cut_is_a_beginning() {
    let app = App::new();
    let answer = app.chat("hello", json!({"response_format": format(city()), "max_tokens": 4})).await.ok();
    let choice = &answer["choices"][0];
    let text = choice["message"]["content"].as_str().expect("content");
    assert!(r#"{"city": ""#.starts_with(text) && !text.is_empty(), "{answer}");
    assert_eq!(choice["finish_reason"], "length");
}

#[tokio::test]
async fn a_tool_that_is_offered_may_be_called_instead() {
    let app = App::new();
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}});
    let answer = app.chat("call", json!({"response_format": format(city()), "tools": [tool]})).await.ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "weather");
}

#[tokio::test]
async fn with_tools_the_answer_is_what_was_asked_for_or_calls_that_can_be_made() {
    let app = App::new();
    let weather = tool("weather", json!({"city": {"enum": ["Paris", "Rome"]}}), json!(["city"]));
    for cue in ["hello", "think", "call", "both", "broken", "mixed", "between", "look", "person"] {
        let answer =
            app.chat(cue, json!({"seed": 1, "response_format": format(city()), "tools": [weather]})).await.ok();
        let choice = &answer["choices"][0];
        if choice["finish_reason"] == "stop" {
            assert!(is_city(&content(&answer)), "{cue}: {answer}");
            continue;
        }
        assert_eq!(choice["message"]["content"], Value::Null, "{cue}: {answer}");
        let (name, arguments) = call(&answer);
        let known = ["Paris", "Rome"].map(Value::from).contains(&arguments["city"]);
        assert!(name == "weather" && known, "{cue}: {answer}");
        assert!(["call", "both", "broken", "mixed", "between"].contains(&cue), "{cue}: {answer}");
    }
}

#[tokio::test]
async fn the_step_limit_holds_whatever_the_answer_must_be() {
    let app = App::new();
    let diffusion = json!({"max_denoising_steps": 1, "stability_threshold": 0, "confidence_threshold": 1000});
    let fields = json!({"temperature": 0, "max_tokens": 40, "diffusion": diffusion});
    for form in [json!({"type": "json_object"}), format(city())] {
        let mut fields = fields.clone();
        fields["response_format"] = form;
        let answer = app.chat("hello", fields).await.ok();
        let usage = &answer["usage"]["diffusion"];
        assert_eq!(usage["steps"], usage["canvases"], "{usage}");
    }
    // What is then made to fit may spell control tokens.
    let properties = json!({"<eos>": {"enum": ["<mask>", "<pad>"]}});
    let schema =
        json!({"type": "object", "properties": properties, "required": ["<eos>"], "additionalProperties": false});
    let mut fields = fields;
    fields["response_format"] = format(schema);
    let answer = app.chat("hello", fields).await.ok();
    assert!(content(&answer)["<eos>"].is_string(), "{answer}");
}

#[tokio::test]
async fn forms_that_cannot_be_held_are_refused() {
    let app = App::new();
    let schema = |schema: Value| json!({"response_format": format(schema)});
    for (fields, param) in [
        (json!({"response_format": {}}), "response_format.type"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (json!({"response_format": {"type": "json_schema", "json_schema": {}}}), "response_format.json_schema.name"),
        (
            json!({"response_format": {"type": "json_object", "json_schema": {"name": "n", "schema": {}}}}),
            "response_format.json_schema",
        ),
        (json!({"response_format": {"type": "text", "json_schema": {}}}), "response_format.json_schema"),
        (schema(json!(null)), "response_format.json_schema.schema"),
        (schema(json!(3)), "response_format.json_schema.schema"),
        (schema(json!({"type": "nonsense"})), "response_format.json_schema.schema"),
        (schema(json!({"type": "array", "uniqueItems": true})), "response_format.json_schema.schema"),
        (schema(json!({"type": "object", "x-guidance": {}})), "response_format.json_schema.schema"),
    ] {
        let error = app.chat("hello", fields.clone()).await.refused(400);
        assert_eq!(error["param"], param, "{fields}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    for kind in ["text", "json_object"] {
        let body = json!({"input": "hello", "text": {"format": {"type": kind, "schema": {"type": "object"}}}});
        assert_eq!(app.post("/v1/responses", &body).await.refused(400)["param"], "text.format.schema");
    }
    // Of a form in whose place a call comes, too.
    let mut fields = schema(json!({"type": "nonsense"}));
    for choice in ["auto", "required"] {
        fields["tools"] = tools();
        fields["tool_choice"] = json!(choice);
        let error = app.chat("hello", fields.clone()).await.refused(400);
        assert_eq!(error["param"], "response_format.json_schema.schema", "{error}");
    }
}

#[tokio::test]
async fn two_tools_have_two_names() {
    let app = App::new();
    let twice =
        json!([tool("f", json!({}), json!([])), tool("g", json!({}), json!([])), tool("f", json!({}), json!([]))]);
    let error = app.chat("hello", json!({"tools": twice})).await.refused(400);
    assert_eq!(error["param"], "tools[2].function.name");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("its own name")), "{error}");
    let body = json!({"model": MODEL, "input": "hello", "tools": [{"type": "function", "name": "f"}, {"type": "function", "name": "f"}]});
    assert_eq!(app.post("/v1/responses", &body).await.refused(400)["param"], "tools[1].name");
}

fn tool(name: &str, properties: Value, required: Value) -> Value {
    let parameters = json!({"type": "object", "properties": properties, "required": required});
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

/// Two tools, none of which the model asks for by itself.
fn tools() -> Value {
    let light = json!({"room": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}});
    let count = json!({"from": {"type": "integer"}, "note": {"enum": ["", "a b"]}});
    json!([tool("light", light, json!(["on", "room"])), tool("count.up", count, json!(["from"]))])
}

/// The function called and its arguments.
fn call(answer: &Value) -> (String, Value) {
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let function = &choice["message"]["tool_calls"][0]["function"];
    let arguments = serde_json::from_str(function["arguments"].as_str().expect("arguments")).expect("JSON");
    (function["name"].as_str().expect("a name").to_owned(), arguments)
}

fn is_light(arguments: &Value) -> bool {
    let keys = arguments.as_object().map(|map| map.len());
    keys == Some(2) && arguments["on"].is_boolean() && ["kitchen", "hall"].map(Value::from).contains(&arguments["room"])
}

#[tokio::test]
async fn a_call_that_is_demanded_is_made() {
    let app = App::new();
    for cue in ["hello", "story", "umlaut", "think", "blank", "call", "dice"] {
        for choice in [json!("required"), json!({"type": "function", "function": {"name": "light"}})] {
            // The parrot never counts to an end: what it is made to begin ends with the tokens.
            let fields = json!({"seed": 1, "tools": tools(), "tool_choice": choice, "parallel_tool_calls": false});
            let answer = app.chat(cue, fields).await.ok();
            let (name, arguments) = call(&answer);
            let is_count = name == "count.up" && choice == "required" && arguments["from"].is_i64();
            assert!(is_count || (name == "light" && is_light(&arguments)), "{cue} {choice}: {answer}");
        }
    }
    // The call comes first even where the content would have a form, and a stream brings the same.
    let choice = json!({"type": "function", "name": "light"});
    let fields = json!({"seed": 1, "tools": tools(), "tool_choice": choice, "response_format": format(city())});
    let whole = app.chat("hello", fields.clone()).await.ok();
    assert!(is_light(&call(&whole).1), "{whole}");
    let mut streamed = fields;
    streamed["stream"] = json!(true);
    let events = app.chat("hello", streamed).await.events();
    let pieces = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str());
    let arguments: Value = serde_json::from_str(&pieces.collect::<String>()).expect("JSON");
    assert_eq!(arguments, call(&whole).1);
}

#[tokio::test]
async fn responses_demand_calls_too() {
    let app = App::new();
    let mut tools = tools();
    for tool in tools.as_array_mut().expect("a list") {
        let function = tool["function"].take();
        *tool = json!({"type": "function", "name": function["name"], "parameters": function["parameters"]});
    }
    let choice = json!({"type": "function", "name": "light"});
    let body = json!({"model": MODEL, "input": "hello", "tools": tools, "tool_choice": choice});
    let answer = app.post("/v1/responses", &body).await.ok();
    assert_eq!(answer["tool_choice"], choice);
    let output = &answer["output"][0];
    assert_eq!((&output["type"], &output["name"]), (&json!("function_call"), &json!("light")), "{answer}");
    assert!(is_light(&serde_json::from_str(output["arguments"].as_str().expect("arguments")).expect("JSON")));
    let body = json!({"model": MODEL, "input": "hello", "tool_choice": "required"});
    assert_eq!(app.post("/v1/responses", &body).await.refused(400)["param"], "tool_choice");
}

#[tokio::test]
async fn responses_take_the_flat_form_and_repeat_it() {
    let app = App::new();
    let format = json!({"type": "json_schema", "name": "answer", "schema": city(), "strict": true});
    let body = json!({"model": MODEL, "input": "hello", "text": {"format": format}});
    let answer = app.post("/v1/responses", &body).await.ok();
    assert_eq!(answer["text"]["format"], format);
    let text = answer["output"][0]["content"][0]["text"].as_str().expect("text");
    assert!(is_city(&serde_json::from_str(text).expect("JSON")), "{answer}");
    for (format, param) in [
        (json!({"type": "json_schema", "schema": city()}), "text.format.name"),
        (json!({"type": "json_schema", "name": "answer"}), "text.format.schema"),
        (json!({"type": "json_schema", "name": "answer", "schema": {"type": "x"}}), "text.format.schema"),
        (json!({"type": "grammar"}), "text.format.type"),
    ] {
        let body = json!({"model": MODEL, "input": "hello", "text": {"format": format}});
        assert_eq!(app.post("/v1/responses", &body).await.refused(400)["param"], param, "{format}");
    }
}
