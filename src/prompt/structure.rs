//! Answers that must have a structure: a JSON Schema, or a call that must be made, as a language of tokens, followed by
//! llguidance.
//!
//! Bound are the content of an answer, the calls in its place where some may be made, or the first call where one must be.
//! A thought before it is free, and so is what follows a call that had to be made. Parsing works on the bytes that tokens
//! spell, so that every way to cut a text into tokens counts.

use std::ops::Range;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::calling::{self, CalledTool};
use super::chat::Opening;
use super::depth;
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
    /// A call of one of these tools.
    Call(Vec<CalledTool>),
}

/// Whether an answer may call a tool instead of having its structure.
#[derive(Debug, Clone, PartialEq)]
pub enum Instead {
    /// Calls of these tools may take the content's place.
    Calls(Vec<CalledTool>),
    /// Nothing may.
    Nothing,
}

/// What of an answer a language is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// Its content.
    Content,
    /// Its content, or calls in its place, with the tokens that open them.
    ContentOrCalls,
    /// The call that this token opens.
    Call(u32),
}

/// What the tokens spell, prepared once for all languages.
pub(super) struct Grammars {
    factory: ParserFactory,
    /// Tokens that may spell something, from 0. A model's table can be longer than its tokeniser's.
    size: u32,
}

/// Most work that is done for one canvas of an answer, in the library's own units, which do not depend on the clock: fuel
/// of its lexer, of which it burns 12 to 30 in a microsecond, and items of its parser. That is a quarter of a second.
///
/// Of the ordinary rules, texts of at most 2,000 characters cost most: 134,000 for 64 mends over a vocabulary of 200,000
/// tokens. `^.*e.{28}$` costs 4,400,000 there.
const ALLOWANCE: u64 = 3_500_000;

/// Begins what a marker spells here: no text contains this byte. The library writes `[`, the marker's id and `]` behind it.
const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// The layout options of the library, a keyword in a schema's root.
const LAYOUT: &str = "x-guidance";

/// A language that answers can be held to; each answer follows it by itself.
pub struct Blueprint {
    matcher: Matcher,
    lexicon: Arc<Lexicon>,
    subject: Subject,
    size: u32,
}

impl Grammars {
    /// Prepares what this tokeniser's tokens spell.
    pub(super) fn new(lexicon: &Lexicon) -> Result<Grammars, PromptError> {
        let size = lexicon.tokenizer.get_vocab(true).values().max().map_or(0, |&last| last + 1);
        let words: Vec<Vec<u8>> = (0..size).map(|id| word(lexicon, id)).collect();
        let end = lexicon.end().unwrap_or_default();
        let trie = TokTrie::from(&TokRxInfo::new(size, end), &words);
        let environment = ApproximateTokEnv::new(trie);
        // Slices make masks faster and this slower; masks are wanted only where the model has strayed.
        let mut factory = ParserFactory::new(&(Arc::new(environment) as _), InferenceCapabilities::default(), &[])
            .map_err(unusable)?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(Grammars { factory, size })
    }

    /// The language of this form.
    pub(super) fn blueprint(
        &self,
        lexicon: &Arc<Lexicon>,
        form: Form,
        instead: Instead,
    ) -> Result<Blueprint, PromptError> {
        depth::check(schemas(&form, &instead))?;
        let (grammar, subject) = match form {
            Form::Json => content(lexicon, json!({"type": "object"}), &instead)?,
            Form::Schema(schema) => content(lexicon, schema, &instead)?,
            Form::Call(tools) => {
                let marker = |mark| lexicon.marker(mark).ok_or(PromptError::NoTools);
                let grammar = calling::grammar(&tools, marker(Mark::Quote)?, marker(Mark::CallClose)?);
                (TopLevelGrammar::from_lark(grammar), Subject::Call(marker(Mark::CallOpen)?))
            }
        };
        let matcher = self.compiled(grammar)?;
        Ok(Blueprint { matcher, lexicon: Arc::clone(lexicon), subject, size: self.size })
    }

