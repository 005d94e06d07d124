//! How much text one token can stand for: what bounds the tokens of a text from below before it is tokenised.
//!
//! A text has no more bytes than the spellings of its tokens together where no step of the tokeniser loses any: the
//! normaliser only lengthens, the pre-tokeniser only cuts and lengthens, and the model spells every character. Of a
//! tokeniser that is not known to be so nothing is said: a bound must never refuse a text that would fit.

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// Bytes of the longest character: a token for unknown ones stands for so many, however it is spelled.
const LONGEST_CHARACTER: usize = 4;

/// Most bytes of text that one token of the vocabulary stands for, as its longest spelling has them; `None` where text may
/// be lost on the way. Added tokens are not looked at.
pub(super) fn longest_spelling(tokenizer: &Tokenizer) -> Option<usize> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    let pre_tokenizer = tokenizer.get_pre_tokenizer();
    let keeps = tokenizer.get_normalizer().is_none_or(only_lengthens)
        && pre_tokenizer.is_none_or(only_cuts)
        && spells_everything(model, pre_tokenizer);
    let lengths = tokenizer.get_vocab(false).into_keys().map(|spelling| spelling.len());
    keeps.then(|| lengths.fold(LONGEST_CHARACTER, usize::max))
}

/// Whether no text gets shorter by this.
fn only_lengthens(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Prepend(_) => true,
        NormalizerWrapper::Replace(replace) => {
            // The pattern can be had in written form only.
            let written = serde_json::to_value(replace).unwrap_or_default();
            written["pattern"]["String"].as_str().is_some_and(|pattern| pattern.len() <= replace.content.len())
        }
        NormalizerWrapper::Sequence(steps) => steps.as_ref().iter().all(only_lengthens),
        _ => false,
    }
}

/// Whether all text is still there behind this.
fn only_cuts(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(_) | PreTokenizerWrapper::Digits(_) => true,
        PreTokenizerWrapper::Split(split) => split.behavior != SplitDelimiterBehavior::Removed,
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().all(only_cuts),
        _ => false,
    }
}

/// Whether each character gets tokens of its own until they are merged: its bytes, those of the byte alphabet, or the token
/// for unknown ones, unless one stands for a whole run of them.
fn spells_everything(model: &BPE, pre_tokenizer: Option<&PreTokenizerWrapper>) -> bool {
    let known = |spelling: &str| model.token_to_id(spelling).is_some();
    let by_bytes = || model.byte_fallback && (0..=u8::MAX).all(|byte| known(&format!("<0x{byte:02X}>")));
    let bare = model.continuing_subword_prefix.is_none() && model.end_of_word_suffix.is_none();
    let by_alphabet = || {
        bare && pre_tokenizer.is_some_and(makes_byte_level)
            && ByteLevel::alphabet().into_iter().all(|c| known(c.encode_utf8(&mut [0; 4])))
    };
    let one_by_one = model.unk_token.is_some() && !model.fuse_unk;
    one_by_one || by_bytes() || by_alphabet()
}

fn makes_byte_level(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(_) => true,
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().any(makes_byte_level),
        _ => false,
    }
}
