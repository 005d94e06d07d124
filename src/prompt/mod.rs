//! Text to tokens and back: the checkpoint's chat template and tokeniser, and how an answer is read.
//!
//! On the way in, a conversation is rendered and tokenised exactly as the reference does it, except that nothing a client
//! writes becomes a control token. On the way out, tokens become text, thoughts and tool calls, with stop strings and end
//! tokens decided by the same state machine on the engine's thread and at the reader's. May use the scheduler's commit
//! gate and what it asks about a text's structure; must not know HTTP, weights or tensors.

mod arguments;
mod call;
mod calling;
mod chat;
mod clock;
mod decimal;
mod depth;
mod detokenize;
mod encode;
mod error;
mod extent;
mod follower;
mod foregone;
mod kept;
mod lexicon;
mod machine;
mod meeting;
mod python;
mod reader;
mod shield;
mod stop;
mod strict;
mod structure;
mod template;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use tokenizers::Tokenizer;

pub use arguments::Arguments;
pub use calling::CalledTool;
pub use chat::{Chat, Content, Message, Opening, Part, Prompt, Role, Thinking, ToolCall};
pub use error::{Fault, PromptError};
pub use machine::{Channel, Delta, Dialect, Rules};
pub use reader::{DraftText, TextReader};
pub use stop::StopStrings;
pub use strict::{CallableTools, UncheckedSchema};
pub use structure::{Blueprint, Form, Instead};

use encode::AddedTokens;
use lexicon::{Lexicon, Mark, THOUGHT_CLOSE, THOUGHT_OPEN};
use machine::Machine;
use reader::Gate;
use shield::{Shield, Spellings, Stripped};
use structure::Grammars;
use template::Template;

use crate::scheduler::CommitGate;

/// What a checkpoint says about text.
pub struct TextParts {
    /// The tokeniser.
    pub tokenizer: Tokenizer,
    /// The chat template's source, where there is one.
    pub template: Option<String>,
    /// Ids that end an answer, as the checkpoint lists them.
    pub end_tokens: Vec<u32>,
    /// The token that begins a text, as spelled.
    pub bos_token: Option<String>,
    /// The token that ends a text, as spelled.
    pub eos_token: Option<String>,
    /// Whether a plain text begins with `bos_token`; `None`: as the tokeniser's own post-processing does, and where it has
    /// none, yes.
    pub add_bos: Option<bool>,
}

/// A checkpoint's text: shared by all requests.
pub struct Text {
    lexicon: Arc<Lexicon>,
    added: AddedTokens,
    spellings: Spellings,
    template: Option<Template>,
    bos: Option<u32>,
    add_bos: Option<bool>,
    longest_token: Option<usize>,
    /// Made when the first answer must have a structure: it takes a second and some memory.
    grammars: OnceLock<Grammars>,
}

/// A rendered conversation, not tokenised yet.
#[derive(Debug, Clone)]
pub struct Rendered(Stripped);

impl Rendered {
    /// Its text.
    pub fn text(&self) -> &str {
        &self.0.text
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("vocabulary", &self.vocabulary()).finish_non_exhaustive()
    }
}

impl Text {
    /// Prepares the tokeniser and compiles the template.
    ///
    /// # Errors
    /// [`PromptError::Template`], [`PromptError::Decoder`] or [`PromptError::Tokenizer`] where one is not understood.
    pub fn new(parts: TextParts) -> Result<Text, PromptError> {
        let lexicon = Lexicon::new(parts.tokenizer, &parts.end_tokens)?;
        let control = lexicon.control();
        let added = AddedTokens::new(&lexicon.tokenizer, control.keys().copied().collect())?;
        let thought = (lexicon.tokenizer.token_to_id(THOUGHT_OPEN).is_some() && lexicon.thinks())
            .then(|| (THOUGHT_OPEN.to_owned(), THOUGHT_CLOSE.to_owned()));
        let spellings = Spellings::new(control.values().map(String::as_str), thought);
        let bos_token = parts.bos_token.unwrap_or_default();
        let eos_token = parts.eos_token.unwrap_or_default();
        let template = parts.template.map(|source| Template::new(&source, &bos_token, &eos_token)).transpose()?;
        let bos = lexicon.tokenizer.token_to_id(&bos_token);
        let longest_token = added.longest(&lexicon.tokenizer);
        Ok(Text {
            lexicon: Arc::new(lexicon),
            added,
            spellings,
            template,
            bos,
            add_bos: parts.add_bos,
            longest_token,
            grammars: OnceLock::new(),
        })
    }

    /// Renders a conversation, followed by what makes the model answer, and tokenises it.
    ///
    /// The tokens are those the reference makes of the same rendered text, except where a client's text spells a control
    /// token: there it stays text.
    ///
    /// # Errors
    /// See [`PromptError::fault`]: what the template refuses or cannot express is the request's fault.
    pub fn render(&self, chat: &Chat) -> Result<Prompt, PromptError> {
        self.tokenize(&self.rendered(chat)?)
    }

