//! Token ids to text, one token at a time, never half a character.
//!
//! A tokeniser's decoder is a chain of steps over the list of all tokens; here each step keeps the little state it needs to
//! work on a list that is still growing. What comes out in pieces equals what the tokeniser decodes from the whole. One
//! exception, on purpose: a run of byte tokens that is not UTF-8 loses every character in the reference; here its good
//! characters are kept and each bad byte becomes U+FFFD.

use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper, Tokenizer};

use super::error::PromptError;

/// One step of a decoder.
#[derive(Debug)]
enum Step {
    /// Text replaced within each token.
    Each(DecoderWrapper),
    /// `▁` becomes a space; dropped in the very first token where `first` says so.
    Metaspace { replacement: char, first: First },
    /// `<0xXX>` becomes a byte.
    ByteFallback,
    /// Every character stands for a byte.
    ByteLevel,
    /// Tokens are put together into one text.
    Fuse,
    /// Up to `start` of these characters are cut from the beginning and `stop` from the end: of each token, or of the
    /// text once tokens are put together.
    Strip { content: char, start: usize, stop: usize, of: Of },
    /// A space between tokens: what a tokeniser without decoder does.
    Spaces,
}

/// What happens to a space that begins the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Kept,
    Dropped,
}

/// What a step works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Token,
    Text,
}

/// A tokeniser's decoder, understood.
#[derive(Debug)]
pub(super) struct Steps(Vec<Step>);

impl Steps {
    /// Of this tokeniser.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Steps, PromptError> {
        let Some(decoder) = tokenizer.get_decoder() else { return Ok(Steps(vec![Step::Spaces])) };
        let mut steps = Vec::new();
        let mut of = Of::Token;
        collect(decoder, &mut steps, &mut of)?;
        Ok(Steps(steps))
    }

    /// The bytes a token stands for wherever in a text it is.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        let mut text = token.to_owned();
        for step in &self.0 {
            match step {
                Step::Each(decoder) => text = each(decoder, text),
                Step::Metaspace { replacement, .. } => text = text.replace(*replacement, " "),
                Step::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        return vec![byte];
                    }
                }
                Step::ByteLevel => return level_bytes(&text),
                Step::Strip { content, start, stop, of: Of::Token } => text = stripped(&text, *content, *start, *stop),
                Step::Fuse | Step::Spaces | Step::Strip { of: Of::Text, .. } => {}
            }
        }
        text.into_bytes()
    }
}

fn collect(decoder: &DecoderWrapper, steps: &mut Vec<Step>, of: &mut Of) -> Result<(), PromptError> {
    let unsupported = |what: &str| PromptError::Decoder(what.to_owned());
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for decoder in sequence.get_decoders() {
                collect(decoder, steps, of)?;
            }
        }
        DecoderWrapper::Replace(_) if *of == Of::Text => {
            return Err(unsupported("Replace after tokens are put together"));
        }
        DecoderWrapper::Replace(_) => steps.push(Step::Each(decoder.clone())),
        DecoderWrapper::Metaspace(_) if *of == Of::Text => {
            return Err(unsupported("Metaspace after tokens are put together"));
        }
        DecoderWrapper::Metaspace(metaspace) => steps.push(Step::Metaspace {
            replacement: metaspace.get_replacement(),
            first: match metaspace.get_prepend_scheme() {
                tokenizers::decoders::metaspace::PrependScheme::Never => First::Kept,
                _ => First::Dropped,
            },
        }),
        DecoderWrapper::ByteFallback(_) => {
            if *of == Of::Token {
                steps.push(Step::ByteFallback);
            }
        }
        DecoderWrapper::ByteLevel(_) if *of == Of::Text => {
            return Err(unsupported("ByteLevel after tokens are put together"));
        }
        DecoderWrapper::ByteLevel(_) => {
            steps.push(Step::ByteLevel);
            *of = Of::Text;
        }
        DecoderWrapper::Fuse(_) => {
            steps.push(Step::Fuse);
            *of = Of::Text;
        }
        DecoderWrapper::Strip(strip) => {
            steps.push(Step::Strip { content: strip.content, start: strip.start, stop: strip.stop, of: *of });
        }
        DecoderWrapper::BPE(_) | DecoderWrapper::WordPiece(_) | DecoderWrapper::CTC(_) => {
            let kind = serde_json::to_value(decoder).ok();
            let kind = kind.as_ref().and_then(|value| value.get("type")).and_then(Value::as_str);
            return Err(unsupported(kind.unwrap_or("of unknown kind")));
        }
    }
    Ok(())
}

/// What one step remembers.
#[derive(Debug, Clone, Default)]
struct Memory {
    /// Whether an item has come by.
    begun: bool,
    /// Bytes of a character that is not complete.
    bytes: Vec<u8>,
    /// Characters cut from the beginning; the step's most once that is over.
    leading: usize,
    /// Text that may still be cut from the end.
    tail: String,
}

/// Decodes one text; small, and cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Detokenizer {
    memory: Vec<Memory>,
}

impl Detokenizer {
    /// Takes a token's spelling and appends the text that is now certain.
    pub(super) fn push(&mut self, steps: &Steps, token: &str, out: &mut String) {
        self.memory.resize_with(steps.0.len(), Memory::default);
        flow(&steps.0, &mut self.memory, token.to_owned(), out);
    }

