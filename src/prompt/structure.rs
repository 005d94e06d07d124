//! Answers that must have a structure: a JSON Schema as a language of tokens, followed by llguidance.
//!
//! Only the content of an answer is bound. A thought before it is free, and so is a call of a tool in its place. Parsing
//! works on the bytes that tokens spell, so that every way to cut a text into tokens counts.

use std::ops::Range;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::chat::Opening;
use super::error::PromptError;
use super::lexicon::{Lexicon, Mark};
use crate::scheduler::{Structure, StructureError};

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// A JSON object.
    Json,
    /// JSON that fits this schema.
    Schema(Value),
}

/// Whether an answer may call a tool instead of having its structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// A call may take the content's place.
    Calls,
    /// Nothing may.
    Nothing,
}

/// What the tokens spell, prepared once for all languages.
pub(super) struct Grammars {
    factory: ParserFactory,
}

/// A language that answers can be held to; each answer follows it by itself.
pub struct Blueprint {
    matcher: Matcher,
    lexicon: Arc<Lexicon>,
    instead: Instead,
}

impl Grammars {
    /// Prepares what this tokeniser's tokens spell.
    pub(super) fn new(lexicon: &Lexicon) -> Result<Grammars, PromptError> {
        let size = lexicon.tokenizer.get_vocab(true).values().max().map_or(0, |&last| last + 1);
        // Tokens that are no text spell nothing here: no language contains them.
        let words: Vec<Vec<u8>> = (0..size).map(|id| text_bytes(lexicon, id)).collect();
        let end = lexicon.end().unwrap_or_default();
        let trie = TokTrie::from(&TokRxInfo::new(size, end), &words);
        let environment = ApproximateTokEnv::new(trie);
        // Slices make masks faster and this slower; masks are wanted only where the model has strayed.
        let mut factory = ParserFactory::new(&(Arc::new(environment) as _), InferenceCapabilities::default(), &[])
            .map_err(unusable)?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(Grammars { factory })
    }

    /// The language of this form.
    pub(super) fn blueprint(
        &self,
        lexicon: &Arc<Lexicon>,
        form: Form,
        instead: Instead,
    ) -> Result<Blueprint, PromptError> {
        let mut schema = match form {
            Form::Json => json!({"type": "object"}),
            Form::Schema(Value::Bool(true)) => json!({}),
            Form::Schema(schema) => schema,
        };
        // Written on one line. Where space is free, a model that is at a loss writes nothing else; where it is not, much of the
        // text is certain beforehand, and whole names are put down at once.
        if let Value::Object(schema) = &mut schema {
            let layout = json!({"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false});
            schema.insert("x-guidance".to_owned(), layout);
        }
        let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let mut matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(PromptError::Structure(error)),
            None => {
                // A language that holds no text at all is an error of the schema, not of the answers.
                matcher.compute_mask_or_eos().map_err(unusable)?;
                Ok(Blueprint { matcher, lexicon: Arc::clone(lexicon), instead })
            }
        }
    }
}

/// The bytes a token spells; none where it is no text.
fn text_bytes(lexicon: &Lexicon, id: u32) -> Vec<u8> {
    match lexicon.spelling(id) {
        Some(spelling) if lexicon.mark(id).is_none() => lexicon.steps.bytes(&spelling),
        _ => Vec::new(),
    }
}

impl Blueprint {
    /// Holds one answer to the language.
    pub fn structure(&self, opening: Opening) -> Box<dyn Structure> {
        let place = match opening {
            Opening::Reasoning => Place::Thought,
            Opening::Content => Place::Before,
        };
        Box::new(Follower {
            matcher: self.matcher.deep_clone(),
            trail: Vec::new(),
            place,
            lexicon: Arc::clone(&self.lexicon),
            instead: self.instead,
        })
    }
}

/// Where in an answer a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before its content: a thought may begin, a call too where calls are allowed.
    Before,
    /// In a thought.
    Thought,
    /// In the content.
    Content,
    /// In a call, or behind the end: anything goes.
    Free,
}

/// What follows the content among some tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Nothing: the tokens end.
    More,
    /// A token that ends the answer.
    End,
    /// A token that can stand nowhere in content.
    Foreign,
}

/// How some tokens that follow what was committed divide.
struct Division {
    /// Those of the content.
    content: Range<usize>,
    then: Then,
    /// Where the token behind them stands.
    place: Place,
}

/// One answer on its way through the language.
struct Follower {
    matcher: Matcher,
    /// The content's tokens that the matcher stands behind, but that are not committed.
    trail: Vec<u32>,
    /// Where what was committed ends.
    place: Place,
    lexicon: Arc<Lexicon>,
    instead: Instead,
}