    /// Compiling recurses as deep as the schema leads, which is more than an ordinary thread's stack holds.
    fn compiled(&self, grammar: TopLevelGrammar) -> Result<Matcher, PromptError> {
        let compile = || {
            let mut matcher = Matcher::new(self.factory.create_parser(grammar));
            match matcher.get_error() {
                Some(error) => Err(PromptError::Structure(error)),
                None => {
                    // A language that holds no text at all is an error of the schema, not of the answers.
                    matcher.compute_mask_or_eos().map_err(unusable)?;
                    Ok(matcher)
                }
            }
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(depth::STACK).spawn_scoped(scope, compile);
            let thread = thread.map_err(|error| unusable(format!("no thread can be started for it: {error}")))?;
            thread.join().unwrap_or_else(|_| Err(unusable("it cannot be compiled")))
        })
    }
}

/// All schemas that are compiled together.
fn schemas<'a>(form: &'a Form, instead: &'a Instead) -> impl Iterator<Item = &'a Value> {
    let (content, demanded) = match form {
        Form::Json => (None, &[][..]),
        Form::Schema(schema) => (Some(schema), &[][..]),
        Form::Call(tools) => (None, tools.as_slice()),
    };
    let offered = match instead {
        Instead::Calls(tools) => tools.as_slice(),
        Instead::Nothing => &[],
    };
    content.into_iter().chain(demanded.iter().chain(offered).map(|tool| &tool.parameters))
}

/// The language of content that fits a schema, and of the calls that may take its place. Where the tokeniser cannot write
/// a call, none is to be expected.
fn content(lexicon: &Lexicon, schema: Value, instead: &Instead) -> Result<(TopLevelGrammar, Subject), PromptError> {
    let content = of_schema(schema)?;
    let markers = [Mark::CallOpen, Mark::Quote, Mark::CallClose].map(|mark| lexicon.marker(mark));
    let (Instead::Calls(tools), [Some(open), Some(quote), Some(close)]) = (instead, markers) else {
        return Ok((TopLevelGrammar::from_grammar(content), Subject::Content));
    };
    let named = |name: &str, grammar: GrammarWithLexer| GrammarWithLexer { name: Some(name.to_owned()), ..grammar };
    let grammars = vec![
        GrammarWithLexer::from_lark(format!("start: @content | (<[{open}]> @call)+")),
        named("content", content),
        named("call", GrammarWithLexer::from_lark(calling::grammar(tools, quote, close))),
    ];
    Ok((TopLevelGrammar { grammars, max_tokens: None }, Subject::ContentOrCalls))
}

/// JSON that fits a schema, written on one line. Where space is free, a model that is at a loss writes nothing else; where
/// it is not, much of the text is certain beforehand, and whole names are put down at once.
fn of_schema(schema: Value) -> Result<GrammarWithLexer, PromptError> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        schema => schema,
    };
    if let Value::Object(schema) = &mut schema {
        let layout = json!({"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false});
        if schema.insert(LAYOUT.to_owned(), layout).is_some() {
            return Err(PromptError::Structure(format!("{LAYOUT:?} is not supported; leave it out")));
        }
    }
    Ok(GrammarWithLexer::from_json_schema(schema))
}

/// What a token spells in a language: its text, or where it is part of a call's notation, its number. Other tokens spell
/// nothing: no language contains them.
fn word(lexicon: &Lexicon, id: u32) -> Vec<u8> {
    match lexicon.mark(id) {
        Some(Mark::CallOpen | Mark::Quote | Mark::CallClose) => {
            let mut word = vec![MARKER];
            word.extend_from_slice(format!("[{id}]").as_bytes());
            word
        }
        _ => text_bytes(lexicon, id),
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
            subject: self.subject,
            size: self.size,
            work: 0,
        })
    }
}

