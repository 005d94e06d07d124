//! The model's notation for tool calls, read into JSON.
//!
//! `call:NAME{key:value,…}` with bare keys, strings between quote tokens (verbatim, whatever they hold), bare `true`,
//! `false`, `null` and numbers, `[…]` and `{…}` with no key twice. Read too is what models write at times: keys and strings in JSON's quotes
//! or in single ones, and Python's `True`, `False` and `None`. Anything else is malformed.

use std::collections::HashSet;

/// A symbol of a call: a character, or a quote token. Characters that look like a quote token are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Symbol {
    Char(char),
    Quote,
}

/// A call, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    /// JSON text of an object.
    pub(super) arguments: String,
}

/// Deepest nesting that is read.
const DEPTH: usize = 100;

/// Reads a whole call; `None` where it is malformed.
pub(super) fn read(symbols: &[Symbol]) -> Option<Call> {
    let mut reader = Reader { symbols, at: 0 };
    reader.space();
    for c in "call:".chars() {
        reader.take(c)?;
    }
    let name = reader.bare(|c| c == '{')?;
    let mut arguments = String::new();
    reader.object(&mut arguments, 0)?;
    reader.space();
    (reader.at == symbols.len() && !name.is_empty()).then_some(Call { name, arguments })
}

/// What a quote token looks like in text.
pub(super) const QUOTE: char = '"';

/// The call as text, for a reader who is to see what the model wrote.
pub(super) fn raw(symbols: &[Symbol]) -> String {
    let text = symbols.iter().map(|symbol| match symbol {
        Symbol::Char(c) => *c,
        Symbol::Quote => QUOTE,
    });
    text.collect()
}

struct Reader<'a> {
    symbols: &'a [Symbol],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<Symbol> {
        self.symbols.get(self.at).copied()
    }

    fn take(&mut self, c: char) -> Option<()> {
        (self.peek() == Some(Symbol::Char(c))).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(Symbol::Char(c)) if c.is_whitespace()) {
            self.at += 1;
        }
    }

    /// Text up to a character, trimmed; no quote token may be in it.
    fn bare(&mut self, end: impl Fn(char) -> bool) -> Option<String> {
        let mut text = String::new();
        loop {
            match self.peek()? {
                Symbol::Char(c) if end(c) => return Some(text.trim().to_owned()),
                Symbol::Char(c) => text.push(c),
                Symbol::Quote => return None,
            }
            self.at += 1;
        }
    }

    fn value(&mut self, out: &mut String, depth: usize) -> Option<()> {
        self.space();
        match self.peek()? {
            Symbol::Quote | Symbol::Char('"' | '\'') => self.string(out),
            Symbol::Char('{') => self.object(out, depth + 1),
            Symbol::Char('[') => self.list(out, depth + 1),
            Symbol::Char(_) => {
                let text = self.bare(|c| matches!(c, ',' | '}' | ']'))?;
                out.push_str(literal(&text)?);
                Some(())
            }
        }
    }

    fn object(&mut self, out: &mut String, depth: usize) -> Option<()> {
        let mut keys = HashSet::new();
        self.items(['{', '}'], out, depth, |reader, out| {
            let start = out.len();
            match reader.peek()? {
                Symbol::Quote | Symbol::Char('"' | '\'') => reader.string(out)?,
                Symbol::Char(_) => {
                    let key = reader.bare(|c| matches!(c, ':' | ',' | '{' | '}' | '[' | ']'))?;
                    if key.is_empty() {
                        return None;
                    }
                    out.push_str(&quoted(&key));
                }
            }
            if !keys.insert(out[start..].to_owned()) {
                return None;
            }
            reader.space();
            reader.take(':')?;
            out.push(':');
            reader.value(out, depth)
        })
    }

    fn list(&mut self, out: &mut String, depth: usize) -> Option<()> {
        self.items(['[', ']'], out, depth, |reader, out| reader.value(out, depth))
    }

    fn items(
        &mut self,
        [open, close]: [char; 2],
        out: &mut String,
        depth: usize,
        mut item: impl FnMut(&mut Self, &mut String) -> Option<()>,
    ) -> Option<()> {
        if depth > DEPTH {
            return None;
        }
        self.take(open)?;
        out.push(open);
        self.space();
        if self.take(close).is_none() {
            loop {
                self.space();
                item(self, out)?;
                self.space();
                if self.take(close).is_some() {
                    break;
                }
                self.take(',')?;
                out.push(',');
            }
        }
        out.push(close);
        Some(())
    }

    /// A string: verbatim between quote tokens, or with JSON's escapes between characters that are quotes.
    fn string(&mut self, out: &mut String) -> Option<()> {
        let open = self.peek()?;
        self.at += 1;
        let text = match open {
            Symbol::Quote => self.verbatim()?,
            Symbol::Char(quote) => self.escaped(quote)?,
        };
        out.push_str(&quoted(&text));
        Some(())
    }

    /// The rest of a string, up to a quote token.
    fn verbatim(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            let symbol = self.peek()?;
            self.at += 1;
            match symbol {
                Symbol::Quote => return Some(text),
                Symbol::Char(c) => text.push(c),
            }
        }
    }

    /// The rest of a string, up to the character that opened it; no quote token may be in it.
    fn escaped(&mut self, quote: char) -> Option<String> {
        let mut json = String::from('"');
        loop {
            let Symbol::Char(c) = self.peek()? else { return None };
            self.at += 1;
            match c {
                c if c == quote => break,
                '\\' => {
                    let Symbol::Char(escaped) = self.peek()? else { return None };
                    self.at += 1;
                    // JSON has no escape for a single quote, since it needs none.
                    if escaped != '\'' {
                        json.push('\\');
                    }
                    json.push(escaped);
                }
                '"' => json.push_str("\\\""),
                c if c.is_control() => json.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => json.push(c),
            }
        }
        json.push('"');
        serde_json::from_str(&json).ok()
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The JSON of a bare value: a number keeps the digits it was written with.
fn literal(text: &str) -> Option<&str> {
    match text {
        "true" | "True" => Some("true"),
        "false" | "False" => Some("false"),
        "null" | "None" => Some("null"),
        _ => (text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
            && serde_json::from_str::<serde_json::Number>(text).is_ok())
        .then_some(text),
    }
}
