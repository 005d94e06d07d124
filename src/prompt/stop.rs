//! Stop strings, found exactly wherever the text happens to be cut.
//!
//! The string that ends first wins, the longest of those that end together; so the answer does not depend on the pieces in
//! which the text arrives. Linear in the text, whatever the strings are.

use std::sync::Arc;

/// A stop string with, for each of its prefixes, the longest border (what still matches after a mismatch).
#[derive(Debug)]
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
    /// For these strings; empty ones are never found.
    pub(super) fn new(stop: &[String]) -> StopScanner {
        let patterns: Arc<[Pattern]> =
            stop.iter().filter(|text| !text.is_empty()).map(|text| Pattern::new(text)).collect();
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
                out.push_str(self.held.get(..i + 1 - longest).unwrap_or_default());
                self.held.clear();
                return Scan::Stopped;
            }
        }
        let keep = self.matched.iter().copied().max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - keep));
        Scan::On
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

    use super::{Scan, StopScanner};

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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn cuts_are_those_of_the_definition_however_the_text_arrives(
            pieces in prop::collection::vec("[abé日]{0,4}", 0..12),
            stop in prop::collection::vec("[abé日]{0,4}", 0..4),
        ) {
            let mut scanner = StopScanner::new(&stop);
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