/// Where in an answer a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before what is bound: a thought may begin, a call too where calls are allowed.
    Before,
    /// In a thought.
    Thought,
    /// In what is bound.
    Content,
    /// Behind the call that had to be made: anything goes.
    Free,
}

/// What follows the content among some tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Nothing: the tokens end.
    More,
    /// A token that ends the answer.
    End,
    /// A token that can stand nowhere in what is bound.
    Foreign,
}

/// How some tokens that follow what was committed divide.
struct Division {
    /// Those that are bound.
    content: Range<usize>,
    then: Then,
    /// Where the token behind them stands.
    place: Place,
}

/// One answer on its way through the language.
struct Follower {
    matcher: Matcher,
    /// The bound tokens that the matcher stands behind, but that are not committed.
    trail: Vec<u32>,
    /// Where what was committed ends.
    place: Place,
    lexicon: Arc<Lexicon>,
    subject: Subject,
    size: u32,
    /// What has been used of [`ALLOWANCE`].
    work: u64,
}

impl Follower {
    /// Whether a language of this subject may contain the token.
    fn speaks(&self, id: u32) -> bool {
        match self.lexicon.mark(id) {
            None => id < self.size,
            Some(Mark::Quote | Mark::CallClose) => self.subject != Subject::Content,
            Some(Mark::CallOpen) => self.subject == Subject::ContentOrCalls,
            Some(_) => false,
        }
    }

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
                // It ends a thought, too. Where calls are one way among others, the language has it.
                (Place::Before | Place::Thought, Some(Mark::CallOpen)) if self.subject != Subject::Content => {
                    let start = if self.speaks(id) { at } else { at + 1 };
                    (content, place) = (start..at + 1, Place::Content);
                    continue;
                }
                // A thought that never ends would leave no room for the content.
                (Place::Thought, Some(Mark::CallOpen | Mark::End | Mark::ResponseOpen)) => Then::Foreign,
                (Place::Thought, _) => continue,
                (Place::Before, Some(Mark::ThoughtOpen)) => {
                    place = Place::Thought;
                    continue;
                }
                (Place::Before, None) if matches!(self.subject, Subject::Call(_)) => Then::Foreign,
                (Place::Before | Place::Content, _) if self.speaks(id) => {
                    let start = if place == Place::Before { at } else { content.start };
                    content = start..at + 1;
                    let last = mark == Some(Mark::CallClose) && matches!(self.subject, Subject::Call(_));
                    place = if last { Place::Free } else { Place::Content };
                    continue;
                }
                (Place::Before | Place::Content, _) if ends(mark) => Then::End,
                (Place::Before | Place::Content, _) => Then::Foreign,
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

    /// Moves the matcher behind the longest beginning of what is bound that it accepts, and says how long that is.
    fn advance(&mut self, content: &[u32]) -> Result<usize, StructureError> {
        let common = self.trail.iter().zip(content).take_while(|(a, b)| a == b).count();
        self.matcher.rollback(self.trail.len() - common).map_err(unfollowed)?;
        self.trail.truncate(common);
        let taken = self.matcher.try_consume_tokens(&content[common..]).map_err(unfollowed)?;
        self.trail.extend_from_slice(&content[common..common + taken]);
        Ok(common + taken)
    }

    /// A token that can stand where the matcher is, though nobody proposed it: the shortest.
    fn any(&self, allowed: &SimpleVob) -> Option<u32> {
        let known = allowed.iter().filter(|&id| self.speaks(id));
        // Calls are for a model that asks for them.
        let opens = |id| self.lexicon.mark(id) == Some(Mark::CallOpen);
        known.min_by_key(|&id| (opens(id), text_bytes(&self.lexicon, id).len(), id))
    }

