//! Answers that must have a structure: a JSON Schema, or a call that must be made, as a language of tokens, followed by
//! llguidance.
//!
//! Bound are the content of an answer, the calls in its place where some may be made, or the first call where one must be.
//! A thought before it is free, and so is what follows a call that had to be made. Parsing works on the bytes that tokens
//! spell, so that every way to cut a text into tokens counts.

use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::calling::{self, CalledTool};
use super::chat::Opening;
use super::depth;
use super::error::PromptError;
use super::follower::{Follower, Place};
use super::kept;
use super::lexicon::{Lexicon, Mark};
use crate::scheduler::Structure;

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
pub(super) enum Subject {
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

/// Most states of a lexer that one answer may bring about, each of which takes a kilobyte: rules for texts of some thousands
/// of characters need as many.
const MOST_STATES: usize = 20_000;

/// Begins what a marker spells here: no text contains this byte. The library writes `[`, the marker's id and `]` behind it.
pub(super) const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

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
        let limits = factory.quiet().limits_mut();
        limits.verbose_errors = false;
        limits.max_lexer_states = MOST_STATES;
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
        on_deep_stack(|| self.compiled(lexicon, form, instead))
    }

    fn compiled(&self, lexicon: &Arc<Lexicon>, form: Form, instead: Instead) -> Result<Blueprint, PromptError> {
        let (grammar, subject) = match form {
            Form::Json => content(lexicon, json!({"type": "object"}), &instead)?,
            Form::Schema(schema) => content(lexicon, schema, &instead)?,
            Form::Call(tools) => {
                let marker = |mark| lexicon.marker(mark).ok_or(PromptError::NoTools);
                let grammar = calling::grammar(&tools, marker(Mark::Quote)?, marker(Mark::CallClose)?);
                (TopLevelGrammar::from_lark(grammar), Subject::Call(marker(Mark::CallOpen)?))
            }
        };
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(unusable(error));
        }
        // A language that holds no text at all is an error of the schema, not of the answers.
        matcher.compute_mask_or_eos().map_err(unusable)?;
        Ok(Blueprint { matcher, lexicon: Arc::clone(lexicon), subject, size: self.size })
    }
}

/// Compiling recurses as deep as the schema leads, which is more than an ordinary thread's stack holds.
fn on_deep_stack<T: Send>(compile: impl FnOnce() -> Result<T, PromptError> + Send) -> Result<T, PromptError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(depth::STACK).spawn_scoped(scope, compile);
        let thread = thread.map_err(|error| unusable(format!("no thread can be started for it: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(unusable("it cannot be compiled")))
    })
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
    kept::put(&mut schema);
    kept::check(&schema)?;
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
pub(super) fn text_bytes(lexicon: &Lexicon, id: u32) -> Vec<u8> {
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
        let lexicon = Arc::clone(&self.lexicon);
        Box::new(Follower::new(self.matcher.deep_clone(), place, lexicon, self.subject, self.size))
    }
}

/// The library's refusal of a language, in words that help where its own do not.
fn unusable(error: impl std::fmt::Display) -> PromptError {
    const WORDS: [(&str, &str); 2] = [
        (
            "NoExtensionBias",
            "no value keeps all of its rules; look for bounds, lengths or multiples that exclude each other",
        ),
        (
            "coerce_one_of",
            "the alternatives of a oneOf may overlap; write anyOf instead, or give each another type, or another const for \
             a key that all of them require",
        ),
    ];
    let cause = cause(error);
    let words = WORDS.iter().find(|(said, _)| cause.contains(said)).map(|(_, words)| (*words).to_owned());
    PromptError::Structure(words.unwrap_or(cause))
}

/// What the library says; its further lines are about its own state.
pub(super) fn cause(error: impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
