//! Conversations to prompts.

use serde_json::json;

use super::fixtures::{FAMILY, PLAIN, chat, ids, renderings, text_with, user};
use crate::prompt::{Arguments, Chat, Fault, Message, Opening, PromptError, Role, Thinking, ToolCall};

#[test]
fn conversations_render_and_tokenise_as_the_reference_does() {
    let text = text_with(FAMILY);
    let renderings = renderings();
    let cases = renderings["conversations"].as_array().unwrap();
    assert!(cases.len() >= 25);
    for case in cases {
        let expected = case["text"].as_str().unwrap();
        assert_eq!(text.render_text(&chat(case)).unwrap(), expected, "{}", case["name"]);
        assert_eq!(text.render(&chat(case)).unwrap().ids, ids(expected), "{}", case["name"]);
    }
}

#[test]
fn the_template_engine_behaves_like_the_reference_s() {
    let renderings = renderings();
    let mut differences = Vec::new();
    assert!(renderings["snippets"].as_array().unwrap().len() >= 17);
    for snippet in renderings["snippets"].as_array().unwrap() {
        let template = snippet["template"].as_str().unwrap();
        let mut chat = user("x");
        chat.kwargs.insert("v".to_owned(), renderings["variables"].clone());
        let rendered = text_with(template).render_text(&chat);
        if rendered.as_ref().ok().map(String::as_str) != snippet["text"].as_str() {
            differences.push(format!("{template}\n  reference: {}\n  here:      {rendered:?}", snippet["text"]));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn the_opening_is_found_in_the_prompt_s_tail() {
    let text = text_with(FAMILY);
    let renderings = renderings();
    for case in renderings["conversations"].as_array().unwrap() {
        let open = case["text"].as_str().unwrap().ends_with("<|channel>thought\n");
        let expected = if open { Opening::Reasoning } else { Opening::Content };
        assert_eq!(text.render(&chat(case)).unwrap().opening, expected, "{}", case["name"]);
    }
}

#[test]
fn resume_points_are_the_ends_of_turns() {
    let text = text_with(FAMILY);
    let messages = vec![
        Message::new(Role::System, "Be brief."),
        Message::new(Role::User, "One <|turn> two"),
        Message::new(Role::Assistant, "Three"),
        Message::new(Role::User, "Four"),
    ];
    let prompt = text.render(&Chat { messages, ..Chat::default() }).unwrap();
    let ends: Vec<String> = prompt.resume_points.iter().map(|&at| text.decode(&prompt.ids[..at])).collect();
    assert_eq!(ends.len(), 4);
    assert_eq!(ends[0], "<bos><|turn>system\nBe brief.<turn|>\n");
    assert!(ends.iter().all(|end| end.ends_with("<turn|>\n")));
    assert!(prompt.resume_points.is_sorted() && prompt.resume_points[3] < prompt.ids.len());
}

#[test]
fn parts_are_joined_for_a_template_that_knows_only_text() {
    let parts = json!({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]});
    let rendered = text_with(PLAIN).render_text(&chat(&parts)).unwrap();
    assert_eq!(rendered, "<bos><|turn>user\none\ntwo<turn|>\n<|turn>model\n");
}

#[test]
fn a_developer_is_the_system_for_a_template_that_knows_none() {
    let chat = Chat { messages: vec![Message::new(Role::Developer, "d")], ..Chat::default() };
    assert!(text_with(PLAIN).render_text(&chat).unwrap().contains("<|turn>system\nd"));
}

#[test]
fn thinking_is_switched_by_the_request() {
    let text = text_with(FAMILY);
    let with = |thinking: Thinking, kwargs: serde_json::Value| {
        let kwargs = kwargs.as_object().cloned().unwrap();
        text.render_text(&Chat { thinking, kwargs, ..user("Hi") }).unwrap().contains("<|think|>")
    };
    assert!(with(Thinking::On, json!({})));
    assert!(!with(Thinking::Off, json!({})));
    assert!(!with(Thinking::Default, json!({})));
    assert!(with(Thinking::Default, json!({"enable_thinking": true})));
    assert!(!with(Thinking::On, json!({"enable_thinking": false})));
}

#[test]
fn what_a_template_cannot_express_is_refused_by_name() {
    let plain = text_with(PLAIN);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let refused = |chat: &Chat| plain.render(chat).unwrap_err();
    let tools = refused(&Chat { tools: vec![tool], ..user("x") });
    assert!(matches!(tools, PromptError::NoTools));
    assert_eq!(tools.fault(), Fault::Tools);
    assert!(matches!(refused(&Chat { thinking: Thinking::On, ..user("x") }), PromptError::NoThinking));
    let result = Chat { messages: vec![Message::new(Role::Tool, "r")], ..Chat::default() };
    assert!(matches!(refused(&result), PromptError::NoTools));
    assert!(matches!(refused(&Chat::default()), PromptError::NoMessages));
    let mut reserved = user("x");
    reserved.kwargs.insert("bos_token".to_owned(), json!("y"));
    assert_eq!(
        refused(&reserved).to_string(),
        "the server fills in bos_token itself: leave it out of chat_template_kwargs"
    );
}

#[test]
fn what_a_template_raises_reaches_the_client_in_its_own_words() {
    let text = text_with(FAMILY);
    let late =
        Chat { messages: vec![Message::new(Role::User, "x"), Message::new(Role::System, "late")], ..Chat::default() };
    let error = text.render(&late).unwrap_err();
    assert_eq!(error.to_string(), "the chat template refuses this conversation: a system message must be the first");
    assert_eq!(error.fault(), Fault::Messages);
    let broken = text_with("{{ messages[0].content.nothing.more }}").render(&user("x")).unwrap_err();
    assert!(matches!(broken, PromptError::Render(_)), "{broken}");
}

#[test]
fn deep_nesting_is_rendered_or_refused_never_fatal() {
    let text = text_with(FAMILY);
    let mut deep = json!(1);
    for _ in 0..120 {
        deep = json!({"items": deep, "properties": {"p": {"type": "string"}}});
    }
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": deep}});
    let in_small_stack = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let chat = Chat { tools: vec![tool], ..user("x") };
        match text.render(&chat) {
            Ok(prompt) => assert!(!prompt.ids.is_empty()),
            Err(error) => assert_eq!(error.fault(), Fault::Messages),
        }
    });
    in_small_stack.unwrap().join().expect("no overflow");
}

