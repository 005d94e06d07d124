//! Reads an answer token by token: a pure state machine, the same for the gate and for the reader.
//!
//! `[<|channel> "thought\n" THOUGHT <channel|>]? (TEXT | <|tool_call> call:NAME{…} <tool_call|>)* END`, decided on ids, so
//! that text which looks like a marker is text. Its state goes on across canvases, which may begin and end anywhere.

use std::sync::Arc;

use super::call::{self, Symbol};
use super::chat::Opening;
use super::detokenize::Detokenizer;
use super::lexicon::{Lexicon, Mark};
use super::stop::{Scan, StopScanner, StopStrings};
use super::strict::CallableTools;
use crate::scheduler::FinishReason;

/// What the thought channel begins with.
const THOUGHT: &str = "thought\n";

/// How an answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// A chat answer: thoughts and tool calls are told apart from content.
    Chat,
    /// A chat answer to a request that offers no tools: a call is shown as content.
    ChatWithoutTools,
    /// A plain continuation: everything is content.
    Raw,
}

/// What a request demands of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules<'a> {
    /// Strings before which the answer ends; looked for in the content.
    pub stop: Option<&'a StopStrings>,
    /// What may be called, and how; another call is shown as content. `None`: anything, in any way.
    pub callable: Option<&'a Arc<CallableTools>>,
}

/// What a token of an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The answer proper, and a call that is shown in it.
    Content,
    /// What the model thinks before it answers.
    Reasoning,
    /// A tool call; until it is read, what may become one.
    Tool,
    /// No text: markers, end tokens, the thought channel's title, a stop string, whatever follows the end.
    Marker,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// More of what the model thinks.
    Reasoning(String),
    /// More of the answer.
    Content(String),
    /// A whole tool call.
    ToolCall {
        /// The tool.
        name: String,
        /// JSON text of an object.
        arguments: String,
    },
}

/// Where the machine is.
#[derive(Debug, Clone)]
enum Place {
    Content,
    Reasoning,
    /// Inside a call, with its ids so far.
    Call(Vec<u32>),
}

/// What is done with space that nothing has followed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blank {
    /// It waits: it is shown only before something, or where nothing else is said.
    Waits,
    /// It is shown.
    Shown,
}

/// What becomes of the thought channel's title.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Title {
    /// The text so far could be it.
    Expected,
    /// It is over, or there was none.
    Over,
}

/// The state of one answer.
#[derive(Clone)]
pub(super) struct Machine {
    lexicon: Arc<Lexicon>,
    dialect: Dialect,
    place: Place,
    detokenizer: Detokenizer,
    stop: StopScanner,
    callable: Option<Arc<CallableTools>>,
    title: Title,
    /// Text held back: a possible title, or leading space of a thought.
    head: String,
    blank: Blank,
    /// Space of the content held back.
    space: String,
    calls: usize,
    /// Where the text of each token of the last call that was shown begins, until somebody asks.
    shown: Vec<usize>,
    /// Bytes of content that the stop strings have been looked for in, and those of them that belong to the answer.
    searched: usize,
    kept: usize,
    ended: Option<FinishReason>,
}

impl Machine {
    pub(super) fn new(lexicon: Arc<Lexicon>, opening: Opening, dialect: Dialect, rules: Rules) -> Machine {
        let place = match (dialect, opening) {
            (Dialect::Chat | Dialect::ChatWithoutTools, Opening::Reasoning) => Place::Reasoning,
            _ => Place::Content,
        };
        let raw = dialect == Dialect::Raw;
        Machine {
            lexicon,
            dialect,
            place,
            detokenizer: Detokenizer::default(),
            stop: StopScanner::new(rules.stop),
            callable: rules.callable.cloned(),
            title: if raw { Title::Over } else { Title::Expected },
            head: String::new(),
            blank: if raw { Blank::Shown } else { Blank::Waits },
            space: String::new(),
            calls: 0,
            shown: Vec::new(),
            searched: 0,
            kept: 0,
            ended: None,
        }
    }

    /// Why the answer is over, once it is.
    pub(super) fn ended(&self) -> Option<FinishReason> {
        self.ended
    }

    /// Where the content has come to, in bytes.
    pub(super) fn reach(&self) -> usize {
        let waiting = if matches!(self.place, Place::Content) { self.head.len() } else { 0 };
        self.searched + waiting
    }

    /// Where a stop string has ended the content, as [`Machine::reach`] counts, which goes on to the string's own end.
    pub(super) fn cut(&self) -> Option<usize> {
        (self.kept < self.searched && self.ended.is_some()).then_some(self.kept)
    }

    /// The tokens of a call that is not complete.
    pub(super) fn open_call(&self) -> Option<&[u32]> {
        match &self.place {
            Place::Call(ids) => Some(ids),
            _ => None,
        }
    }

