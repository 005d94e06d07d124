//! Stop strings, found exactly wherever the text happens to be cut.
//!
//! The string that ends first wins, the longest of those that end together; so the answer does not depend on the pieces in
//! which the text arrives. Linear in the text, whatever the strings are.

use std::sync::Arc;

/// A request's stop strings, ready to be looked for: made once, and shared by all who read its answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopStrings(Arc<[Pattern]>);

impl StopStrings {
    /// Of these strings; empty ones are never found.
    pub fn new(stop: &[impl AsRef<str>]) -> StopStrings {
        let stop = stop.iter().map(AsRef::as_ref).filter(|text| !text.is_empty());
        StopStrings(stop.map(Pattern::new).collect())
    }
}

/// A stop string with, for each of its prefixes, the longest border (what still matches after a mismatch).
#[derive(Debug, PartialEq, Eq)]
struct Pattern {
    bytes: Vec<u8>,
    borders: Vec<usize>,
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        let bytes = text.as_bytes().to_vec();
        let mut borders = vec![0; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[matched] != bytes[at] {
                matched = borders[matched - 1];
            }
            matched += usize::from(bytes[matched] == bytes[at]);
            borders[at] = matched;
        }
        Pattern { bytes, borders }
    }

    /// How much of the pattern matches after one more byte, `matched < len` before it.
    fn step(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes[matched] != byte {
            matched = self.borders[matched - 1];
        }
        matched + usize::from(self.bytes[matched] == byte)
    }
}

/// Looks for stop strings in text that arrives piece by piece, and holds back what may become one.
#[derive(Debug, Clone)]
pub(super) struct StopScanner {
    patterns: Arc<[Pattern]>,
    matched: Vec<usize>,
    held: String,
}

/// Whether a stop string was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// Not yet.
    On,
    /// The text ends here.
    Stopped,
}

impl StopScanner {
    /// For these strings, which are shared and not made anew; without any, all text is let through.
    pub(super) fn new(stop: Option<&StopStrings>) -> StopScanner {
        let StopStrings(patterns) = stop.cloned().unwrap_or_default();
        StopScanner { matched: vec![0; patterns.len()], patterns, held: String::new() }
    }

    /// Takes a piece of text and appends to `out` what certainly belongs to the answer.
    pub(super) fn push(&mut self, text: &str, out: &mut String) -> Scan {
        if self.patterns.is_empty() {
            out.push_str(text);
            return Scan::On;
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (i, &byte) in self.held.as_bytes().iter().enumerate().skip(before) {
            let mut longest = 0;
            for (pattern, matched) in self.patterns.iter().zip(&mut self.matched) {
                *matched = pattern.step(*matched, byte);
                if *matched == pattern.bytes.len() {
                    longest = longest.max(*matched);
                    *matched = pattern.borders[*matched - 1];
                }
            }
            if longest > 0 {
                out.push_str(self.held.get(..(i + 1).saturating_sub(longest)).unwrap_or_default());
                self.held.clear();
                return Scan::Stopped;
            }
        }
        let keep = self.matched.iter().copied().max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len().saturating_sub(keep)));
        Scan::On
    }

    /// Gives out what was held back, since something else than text follows. Text that goes on behind it may still complete
    /// a stop string, of which the beginning is shown then.
    pub(super) fn release(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
    }

    /// Gives out what was held back; the text is over.
    pub(super) fn finish(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
        self.matched.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Arc, Scan, StopScanner, StopStrings};

    /// The definition, looked up letter by letter.
    fn cut<'a>(text: &'a str, stop: &[String]) -> Option<&'a str> {
        for (at, c) in text.char_indices() {
            let seen = &text[..at + c.len_utf8()];
            let longest = stop.iter().filter(|s| !s.is_empty() && seen.ends_with(s.as_str())).map(String::len).max();
            if let Some(longest) = longest {
                return Some(&seen[..seen.len() - longest]);
            }
        }
        None
    }

    #[test]
    fn all_who_look_for_the_same_strings_share_them() {
        let stop = StopStrings::new(&["a".repeat(1024), String::new()]);
        assert_eq!(stop.0.len(), 1);
        for scanner in [StopScanner::new(Some(&stop)), StopScanner::new(Some(&stop)).clone()] {
            assert!(Arc::ptr_eq(&scanner.patterns, &stop.0));
        }
        assert!(StopScanner::new(None).patterns.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn cuts_are_those_of_the_definition_however_the_text_arrives(
            pieces in prop::collection::vec("[abé日]{0,4}", 0..12),
            stop in prop::collection::vec("[abé日]{0,4}", 0..4),
        ) {
            let mut scanner = StopScanner::new(Some(&StopStrings::new(&stop)));
            let mut out = String::new();
            let mut scan = Scan::On;
            for piece in &pieces {
                scan = scanner.push(piece, &mut out);
                prop_assert!(pieces.concat().starts_with(&out));
                if scan == Scan::Stopped {
                    break;
                }
            }
            let text = pieces.concat();
            match cut(&text, &stop) {
                Some(kept) => {
                    prop_assert_eq!(scan, Scan::Stopped);
                    prop_assert_eq!(&out, kept);
                }
                None => {
                    prop_assert_eq!(scan, Scan::On);
                    scanner.finish(&mut out);
                    prop_assert_eq!(&out, &text);
                }
            }
        }
    }
}
