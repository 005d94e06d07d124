//! Calls that must be made, as a language: an offered tool, and arguments of the types that its parameters declare.
//!
//! Pure: from tools to a grammar in llguidance's notation of Lark. The language is the model's own notation as the
//! checkpoint's template writes it (`call.rs` reads it): no spaces, strings between quote tokens, keys in alphabetical
//! order. What a schema demands beyond types, values and required keys (patterns, bounds) is not part of the language, and
//! keys that it does not name are not either.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use serde_json::{Map, Value};

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct CalledTool {
    /// Its name.
    pub name: String,
    /// The schema of its arguments; null allows any.
    pub parameters: Value,
}

/// The grammar of one call among these tools: what stands behind the token that opens a call, with the token that closes
/// it. `quote` and `close` are ids.
pub(super) fn grammar(tools: &[CalledTool], quote: u32, close: u32) -> String {
    let mut calls = Vec::new();
    let mut rules = String::new();
    for (index, tool) in tools.iter().enumerate() {
        let prefix = format!("t{index}");
        let mut writer = Writer {
            root: &tool.parameters,
            quote,
            prefix,
            rules: &mut rules,
            seen: HashMap::new(),
            pending: Vec::new(),
        };
        let arguments = writer.arguments();
        writer.settle();
        calls.push(format!("{} {arguments}", text(&format!("call:{}", tool.name))));
    }
    format!(
        r#"start: ({calls}) <[{close}]>
value: string | NUMBER | "true" | "false" | "null" | list | map
string: <[{quote}]> TEXT? <[{quote}]>
list: "[" (value ("," value)*)? "]"
map: "{{" (pair ("," pair)*)? "}}"
pair: KEY ":" value
TEXT: /(?s:.+)/
KEY: /[A-Za-z_][A-Za-z0-9_.\-]*/
INTEGER: /0|-?[1-9][0-9]*/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+\-]?[0-9]+)?/
{rules}"#,
        calls = calls.join(" | "),
    )
}

/// Text that stands in the grammar for itself.
fn text(literal: &str) -> String {
    // JSON leaves this one control character as it is; the grammar's notation does not take it.
    Value::from(literal).to_string().replace('\u{7f}', "\\u007f")
}

/// Writes the rules of one tool's arguments.
struct Writer<'a> {
    root: &'a Value,
    quote: u32,
    /// Begins the names of this tool's rules.
    prefix: String,
    rules: &'a mut String,
    /// The rules of what references point to, by reference: they may lead in circles.
    seen: HashMap<&'a str, String>,
    /// Those of them that are not written yet. Followed one after the other, a long chain of references costs no stack.
    pending: Vec<(String, &'a Value)>,
}

/// Any value of the notation.
const ANY: &str = "value";

impl<'a> Writer<'a> {
    /// The arguments are an object whatever the schema says.
    fn arguments(&mut self) -> String {
        let root = self.root;
        let is_object = |kind: &Value| kind == "object";
        match root.get("type") {
            Some(kind) if !is_object(kind) => "map".to_owned(),
            _ => match self.schema(root) {
                any if any == ANY => "map".to_owned(),
                rule => rule,
            },
        }
    }

    fn rule(&mut self, name: &str, alternatives: &[String]) {
        let _ = writeln!(self.rules, "{name}: {}", alternatives.join(" | "));
    }

    fn fresh(&self) -> String {
        // The text written so far only grows, so that its length is a number not used before.
        format!("{}x{}", self.prefix, self.rules.len())
    }

    /// An expression for the values of a schema; any value where the schema is not understood.
    fn schema(&mut self, schema: &'a Value) -> String {
        let Some(rules) = schema.as_object() else { return ANY.to_owned() };
        if let Some(reference) = rules.get("$ref").and_then(Value::as_str) {
            return self.reference(reference);
        }
        if let Some(only) = rules.get("const") {
            return self.constant(only);
        }
        if let Some(values) = rules.get("enum").and_then(Value::as_array) {
            let values: Vec<String> = values.iter().map(|value| self.constant(value)).collect();
            return one_of(&values);
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(schemas) = rules.get(keyword).and_then(Value::as_array) {
                let schemas: Vec<String> = schemas.iter().map(|schema| self.schema(schema)).collect();
                return one_of(&schemas);
            }
        }
        match rules.get("type") {
            Some(Value::String(kind)) => self.of_type(kind, rules),
            Some(Value::Array(kinds)) => {
                let kinds = kinds.iter().filter_map(Value::as_str);
                let kinds: Vec<String> = kinds.map(|kind| self.of_type(kind, rules)).collect();
                one_of(&kinds)
            }
            _ if rules.contains_key("properties") => self.object(rules),
            _ => ANY.to_owned(),
        }
    }

