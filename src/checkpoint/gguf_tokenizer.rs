//! The tokenizer that a GGUF file carries, made into one like those in tokenizer.json.
//!
//! The file lists tokens and merges by rank ("rank BPE"): spaces become U+2581, runs of newlines stand apart from everything
//! else, merges apply by rank to UTF-8, unknown bytes fall back to `<0xXX>` tokens, and a run of newlines that is a token is
//! taken as it is. Knows no file: plain lists in, a tokenizer out; whatever the lists hold, an error and never a panic.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::Replace;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, Model, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

/// What a file says of its tokenizer.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    /// Spellings by id.
    pub(super) tokens: Vec<String>,
    /// Kinds by id (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte); may be empty.
    pub(super) types: Vec<u32>,
    /// "left right", best first.
    pub(super) merges: Vec<String>,
    /// Id of the token that begins a text.
    pub(super) bos: Option<u32>,
    /// Id of the token that ends a text.
    pub(super) eos: Option<u32>,
    /// Id of the token for what cannot be spelled.
    pub(super) unknown: Option<u32>,
    /// Id of the token that fills up.
    pub(super) pad: Option<u32>,
    /// Whether a plain text begins with `bos`.
    pub(super) add_bos: bool,
}

const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;

/// Newlines apart from everything else.
const NEWLINES: &str = r"\n+";
/// The beginning of a line that does no more than spell a byte token; cut off, so that the line cannot be taken for it.
const SPELLED_BYTE: &str = r"\A<0x(?=[0-9A-Fa-f]{2}>\z)";

/// Makes the tokenizer; `Err` says why it cannot be made.
pub(super) fn build(vocabulary: &Vocabulary) -> Result<Tokenizer, String> {
    let model = model(vocabulary)?;
    let direct = needs_direct_newlines(&model, vocabulary)?;
    let mut tokenizer = Tokenizer::new(if direct { with_direct_lookup(vocabulary)? } else { model });
    let spaces = Replace::new(" ", "▁").map_err(text)?;
    tokenizer.with_normalizer(Some(spaces)).map_err(text)?;
    let mut splits = vec![split(NEWLINES)?];
    if direct {
        splits.push(split(SPELLED_BYTE)?);
    }
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(splits))));
    tokenizer.with_decoder(Some(decoder()?));
    tokenizer.with_post_processor(Some(beginning(vocabulary)?));
    tokenizer.add_tokens(added(vocabulary)).map_err(text)?;
    Ok(tokenizer)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn model(vocabulary: &Vocabulary) -> Result<BPE, String> {
    let mut ids = Vocab::with_capacity(vocabulary.tokens.len());
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        let id = u32::try_from(id).map_err(text)?;
        if ids.insert(token.clone(), id).is_some() {
            return Err(format!("the token {token:?} is listed twice"));
        }
    }
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    let mut whole = String::new();
    for (rank, merge) in vocabulary.merges.iter().enumerate() {
        let (left, right) = merge.split_once(' ').ok_or_else(|| format!("merge {rank}, {merge:?}, has no space"))?;
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        // The model's builder takes for granted that the whole is no longer than the longest token.
        if let Some(missing) = [left, right, &whole].into_iter().find(|token| !ids.contains_key(*token)) {
            return Err(format!("merge {rank}, {merge:?}, needs {missing:?}, which is no token"));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    let mut builder = BPE::builder().byte_fallback(ids.contains_key("<0x00>")).fuse_unk(true);
    if let Some(id) = vocabulary.unknown {
        builder = builder.unk_token(spelling(vocabulary, id)?.to_owned());
    }
    builder.vocab_and_merges(ids, merges).build().map_err(text)
}

fn spelling(vocabulary: &Vocabulary, id: u32) -> Result<&str, String> {
    let token = usize::try_from(id).ok().and_then(|at| vocabulary.tokens.get(at));
    token.map(String::as_str).ok_or_else(|| format!("token {id} is named, but there are {}", vocabulary.tokens.len()))
}

/// Whether some run of newlines is a token that the merges alone would not make of it.
fn needs_direct_newlines(model: &BPE, vocabulary: &Vocabulary) -> Result<bool, String> {
    let newlines = |token: &&String| token.len() > 1 && token.bytes().all(|byte| byte == b'\n');
    for run in vocabulary.tokens.iter().filter(newlines) {
        let made = model.tokenize(run).map_err(text)?;
        if made.len() != 1 || made.first().is_some_and(|token| token.value != *run) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The model that takes a piece of text as it is where that is a token.
fn with_direct_lookup(vocabulary: &Vocabulary) -> Result<BPE, String> {
    let mut model = model(vocabulary)?;
    model.ignore_merges = true;
    Ok(model)
}

fn split(pattern: &str) -> Result<PreTokenizerWrapper, String> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map(PreTokenizerWrapper::Split).map_err(text)
}

fn decoder() -> Result<DecoderWrapper, String> {
    let steps = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]});
    serde_json::from_value(steps).map_err(text)
}

