//! Sees before a GGUF file is written that the model it would be read as is the one it is made of.

use std::fmt::Debug;

use tokenizers::Tokenizer;

use super::super::error::{CheckpointError, shown};
use super::super::folder::Folder;
use super::super::text::{Chat, catching};
use super::super::{Checkpoint, GenerationDefaults, gguf_tokenizer};
use super::config::Keys;
use super::container::Container;
use super::described::Described;
use crate::model::Config;

/// Text on which tokenizers differ that cut, fold or clean it in another way.
const TEXTS: [&str; 6] = [
    " The quick brown Fox's JUMPS, 1,234.5 times (or 1000000)!  \u{a0}Two  spaces,   three. ",
    "\n\n\n  fn main() {\n\tlet x_1 = a->b[0] << 2; // ok\r\n}\n\n",
    "Größe, façade, naïve e\u{301} — “quotes” … ﬁne ½ Ⅳ Žluťoučký İstanbul ΣΊΣΥΦΟΣ Съешь ещё",
    "日本語の文章。中文，标点。ｶﾅ 한국어 문장. नमस्ते दुनिया. שלום السلام 👩‍👩‍👧‍👦 \u{200d}\u{202e}\u{feff}\u{0}",
    // No more than a token's spelling, which no merge makes.
    "<0x41>",
    "<0x0A>\n<0x41>\u{2581}▁▁a ▁ <b>x</b> [INST] ### https://example.org/?q=1&r=%20",
];

/// Compares a checkpoint with what `contents`, a GGUF file of it without its weights, would be read as.
///
/// # Errors
/// [`CheckpointError::Unsupported`] naming what a GGUF file has no place for.
pub(super) fn check(checkpoint: &Checkpoint, contents: &[u8]) -> Result<(), CheckpointError> {
    let described = Container::read(&checkpoint.id, contents)
        .and_then(|container| Described::of(&Keys { container: &container, bytes: contents }, &Folder::Embedded(&[])));
    let Described { config, generation, tokenizer, chat } =
        described.map_err(|error| lost(&checkpoint.id, &format!("what it says ({error})")))?;
    same_config(&checkpoint.config, config)?;
    same_sampling(&checkpoint.generation, generation)?;
    same_chat(checkpoint, &chat)?;
    same_tokenizer(&checkpoint.tokenizer, &tokenizer)
}

fn lost(file: &str, what: &str) -> CheckpointError {
    let why = format!("{what} cannot be said in a GGUF file; use the checkpoint as it is (--quantize works on it)");
    CheckpointError::unsupported(file, why)
}

fn same_config(ours: &Config, theirs: Config) -> Result<(), CheckpointError> {
    // A GGUF file holds no vision tower; nothing else asks for these.
    let theirs = Config { images: ours.images, ..theirs };
    if *ours == theirs {
        return Ok(());
    }
    let (key, ours, theirs) = difference(ours, &theirs);
    Err(lost("config.json", &format!("{key} = {ours} (it would be read as {theirs})")))
}

fn same_sampling(ours: &GenerationDefaults, mut theirs: GenerationDefaults) -> Result<(), CheckpointError> {
    let sorted = |ids: &[u32]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    if sorted(&ours.end_tokens) != sorted(&theirs.end_tokens) {
        let read = format!(
            "{:?}, it would be read as {:?}: those that end texts and turns",
            ours.end_tokens, theirs.end_tokens
        );
        return Err(lost("generation_config.json", &format!("eos_token_id ({read})")));
    }
    theirs.end_tokens.clone_from(&ours.end_tokens);
    if *ours == theirs {
        return Ok(());
    }
    let (key, ours, theirs) = difference(ours, &theirs);
    Err(lost("generation_config.json", &format!("{key} = {ours} (it would be read as {theirs})")))
}

fn same_chat(checkpoint: &Checkpoint, theirs: &Chat) -> Result<(), CheckpointError> {
    let Checkpoint { template, bos_token, eos_token, .. } = checkpoint;
    if *template != theirs.template {
        return Err(lost("chat_template.jinja", "the template"));
    }
    // One that the checkpoint does not spell is no loss: the file may name it all the same.
    let same = |ours: &Option<String>, theirs: &Option<String>| ours.is_none() || ours == theirs;
    for (key, ours, theirs) in
        [("bos_token", bos_token, &theirs.bos_token), ("eos_token", eos_token, &theirs.eos_token)]
    {
        if !same(ours, theirs) {
            let spelled = ours.as_deref().map(shown).unwrap_or_default();
            return Err(lost("tokenizer_config.json", &format!("{key} = {spelled}, which is no token,")));
        }
    }
    Ok(())
}