    /// What can stand where the matcher is.
    fn mask(&mut self) -> Result<SimpleVob, StructureError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(unfollowed)?;
        let effort = self.matcher.last_step_stats().map_err(unfollowed)?;
        self.work += effort.lexer_cost + effort.all_items as u64;
        if self.work > ALLOWANCE {
            return Err(StructureError::TooComplex("that takes too long".to_owned()));
        }
        Ok(mask)
    }

    /// What must follow where the matcher is, as the tokeniser writes it, as far as its tokens spell just that: in a text
    /// by itself it may see control tokens or put a space before it.
    fn forced(&mut self) -> Vec<u32> {
        let bytes = self.matcher.compute_ff_bytes();
        let mut rest = bytes.as_slice();
        let mut ids = Vec::new();
        while let Some(&first) = rest.first() {
            if first == MARKER {
                let Some((id, behind)) = numbered(&rest[1..]) else { break };
                ids.push(id);
                rest = behind;
                continue;
            }
            let end = rest.iter().position(|&byte| byte == MARKER).unwrap_or(rest.len());
            let Ok(text) = std::str::from_utf8(&rest[..end]) else { break };
            // Space that ends it may be one token with what follows.
            let text = if end == rest.len() { text.trim_end() } else { text };
            let Ok(encoding) = self.lexicon.tokenizer.encode_fast(text, false) else { break };
            let mut unspelt = text.as_bytes();
            for &id in encoding.get_ids() {
                let word = text_bytes(&self.lexicon, id);
                let Some(behind) = unspelt.strip_prefix(word.as_slice()).filter(|_| !word.is_empty()) else {
                    return ids;
                };
                ids.push(id);
                unspelt = behind;
            }
            if !unspelt.is_empty() {
                break;
            }
            rest = &rest[end..];
        }
        ids
    }
}

/// Whether the answer is over with this token.
fn ends(mark: Option<Mark>) -> bool {
    matches!(mark, Some(Mark::End | Mark::ResponseOpen))
}

/// The number in brackets that these bytes begin with, and what is behind it.
fn numbered(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b']')?;
    let number = std::str::from_utf8(bytes[..end].strip_prefix(b"[")?).ok()?;
    Some((number.parse().ok()?, &bytes[end + 1..]))
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
            Then::End if self.matcher.is_accepting().map_err(unfollowed)? => Ok(tokens.len()),
            Then::End | Then::Foreign => Ok(content.end),
        }
    }

    fn mend(&mut self, before: &[u32], candidates: &mut dyn Iterator<Item = u32>) -> Result<Vec<u32>, StructureError> {
        let Division { content, place, .. } = self.divide(before);
        self.advance(&before[content])?;
        if place == Place::Thought {
            return self.lexicon.thought_close().map(|close| vec![close]).ok_or_else(|| lost("a thought cannot end"));
        }
        if let (Place::Before, Subject::Call(open)) = (place, self.subject) {
            return Ok(std::iter::once(open).chain(self.forced()).collect());
        }
        let complete = self.matcher.is_accepting().map_err(unfollowed)?;
        let allowed = self.mask()?;
        let can_stand = |id: &u32| match self.speaks(*id) {
            true => allowed.is_allowed(*id),
            false => complete && ends(self.lexicon.mark(*id)),
        };
        let mut proposed = candidates;
        let chosen = match Iterator::find(&mut proposed, can_stand) {
            Some(chosen) => chosen,
            None if complete => self.lexicon.end().ok_or_else(|| lost("an answer cannot end"))?,
            None => self.any(&allowed).ok_or_else(|| lost("nothing may follow"))?,
        };
        let mut mended = vec![chosen];
        if self.speaks(chosen) {
            self.matcher.consume_token(chosen).map_err(unfollowed)?;
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
        self.work = 0;
        Ok(())
    }
}

fn unusable(error: impl std::fmt::Display) -> PromptError {
    PromptError::Structure(cause(error))
}

/// The library follows every language that it has compiled, unless that takes too much.
fn unfollowed(error: impl std::fmt::Display) -> StructureError {
    StructureError::TooComplex(cause(error))
}

/// What the library says; its further lines are about its own state.
fn cause(error: impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn lost(what: &str) -> StructureError {
    StructureError::Astray(what.to_owned())
}
