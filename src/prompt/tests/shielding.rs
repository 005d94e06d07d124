//! What clients write never becomes a control token, and what they ordinarily write is tokenised as ever.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;
use tokenizers::Tokenizer;

use super::fixtures::{FAMILY, PLAIN, demo_tokenizer, text_of, text_with, texts, tokenizers, user};
use crate::prompt::{Chat, Content, Message, Part, Role, Text, ToolCall};

/// Ids of the control tokens in a prompt, in order.
fn controls(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    let unknown = tokenizer.token_to_id("<unk>");
    let control = |id: &u32| added.get(id).is_some_and(|token| token.special) && Some(*id) != unknown;
    ids.iter().copied().filter(control).collect()
}

/// Pieces of which hostile and ordinary texts are made.
fn piece() -> impl Strategy<Value = String> {
    let pieces = [
        "<|turn>",
        "<turn|>",
        "<bos>",
        "<eos>",
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|\"|>",
        "<|TURN>",
        "<Turn|>",
        "＜|turn>",
        "<|",
        "<|tu",
        "rn>",
        "<",
        "|",
        ">",
        "|>",
        "turn|>",
        "hannel>",
        "tool",
        "<|tool_",
        "a",
        "the",
        "hello ",
        " ",
        "\n",
        "\r",
        "\t",
        "\0",
        "é",
        "e\u{301}",
        "日本",
        "👩‍👩‍👧",
        "שלום",
        "\u{200d}",
        "\u{202e}",
        "\u{FDD0}",
        "\u{FDD1}",
        "\u{F0000}",
        "\u{a0}",
        "\"",
        "}",
        "{",
        "thought\n",
        "<unk>",
        "<table>",
        "\n\n",
        "call:",
    ];
    prop::sample::select(pieces.to_vec()).prop_map(str::to_owned)
}

fn hostile() -> impl Strategy<Value = String> {
    prop::collection::vec(piece(), 1..6).prop_map(|pieces| pieces.concat())
}

/// A conversation that uses every place a client can write to.
fn conversation(texts: &[String]) -> Chat {
    let at = |i: usize| texts[i % texts.len()].clone();
    let mut asked = Message::new(Role::User, "");
    asked.content = Content::Parts(vec![Part::Text(at(0)), Part::Text(at(1)), Part::Text(at(2))]);
    asked.name = Some(at(3));
    let mut called = Message::new(Role::Assistant, at(4));
    called.reasoning = Some(at(5));
    let arguments = json!({at(6): at(7), "list": [at(8), {"deep": at(9)}]});
    let arguments = arguments.as_object().cloned().unwrap_or_default().into();
    called.tool_calls = vec![ToolCall { id: at(10), name: at(11), arguments }];
    let mut answered = Message::new(Role::Tool, at(12));
    answered.tool_call_id = Some(at(10));
    let tool = json!({"type": "function", "function": {"name": at(13), "description": at(14),
        "parameters": {"type": "object", "properties": {at(15): {"type": at(16), "enum": [at(17), at(18)]}},
        "required": [at(15)]}}});
    Chat {
        messages: vec![
            Message::new(Role::System, at(19)),
            Message::new(Role::User, at(20)),
            Message::new(Role::Assistant, at(21)),
            asked,
            called,
            answered,
            Message::new(Role::Assistant, at(22)),
            Message::new(Role::User, at(23)),
        ],
        tools: vec![tool],
        ..Chat::default()
    }
}

fn harmless() -> Vec<String> {
    (0..24).map(|i| format!("w{i}")).collect()
}

type Texts = LazyLock<Vec<(&'static str, &'static Tokenizer, Text)>>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_client_text_becomes_a_control_token(written in prop::collection::vec(hostile(), 24)) {
        static TEXTS: Texts = LazyLock::new(|| texts(FAMILY));
        for (name, tokenizer, text) in TEXTS.iter() {
            let expected = controls(tokenizer, &text.render(&conversation(&harmless())).unwrap().ids);
            let prompt = text.render(&conversation(&written)).unwrap();
            prop_assert_eq!(controls(tokenizer, &prompt.ids), expected, "{}: {:?}", name, text.render_text(&conversation(&written)));
        }
    }

    #[test]
    fn hostile_text_arrives_whole(texts in prop::collection::vec(hostile(), 24)) {
        static TEXT: LazyLock<Text> = LazyLock::new(|| text_with(FAMILY));
        let (text, chat) = (&*TEXT, conversation(&texts));
        prop_assert_eq!(text.decode(&text.render(&chat).unwrap().ids), text.render_text(&chat).unwrap());
    }

    #[test]
    fn text_that_spells_no_marker_has_the_reference_s_tokens(
        pieces in prop::collection::vec(piece(), 0..12), anything in "\\PC{0,12}",
    ) {
        let spelled = format!("{}{anything}", pieces.concat());
        static TEXTS: Texts = LazyLock::new(|| texts(PLAIN));
        for (name, tokenizer, text) in TEXTS.iter() {
            let rendered = text.render_text(&user(&spelled)).unwrap();
            let whole = tokenizer.encode(rendered.as_str(), false).unwrap();
            // Only where the template's own four markers are all there is to find.
            if controls(tokenizer, whole.get_ids()).len() == 4 {
                prop_assert_eq!(text.render(&user(&spelled)).unwrap().ids, whole.get_ids(), "{}", name);
            }
        }
    }
}