    /// Appends what was held back: the text is over, and a character that is not complete becomes U+FFFD.
    pub(super) fn finish(&mut self, steps: &Steps, out: &mut String) {
        self.memory.resize_with(steps.0.len(), Memory::default);
        for at in 0..steps.0.len() {
            let (Some(step), Some((memory, rest))) = (steps.0.get(at), self.memory[at..].split_first_mut()) else {
                break;
            };
            let mut text = String::new();
            match step {
                Step::ByteFallback => text.extend(memory.bytes.drain(..).map(|_| char::REPLACEMENT_CHARACTER)),
                Step::ByteLevel => text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut memory.bytes))),
                Step::Strip { content, stop, of: Of::Text, .. } => {
                    let kept = stripped(&std::mem::take(&mut memory.tail), *content, 0, *stop);
                    text.push_str(&kept);
                }
                _ => {}
            }
            if !text.is_empty() {
                flow(&steps.0[at + 1..], rest, text, out);
            }
        }
        self.memory.clear();
    }
}

/// Sends an item through the remaining steps.
fn flow(steps: &[Step], memory: &mut [Memory], mut item: String, out: &mut String) {
    for (at, step) in steps.iter().enumerate() {
        let Some(state) = memory.get_mut(at) else { return };
        let first = !std::mem::replace(&mut state.begun, true);
        match step {
            Step::Each(decoder) => item = each(decoder, item),
            Step::Metaspace { replacement, first: drop } => {
                let space = if first && *drop == First::Dropped { "" } else { " " };
                item = item.replace(*replacement, space);
            }
            Step::ByteFallback => match fallback_byte(&item) {
                Some(byte) => {
                    state.bytes.push(byte);
                    item = complete(&mut state.bytes, Bad::EachByte);
                }
                None => {
                    // A run of bytes ends here: it is an item of its own, before this one.
                    let cut: String = state.bytes.drain(..).map(|_| char::REPLACEMENT_CHARACTER).collect();
                    if !cut.is_empty() {
                        flow(&steps[at + 1..], &mut memory[at + 1..], cut, out);
                    }
                }
            },
            Step::ByteLevel => {
                state.bytes.extend(level_bytes(&item));
                item = complete(&mut state.bytes, Bad::Together);
            }
            Step::Fuse => {}
            Step::Strip { content, start, stop, of: Of::Token } => item = stripped(&item, *content, *start, *stop),
            Step::Strip { content, start, stop, of: Of::Text } => {
                item = strip_text(state, &item, *content, *start, *stop);
            }
            Step::Spaces => {
                if !first {
                    item.insert(0, ' ');
                }
            }
        }
        // A byte that completes nothing is no item yet; an empty token still counts as one.
        if item.is_empty() && matches!(step, Step::ByteFallback | Step::ByteLevel | Step::Strip { of: Of::Text, .. }) {
            return;
        }
    }
    out.push_str(&item);
}

fn each(decoder: &DecoderWrapper, token: String) -> String {
    // The step keeps the number of tokens, and only a pattern that fails to match at all is an error.
    decoder.decode_chain(vec![token.clone()]).map_or(token, |tokens| tokens.concat())
}

/// How bytes that are no UTF-8 are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bad {
    /// U+FFFD for each.
    EachByte,
    /// U+FFFD for the longest stretch that could have begun a character.
    Together,
}

/// Takes from `bytes` all that is certain; what could still become a character stays.
fn complete(bytes: &mut Vec<u8>, bad: Bad) -> String {
    let mut out = String::new();
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                rest = &[];
                break;
            }
            Err(error) => {
                let (good, tail) = rest.split_at(error.valid_up_to());
                out.push_str(&String::from_utf8_lossy(good));
                rest = tail;
                let Some(length) = error.error_len() else { break };
                let marks = if bad == Bad::EachByte { length } else { 1 };
                out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, marks));
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
    *bytes = rest.to_vec();
    out
}

/// The byte that a token like `<0x0A>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The bytes of a token of a byte-level vocabulary; one that is not written in its alphabet stands for itself.
fn level_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(level_byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte-level alphabet: printable Latin-1 stands for itself, the 68 other bytes for U+0100 and on, in order.
fn level_byte(c: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => u8::try_from(code).ok().filter(|&byte| printable(byte)),
        code => {
            let at = usize::try_from(code - 0x100).ok()?;
            (0..=u8::MAX).filter(|&byte| !printable(byte)).nth(at)
        }
    }
}

/// A token without up to `start` of these characters at its beginning and `stop` at its end.
fn stripped(token: &str, content: char, start: usize, stop: usize) -> String {
    let mut text = token;
    for _ in 0..start {
        text = text.strip_prefix(content).unwrap_or(text);
    }
    for _ in 0..stop {
        text = text.strip_suffix(content).unwrap_or(text);
    }
    text.to_owned()
}

fn strip_text(state: &mut Memory, item: &str, content: char, start: usize, stop: usize) -> String {
    let mut text = item;
    while state.leading < start && !text.is_empty() {
        match text.strip_prefix(content) {
            Some(rest) => {
                text = rest;
                state.leading += 1;
            }
            None => state.leading = start,
        }
    }
    state.tail.push_str(text);
    let held = state.tail.chars().rev().take(stop).take_while(|&c| c == content).map(char::len_utf8).sum::<usize>();
    let sure = state.tail.len() - held;
    state.tail.drain(..sure).collect()
}