    /// Of a call that the last token has shown to be none: where the text of each of its tokens begins, as
    /// [`Machine::reach`] counts. They are content now.
    pub(super) fn shown_call(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.shown)
    }

    /// Takes a token and appends what it makes certain. What follows the end is ignored.
    pub(super) fn push(&mut self, id: u32, out: &mut Vec<Delta>) -> Channel {
        if self.ended.is_some() {
            return Channel::Marker;
        }
        match self.lexicon.mark(id) {
            Some(mark) => self.mark(id, mark, out),
            None => self.text_token(id, out),
        }
    }

    /// Appends what was held back: the answer is over.
    pub(super) fn finish(&mut self, out: &mut Vec<Delta>) {
        if self.ended.is_none() {
            self.flush(out);
            self.ended.get_or_insert(FinishReason::Length);
        }
    }

    /// As [`Machine::finish`] for text that may still change: a character that is not complete is left out.
    pub(super) fn finish_draft(&mut self, out: &mut Vec<Delta>) {
        self.detokenizer = Detokenizer::default();
        self.finish(out);
    }

    fn mark(&mut self, id: u32, mark: Mark, out: &mut Vec<Delta>) -> Channel {
        match (mark, self.dialect) {
            (Mark::End | Mark::ResponseOpen, _) => self.end(out),
            (_, Dialect::Raw) | (Mark::Hidden, _) => {}
            (Mark::Quote, _) => {
                if let Place::Call(ids) = &mut self.place {
                    ids.push(id);
                    return Channel::Tool;
                }
            }
            (Mark::ThoughtOpen, _) => {
                self.leave(out);
                self.place = Place::Reasoning;
                self.title = Title::Expected;
                self.blank = Blank::Waits;
            }
            (Mark::ThoughtClose, _) => {
                if matches!(self.place, Place::Content) {
                    self.drop_title();
                }
                self.leave(out);
            }
            (Mark::CallOpen, _) => {
                self.leave(out);
                self.place = Place::Call(Vec::new());
            }
            (Mark::CallClose, _) => {
                if self.open_call().is_some() {
                    self.leave(out);
                }
            }
        }
        Channel::Marker
    }

    fn text_token(&mut self, id: u32, out: &mut Vec<Delta>) -> Channel {
        let Some(spelling) = self.lexicon.spelling(id) else { return Channel::Marker };
        if let Place::Call(ids) = &mut self.place {
            ids.push(id);
            return Channel::Tool;
        }
        let mut text = String::new();
        self.detokenizer.push(&self.lexicon.steps, &spelling, &mut text);
        if matches!(self.place, Place::Reasoning) {
            return self.think(&text, out);
        }
        self.say(&text, out);
        Channel::Content
    }

    /// Text of a thought: its title is dropped, and space that begins it waits for something to follow.
    fn think(&mut self, text: &str, out: &mut Vec<Delta>) -> Channel {
        self.head.push_str(text);
        if self.title == Title::Expected {
            if self.head.len() < THOUGHT.len() && THOUGHT.starts_with(&self.head) {
                return Channel::Marker;
            }
            self.title = Title::Over;
            if let Some(rest) = self.head.strip_prefix(THOUGHT) {
                self.head = rest.to_owned();
                if self.head.is_empty() {
                    return Channel::Marker;
                }
            }
        }
        if self.blank == Blank::Shown || !self.head.trim().is_empty() {
            self.blank = Blank::Shown;
            emit(out, Delta::Reasoning, std::mem::take(&mut self.head));
        }
        Channel::Reasoning
    }

    /// Text of the answer, on its way to the stop strings. A title that begins an answer waits for what follows: models
    /// leave out the marker before it at times.
    fn say(&mut self, text: &str, out: &mut Vec<Delta>) {
        if self.title == Title::Over {
            return self.scan(text, out);
        }
        self.head.push_str(text);
        let title = self.head.trim_end();
        let waits = self.head.is_empty() || (!title.is_empty() && THOUGHT.starts_with(title));
        if !(waits && self.lexicon.thinks()) {
            self.title = Title::Over;
            let head = std::mem::take(&mut self.head);
            self.scan(&head, out);
        }
    }

    fn scan(&mut self, text: &str, out: &mut Vec<Delta>) {
        let mut shown = String::new();
        let scan = self.stop.push(text, &mut shown);
        self.searched += text.len();
        self.kept += shown.len();
        self.show(&shown, out);
        if scan == Scan::Stopped {
            self.show_space(out);
            self.ended = Some(FinishReason::Stop);
        }
    }

    /// Text that certainly belongs to the answer; space that begins it, or follows a call, waits.
    fn show(&mut self, text: &str, out: &mut Vec<Delta>) {
        self.space.push_str(text);
        if self.blank == Blank::Shown || !self.space.trim().is_empty() {
            self.blank = Blank::Shown;
            emit(out, Delta::Content, std::mem::take(&mut self.space));
        }
    }

    /// Space that waited, at the end: shown unless calls are what the answer consists of.
    fn show_space(&mut self, out: &mut Vec<Delta>) {
        let space = std::mem::take(&mut self.space);
        if self.calls == 0 {
            emit(out, Delta::Content, space);
        }
    }

    /// Forgets a title that began the answer without a marker, when the thought it names ends at once.
    fn drop_title(&mut self) {
        if self.title == Title::Expected && self.head.trim_end() == THOUGHT.trim_end() {
            self.head.clear();
        }
    }

    /// Ends the thought, the call or the stretch of text and goes back to content.
    fn leave(&mut self, out: &mut Vec<Delta>) {
        let mut text = String::new();
        self.detokenizer.finish(&self.lexicon.steps, &mut text);
        match std::mem::replace(&mut self.place, Place::Content) {
            Place::Content => {
                self.say(&text, out);
                let head = std::mem::take(&mut self.head);
                self.title = Title::Over;
                if self.ended.is_none() {
                    self.scan(&head, out);
                }
            }
            Place::Reasoning => {
                self.think(&text, out);
                // A title that was cut short is no thought, and neither is space.
                self.head.clear();
                self.title = Title::Over;
                self.blank = Blank::Waits;
            }
            Place::Call(ids) => self.call(&ids, out),
        }
    }

    fn call(&mut self, ids: &[u32], out: &mut Vec<Delta>) {
        let (symbols, begins) = self.symbols(ids);
        let call = call::read(&symbols).filter(|call| {
            let admitted = self.callable.as_ref().is_none_or(|tools| tools.admit(&call.name, &call.arguments));
            self.dialect == Dialect::Chat && admitted
        });
        match call {
            Some(call) => {
                let mut held = String::new();
                self.stop.release(&mut held);
                self.kept += held.len();
                self.show(&held, out);
                self.calls += 1;
                self.space.clear();
                self.blank = Blank::Waits;
                out.push(Delta::ToolCall { name: call.name, arguments: call.arguments });
            }
            None => {
                self.shown = begins.into_iter().map(|begin| self.searched + begin).collect();
                self.scan(&call::raw(&symbols), out);
            }
        }
    }

    /// A call's tokens as symbols, and where in the text of these that of each token begins. Each stretch between quote
    /// tokens is decoded by itself.
    fn symbols(&self, ids: &[u32]) -> (Vec<Symbol>, Vec<usize>) {
        let (mut symbols, mut begins) = (Vec::new(), Vec::with_capacity(ids.len()));
        let mut detokenizer = Detokenizer::default();
        let (mut before, mut text) = (0, String::new());
        for &id in ids {
            begins.push(before + text.len());
            if self.lexicon.mark(id) == Some(Mark::Quote) {
                detokenizer.finish(&self.lexicon.steps, &mut text);
                before += text.len() + call::QUOTE.len_utf8();
                symbols.extend(text.drain(..).map(Symbol::Char));
                symbols.push(Symbol::Quote);
            } else if let Some(spelling) = self.lexicon.spelling(id) {
                detokenizer.push(&self.lexicon.steps, &spelling, &mut text);
            }
        }
        detokenizer.finish(&self.lexicon.steps, &mut text);
        symbols.extend(text.chars().map(Symbol::Char));
        (symbols, begins)
    }

    /// The call's tokens as text.
    pub(super) fn call_text(&self, ids: &[u32]) -> String {
        call::raw(&self.symbols(ids).0)
    }

    fn end(&mut self, out: &mut Vec<Delta>) {
        self.flush(out);
        // Flushing may have found a stop string.
        let reason = if self.calls > 0 { FinishReason::ToolCalls } else { FinishReason::Stop };
        self.ended.get_or_insert(reason);
    }

    fn flush(&mut self, out: &mut Vec<Delta>) {
        self.leave(out);
        if self.ended.is_none() {
            let mut shown = String::new();
            self.stop.finish(&mut shown);
            self.kept += shown.len();
            self.show(&shown, out);
            self.show_space(out);
        }
    }
}

/// Appends text, to the last piece where that is of the same channel.
fn emit(out: &mut Vec<Delta>, make: fn(String) -> Delta, text: String) {
    if text.is_empty() {
        return;
    }
    match (out.last_mut(), make(text)) {
        (Some(Delta::Content(last)), Delta::Content(text)) | (Some(Delta::Reasoning(last)), Delta::Reasoning(text)) => {
            last.push_str(&text);
        }
        (_, delta) => out.push(delta),
    }
}