    fn of_type(&mut self, kind: &str, rules: &'a Map<String, Value>) -> String {
        match kind {
            "string" => "string".to_owned(),
            "integer" => "INTEGER".to_owned(),
            "number" => "NUMBER".to_owned(),
            "boolean" => r#"("true" | "false")"#.to_owned(),
            "null" => r#""null""#.to_owned(),
            "array" => match rules.get("items") {
                Some(items) => {
                    let item = self.schema(items);
                    format!(r#""[" ({item} ("," {item})*)? "]""#)
                }
                None => "list".to_owned(),
            },
            "object" => self.object(rules),
            _ => ANY.to_owned(),
        }
    }

    /// What a reference into the schema points to; any value where it leads nowhere but back to itself.
    fn reference(&mut self, mut reference: &'a str) -> String {
        let mut followed = HashSet::new();
        let schema = loop {
            let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            let Some(schema) = target.filter(|_| followed.insert(reference)) else { return ANY.to_owned() };
            match schema.get("$ref").and_then(Value::as_str) {
                Some(further) => reference = further,
                None => break schema,
            }
        };
        if let Some(rule) = self.seen.get(reference) {
            return rule.clone();
        }
        let rule = format!("{}r{}", self.prefix, self.seen.len());
        self.seen.insert(reference, rule.clone());
        self.pending.push((rule.clone(), schema));
        rule
    }

    /// Writes what references point to.
    fn settle(&mut self) {
        while let Some((rule, schema)) = self.pending.pop() {
            let meaning = self.schema(schema);
            self.rule(&rule, &[meaning]);
        }
    }

    /// A value that can only be this one.
    fn constant(&self, value: &Value) -> String {
        let items = |parts: Vec<String>| parts.join(" \",\" ");
        match value {
            Value::String(literal) => self.quoted(literal),
            Value::Array(values) => {
                let values = values.iter().map(|value| self.constant(value)).collect();
                format!(r#""[" {} "]""#, items(values))
            }
            Value::Object(map) => {
                let pairs = sorted(map.iter()).into_iter();
                let pairs = pairs.map(|(key, value)| format!("{} {}", self.key(key), self.constant(value))).collect();
                format!(r#""{{" {} "}}""#, items(pairs))
            }
            other => text(&other.to_string()),
        }
    }

    fn quoted(&self, literal: &str) -> String {
        let quote = self.quote;
        let inner = if literal.is_empty() { String::new() } else { text(literal) };
        format!("<[{quote}]> {inner} <[{quote}]>")
    }

    /// A key with the colon behind it: bare, except where a reader would take a part of it for something else.
    fn key(&self, key: &str) -> String {
        let bare = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$' | '@');
        match key.chars().all(bare) && !key.is_empty() {
            true => text(&format!("{key}:")),
            false => format!("{} \":\"", self.quoted(key)),
        }
    }

    /// An object of the keys that its schema names: the required ones, and any of the others. One rule per key says what
    /// may come where nothing has been written before it, another where something has.
    fn object(&mut self, rules: &'a Map<String, Value>) -> String {
        let none = Map::new();
        let properties = rules.get("properties").and_then(Value::as_object);
        let required: Vec<&str> =
            rules.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let declared = properties.into_iter().flatten().map(|(key, schema)| (key.as_str(), Some(schema)));
        let undeclared = required.iter().filter(|key| !properties.unwrap_or(&none).contains_key(**key));
        let keys = sorted(declared.chain(undeclared.map(|key| (*key, None))));
        if keys.is_empty() {
            return "map".to_owned();
        }
        let pairs: Vec<(String, bool)> = keys
            .into_iter()
            .map(|(key, schema)| {
                let value = schema.map_or_else(|| ANY.to_owned(), |schema| self.schema(schema));
                (format!("{} {value}", self.key(key)), required.contains(&key))
            })
            .collect();
        let name = self.fresh();
        let state = |at: usize, before: &str| match at == pairs.len() {
            true => r#""}""#.to_owned(),
            false => format!("{name}{before}{at}"),
        };
        for (at, (pair, required)) in pairs.iter().enumerate() {
            for (before, comma) in [("a", ""), ("b", r#""," "#)] {
                let mut ways = vec![format!("{comma}{pair} {}", state(at + 1, "b"))];
                if !required {
                    ways.push(state(at + 1, before));
                }
                self.rule(&state(at, before), &ways);
            }
        }
        format!(r#""{{" {}"#, state(0, "a"))
    }
}

/// As the template sorts keys: by their small letters.
fn sorted<K: AsRef<str>, V>(pairs: impl Iterator<Item = (K, V)>) -> Vec<(K, V)> {
    let mut pairs: Vec<(K, V)> = pairs.collect();
    pairs.sort_by_cached_key(|(key, _)| key.as_ref().to_lowercase());
    pairs
}

/// Any of these; what nothing is left of is any value.
fn one_of(expressions: &[String]) -> String {
    match expressions {
        [] => ANY.to_owned(),
        all => format!("({})", all.join(" | ")),
    }
}
