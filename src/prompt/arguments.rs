//! The arguments of a call that the model made earlier: JSON, in which a whole number keeps every digit.
//!
//! The JSON library takes one beyond 64 bits for a float and forgets how it was written; the reference, whose numbers have
//! no bounds, shows a template all of it.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr};
use serde_json::{Map, Number, Value};

/// Arguments by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Arguments {
    values: Map<String, Value>,
    /// What they were read from, where they were.
    text: String,
}

impl Arguments {
    /// Of these values, read from this text; no key stands in an object of it twice.
    pub fn new(values: Map<String, Value>, text: String) -> Arguments {
        Arguments { values, text }
    }

    /// The values, whole numbers beyond 64 bits as floats.
    pub(super) fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// The numbers among the values as they were written, in order.
    pub(super) fn numbers(&self) -> Numbers<'_> {
        Numbers(&self.text)
    }
}

impl From<Map<String, Value>> for Arguments {
    fn from(values: Map<String, Value>) -> Arguments {
        Arguments { values, text: String::new() }
    }
}

/// The numbers in a JSON text.
pub(super) struct Numbers<'a>(&'a str);

impl<'a> Iterator for Numbers<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let start = self.0.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?;
            let found = &self.0[start..];
            if let Some(string) = found.strip_prefix('"') {
                let mut escaped = false;
                let end = string.find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                })?;
                self.0 = &string[end + 1..];
                continue;
            }
            let end = found.find(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c)).unwrap_or(found.len());
            let (number, rest) = found.split_at(end);
            self.0 = rest;
            return Some(number);
        }
    }
}

/// A whole number beyond 64 bits, as a template's value.
#[derive(Debug)]
pub(super) struct Whole(String);

impl Whole {
    /// What this number is where `written` says that it is one.
    pub(super) fn of(number: &Number, written: &str) -> Option<Whole> {
        let digits = written.strip_prefix('-').unwrap_or(written);
        let whole = number.is_f64() && digits != "0" && digits.bytes().all(|byte| byte.is_ascii_digit());
        whole.then(|| Whole(written.to_owned()))
    }
}

impl Object for Whole {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_text_are_found_outside_of_its_strings() {
        let text = r#"{"a1": -12, "2\"3": [1.50, "4\\", 5e+6, {"\\\"7": 0}], "b": "8", "c": 9}"#;
        assert!(serde_json::from_str::<Value>(text).is_ok());
        assert_eq!(Numbers(text).collect::<Vec<_>>(), ["-12", "1.50", "5e+6", "0", "9"]);
        assert_eq!(Numbers("").count() + Numbers(r#"{"a": "\"#).count(), 0);
    }

    #[test]
    fn only_whole_numbers_that_became_floats_are_kept_as_written() {
        let whole = |text: &str| Whole::of(&serde_json::from_str(text).unwrap(), text).map(|whole| whole.0);
        for long in ["18446744073709551616", "-9223372036854775809", "123456789012345678901234567890123456789012345"] {
            assert_eq!(whole(long).as_deref(), Some(long));
        }
        for other in ["1", "-1", "18446744073709551615", "1e30", "1.5", "-0"] {
            assert_eq!(whole(other), None, "{other}");
        }
    }
}