    /// The first half of [`Text::render`], which is much the cheaper one.
    ///
    /// # Errors
    /// As [`Text::render`].
    pub fn rendered(&self, chat: &Chat) -> Result<Rendered, PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        let shield = Shield::new(&self.spellings, chat)?;
        Ok(Rendered(shield.strip(&template.render(chat, &shield)?)))
    }

    /// The second half of [`Text::render`].
    ///
    /// # Errors
    /// [`PromptError::Tokenizer`] where the tokeniser fails.
    pub fn tokenize(&self, rendered: &Rendered) -> Result<Prompt, PromptError> {
        let ids = self.added.encode(&self.lexicon.tokenizer, &rendered.0)?;
        let resume_points = self.resume_points(&ids);
        let opening = self.opening(&ids);
        Ok(Prompt { ids, resume_points, opening })
    }

    /// The text that [`Text::render`] tokenises.
    ///
    /// # Errors
    /// As [`Text::render`].
    pub fn render_text(&self, chat: &Chat) -> Result<String, PromptError> {
        Ok(self.rendered(chat)?.0.text)
    }

    /// Most bytes of text that one token stands for; `None` where there is no bound, or none that is known. A text of more
    /// than so many times the tokens that fit need not be tokenised to be refused.
    pub fn longest_token(&self) -> Option<usize> {
        self.longest_token
    }

    /// Whether the chat template reads a variable of this name; what it does not read has no effect.
    pub fn reads(&self, variable: &str) -> bool {
        self.template.as_ref().is_some_and(|template| template.reads(variable))
    }

    /// Tokenises a plain prompt, which the caller writes as a whole: control tokens spelled in it are control tokens. It
    /// begins with the token that begins a text where the tokeniser's own rule says so.
    ///
    /// # Errors
    /// [`PromptError::Tokenizer`] where the tokeniser fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let tokenizer = &self.lexicon.tokenizer;
        let by_rule = self.add_bos.unwrap_or(true);
        let encoding =
            tokenizer.encode_fast(text, by_rule).map_err(|error| PromptError::Tokenizer(error.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        let begins = self.add_bos.unwrap_or_else(|| tokenizer.get_post_processor().is_none());
        match self.bos {
            Some(bos) if begins && ids.first() != Some(&bos) => ids.insert(0, bos),
            _ => {}
        }
        Ok(ids)
    }

    /// The text of these tokens, control tokens spelled out; ids beyond the vocabulary are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        reader::decode(&self.lexicon, ids)
    }

    /// The bytes a token stands for: of a character that is spread over tokens, its part. Empty beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.lexicon.spelling(id) {
            Some(spelling) if self.lexicon.mark(id).is_some() => spelling.into_bytes(),
            Some(spelling) => self.lexicon.steps.bytes(&spelling),
            None => Vec::new(),
        }
    }

    /// The bytes that a token adds to content: as [`Text::token_bytes`], except that what stands around the strings of a
    /// call is shown as a quote.
    pub fn content_bytes(&self, id: u32) -> Vec<u8> {
        match self.lexicon.mark(id) {
            Some(Mark::Quote) => call::QUOTE.to_string().into_bytes(),
            _ => self.token_bytes(id),
        }
    }

    /// Tokens the tokeniser knows, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.lexicon.tokenizer.get_vocab_size(true)
    }

    /// Decides for one answer, on the engine's thread, when it is complete.
    pub fn gate(&self, opening: Opening, dialect: Dialect, rules: Rules) -> Box<dyn CommitGate> {
        Box::new(Gate(self.machine(opening, dialect, rules)))
    }

    /// Turns one answer's tokens into text; comes to the same end as [`Text::gate`] made alike.
    pub fn reader(&self, opening: Opening, dialect: Dialect, rules: Rules) -> TextReader {
        TextReader::new(self.machine(opening, dialect, rules))
    }

    /// A language that answers can be held to.
    ///
    /// # Errors
    /// [`PromptError::Structure`] where the schema is not understood, is too large, or allows nothing;
    /// [`PromptError::NoTools`] where the tokeniser cannot write a call.
    pub fn blueprint(&self, form: Form, instead: Instead) -> Result<Blueprint, PromptError> {
        let grammars = match self.grammars.get() {
            Some(grammars) => grammars,
            None => {
                let made = Grammars::new(&self.lexicon)?;
                self.grammars.get_or_init(|| made)
            }
        };
        grammars.blueprint(&self.lexicon, form, instead)
    }

    fn machine(&self, opening: Opening, dialect: Dialect, rules: Rules) -> Machine {
        Machine::new(Arc::clone(&self.lexicon), opening, dialect, rules)
    }

    /// Where turns begin, the first aside: that is where the turns before them end.
    fn resume_points(&self, ids: &[u32]) -> Vec<usize> {
        let Some(open) = self.lexicon.turn_open() else { return Vec::new() };
        let turns = ids.iter().enumerate().filter(|(_, id)| **id == open).map(|(at, _)| at);
        turns.skip(1).filter(|&at| at > 0).collect()
    }

    /// Whether the last channel marker opens a thought.
    fn opening(&self, ids: &[u32]) -> Opening {
        let last = ids.iter().rev().find_map(|&id| self.lexicon.mark(id).filter(|mark| *mark != Mark::Quote));
        match last {
            Some(Mark::ThoughtOpen) => Opening::Reasoning,
            _ => Opening::Content,
        }
    }
}
