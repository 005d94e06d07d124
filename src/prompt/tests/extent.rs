//! What a token can stand for at most, and for which tokenisers nothing can be said.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::fixtures::{FAMILY, PLAIN, plain, text_of, text_with, tokenizers, user};
use crate::prompt::Text;

/// A tokeniser of the fixtures, changed; no added token takes the white space around it.
fn longest(name: &str, change: impl FnOnce(&mut Value)) -> Option<usize> {
    let (_, tokenizer) = tokenizers().iter().find(|(known, _)| *known == name).unwrap();
    let mut json: Value = serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap();
    for token in json["added_tokens"].as_array_mut().unwrap() {
        (token["lstrip"], token["rstrip"]) = (json!(false), json!(false));
    }
    change(&mut json);
    text_of(Tokenizer::from_bytes(json.to_string()).unwrap(), PLAIN).longest_token()
}

#[test]
fn the_longest_spelling_is_the_bound_where_no_text_is_lost() {
    assert_eq!(plain().longest_token(), Some("<|tool_response>".len()));
    assert_eq!(longest("byte fallback", |_| ()), plain().longest_token());
    assert_eq!(longest("byte level", |_| ()), Some("<|tool_response>".len()));
    assert_eq!(longest("strip", |_| ()), Some("<|tool_response>".len()));
    let one_by_one = |json: &mut Value| {
        (json["model"]["byte_fallback"], json["model"]["fuse_unk"]) = (json!(false), json!(false));
    };
    assert_eq!(longest("byte fallback", one_by_one), plain().longest_token());
}

#[test]
fn nothing_is_said_where_text_may_be_lost() {
    for name in ["words", "normalized"] {
        assert_eq!(longest(name, |_| ()), None, "{name}");
    }
    for normalizer in [
        json!({"type": "NFC"}),
        json!({"type": "Lowercase"}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "Replace", "pattern": {"String": "  "}, "content": " "}),
        json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": "▁▁▁▁▁"}),
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "StripAccents"}]}),
    ] {
        let changed = longest("byte fallback", |json| json["normalizer"] = normalizer.clone());
        assert_eq!(changed, None, "{normalizer}");
    }
    for pre_tokenizer in [
        json!({"type": "WhitespaceSplit"}),
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false}),
    ] {
        let changed = longest("byte fallback", |json| json["pre_tokenizer"] = pre_tokenizer.clone());
        assert_eq!(changed, None, "{pre_tokenizer}");
    }
    // A run of unknown characters as one token, or as none at all.
    assert_eq!(longest("byte fallback", |json| json["model"]["byte_fallback"] = json!(false)), None);
    let dropped = |json: &mut Value| {
        (json["model"]["byte_fallback"], json["model"]["unk_token"]) = (json!(false), Value::Null);
    };
    assert_eq!(longest("byte fallback", dropped), None);
    assert_eq!(longest("byte level", |json| json["pre_tokenizer"] = Value::Null), None);
    assert_eq!(longest("byte fallback", |json| json["added_tokens"][0]["rstrip"] = json!(true)), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_has_more_bytes_than_its_tokens_may_stand_for(
        pieces in prop::collection::vec(prop::sample::select(vec![
            " mathematical", " instructions", "<tool_response|>", "<eos>", "▁", "    ", "\n\n\n", "日本", "😀", "\0", "e\u{301}", "x",
        ]), 1..60),
    ) {
        static TEXT: LazyLock<Text> = LazyLock::new(|| text_with(FAMILY));
        let (written, longest) = (pieces.concat(), TEXT.longest_token().unwrap());
        prop_assert!(written.len() <= longest * TEXT.encode(&written).unwrap().len());
        let rendered = TEXT.rendered(&user(&written)).unwrap();
        prop_assert!(rendered.text().len() <= longest * TEXT.tokenize(&rendered).unwrap().ids.len());
    }
}
