//! Tokenisers, templates and conversations for the tests.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::prompt::{Chat, Content, Message, Part, Role, Text, TextParts, ToolCall};

/// The shipped demo's tokeniser: byte fallback, all markers of the family.
pub(super) fn demo_tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(include_bytes!("../../../models/demo/tokenizer.json")).expect("the demo's tokenizer loads")
}

/// The demo's tokeniser with this template.
pub(super) fn text_with(template: &str) -> Text {
    text_of(demo_tokenizer(), template)
}

/// This tokeniser and template; the end token is `<eos>`, the others are known by their spelling.
pub(super) fn text_of(tokenizer: Tokenizer, template: &str) -> Text {
    let end_tokens = tokenizer.token_to_id("<eos>").into_iter().collect();
    let parts = TextParts {
        tokenizer,
        template: Some(template.to_owned()),
        end_tokens,
        bos_token: Some("<bos>".to_owned()),
        eos_token: Some("<eos>".to_owned()),
        add_bos: None,
    };
    Text::new(parts).expect("tokenizer and template are understood")
}

/// The demo's tokeniser and a plain template, made once.
pub(super) fn plain() -> &'static Text {
    static TEXT: LazyLock<Text> = LazyLock::new(|| text_with(PLAIN));
    &TEXT
}

/// The tokens of a text in which every marker is one.
pub(super) fn ids(text: &str) -> Vec<u32> {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(demo_tokenizer);
    TOKENIZER.encode(text, false).expect("the demo's tokenizer encodes").get_ids().to_vec()
}

/// Turns, no thinking, no tools, text alone.
pub(super) const PLAIN: &str = "{{ bos_token }}{% for m in messages %}{{ '<|turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}";

/// Everything the family's templates do.
pub(super) const FAMILY: &str = include_str!("family.jinja");

/// A user's message and nothing else.
pub(super) fn user(text: &str) -> Chat {
    Chat { messages: vec![Message::new(Role::User, text)], ..Chat::default() }
}

/// What the reference renders; `origin` in the file says how it was made.
pub(super) fn renderings() -> Value {
    serde_json::from_str(include_str!("renderings.json")).expect("the fixture is JSON")
}

/// A conversation as the reference takes it.
pub(super) fn chat(case: &Value) -> Chat {
    let list = |key: &str| case[key].as_array().cloned().unwrap_or_default();
    Chat {
        messages: list("messages").iter().map(message).collect(),
        tools: list("tools"),
        kwargs: case["kwargs"].as_object().cloned().unwrap_or_else(Map::new),
        ..Chat::default()
    }
}

fn message(json: &Value) -> Message {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let role = match json["role"].as_str() {
        Some("system") => Role::System,
        Some("developer") => Role::Developer,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        role => panic!("unknown role {role:?}"),
    };
    let content = match &json["content"] {
        Value::Array(parts) => {
            Content::Parts(parts.iter().map(|part| Part::Text(text(&part["text"]).unwrap_or_default())).collect())
        }
        content => Content::Text(text(content).unwrap_or_default()),
    };
    let calls = json["tool_calls"].as_array().cloned().unwrap_or_default();
    let calls = calls.iter().map(|call| ToolCall {
        id: text(&call["id"]).unwrap_or_default(),
        name: text(&call["function"]["name"]).unwrap_or_default(),
        arguments: call["function"]["arguments"].as_object().cloned().unwrap_or_default().into(),
    });
    Message {
        role,
        content,
        name: text(&json["name"]),
        reasoning: text(&json["reasoning_content"]),
        tool_calls: calls.collect(),
        tool_call_id: text(&json["tool_call_id"]),
    }
}

/// Every kind of tokeniser the room claims to handle, by name, made once.
pub(super) fn tokenizers() -> &'static [(&'static str, Tokenizer)] {
    static TOKENIZERS: LazyLock<Vec<(&str, Tokenizer)>> = LazyLock::new(|| {
        vec![
            ("byte fallback", demo_tokenizer()),
            ("byte level", byte_level()),
            ("metaspace", metaspace()),
            ("strip", strip()),
            ("words", words()),
            ("normalized", normalized()),
        ]
    });
    &TOKENIZERS
}

/// Those tokenisers with this template.
pub(super) fn texts(template: &str) -> Vec<(&'static str, &'static Tokenizer, Text)> {
    tokenizers().iter().map(|(name, tokenizer)| (*name, tokenizer, text_of(tokenizer.clone(), template))).collect()
}

