//! Keeps what clients write from turning into control tokens.
//!
//! Before a template runs, every client string that spells a control token, or a piece from which one could be put
//! together, gets a *mark* inside that spelling: a private code point that occurs nowhere in the conversation. Templates
//! leave it alone (it is no space, has no case, ends no word), so that after rendering the marks tell which spellings came
//! from a client. They are then taken out again, and their places are handed to the tokeniser, which matches no control
//! token across one. Text without such spellings is never touched.

use std::collections::HashSet;

use super::chat::{Chat, Content, Message, Part};
use super::error::PromptError;

/// Code points from which a mark is chosen: the noncharacters set aside for a program's own use, then private planes.
const MARKS: [std::ops::RangeInclusive<u32>; 2] = [0xFDD0..=0xFDEF, 0xF_0000..=0x10_FFFD];

/// The spellings of the control tokens, and what of them can begin or end a piece of text.
#[derive(Debug, Default)]
pub(super) struct Spellings {
    whole: HashSet<String>,
    heads: HashSet<String>,
    tails: HashSet<String>,
    lengths: Vec<usize>,
    longest: usize,
    first: HashSet<char>,
    last: HashSet<char>,
    thought: Option<(String, String)>,
}

impl Spellings {
    /// Of these control tokens; `thought` are the markers around a thought, where there are any.
    pub(super) fn new<'a>(tokens: impl IntoIterator<Item = &'a str>, thought: Option<(String, String)>) -> Spellings {
        let mut spellings = Spellings { thought, ..Spellings::default() };
        for token in tokens {
            let token: String = token.chars().map(fold).collect();
            for (at, _) in token.char_indices().skip(1) {
                spellings.heads.insert(token[..at].to_owned());
                spellings.tails.insert(token[at..].to_owned());
            }
            spellings.first.extend(token.chars().next());
            spellings.last.extend(token.chars().next_back());
            spellings.longest = spellings.longest.max(token.len());
            spellings.lengths.push(token.len());
            spellings.whole.insert(token);
        }
        spellings.lengths.sort_unstable_by(|a, b| b.cmp(a));
        spellings.lengths.dedup();
        spellings
    }
}

/// One case for all: a template may change the case of what a client wrote.
fn fold(c: char) -> char {
    let upper = c.to_uppercase().next().unwrap_or(c);
    upper.to_lowercase().next().unwrap_or(upper)
}

/// Marks the strings of one conversation.
#[derive(Debug)]
pub(super) struct Shield<'a> {
    spellings: Option<&'a Spellings>,
    mark: char,
}

/// Rendered text without its marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stripped {
    pub(super) text: String,
    /// Byte offsets where marks stood, ascending.
    pub(super) marks: Vec<usize>,
}

impl<'a> Shield<'a> {
    /// For this conversation: chooses a mark that occurs in none of its strings.
    pub(super) fn new(spellings: &'a Spellings, chat: &Chat) -> Result<Shield<'a>, PromptError> {
        let mut taken = HashSet::new();
        let mut note = |text: &str| taken.extend(text.chars().filter(|&c| is_mark(c)));
        for message in &chat.messages {
            strings_of(message, &mut note);
        }
        for tool in &chat.tools {
            strings_in(tool, &mut note);
        }
        for (key, value) in &chat.kwargs {
            note(key);
            strings_in(value, &mut note);
        }
        let mut marks = MARKS.into_iter().flatten().filter_map(char::from_u32);
        let mark = marks.find(|mark| !taken.contains(mark)).ok_or(PromptError::NoSentinel)?;
        Ok(Shield { spellings: Some(spellings), mark })
    }

    /// Marks nothing; for text that is not a client's.
    pub(super) fn without_markers() -> Shield<'static> {
        Shield { spellings: None, mark: '\u{FDD0}' }
    }

    /// A client's string that is a name, a key or a value.
    pub(super) fn text(&self, text: &str) -> String {
        match self.spellings {
            Some(spellings) => self.with_marks(text, places(text, spellings)),
            None => text.to_owned(),
        }
    }

    /// A client's string that is a message's text: a whole string that could be the middle of a control token is marked
    /// too.
    pub(super) fn content(&self, text: &str) -> String {
        let Some(spellings) = self.spellings else { return text.to_owned() };
        let mut places = places(text, spellings);
        let folded: String = text.trim().chars().map(fold).collect();
        if !folded.is_empty() && folded.len() < spellings.longest && spellings.whole.iter().any(|t| t.contains(&folded))
        {
            places.push(text.trim_end().len());
        }
        self.with_marks(text, places)
    }

