//! Log-probabilities in the two shapes that clients know. Tokens are spelled when they are written down: a token with its
//! alternatives takes kilobytes where it is spelled, and a few numbers where it is not.

use std::sync::Arc;

use serde_json::{Map, Number, Value};

use super::pump::Said;
use super::wire::chat::{Alternative, ChatLogprobs, TokenLogprob};
use super::wire::completion::CompletionLogprobs;
use super::wire::lazy::Lazy;
use crate::prompt::{Channel, Text};

/// Stands for minus infinity, which JSON does not have.
const LEAST: f32 = -9999.0;

/// The chat shape: the content's tokens alone.
pub(crate) fn chat(text: &Arc<Text>, mut said: Vec<Said>, alternatives: usize) -> ChatLogprobs {
    said.retain(|said| said.channel == Channel::Content);
    let text = text.clone();
    let content = Lazy::of(said, move |said| {
        let (token, bytes) = spelled(&text, said.token.id);
        let top_logprobs = said.token.top.iter().take(alternatives).map(|candidate| {
            let (token, bytes) = spelled(&text, candidate.token);
            Alternative { token, logprob: finite(candidate.logit), bytes }
        });
        TokenLogprob { token, logprob: finite(said.token.logprob), bytes, top_logprobs: top_logprobs.collect() }
    });
    ChatLogprobs { content, refusal: None }
}

/// The older shape. `offset` is how many code points have begun so far; it is moved on.
pub(crate) fn completion(
    text: &Arc<Text>,
    mut said: Vec<Said>,
    alternatives: usize,
    offset: &mut usize,
) -> CompletionLogprobs {
    said.retain(|said| said.channel == Channel::Content);
    let (mut tokens, mut token_logprobs, mut text_offset) = (Vec::new(), Vec::new(), Vec::new());
    for said in &said {
        let bytes = text.token_bytes(said.token.id);
        let inside = bytes.first().is_some_and(|first| !begins(*first));
        text_offset.push(offset.saturating_sub(usize::from(inside)));
        *offset += bytes.iter().filter(|byte| begins(**byte)).count();
        token_logprobs.push(finite(said.token.logprob));
        tokens.push(in_text(bytes));
    }
    let text = text.clone();
    let top_logprobs = Lazy::of(said, move |said| {
        let mut top = Map::new();
        for candidate in said.token.top.iter().take(alternatives) {
            // Tokens that are spelled alike are one entry, the likelier one.
            top.entry(in_text(text.token_bytes(candidate.token))).or_insert_with(|| number(candidate.logit));
        }
        top
    });
    CompletionLogprobs { tokens, token_logprobs, top_logprobs, text_offset }
}

/// Whether a byte of UTF-8 begins a code point.
fn begins(byte: u8) -> bool {
    byte & 0xC0 != 0x80
}

/// A token where there is no list of its bytes: bytes that are no text by themselves are spelled as `bytes:\xe6\x97`, as
/// the original API does it.
fn in_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| format!("bytes:{}", error.as_bytes().escape_ascii()))
}

/// How sure the model was on average; what `best_of` ranks by.
pub(crate) fn mean(said: &[Said]) -> f64 {
    if said.is_empty() {
        return f64::NEG_INFINITY;
    }
    said.iter().map(|said| f64::from(finite(said.token.logprob))).sum::<f64>() / said.len() as f64
}

fn spelled(text: &Text, id: u32) -> (String, Vec<u8>) {
    let bytes = text.content_bytes(id);
    (String::from_utf8_lossy(&bytes).into_owned(), bytes)
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}

/// The number with the digits that it has as `f32`: the same value looks the same everywhere.
fn number(logprob: f32) -> Value {
    let digits = finite(logprob).to_string().parse().ok();
    digits.and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}