const MARKERS: [&str; 12] = [
    "<eos>",
    "<bos>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|\"|>",
];

fn added(from: usize, normalized: bool) -> Vec<Value> {
    let token = |(at, content): (usize, &&str)| {
        json!({"id": from + at, "content": content, "single_word": false, "special": true, "normalized": normalized,
            "lstrip": *content == "<|think|>", "rstrip": *content == "<turn|>"})
    };
    MARKERS.iter().enumerate().map(token).collect()
}

/// A BPE model of these tokens, with the merges that make the longer ones from left to right.
fn bpe(mut tokens: Vec<String>, words: &[&str], fallback: bool) -> Value {
    let mut merges = Vec::new();
    for word in words {
        let mut left = String::new();
        for c in word.chars() {
            if !left.is_empty() {
                let whole = format!("{left}{c}");
                if !tokens.contains(&whole) {
                    merges.push(json!([left, c.to_string()]));
                    tokens.push(whole);
                }
            }
            left.push(c);
        }
    }
    if fallback {
        tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    }
    tokens.extend(MARKERS.map(str::to_owned));
    let vocab: Map<String, Value> = tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    json!({"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": fallback, "unk_token": null,
        "fuse_unk": false, "ignore_merges": false, "dropout": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null})
}

fn size(model: &Value) -> usize {
    model["vocab"].as_object().map_or(0, Map::len)
}

fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string()).expect("the fixture tokenizer loads")
}

fn ascii() -> Vec<String> {
    (0x21..0x7Fu8).map(|byte| char::from(byte).to_string()).collect()
}

fn byte_level() -> Tokenizer {
    let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut letters: Vec<String> = alphabet.into_iter().map(String::from).collect();
    letters.sort();
    let model = bpe(letters, &["Ġthe", "hello", "ĠworldĠ", "Ã©", "ðŁĳ©", "<|tu", "Ċ>"], false);
    tokenizer(&json!({"version": "1.0", "added_tokens": added(size(&model) - MARKERS.len(), false), "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {"<bos>": {"id": "<bos>",
            "ids": [size(&model) - MARKERS.len() + 1], "tokens": ["<bos>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}, "model": model}))
}

/// Spaces before words, the first one invented; ordinary added tokens among the markers.
fn metaspace() -> Tokenizer {
    let mut letters = ascii();
    letters.extend(["▁", "\n", "é", "日"].map(String::from));
    let model = bpe(letters, &["▁the", "▁hello", "▁<|tu", "▁a"], true);
    let mut tokens = added(size(&model) - MARKERS.len(), false);
    for (at, (content, single_word)) in [("\n\n", false), ("<table>", false), ("the", true)].into_iter().enumerate() {
        tokens.push(json!({"id": size(&model) + at, "content": content, "single_word": single_word, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false}));
    }
    tokenizer(&json!({"version": "1.0", "added_tokens": tokens, "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}, "model": model}))
}

/// The older arrangement: the space before the first word is put there by the normaliser and taken off the whole text.
fn strip() -> Tokenizer {
    let mut letters = ascii();
    letters.extend(["▁", "\n"].map(String::from));
    let model = bpe(letters, &["▁the", "▁hello", "▁▁"], true);
    tokenizer(&json!({"version": "1.0", "added_tokens": added(size(&model) - MARKERS.len(), false),
        "post_processor": null, "pre_tokenizer": null,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": model}))
}

/// Whole words, looked up in a vocabulary that holds the markers too; no decoder.
fn words() -> Tokenizer {
    let mut words = vec!["<unk>", "the", "hello", "a", "<", "|", ">"];
    words.extend(MARKERS);
    let vocab: Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"});
    tokenizer(&json!({"version": "1.0", "added_tokens": added(words.len() - MARKERS.len(), false), "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null, "model": model}))
}

/// Lower-cased and folded; the markers are matched in what comes out of that.
fn normalized() -> Tokenizer {
    let mut letters = ascii();
    letters.extend(["▁", "\n"].map(String::from));
    let model = bpe(letters, &["▁the", "hello"], true);
    tokenizer(&json!({"version": "1.0", "added_tokens": added(size(&model) - MARKERS.len(), true),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]}, "model": model}))
}
