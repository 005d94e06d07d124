//! The two who read an answer: the gate, on the engine's thread, and the reader, who turns tokens into text.

use super::lexicon::Lexicon;
use super::machine::{Channel, Delta, Machine};
use crate::scheduler::{CommitGate, Verdict};

/// Decides at each commit whether the answer is complete.
pub(super) struct Gate(pub(super) Machine);

impl CommitGate for Gate {
    fn commit(&mut self, tokens: &[u32]) -> Verdict {
        let mut ignored = Vec::new();
        for (at, &id) in tokens.iter().enumerate() {
            self.0.push(id, &mut ignored);
            ignored.clear();
            if let Some(reason) = self.0.ended() {
                return Verdict::Finish { keep: at + 1, reason };
            }
        }
        Verdict::Continue
    }
}

/// Turns the tokens of one answer into text, canvas by canvas.
///
/// The pieces it gives out depend on the tokens alone, never on how they are grouped; no piece ends inside a character.
pub struct TextReader {
    machine: Machine,
    /// The tokens whose channels have not been told yet.
    untold: Vec<Untold>,
    channels: Vec<Channel>,
}

/// What is known of a token.
struct Untold {
    channel: Channel,
    /// Where its text begins, as [`Machine::reach`] counts.
    begin: usize,
}

/// The text of a canvas that is still being denoised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftText {
    /// What the text is part of.
    pub channel: Channel,
    /// The text; replaces that of the draft before.
    pub text: String,
}

impl TextReader {
    pub(super) fn new(machine: Machine) -> TextReader {
        TextReader { machine, untold: Vec::new(), channels: Vec::new() }
    }

    /// Takes committed tokens and gives out the text they make certain, in order.
    pub fn push(&mut self, tokens: &[u32]) -> Vec<Delta> {
        let mut out = Vec::new();
        for &id in tokens {
            let begin = self.machine.reach();
            let channel = self.machine.push(id, &mut out);
            self.show_call();
            self.untold.push(Untold { channel, begin });
        }
        self.tell();
        out
    }

    /// What the tokens belong to of which the last [`TextReader::push`], or [`TextReader::finish`], has made that certain:
    /// they follow those of the one before. Tokens of a call wait until it has been read, since one that is none is
    /// content. Tokens of a stop string are no content; but where it began in an earlier push, the tokens of that one have
    /// been content already, unless they waited.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    /// A call that is none is content, and so are its tokens.
    fn show_call(&mut self) {
        let begins = self.machine.shown_call().into_iter().rev();
        let tokens = self.untold.iter_mut().rev().filter(|token| token.channel == Channel::Tool);
        for (begin, token) in begins.zip(tokens) {
            *token = Untold { channel: Channel::Content, begin };
        }
    }

    /// Tells the channels of all tokens but those from the first of an open call on.
    fn tell(&mut self) {
        if let Some(cut) = self.machine.cut() {
            let said = self.untold.iter_mut().filter(|token| token.channel == Channel::Content);
            said.filter(|token| token.begin >= cut).for_each(|token| token.channel = Channel::Marker);
        }
        let open = self.machine.open_call().map_or(0, <[u32]>::len);
        let calls = self.untold.iter().enumerate().rev().filter(|(_, token)| token.channel == Channel::Tool);
        let certain = calls.take(open).last().map_or(self.untold.len(), |(at, _)| at);
        self.channels.clear();
        self.channels.extend(self.untold.drain(..certain).map(|token| token.channel));
    }

    /// Gives out what was held back: the answer is over. Nothing comes after it.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut out = Vec::new();
        self.machine.finish(&mut out);
        self.show_call();
        self.tell();
        out
    }

    /// The text of a provisional canvas that would follow what was committed; changes nothing.
    ///
    /// A canvas can hold a thought and the beginning of the answer: the answer wins.
    pub fn draft(&self, tokens: &[u32]) -> DraftText {
        let mut machine = self.machine.clone();
        let mut out = Vec::new();
        let committed = machine.open_call().map_or(0, <[u32]>::len);
        let mut from = committed;
        for &id in tokens {
            let open = machine.open_call().is_some();
            machine.push(id, &mut out);
            if !open && machine.open_call().is_some() {
                from = 0;
            }
        }
        if let Some(ids) = machine.open_call() {
            let text = machine.call_text(ids.get(from..).unwrap_or_default());
            return DraftText { channel: Channel::Tool, text };
        }
        machine.finish_draft(&mut out);
        let (mut content, mut reasoning, mut tool) = (String::new(), String::new(), String::new());
        for delta in out {
            match delta {
                Delta::Content(text) => content.push_str(&text),
                Delta::Reasoning(text) => reasoning.push_str(&text),
                Delta::ToolCall { name, arguments } => {
                    tool.push_str(&name);
                    tool.push_str(&arguments);
                }
            }
        }
        let blank = |text: &str| text.trim().is_empty();
        let (channel, text) = match (blank(&content), blank(&reasoning), blank(&tool)) {
            (true, false, true) => (Channel::Reasoning, reasoning),
            (true, _, false) => (Channel::Tool, tool),
            _ => (Channel::Content, content),
        };
        DraftText { channel, text }
    }
}

/// Text of these ids as the tokeniser decodes them, markers included.
pub(super) fn decode(lexicon: &Lexicon, ids: &[u32]) -> String {
    let mut detokenizer = super::detokenize::Detokenizer::default();
    let mut out = String::new();
    for &id in ids {
        if let Some(spelling) = lexicon.spelling(id) {
            detokenizer.push(&lexicon.steps, &spelling, &mut out);
        }
    }
    detokenizer.finish(&lexicon.steps, &mut out);
    out
}