/// What is put before a plain text: the token that begins one, or nothing.
fn beginning(vocabulary: &Vocabulary) -> Result<PostProcessorWrapper, String> {
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let mut single = vec![sequence("A")];
    let mut special = Map::new();
    if let (true, Some(id)) = (vocabulary.add_bos, vocabulary.bos) {
        let bos = spelling(vocabulary, id)?;
        single.insert(0, json!({"SpecialToken": {"id": bos, "type_id": 0}}));
        special.insert(bos.to_owned(), json!({"id": bos, "ids": [id], "tokens": [bos]}));
    }
    let template = json!({"type": "TemplateProcessing", "single": single, "pair": [sequence("A"), sequence("B")],
        "special_tokens": Value::Object(special)});
    serde_json::from_value(template).map_err(text)
}

/// The tokens that are matched before anything else. Files disagree on the kinds of the chat's markers, so these are told by
/// their spelling.
fn added(vocabulary: &Vocabulary) -> Vec<AddedToken> {
    let named: HashSet<u32> =
        [vocabulary.bos, vocabulary.eos, vocabulary.unknown, vocabulary.pad].into_iter().flatten().collect();
    let kinds = vocabulary.types.iter().copied().chain(std::iter::repeat(1));
    let tokens = (0u32..).zip(&vocabulary.tokens).zip(kinds);
    let tokens = tokens.filter_map(|((id, token), kind)| {
        let special = matches!(kind, UNKNOWN | CONTROL) || named.contains(&id) || is_marker(token);
        (special || kind == USER_DEFINED).then(|| AddedToken::from(token.as_str(), special).normalized(false))
    });
    tokens.collect()
}

