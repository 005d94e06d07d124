//! Calls in the history: each wants one result, and before it has one nobody else speaks.

use serde_json::{Value, json};

use super::support::App;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// An assistant's message with calls of these ids.
fn calls(ids: &[&str]) -> Value {
    let call = |id: &&str| json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": "{}"}});
    json!({"role": "assistant", "content": null, "tool_calls": ids.iter().map(call).collect::<Vec<_>>()})
}

fn result(id: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": "hello"})
}

fn call_item(id: &str) -> Value {
    json!({"type": "function_call", "call_id": id, "name": "weather", "arguments": "{}"})
}

fn output(id: &str) -> Value {
    json!({"type": "function_call_output", "call_id": id, "output": "hello"})
}

#[tokio::test]
async fn a_call_without_its_result_is_refused_by_its_id() {
    let app = App::new();
    for (messages, param, said) in [
        (json!([user("Hi"), calls(&["a1"])]), "messages[1].tool_calls[0]", "'a1'"),
        (json!([user("Hi"), calls(&["a1"]), user("And?")]), "messages[1].tool_calls[0]", "'tool' message"),
        (json!([calls(&["a1"]), calls(&["a2"]), result("a1"), result("a2")]), "messages[0].tool_calls[0]", "'a1'"),
        (json!([calls(&["a1", "a2"]), result("a1")]), "messages[0].tool_calls[1]", "'a2'"),
        (json!([calls(&["a1", "a2"]), result("a2"), user("And?")]), "messages[0].tool_calls[0]", "'a1'"),
        (json!([calls(&["a1"]), result("a1"), result("a1")]), "messages[2].tool_call_id", "already"),
        (json!([calls(&["a1", "a1"]), result("a1")]), "messages[0].tool_calls[1].id", "'a1'"),
        (json!([calls(&["a1"]), result("a2")]), "messages[1].tool_call_id", "'a2'"),
    ] {
        for path in [CHAT, "/tokenize"] {
            let error = app.post(path, &json!({"messages": messages})).await.refused(400);
            assert_eq!(error["param"], param, "{messages}: {error}");
            assert!(error["message"].as_str().unwrap().contains(said), "{error}");
        }
    }
    let assistant = json!({"role": "assistant", "content": "Well."});
    for (input, param, said) in [
        (json!([user("Hi"), call_item("a1")]), "input[1]", "'function_call_output'"),
        (json!([call_item("a1"), user("And?"), output("a1")]), "input[0]", "'a1'"),
        (json!([call_item("a1"), assistant]), "input[0]", "'a1'"),
        (json!([call_item("a1"), call_item("a2"), output("a1")]), "input[1]", "'a2'"),
        (json!([call_item("a1"), output("a1"), output("a1")]), "input[2].call_id", "already"),
        (json!([call_item("a1"), call_item("a1"), output("a1")]), "input[1].call_id", "'a1'"),
        (json!([call_item("a1"), output("a2")]), "input[1].call_id", "'a2'"),
    ] {
        let error = app.post(RESPONSES, &json!({"input": input})).await.refused(400);
        assert_eq!(error["param"], param, "{input}: {error}");
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
    }
}

#[tokio::test]
async fn results_come_in_any_order_and_ids_come_again() {
    let app = App::new();
    let assistant = json!({"role": "assistant", "content": "Well."});
    for messages in [
        json!([calls(&["a1", "a2"]), result("a1"), result("a2")]),
        json!([calls(&["a1", "a2"]), result("a2"), result("a1"), assistant, user("hello")]),
        json!([user("Hi"), calls(&["a1"]), result("a1"), calls(&["a1"]), result("a1"), user("hello")]),
    ] {
        let reply = app.post(CHAT, &json!({"messages": messages})).await.ok();
        assert_eq!(reply["choices"][0]["message"]["content"], "Hello there.", "{messages}");
    }
    for input in [
        json!([call_item("a1"), call_item("a2"), output("a1"), output("a2")]),
        json!([call_item("a1"), output("a1"), call_item("a2"), output("a2"), user("hello")]),
        json!([call_item("a1"), {"type": "reasoning", "summary": []}, call_item("a2"), output("a2"), output("a1")]),
        json!([call_item("a1"), call_item("a2"), output("a1"), call_item("a3"), output("a2"), output("a3")]),
    ] {
        app.post(RESPONSES, &json!({"input": input})).await.ok();
    }
}

