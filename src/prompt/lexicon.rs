//! What the tokeniser's ids mean: markers by their spelling, end tokens, everything that is never shown.

use std::collections::HashMap;

use tokenizers::{ModelWrapper, Tokenizer};

use super::detokenize::Steps;
use super::error::PromptError;

/// What a token that is not text does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// `<|channel>` begins a thought.
    ThoughtOpen,
    /// `<channel|>` ends it.
    ThoughtClose,
    /// `<|tool_call>` begins a call.
    CallOpen,
    /// `<tool_call|>` ends it.
    CallClose,
    /// `<|"|>` stands around a string in a call.
    Quote,
    /// `<|tool_response>`: the model waits for results; ends the answer.
    ResponseOpen,
    /// Ends the answer.
    End,
    /// Any other control token; never shown.
    Hidden,
}

/// Begins a turn, and ends it.
const TURN_OPEN: &str = "<|turn>";
const TURN_CLOSE: &str = "<turn|>";

/// Stands before and behind a thought.
pub(super) const THOUGHT_OPEN: &str = "<|channel>";
pub(super) const THOUGHT_CLOSE: &str = "<channel|>";

/// The markers with a meaning. Which of them are flagged as special differs between files, so their spelling decides.
const MARKERS: [(&str, Mark); 8] = [
    (THOUGHT_OPEN, Mark::ThoughtOpen),
    (THOUGHT_CLOSE, Mark::ThoughtClose),
    ("<|tool_call>", Mark::CallOpen),
    ("<tool_call|>", Mark::CallClose),
    ("<|\"|>", Mark::Quote),
    ("<|tool_response>", Mark::ResponseOpen),
    (TURN_CLOSE, Mark::End),
    ("<eos>", Mark::End),
];

/// Control tokens by their spelling alone, beside the markers with a meaning and those flagged as special.
const CONTROL: [&str; 15] = [
    "<pad>",
    "<bos>",
    "<mask>",
    TURN_OPEN,
    "<|think|>",
    "<|tool>",
    "<tool|>",
    "<tool_response|>",
    "<|image>",
    "<|image|>",
    "<image|>",
    "<|audio>",
    "<|audio|>",
    "<audio|>",
    "<|video|>",
];

/// A tokeniser and the meaning of its ids.
pub(super) struct Lexicon {
    pub(super) tokenizer: Tokenizer,
    pub(super) steps: Steps,
    marks: HashMap<u32, Mark>,
    control: HashMap<u32, String>,
    turn_open: Option<u32>,
    thought_close: Option<u32>,
    end: Option<u32>,
}

impl Lexicon {
    pub(super) fn new(mut tokenizer: Tokenizer, end_tokens: &[u32]) -> Result<Lexicon, PromptError> {
        // A tokenizer.json may carry the truncation and padding it was last used with; neither belongs to a server.
        tokenizer.with_truncation(None).map_err(|error| PromptError::Tokenizer(error.to_string()))?;
        tokenizer.with_padding(None);
        let steps = Steps::new(&tokenizer)?;
        let mut marks = HashMap::new();
        let mut control = HashMap::new();
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if token.special || end_tokens.contains(&id) {
                marks.insert(id, Mark::Hidden);
                control.insert(id, token.content);
            }
        }
        let known = CONTROL.into_iter().map(|spelling| (spelling, Mark::Hidden)).chain(MARKERS);
        for (spelling, mark) in known {
            if let Some(id) = tokenizer.token_to_id(spelling) {
                marks.insert(id, mark);
                control.insert(id, spelling.to_owned());
            }
        }
        for &id in end_tokens {
            marks.entry(id).and_modify(|mark| *mark = ending(*mark)).or_insert(Mark::End);
        }
        if let Some(unknown) = unknown(&tokenizer) {
            control.remove(&unknown);
        }
        let turn_open = tokenizer.token_to_id(TURN_OPEN);
        let thought_close = tokenizer.token_to_id(THOUGHT_CLOSE);
        let ends = marks.iter().filter(|(_, mark)| **mark == Mark::End).map(|(&id, _)| id);
        let end = tokenizer.token_to_id(TURN_CLOSE).or(ends.min());
        Ok(Lexicon { tokenizer, steps, marks, control, turn_open, thought_close, end })
    }

    /// What the token does, where it is not text.
    pub(super) fn mark(&self, id: u32) -> Option<Mark> {
        self.marks.get(&id).copied()
    }

    /// The id with this meaning; of several the smallest.
    pub(super) fn marker(&self, mark: Mark) -> Option<u32> {
        self.marks.iter().filter(|(_, known)| **known == mark).map(|(&id, _)| id).min()
    }

    /// Whether the tokeniser can mark the end of a thought.
    pub(super) fn thinks(&self) -> bool {
        self.thought_close.is_some()
    }

    /// The id that ends a thought.
    pub(super) fn thought_close(&self) -> Option<u32> {
        self.thought_close
    }

    /// The id that ends an answer; of several the one that ends a turn.
    pub(super) fn end(&self) -> Option<u32> {
        self.end
    }

    /// The id that begins a turn.
    pub(super) fn turn_open(&self) -> Option<u32> {
        self.turn_open
    }

    /// The control tokens with their spellings: what a client's text must never become. The token for unknown characters
    /// is none of them.
    pub(super) fn control(&self) -> &HashMap<u32, String> {
        &self.control
    }

    /// The token as the vocabulary spells it.
    pub(super) fn spelling(&self, id: u32) -> Option<String> {
        // The spelling a decoder expects differs from the vocabulary's where the normaliser rewrites added tokens.
        self.tokenizer.get_added_vocabulary().simple_id_to_token(id).or_else(|| self.tokenizer.id_to_token(id))
    }
}

fn unknown(tokenizer: &Tokenizer) -> Option<u32> {
    let token = match tokenizer.get_model() {
        ModelWrapper::BPE(model) => model.unk_token.as_deref(),
        ModelWrapper::WordLevel(model) => Some(model.unk_token.as_str()),
        ModelWrapper::WordPiece(model) => Some(model.unk_token.as_str()),
        ModelWrapper::Unigram(_) => Some("<unk>"),
    };
    token.and_then(|token| tokenizer.token_to_id(token))
}

/// A token that the checkpoint declares an end stays what it is where that already ends the answer.
fn ending(mark: Mark) -> Mark {
    match mark {
        Mark::ResponseOpen => Mark::ResponseOpen,
        _ => Mark::End,
    }
}