/// Whether a token is spelled like the markers of a chat.
pub(super) fn is_marker(token: &str) -> bool {
    let inside = token.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    inside.is_some_and(|inside| {
        inside == "mask" || (inside.len() > 1 && (inside.starts_with('|') || inside.ends_with('|')))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::Tokenizer;

    use super::{Vocabulary, build};

    const DEMO: &[u8] = include_bytes!("../../models/demo/tokenizer.json");

    fn demo() -> Tokenizer {
        Tokenizer::from_bytes(DEMO).unwrap()
    }

    /// The demo's tokenizer as a GGUF file would list it.
    fn listed() -> Vocabulary {
        let json: serde_json::Value = serde_json::from_slice(DEMO).unwrap();
        let vocab = json["model"]["vocab"].as_object().unwrap();
        let mut tokens = vec![String::new(); vocab.len()];
        for (token, id) in vocab {
            tokens[usize::try_from(id.as_u64().unwrap()).unwrap()] = token.clone();
        }
        let special: Vec<u64> =
            json["added_tokens"].as_array().unwrap().iter().filter_map(|token| token["id"].as_u64()).collect();
        let kind = |(id, token): (u64, &String)| match () {
            () if special.contains(&id) => 3,
            () if token.len() == 6 && token.starts_with("<0x") => 6,
            () => 1,
        };
        let types = (0..).zip(&tokens).map(kind).collect();
        let merges = json["model"]["merges"].as_array().unwrap();
        let merges =
            merges.iter().map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect();
        let id = |token: &str| demo().token_to_id(token);
        let (bos, eos, unknown, pad) = (id("<bos>"), id("<eos>"), id("<unk>"), id("<pad>"));
        Vocabulary { tokens, types, merges, bos, eos, unknown, pad, add_bos: true }
    }

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    }

    const TONGUES: &str = "The quick brown fox, 1,234.5 times.\n\n\n  Indented\twith tabs \n\
        Größe, façade, naïve — “quotes” … Žluťoučký kůň. Съешь ещё этих мягких булок. Ξεσκεπάζω. 日本語の文章。中文，标点。\
        한국어 문장. नमस्ते दुनिया. שלום עולם. السلام عليكم. 👩‍👩‍👧‍👦 é e\u{301} \u{200d}\u{202e} \u{0}\r\n<0x0A>\n<0x41>\n<b>x</b>";

    #[test]
    fn it_is_the_tokenizer_of_the_same_vocabulary() {
        let (reference, built) = (demo(), build(&listed()).unwrap());
        let chat = "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|><|\"|>";
        let texts =
            [include_str!("gguf_tokenizer.rs"), include_str!("../lib.rs"), TONGUES, chat, "", " ", "\n", "  a  "];
        for text in texts {
            assert_eq!(ids(&built, text), ids(&reference, text), "{text}");
            let tokens = ids(&reference, text);
            for skip in [true, false] {
                assert_eq!(built.decode(&tokens, skip).unwrap(), reference.decode(&tokens, skip).unwrap());
            }
        }
        assert_eq!(built.get_vocab(true), reference.get_vocab(true));
        assert_eq!(built.encode("Hi", true).unwrap().get_ids()[0], 2, "a plain text begins with <bos>");
        let without = build(&Vocabulary { add_bos: false, ..listed() }).unwrap();
        assert_eq!(without.encode("Hi", true).unwrap().get_ids(), ids(&reference, "Hi"));
    }

    #[test]
    fn the_chat_s_markers_are_known_whatever_kind_the_file_gives_them() {
        let kinds = |of: u32| {
            let mut listed = listed();
            listed.types = listed.types.iter().map(|kind| if *kind == 3 { of } else { *kind }).collect();
            build(&listed).unwrap()
        };
        let text = "<|turn>user\nHi<turn|><|\"|><|tool_call>";
        for built in [kinds(4), kinds(1), build(&Vocabulary { types: vec![], ..listed() }).unwrap()] {
            assert_eq!(ids(&built, text), ids(&demo(), text));
            assert_eq!(built.decode(&ids(&built, text), true).unwrap(), "user\nHi");
        }
    }

    #[test]
    fn a_run_of_newlines_that_is_a_token_is_taken_as_it_is() {
        let mut listed = listed();
        let first = u32::try_from(listed.tokens.len()).unwrap();
        for length in [2, 3, 5] {
            listed.tokens.push("\n".repeat(length));
            listed.types.push(1);
        }
        let built = build(&listed).unwrap();
        let newline = ids(&demo(), "\n")[0];
        for (run, expected) in [
            ("\n", vec![newline]),
            ("\n\n", vec![first]),
            ("\n\n\n", vec![first + 1]),
            ("\n\n\n\n", vec![newline; 4]),
            ("\n\n\n\n\n", vec![first + 2]),
        ] {
            assert_eq!(ids(&built, run), expected);
            let around = |middle: &[u32]| [&ids(&demo(), "a"), middle, &ids(&demo(), " b")].concat();
            assert_eq!(ids(&built, &format!("a{run} b")), around(&expected));
        }
        assert_eq!(ids(&built, "<0x41>"), ids(&demo(), "<0x41>"), "a spelled byte stays text");
        // With a merge for each, nothing needs to be taken as it is.
        listed.merges.extend(["\n \n", "\n\n \n", "\n\n\n \n\n"].map(str::to_owned));
        assert_eq!(ids(&build(&listed).unwrap(), "a\n\n\n"), [&ids(&demo(), "a")[..], &[first + 1]].concat());
    }

    #[test]
    fn damage_is_named() {
        let with = |change: fn(&mut Vocabulary)| {
            let mut listed = listed();
            change(&mut listed);
            build(&listed).map(|_| ()).unwrap_err()
        };
        assert!(with(|v| v.tokens[300] = v.tokens[301].clone()).contains("listed twice"));
        assert!(with(|v| v.merges[0] = "nospace".to_owned()).contains("has no space"));
        assert!(with(|v| v.merges[0] = format!("a {}", "b".repeat(1000))).contains("is no token"));
        assert!(with(|v| v.unknown = Some(u32::MAX)).contains("is named"));
        assert!(with(|v| v.bos = Some(9_999_999)).contains("is named"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn nothing_in_the_lists_makes_it_panic(
            tokens in prop::collection::vec("[ab\\n▁<>|]{0,4}|<0x0[0-3]>", 0..12), types in prop::collection::vec(0..8u32, 0..14),
            merges in prop::collection::vec("[ab\\n▁]{0,2} ?[ab]{0,2}", 0..4), named in prop::option::of(0..14u32),
            add_bos: bool, text in "[ab\\n <|>]{0,12}",
        ) {
            let vocabulary = Vocabulary { tokens, types, merges, bos: named, eos: named, unknown: named, pad: None, add_bos };
            if let Ok(tokenizer) = build(&vocabulary) {
                let encoded = tokenizer.encode(text.as_str(), true);
                prop_assert!(encoded.is_err() || tokenizer.decode(encoded.unwrap().get_ids(), false).is_ok());
            }
        }
    }
}