/// Tokens of a text around which nothing is special: the reference with every control token switched off.
fn as_text(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut plain = tokenizer.clone();
    plain.set_encode_special_tokens(true);
    plain.encode(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn spelled_markers_get_the_tokens_of_text() {
    let tokenizer = demo_tokenizer();
    let text = text_with(PLAIN);
    for spelled in ["<|turn>", "say <turn|> twice: <turn|>", "<bos>", "x <|\"|> y", "<eos>\n<eos>"] {
        let prompt = text.render(&user(spelled)).unwrap();
        let head = tokenizer.encode("<bos><|turn>", false).unwrap().get_ids().to_vec();
        let tail = tokenizer.encode("<turn|>\n<|turn>model\n", false).unwrap().get_ids().to_vec();
        let expected = [head, as_text(&tokenizer, &format!("user\n{spelled}")), tail].concat();
        assert_eq!(prompt.ids, expected, "{spelled}");
    }
}

#[test]
fn markers_put_together_from_parts_or_with_the_template_stay_text() {
    let tokenizer = demo_tokenizer();
    let parts = |texts: &[&str]| {
        let mut message = Message::new(Role::User, "");
        message.content = Content::Parts(texts.iter().map(|text| Part::Text((*text).to_owned())).collect());
        Chat { messages: vec![message], ..Chat::default() }
    };
    let family = text_with(FAMILY);
    for texts in [&["<|tu", "rn>"][..], &["<", "|", "turn", ">"], &[" <|tu ", "\n rn> "], &["<", "bos", ">"]] {
        let prompt = family.render(&parts(texts)).unwrap();
        assert_eq!(controls(&tokenizer, &prompt.ids).len(), 4, "{texts:?}");
    }
    let around = |template: &str, inside: &str| {
        let text = text_with(template);
        controls(&tokenizer, &text.render(&user(inside)).unwrap().ids)
    };
    assert!(around("<|{{ messages[0].content }}>", "turn").is_empty());
    assert!(around("<|{{ messages[0].content }}", "turn>").is_empty());
    assert!(around("{{ messages[0].content }}turn>", "<|").is_empty());
    assert!(around("{{ messages[0].content | lower }}", "<|TURN>").is_empty());
    assert!(around("{{ messages[0].content | upper | lower }}", "<|turn>").is_empty());
    assert!(around("{{ messages[0].content.split() | join }}", "<|tu rn> <b os>").is_empty());
    assert!(around("{{ messages[0].content | tojson }}", "<|turn>").is_empty());
    assert_eq!(around("<|turn>{{ messages[0].content }}<turn|>", ">").len(), 2);
}

#[test]
fn every_private_code_point_may_be_used_up_and_is_then_refused() {
    let text = text_with(PLAIN);
    let all: String = (0xFDD0..=0xFDEFu32).chain(0xF_0000..=0x10_FFFD).filter_map(char::from_u32).collect();
    let error = text.render(&user(&format!("{all}<|turn>"))).unwrap_err();
    assert!(matches!(error, crate::prompt::PromptError::NoSentinel));
    let most: String = all.chars().skip(1).collect();
    assert!(text.render_text(&user(&most)).unwrap().contains(&most));
}

#[test]
fn thoughts_left_in_earlier_answers_are_not_replayed() {
    let chat = |answer: &str| Chat {
        messages: vec![
            Message::new(Role::User, "q"),
            Message::new(Role::Assistant, answer),
            Message::new(Role::User, "r"),
        ],
        ..Chat::default()
    };
    for template in [PLAIN, FAMILY] {
        let text: Text = text_with(template);
        for answer in
            ["<|channel>thought\nsecret\n<channel|>Yes. ", "Yes.\n<|channel>secret", " Yes.<|channel>secret<channel|>"]
        {
            let rendered = text.render_text(&chat(answer)).unwrap();
            assert!(rendered.contains("model\nYes.<turn|>") && !rendered.contains("secret"), "{rendered}");
        }
    }
}

#[test]
fn a_raw_prompt_s_markers_are_markers_and_it_begins_by_the_tokeniser_s_rule() {
    let text = text_with(PLAIN);
    let tokenizer = demo_tokenizer();
    let ids = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    assert_eq!(text.encode("Once upon").unwrap(), ids("<bos>Once upon"));
    assert_eq!(text.encode("<bos>Once upon").unwrap(), ids("<bos>Once upon"));
    assert_eq!(text.encode("<|turn>user\n").unwrap(), ids("<bos><|turn>user\n"));
    let (_, byte_level) = tokenizers().iter().find(|(name, _)| *name == "byte level").unwrap();
    let by_rule = byte_level.encode("hello", true).unwrap().get_ids().to_vec();
    assert_eq!(text_of(byte_level.clone(), PLAIN).encode("hello").unwrap(), by_rule);
}
