//! One answer on its way through its language: how far it fits, and what is put where it does not.
//!
//! The work on each canvas is counted, in units that do not depend on the clock, so that what is given up alone is given up
//! in company too.

use std::ops::Range;
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::lexicon::{Lexicon, Mark};
use super::structure::{MARKER, Subject, cause, text_bytes};
use crate::scheduler::{Structure, StructureError};

/// Most work that is done for one canvas of an answer, in the library's own units, which do not depend on the clock: fuel
/// of its lexer, of which it burns 12 to 30 in a microsecond, items of its parser, and bytes that must follow. That is a
/// quarter of a second.
///
/// Of the ordinary rules, texts of at most 2,000 characters cost most: 134,000 for 64 mends over a vocabulary of 200,000
/// tokens. `^.*e.{28}$` costs 4,400,000 there.
const ALLOWANCE: u64 = 3_500_000;

/// Most bytes of what must follow that are made tokens at once: more than a canvas holds.
const MOST_AHEAD: usize = 4_096;

/// Where in an answer a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
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
pub(super) struct Follower {
    matcher: Matcher,
    /// The bound tokens that the matcher stands behind, but that are not committed.
    trail: Vec<u32>,
    /// Where what was committed ends.
    place: Place,
    lexicon: Arc<Lexicon>,
    subject: Subject,
    size: u32,
    spent: Spent,
}

/// What has been used of [`ALLOWANCE`] on a canvas.
///
/// The library remembers what it has reckoned, so that the same is cheaper the second time. A canvas that is begun anew asks
/// the same once more, for which nothing is charged.
#[derive(Debug, Default)]
struct Spent {
    work: u64,
    /// Questions that have been charged for, and those of them that have been asked since the canvas was begun anew.
    charged: usize,
    asked: usize,
}

impl Spent {
    fn charge(&mut self, work: u64) -> Result<(), StructureError> {
        self.asked += 1;
        if self.asked > self.charged {
            self.charged = self.asked;
            self.work += work;
        }
        match self.work > ALLOWANCE {
            true => Err(StructureError::TooComplex("that takes too long".to_owned())),
            false => Ok(()),
        }
    }
}

impl Follower {
    /// At the beginning of an answer.
    pub(super) fn new(matcher: Matcher, place: Place, lexicon: Arc<Lexicon>, subject: Subject, size: u32) -> Follower {
        Follower { matcher, trail: Vec::new(), place, lexicon, subject, size, spent: Spent::default() }
    }

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
        let work = effort.lexer_cost + effort.all_items as u64;
        self.spent.charge(work)?;
        Ok(mask)
    }

    /// What must follow where the matcher is, as the tokeniser writes it, as far as its tokens spell just that: in a text
    /// by itself it may see control tokens or put a space before it.
    fn forced(&mut self) -> Result<Vec<u32>, StructureError> {
        let mut bytes = self.matcher.compute_ff_bytes();
        self.spent.charge(bytes.len() as u64)?;
        if bytes.len() > MOST_AHEAD {
            bytes.truncate(beginning(&bytes));
        }
        Ok(self.tokens(&bytes))
    }

    fn tokens(&self, bytes: &[u8]) -> Vec<u32> {
        let mut rest = bytes;
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

/// How much of these bytes is made tokens: whole characters, and no part of a marker.
fn beginning(bytes: &[u8]) -> usize {
    let whole = |end: &usize| {
        let starts_character = bytes.get(*end).is_none_or(|byte| byte & 0xC0 != 0x80);
        let marker = bytes[..*end].iter().rposition(|&byte| byte == MARKER);
        starts_character && marker.is_none_or(|at| numbered(&bytes[at + 1..*end]).is_some())
    };
    (0..=MOST_AHEAD.min(bytes.len())).rev().find(whole).unwrap_or(0)
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
            return Ok(std::iter::once(open).chain(self.forced()?).collect());
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
            mended.extend(self.forced()?);
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
        self.spent = Spent::default();
        Ok(())
    }

    fn restart(&mut self) {
        self.spent.asked = 0;
    }
}

/// The library follows every language that it has compiled, unless that takes too much.
fn unfollowed(error: impl std::fmt::Display) -> StructureError {
    StructureError::TooComplex(cause(error))
}

fn lost(what: &str) -> StructureError {
    StructureError::Astray(what.to_owned())
}
