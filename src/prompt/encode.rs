//! Text to token ids, with control tokens matched only where the template wrote them.
//!
//! Text in which no client spelling has to be kept apart goes through the tokeniser as a whole, which makes its tokens the
//! reference's by construction. Otherwise the tokeniser's own steps are taken here one by one (match added tokens, normalise,
//! match again, pre-tokenise, apply the model), so that everything but the suppressed matches stays as it would be.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use tokenizers::normalizer::Range as Span;
use tokenizers::{
    AddedToken, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token, Tokenizer,
};

use super::error::PromptError;
use super::extent;
use super::shield::Stripped;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Pieces = Vec<(NormalizedString, Option<Vec<Token>>)>;

/// The added tokens of a tokeniser, ready to be matched.
#[derive(Debug, Default)]
pub(super) struct AddedTokens {
    raw: Matcher,
    normalized: Matcher,
    control: HashSet<u32>,
    /// Control tokens of one character: they have no inside, so a mark right behind one counts.
    lone: HashSet<u32>,
}

impl AddedTokens {
    /// Of this tokeniser; `control` are the ids that client text must never become.
    pub(super) fn new(tokenizer: &Tokenizer, control: HashSet<u32>) -> Result<AddedTokens, PromptError> {
        let mut added = AddedTokens { control, ..AddedTokens::default() };
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if added.control.contains(&id) && token.content.chars().count() == 1 {
                added.lone.insert(id);
            }
            if !token.normalized {
                added.raw.insert(token.content.clone(), id, token);
                continue;
            }
            let mut content = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut content).map_err(|error| PromptError::Tokenizer(error.to_string()))?;
            }
            added.normalized.insert(content.get().to_owned(), id, token);
        }
        Ok(added)
    }

    /// Most bytes of text that one token stands for; `None` where there is no bound, or none that is known.
    pub(super) fn longest(&self, tokenizer: &Tokenizer) -> Option<usize> {
        // One that takes the white space around it stands for any amount. A lone one that a client spells may be left out.
        let mut tokens = self.raw.tokens.values().chain(self.normalized.tokens.values());
        if tokens.any(|(_, token)| token.lstrip || token.rstrip) || !self.lone.is_empty() {
            return None;
        }
        let added = self.raw.lengths.first().max(self.normalized.lengths.first()).copied();
        extent::longest_spelling(tokenizer).map(|longest| longest.max(added.unwrap_or(0)))
    }

    /// The tokens of rendered text.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, rendered: &Stripped) -> Result<Vec<u32>, PromptError> {
        let ids = if self.suppresses(rendered) {
            self.encode_apart(tokenizer, rendered)
        } else {
            tokenizer.encode_fast(rendered.text.as_str(), false).map(|encoding| encoding.get_ids().to_vec())
        };
        ids.map_err(|error| PromptError::Tokenizer(error.to_string()))
    }

    /// Whether a client's spelling would be matched as a control token if nothing were done.
    fn suppresses(&self, rendered: &Stripped) -> bool {
        if rendered.marks.is_empty() {
            return false;
        }
        let mut suppressed = self.normalized.tokens.values().any(|(id, _)| self.control.contains(id));
        self.raw.find(&rendered.text, |id, range| {
            let allowed = self.allows(id, range, &rendered.marks);
            suppressed |= !allowed;
            allowed
        });
        suppressed
    }

    /// Whether this token may be matched here: any but a control token with a mark inside its spelling.
    fn allows(&self, id: u32, range: Range<usize>, marks: &[usize]) -> bool {
        let next = marks.get(marks.partition_point(|&mark| mark <= range.start));
        let outside = |&mark: &usize| mark > range.end || (mark == range.end && !self.lone.contains(&id));
        !self.control.contains(&id) || next.is_none_or(outside)
    }

    fn encode_apart(&self, tokenizer: &Tokenizer, rendered: &Stripped) -> Result<Vec<u32>, Failure> {
        let mut text = PreTokenizedString::from(rendered.text.as_str());
        text.split(|_, piece| {
            let found = self.raw.find(piece.get(), |id, range| self.allows(id, range, &rendered.marks));
            cut(&piece, found)
        })?;
        text.split(|_, mut piece| {
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            let base = piece.offsets_original().0;
            let found = self.normalized.find(piece.get(), |id, range| {
                if !self.control.contains(&id) {
                    return true;
                }
                // What normalising made into a control token was none as it was written.
                let spelled = piece.get_range_original(Span::Normalized(range.clone()));
                let token = self.normalized.tokens.get(&piece.get()[range.clone()]);
                let origin = piece.convert_offsets(Span::Normalized(range));
                spelled.is_some_and(|spelled| token.is_some_and(|(_, token)| token.content == spelled))
                    && origin.is_some_and(|at| self.allows(id, base + at.start..base + at.end, &rendered.marks))
            });
            cut(&piece, found)
        })?;
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut text)?;
        }
        let model = tokenizer.get_model();
        text.tokenize(|piece| self.tokenize(model, piece.get()))?;
        let encoding = text.into_encoding(None, 0, OffsetType::None)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The model's tokens for a piece of text that holds no control token. Models that look whole pieces up in their
    /// vocabulary can still find one; then its characters are looked up one by one.
    fn tokenize(&self, model: &impl Model, text: &str) -> Result<Vec<Token>, Failure> {
        let tokens = model.tokenize(text)?;
        let harmless = |token: &Token| {
            let (from, to) = token.offsets;
            !self.control.contains(&token.id) || text.get(from..to) != Some(token.value.as_str())
        };
        if tokens.iter().all(harmless) {
            return Ok(tokens);
        }
        let mut out = Vec::with_capacity(tokens.len());
        for token in tokens {
            if harmless(&token) {
                out.push(token);
                continue;
            }
            let from = token.offsets.0;
            for (at, c) in token.value.char_indices() {
                let mut singles = model.tokenize(&token.value[at..at + c.len_utf8()])?;
                singles.retain(|single| single.value.len() < token.value.len() || !self.control.contains(&single.id));
                for single in &mut singles {
                    single.offsets = (from + at + single.offsets.0, from + at + single.offsets.1);
                }
                out.extend(singles);
            }
        }
        Ok(out)
    }
}