    fn with_marks(&self, text: &str, mut places: Vec<usize>) -> String {
        places.sort_unstable();
        places.dedup();
        let mut out = String::with_capacity(text.len() + places.len() * self.mark.len_utf8());
        let mut from = 0;
        for place in places {
            out.push_str(&text[from..place]);
            out.push(self.mark);
            from = place;
        }
        out.push_str(&text[from..]);
        out
    }

    /// Takes the marks out of rendered text.
    pub(super) fn strip(&self, rendered: &str) -> Stripped {
        let mut stripped = Stripped { text: String::with_capacity(rendered.len()), marks: Vec::new() };
        for (i, piece) in rendered.split(self.mark).enumerate() {
            if i > 0 {
                stripped.marks.push(stripped.text.len());
            }
            stripped.text.push_str(piece);
        }
        stripped
    }

    /// An earlier answer without the thoughts that a client left in it, as the reference's templates take them out.
    pub(super) fn without_thoughts(&self, text: &str) -> String {
        let Some((open, close)) = self.spellings.and_then(|spellings| spellings.thought.as_ref()) else {
            return text.to_owned();
        };
        if !text.contains(open.as_str()) && !text.contains(close.as_str()) {
            return text.to_owned();
        }
        let kept: String =
            text.split(close.as_str()).map(|part| part.split(open.as_str()).next().unwrap_or_default()).collect();
        kept.trim().to_owned()
    }
}

fn is_mark(c: char) -> bool {
    MARKS.iter().any(|range| range.contains(&u32::from(c)))
}

/// Where marks belong in a string: inside every control token it spells, after what could begin one at the end of a
/// word, and before what could end one at the beginning of a word.
fn places(text: &str, spellings: &Spellings) -> Vec<usize> {
    let mut places = Vec::new();
    if !text.chars().any(|c| spellings.first.contains(&fold(c)) || spellings.last.contains(&fold(c))) {
        return places;
    }
    // Folding may change the bytes, so places are found in the folded text and carried over.
    let mut folded = String::with_capacity(text.len());
    let mut origin = Vec::with_capacity(text.len() + 1);
    for (at, c) in text.char_indices() {
        let before = folded.len();
        folded.push(fold(c));
        origin.resize(origin.len() + folded.len() - before, at);
    }
    origin.push(text.len());
    let mut previous = ' ';
    for (at, c) in folded.char_indices() {
        let end = at + c.len_utf8();
        if spellings.first.contains(&c) {
            let spells =
                |&length: &usize| folded.get(at..at + length).is_some_and(|piece| spellings.whole.contains(piece));
            if spellings.lengths.iter().any(spells) {
                places.push(origin[end]);
            }
        }
        if breaks(previous) && !breaks(c) {
            let head = &folded[at..];
            let ends = head.char_indices().map(|(i, c)| (i + c.len_utf8(), c));
            let mut ends = ends.take_while(|(end, _)| *end < spellings.longest);
            if ends.any(|(end, c)| spellings.last.contains(&c) && spellings.tails.contains(&head[..end])) {
                places.push(origin[at]);
            }
        }
        let next = folded[end..].chars().next().unwrap_or(' ');
        if breaks(next) && !breaks(c) {
            let starts = folded[..end].char_indices().rev();
            let mut starts = starts.take_while(|(start, _)| end - start < spellings.longest);
            if starts.any(|(start, c)| spellings.first.contains(&c) && spellings.heads.contains(&folded[start..end])) {
                places.push(origin[end]);
            }
        }
        previous = c;
    }
    places
}

/// What a template may take away from around a word.
fn breaks(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

fn strings_of(message: &Message, note: &mut impl FnMut(&str)) {
    match &message.content {
        Content::Text(text) => note(text),
        Content::Parts(parts) => parts.iter().for_each(|Part::Text(text)| note(text)),
    }
    for text in [&message.name, &message.reasoning, &message.tool_call_id].into_iter().flatten() {
        note(text);
    }
    for call in &message.tool_calls {
        note(&call.id);
        note(&call.name);
        for (key, value) in call.arguments.values() {
            note(key);
            strings_in(value, note);
        }
    }
}

fn strings_in(json: &serde_json::Value, note: &mut impl FnMut(&str)) {
    match json {
        serde_json::Value::String(text) => note(text),
        serde_json::Value::Array(items) => items.iter().for_each(|item| strings_in(item, note)),
        serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| {
            note(key);
            strings_in(value, note);
        }),
        _ => {}
    }
}