/// The shipped template looks for the call of a result in the whole conversation.
#[tokio::test]
async fn a_result_belongs_to_its_own_call_though_its_id_comes_again() {
    let app = App::speaking(include_str!("../../models/demo/chat_template.jinja"));
    let call = |name: &str| {
        let function = json!({"name": name, "arguments": "{}"});
        json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": function}]})
    };
    let said = |text: &str| json!({"role": "tool", "tool_call_id": "c", "content": text});
    let messages = json!([call("get_weather"), said("sunny"), user("hello"), call("get_time"), said("noon")]);
    let prompt = rendered(&app, messages).await;
    assert!(prompt.contains(r#"response:get_weather{value:<|"|>sunny"#), "{prompt}");
    assert!(prompt.contains(r#"response:get_time{value:<|"|>noon"#), "{prompt}");
    let item = |id: &str, name: &str| json!({"type": "function_call", "call_id": id, "name": name, "arguments": "{}"});
    let input = |other: &str| {
        let (first, second) = (item("c", "get_weather"), item(other, "f"));
        json!({"input": [first, output("c"), user("hello"), second, output(other), user("hello")]})
    };
    let again = app.post(RESPONSES, &input("c")).await.ok();
    let apart = app.post(RESPONSES, &input("d")).await.ok();
    assert_eq!(again["usage"]["input_tokens"], apart["usage"]["input_tokens"]);
}

/// The prompt of a conversation, as text.
async fn rendered(app: &App, messages: Value) -> String {
    let tokens = app.post("/tokenize", &json!({"messages": messages})).await.ok()["tokens"].clone();
    app.post("/detokenize", &json!({"tokens": tokens})).await.ok()["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_arguments_of_a_call_come_back_with_every_digit() {
    let app = App::speaking(include_str!("../../models/demo/chat_template.jinja"));
    let arguments = r#"{"a": 123456789012345678901234, "b": ["9", -18446744073709551617, {"c": 18446744073709551615}],
                        "d": 1.50, "e": 1e+23, "f": "\\\"7"}"#;
    let mut call = calls(&["a1"]);
    call["tool_calls"][0]["function"]["arguments"] = json!(arguments);
    let prompt = rendered(&app, json!([call, result("a1")])).await;
    let expected = r#"{a:123456789012345678901234,b:[<|"|>9<|"|>,-18446744073709551617,{c:18446744073709551615}],d:1.5,e:1e+23,f:<|"|>\"7<|"|>}"#;
    assert!(prompt.contains(expected), "{prompt}");
}

/// What the assistant says between a call and its result belongs to the message that calls, as chat has it.
#[tokio::test]
async fn text_after_a_call_belongs_to_its_turn() {
    let app = App::new();
    let parameters = json!({"type": "object"});
    let flat = json!([{"type": "function", "name": "weather", "parameters": parameters}]);
    let nested = json!([{"type": "function", "function": {"name": "weather", "parameters": parameters}}]);
    for cue in ["mixed", "look", "both"] {
        let items = app.post(RESPONSES, &json!({"input": cue, "tools": flat})).await.ok()["output"].clone();
        let mut input = vec![user(cue)];
        input.extend(items.as_array().unwrap().iter().cloned());
        let called = items.as_array().unwrap().iter().filter(|item| item["type"] == "function_call");
        input.extend(called.map(|item| output(item["call_id"].as_str().unwrap())));
        let message = app.post(CHAT, &json!({"messages": [user(cue)], "tools": nested})).await.ok();
        let message = message["choices"][0]["message"].clone();
        let mut messages = vec![user(cue), message.clone()];
        messages
            .extend(message["tool_calls"].as_array().unwrap().iter().map(|call| result(call["id"].as_str().unwrap())));
        let from_items = app.post(RESPONSES, &json!({"input": input, "tools": flat})).await.ok();
        let from_messages = app.post(CHAT, &json!({"messages": messages, "tools": nested})).await.ok();
        assert_eq!(from_items["usage"]["input_tokens"], from_messages["usage"]["prompt_tokens"], "{cue}");
    }
}