/// Finds added tokens in text: the leftmost, and of those the longest, as the tokeniser does.
#[derive(Debug, Default)]
struct Matcher {
    tokens: HashMap<String, (u32, AddedToken)>,
    /// Lengths that occur, longest first.
    lengths: Vec<usize>,
    first: HashSet<u8>,
}

impl Matcher {
    fn insert(&mut self, content: String, id: u32, token: AddedToken) {
        let Some(&first) = content.as_bytes().first() else { return };
        self.first.insert(first);
        if let Err(at) = self.lengths.binary_search_by(|length| content.len().cmp(length)) {
            self.lengths.insert(at, content.len());
        }
        self.tokens.insert(content, (id, token));
    }

    /// Cuts the text into found tokens and what lies between; a token is passed over where `allowed` says no.
    fn find(&self, text: &str, mut allowed: impl FnMut(u32, Range<usize>) -> bool) -> Vec<(Option<u32>, Range<usize>)> {
        let mut pieces = Vec::new();
        let (mut done, mut at) = (0, 0);
        while at < text.len() {
            let step = text[at..].chars().next().map_or(1, char::len_utf8);
            let lengths = if self.first.contains(&text.as_bytes()[at]) { self.lengths.as_slice() } else { &[] };
            let found = lengths.iter().find_map(|&length| {
                let end = at + length;
                self.tokens.get(text.get(at..end)?).map(|(id, token)| (*id, token, end))
            });
            let Some((id, token, end)) = found.filter(|(id, _, end)| allowed(*id, at..*end)) else {
                at += step;
                continue;
            };
            let (mut start, mut stop) = (at, end);
            // The tokeniser goes on behind the token itself, whatever is stripped and even if it is no word.
            at = end;
            if token.single_word && (ends_in_word(&text[..start]) || starts_with_word(&text[stop..])) {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                stop = text.len() - text[stop..].trim_start().len();
            }
            if done < start {
                pieces.push((None, done..start));
            }
            pieces.push((Some(id), start..stop));
            done = stop;
        }
        if done < text.len() {
            pieces.push((None, done..text.len()));
        }
        pieces
    }
}

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(in_word)
}

fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(in_word)
}

fn cut(piece: &NormalizedString, found: Vec<(Option<u32>, Range<usize>)>) -> Result<Pieces, Failure> {
    let mut pieces = Pieces::with_capacity(found.len());
    for (id, range) in found {
        let slice = piece.slice(Span::Normalized(range)).ok_or("a piece of text could not be cut")?;
        let tokens = id.map(|id| {
            let value = slice.get().to_owned();
            let length = value.len();
            vec![Token::new(id, value, (0, length))]
        });
        pieces.push((slice, tokens));
    }
    Ok(pieces)
}