/// The first field in which two values of one type are written differently: its path, ours and theirs.
fn difference<T: Debug>(ours: &T, theirs: &T) -> (String, String, String) {
    let (ours, theirs) = (format!("{ours:#?}"), format!("{theirs:#?}"));
    let mut path = Vec::new();
    for (line, other) in ours.lines().zip(theirs.lines()) {
        let part = |line: &str| {
            let line = line.trim().trim_end_matches(',');
            let (name, value) = line.split_once(": ").unwrap_or(("", line));
            (name.to_owned(), value.to_owned())
        };
        let ((name, value), (_, theirs)) = (part(line), part(other));
        if line != other {
            path.push(name);
            // The first is the whole.
            let path: Vec<&str> = path.iter().skip(1).map(String::as_str).filter(|name| !name.is_empty()).collect();
            return (path.join("."), value, theirs);
        }
        if value.ends_with(['{', '[', '(']) {
            path.push(name);
        } else if matches!(value.as_str(), "}" | "]" | ")") {
            path.pop();
        }
    }
    ("its end".to_owned(), String::new(), String::new())
}

/// Compares what the two do with text. How it is spelled may differ: a cut where nothing could have been joined, say.
fn same_tokenizer(ours: &Tokenizer, theirs: &Tokenizer) -> Result<(), CheckpointError> {
    let refused = |what: &str| Err(lost("tokenizer.json", what));
    let normalizer = |tokenizer: &Tokenizer| serde_json::to_value(tokenizer.get_normalizer()).ok();
    if normalizer(ours) != normalizer(theirs) {
        return refused("its normalizer, which is not the replacement of spaces by U+2581,");
    }
    let mut ours = ours.clone();
    // How it was last used; neither belongs to the model.
    ours.with_padding(None);
    let _ = ours.with_truncation(None);
    let (own, read) = (ours.get_added_tokens_decoder(), theirs.get_added_tokens_decoder());
    for (id, token) in &own {
        let name = shown(&token.content);
        let Some(other) = read.get(id).filter(|other| other.content == token.content) else {
            return refused(&format!("the added token {name}"));
        };
        // The chat's markers go by their spelling, whatever a file says of them.
        if token.special != other.special && !gguf_tokenizer::is_marker(&token.content) {
            return refused(&format!("the added token {name} with special = {}", token.special));
        }
    }
    for token in own.values().chain(read.values()) {
        let token = token.content.as_str();
        let around =
            format!("a{token}b {token} c  {token}\n{token}{token}.\u{2581}{token}\u{2581}{}", other_spaces(token));
        if !same_tokens(&ours, theirs, &around) {
            return refused(&format!("how it cuts out the added token {}", shown(token)));
        }
    }
    match TEXTS.iter().find(|text| !same_tokens(&ours, theirs, text)) {
        Some(text) => refused(&format!("how it cuts such text as {text:?}")),
        None => Ok(()),
    }
}

/// The spelling with spaces as the normalizer writes them, and the other way round.
fn other_spaces(token: &str) -> String {
    let swapped = |character| match character {
        ' ' => '\u{2581}',
        '\u{2581}' => ' ',
        other => other,
    };
    token.chars().map(swapped).collect()
}

/// Whether both make the same tokens of a text, with and without what stands before a plain one, and the same text of those.
fn same_tokens(ours: &Tokenizer, theirs: &Tokenizer, text: &str) -> bool {
    let ids = |tokenizer: &Tokenizer, whole| {
        let encode = || tokenizer.encode(text, whole).map_err(|error| error.to_string());
        catching(encode).map(|encoding| encoding.get_ids().to_vec()).ok()
    };
    let decoded = |tokenizer: &Tokenizer, ids: &[u32]| {
        catching(|| tokenizer.decode(ids, false).map_err(|error| error.to_string())).ok()
    };
    let plain = ids(ours, false);
    // Where no rule says what stands before, the token that begins a text does.
    let begun = ours.get_post_processor().is_none() || ids(ours, true) == ids(theirs, true);
    let Some(tokens) = plain.as_deref() else { return false };
    plain == ids(theirs, false) && begun && decoded(ours, tokens) == decoded(theirs, tokens)
}