/// Why a checkpoint with this template cannot be used.
fn unusable(template: &str) -> PromptError {
    let parts = crate::prompt::TextParts {
        tokenizer: super::fixtures::demo_tokenizer(),
        template: Some(template.to_owned()),
        end_tokens: vec![1],
        bos_token: None,
        eos_token: None,
        add_bos: None,
    };
    crate::prompt::Text::new(parts).unwrap_err()
}

#[test]
fn a_template_that_does_not_compile_is_named() {
    for template in ["{% if %}", "{%}", "{%", "{% generation %}", "{%-generation"] {
        let error = unusable(template);
        assert!(matches!(error, PromptError::Template(_)), "{template}");
        assert_eq!(error.fault(), Fault::Checkpoint);
    }
}

/// Ends after some months.
const ENDLESS: &str = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% for d in range(9999) %}\
                       {% endfor %}{% endfor %}{% endfor %}{% endfor %}";

#[test]
fn a_template_that_does_not_end_is_refused_at_the_start() {
    let error = unusable(ENDLESS);
    assert!(matches!(&error, PromptError::Template(why) if why.contains("does not come to an end")), "{error}");
    assert_eq!(error.fault(), Fault::Checkpoint);
}

#[test]
fn a_conversation_that_takes_too_long_is_refused() {
    let text = text_with(&format!("{{% if messages[0].content | length > 99 %}}{ENDLESS}{{% endif %}}"));
    assert!(text.render_text(&user("short")).is_ok());
    let error = text.render_text(&user(&"long".repeat(30))).unwrap_err();
    assert!(matches!(error, PromptError::Endless(_)), "{error}");
    assert_eq!(error.fault(), Fault::Messages);
}

#[test]
fn the_date_is_there_for_templates_that_write_it() {
    let rendered = text_with("{{ strftime_now('%Y-%m-%d') }}").render_text(&user("x")).unwrap();
    assert_eq!(rendered.len(), 10);
    assert!(rendered.starts_with("20"));
}

#[test]
fn variables_a_template_reads_are_known() {
    let text = text_with(FAMILY);
    assert!(text.reads("enable_thinking") && text.reads("tools") && text.reads("empty_thought"));
    assert!(!text.reads("thinking_budget") && !text.reads("tool_call_i"));
    // What is no name is none, though it stands in the source.
    let plain = text_with(PLAIN);
    assert!(plain.reads("messages") && plain.reads("m") && plain.reads("add_generation_prompt"));
    assert!(!plain.reads("m['role']") && !plain.reads("in messages") && !plain.reads("") && !plain.reads("message"));
}

#[test]
fn long_numbers_of_a_call_are_numbers_however_they_are_printed() {
    let template = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }} \
                    {{ c.function.arguments }} {{ c.function.arguments.a is string }}{% endfor %}{% endfor %}";
    let json = r#"{"a": -123456789012345678901234, "b": 1e30}"#;
    let arguments = Arguments::new(serde_json::from_str(json).unwrap(), json.to_owned());
    let call = ToolCall { id: "1".to_owned(), name: "f".to_owned(), arguments };
    let messages = vec![Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") }];
    let rendered = text_with(template).render_text(&Chat { messages, ..Chat::default() }).unwrap();
    let expected =
        "{\"a\": -123456789012345678901234, \"b\": 1e+30} {'a': -123456789012345678901234, 'b': 1e+30} False";
    assert_eq!(rendered, expected);
}

#[test]
fn a_result_carries_the_name_of_the_tool_that_its_call_went_to() {
    let text = text_with("{% for m in messages %}{{ m.name }}{% if m.tool_calls or tools %}{% endif %};{% endfor %}");
    let call =
        |id: &str, name: &str| ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: Arguments::default() };
    let calls = |tool_calls| Message { tool_calls, ..Message::new(Role::Assistant, "") };
    let result = |id: &str| Message { tool_call_id: Some(id.to_owned()), ..Message::new(Role::Tool, "r") };
    let named = Message { name: Some("given".to_owned()), ..result("1") };
    let messages = vec![
        result("1"),
        calls(vec![call("1", "first"), call("2", "second"), call("2", "third")]),
        result("1"),
        result("2"),
        named,
        calls(vec![call("1", "fourth")]),
        result("1"),
        result("3"),
    ];
    let rendered = text.render_text(&Chat { messages, ..Chat::default() }).unwrap();
    let names: Vec<&str> = rendered.split(';').collect();
    assert_eq!(names, ["", "", "first", "third", "given", "", "fourth", "", ""]);
}