impl Follower {
    fn divide(&self, tokens: &[u32]) -> Division {
        let mut place = self.place;
        let mut content = 0..0;
        for (at, &id) in tokens.iter().enumerate() {
            let mark = self.lexicon.mark(id);
            let then = match (place, mark) {
                (Place::Free, _) => break,
                (Place::Thought, Some(Mark::ThoughtClose)) => {
                    place = Place::Before;
                    continue;
                }
                // A thought that never ends would leave no room for the content.
                (Place::Thought, Some(Mark::End | Mark::ResponseOpen)) => Then::Foreign,
                (Place::Thought, _) => continue,
                (Place::Before, Some(Mark::ThoughtOpen)) => {
                    place = Place::Thought;
                    continue;
                }
                (Place::Before, Some(Mark::CallOpen)) if self.instead == Instead::Calls => {
                    place = Place::Free;
                    continue;
                }
                (Place::Before | Place::Content, None) => {
                    let start = if place == Place::Before { at } else { content.start };
                    content = start..at + 1;
                    place = Place::Content;
                    continue;
                }
                (Place::Before | Place::Content, Some(Mark::End)) => Then::End,
                (Place::Before | Place::Content, Some(_)) => Then::Foreign,
            };
            if content.is_empty() {
                content = at..at;
            }
            return Division { content, then, place };
        }
        if content.is_empty() {
            content = tokens.len()..tokens.len();
        }
        Division { content, then: Then::More, place }
    }

    /// Moves the matcher behind the longest beginning of this content that it accepts, and says how long that is.
    fn advance(&mut self, content: &[u32]) -> Result<usize, StructureError> {
        let common = self.trail.iter().zip(content).take_while(|(a, b)| a == b).count();
        self.matcher.rollback(self.trail.len() - common).map_err(astray)?;
        self.trail.truncate(common);
        let taken = self.matcher.try_consume_tokens(&content[common..]).map_err(astray)?;
        self.trail.extend_from_slice(&content[common..common + taken]);
        Ok(common + taken)
    }

    /// A token that can stand where the matcher is, though nobody proposed it: the shortest.
    fn any(&self, allowed: &llguidance::toktrie::SimpleVob) -> Option<u32> {
        let shortest = allowed.iter().filter(|&id| self.lexicon.mark(id).is_none());
        shortest.min_by_key(|&id| (text_bytes(&self.lexicon, id).len(), id))
    }

    /// What must follow where the matcher is, as the tokeniser writes it.
    fn forced(&mut self) -> Vec<u32> {
        let bytes = self.matcher.compute_ff_bytes();
        let Ok(text) = std::str::from_utf8(&bytes) else { return Vec::new() };
        // Space that ends it may be one token with what follows.
        let encoding = self.lexicon.tokenizer.encode_fast(text.trim_end(), false);
        encoding.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    }
}

impl Structure for Follower {
    fn fits(&mut self, tokens: &[u32]) -> Result<usize, StructureError> {
        let Division { content, then, .. } = self.divide(tokens);
        let taken = self.advance(&tokens[content.clone()])?;
        if taken < content.len() {
            return Ok(content.start + taken);
        }
        match then {
            Then::More => Ok(tokens.len()),
            Then::End if self.matcher.is_accepting().map_err(astray)? => Ok(tokens.len()),
            Then::End | Then::Foreign => Ok(content.end),
        }
    }

    fn mend(&mut self, before: &[u32], candidates: &mut dyn Iterator<Item = u32>) -> Result<Vec<u32>, StructureError> {
        let Division { content, place, .. } = self.divide(before);
        self.advance(&before[content])?;
        if place == Place::Thought {
            return self.lexicon.thought_close().map(|close| vec![close]).ok_or_else(|| lost("a thought cannot end"));
        }
        let ends = self.matcher.is_accepting().map_err(astray)?;
        let allowed = self.matcher.compute_mask_or_eos().map_err(astray)?;
        let can_stand = |id: &u32| match self.lexicon.mark(*id) {
            Some(mark) => mark == Mark::End && ends,
            None => (*id as usize) < allowed.len() && allowed.is_allowed(*id),
        };
        let mut proposed = candidates;
        let chosen = match Iterator::find(&mut proposed, can_stand) {
            Some(chosen) => chosen,
            None if ends => self.lexicon.end().ok_or_else(|| lost("an answer cannot end"))?,
            None => self.any(&allowed).ok_or_else(|| lost("nothing may follow"))?,
        };
        let mut mended = vec![chosen];
        if self.lexicon.mark(chosen).is_none() {
            self.matcher.consume_token(chosen).map_err(astray)?;
            self.trail.push(chosen);
            mended.extend(self.forced());
        }
        Ok(mended)
    }

    fn commit(&mut self, tokens: &[u32]) -> Result<(), StructureError> {
        let Division { content, place, .. } = self.divide(tokens);
        let wanted = content.len();
        if self.advance(&tokens[content])? < wanted {
            return Err(lost("what was committed does not fit"));
        }
        self.trail.clear();
        self.place = place;
        Ok(())
    }
}

fn unusable(error: impl std::fmt::Display) -> PromptError {
    PromptError::Structure(error.to_string())
}

fn astray(error: impl std::fmt::Display) -> StructureError {
    StructureError(error.to_string())
}

fn lost(what: &str) -> StructureError {
    StructureError(what.to_owned())
}
