//! Tokens to text, one at a time: the whole is what the tokeniser decodes, and no piece holds half a character.

use std::sync::LazyLock;

use proptest::prelude::*;
use tokenizers::Tokenizer;

use super::fixtures::{PLAIN, demo_tokenizer, plain, texts};
use crate::prompt::{Delta, Dialect, Opening, Rules, Text};

/// The pieces a plain answer arrives in, token by token.
fn pieces(text: &Text, ids: &[u32]) -> Vec<String> {
    let mut reader = text.reader(Opening::Content, Dialect::Raw, Rules::default());
    let mut pieces: Vec<String> = ids.iter().map(|&id| said(reader.push(&[id]))).collect();
    pieces.push(said(reader.finish()));
    pieces
}

fn said(deltas: Vec<Delta>) -> String {
    let text = deltas.into_iter().map(|delta| match delta {
        Delta::Content(text) => text,
        other => panic!("a plain answer has content alone, not {other:?}"),
    });
    text.collect()
}

static TEXTS: LazyLock<Vec<(&str, &Tokenizer, Text)>> = LazyLock::new(|| texts(PLAIN));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn text_survives_the_way_there_and_back(spelled in "[a-e \\n<|>é日👩\u{301}\u{200d}\u{5e9}\u{0}]{0,24}|\\PC{0,16}") {
        for (name, tokenizer, text) in TEXTS.iter() {
            let ids = tokenizer.encode(spelled.as_str(), false).unwrap().get_ids().to_vec();
            let whole = tokenizer.decode(&ids, true).unwrap();
            // A tokeniser without decoder knows no spelling of what it does not know.
            let pieces = pieces(text, &ids);
            prop_assert_eq!(pieces.concat(), whole.clone(), "{}", name);
            prop_assert!(whole.contains('\u{FFFD}') || pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{}", name);
            if ["byte fallback", "byte level"].contains(name) && !spelled.contains('▁') && !spelled.contains('<') {
                prop_assert_eq!(&whole, &spelled, "{}", name);
            }
        }
    }

    #[test]
    fn random_tokens_decode_as_the_tokeniser_decodes_them(seeds in prop::collection::vec(any::<u32>(), 0..24)) {
        for (name, tokenizer, text) in TEXTS.iter() {
            let size = u32::try_from(tokenizer.get_vocab_size(true)).unwrap();
            let ends = ["<eos>", "<turn|>", "<|tool_response>"].map(|end| tokenizer.token_to_id(end));
            let ids: Vec<u32> =
                seeds.iter().map(|seed| seed % (size + 2)).filter(|id| !ends.contains(&Some(*id))).collect();
            let streamed = pieces(text, &ids).concat();
            let hidden = tokenizer.get_added_tokens_decoder();
            let shown: Vec<u32> =
                ids.iter().copied().filter(|id| !hidden.get(id).is_some_and(|token| token.special)).collect();
            prop_assert_eq!(&streamed, &text.decode(&shown), "{}", name);
            let whole = tokenizer.decode(&ids, true).unwrap();
            // Where a run of bytes is no text, the reference gives up the whole run; here its good characters stay.
            if whole.contains('\u{FFFD}') && *name != "byte level" {
                prop_assert_eq!(whole.chars().filter(|c| c.is_ascii_alphanumeric()).count()
                    <= streamed.chars().filter(|c| c.is_ascii_alphanumeric()).count(), true, "{}", name);
            } else {
                prop_assert_eq!(streamed, whole, "{}", name);
            }
        }
    }
}

#[test]
fn bytes_of_one_character_wait_for_each_other_across_canvases() {
    let (tokenizer, text) = (demo_tokenizer(), plain());
    let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
    let mut reader = text.reader(Opening::Content, Dialect::Chat, Rules::default());
    assert!(reader.push(&[byte(0xE6), byte(0x97)]).is_empty());
    assert_eq!(reader.push(&[byte(0xA5), byte(0xE6)]), vec![Delta::Content("日".into())]);
    assert_eq!(reader.draft(&[byte(0x9C), byte(0xAC)]).text, "本");
    assert_eq!(reader.draft(&[byte(0x9C)]).text, "");
    assert_eq!(reader.finish(), vec![Delta::Content("\u{FFFD}".into())]);
    assert!(reader.finish().is_empty());
}

#[test]
fn a_bad_byte_costs_no_good_character() {
    let (tokenizer, text) = (demo_tokenizer(), plain());
    let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
    let ids = [0xC3, 0xA9, 0xFF, 0xE6, 0x97, 0xC3, 0xA9].map(byte);
    assert_eq!(text.decode(&ids), "é\u{FFFD}\u{FFFD}\u{FFFD}é");
}

#[test]
fn a_token_s_bytes_put_together_are_the_text() {
    for (name, tokenizer, text) in texts(PLAIN) {
        if ["words", "strip", "metaspace"].contains(&name) {
            continue; // their text depends on where a token stands
        }
        let spelled = "the é日👩 hello\n<|turn>";
        let ids = tokenizer.encode(spelled, false).unwrap().get_ids().to_vec();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| text.token_bytes(id)).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text.decode(&ids), "{name}");
        assert!(text.token_bytes(u32::MAX).is_empty());
    }
}

#[test]
fn a_decoder_that_cannot_be_streamed_is_refused_by_name() {
    let mut tokenizer = demo_tokenizer();
    tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
    let parts = crate::prompt::TextParts {
        tokenizer,
        template: None,
        end_tokens: vec![],
        bos_token: None,
        eos_token: None,
        add_bos: None,
    };
    let error = Text::new(parts).unwrap_err().to_string();
    assert_eq!(error, "the tokenizer's decoder WordPiece is not supported");
}
