//! Calls that must be made, as a language: an offered tool, and arguments of the types that its parameters declare.
//!
//! Pure: from tools to a grammar in llguidance's notation of Lark. The language is the model's own notation as the
//! checkpoint's template writes it (`call.rs` reads it): no spaces, strings between quote tokens, keys in alphabetical
//! order. Of a schema's keywords `type`, `properties`, `required`, `items`, `enum`, `const`, `$ref` and, where they do not
//! stand beside an object's own keys, `anyOf` and `oneOf` are part of the language; keys that it does not name are not.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use serde_json::{Map, Value};

use super::depth;

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
            ends: HashMap::new(),
            pending: Vec::new(),
        };
        let arguments = writer.arguments();
        writer.settle();
        calls.push(format!("{} {arguments}", text(&format!("call:{}", tool.name))));
    }
    format!(
        r#"start: ({calls}) <[{close}]>
{values}scalar: string | NUMBER | "true" | "false" | "null"
string: <[{quote}]> TEXT? <[{quote}]>
TEXT: /(?s:.+)/
KEY: /[A-Za-z_][A-Za-z0-9_.\-]*/
INTEGER: /0|-?[1-9][0-9]{{0,18}}/
NUMBER: /-?(0|[1-9][0-9]{{0,18}})(\.[0-9]{{1,18}})?([eE][+\-]?[0-9]{{1,2}})?/
{rules}"#,
        calls = calls.join(" | "),
        values = values(),
    )
}

/// Most lists and objects within each other where a schema leaves the value free. Whoever reads calls does not follow them
/// for ever, and neither do readers of JSON. Numbers, too, are no longer than readers take.
const FREE_LEVELS: usize = 32;

/// The rules of any value, and of any object.
fn values() -> String {
    let mut rules = String::new();
    for level in 0..FREE_LEVELS {
        let name = |rule: &str, level: usize| if level == 0 { rule.to_owned() } else { format!("{rule}_{level}") };
        let [value, list, map, pair] = ["value", "list", "map", "pair"].map(|rule| name(rule, level));
        let inner = if level + 1 < FREE_LEVELS { name("value", level + 1) } else { "scalar".to_owned() };
        let _ = writeln!(
            rules,
            r#"{value}: scalar | {list} | {map}
{list}: "[" ({inner} ("," {inner})*)? "]"
{map}: "{{" ({pair} ("," {pair})*)? "}}"
{pair}: KEY ":" {inner}"#
        );
    }
    rules
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
    /// Where chains of references end, by any reference of the chain; `None` for those that do not.
    ends: HashMap<&'a str, Option<End<'a>>>,
    /// What references point to and is not written yet. One after the other, a long chain of them costs no stack.
    pending: Vec<End<'a>>,
}

/// The end of a chain of references: the last of them, and what it points to.
type End<'a> = (&'a str, &'a Value);

/// Any value of the notation, and any object.
const ANY: &str = "value";
const ANY_OBJECT: &str = "map";

/// What of a schema is part of the language.
enum Meaning<'a> {
    Any,
    Reference(&'a str),
    Constants(&'a [Value]),
    Alternatives(&'a [Value]),
    Object(&'a Map<String, Value>),
    Types(Vec<&'a str>, &'a Map<String, Value>),
}

/// Whether values of a schema are objects by its own word.
fn declares_object(rules: &Map<String, Value>) -> bool {
    match rules.get("type") {
        Some(kind) => kind == "object",
        None => rules.contains_key("properties"),
    }
}

impl<'a> Writer<'a> {
    /// The arguments are an object whatever the schema says.
    fn arguments(&mut self) -> String {
        let root = self.root;
        let objects = match self.meaning(root) {
            Meaning::Alternatives(all) => self.are_objects(all),
            _ => self.is_object(root),
        };
        if objects { self.schema(root) } else { ANY_OBJECT.to_owned() }
    }

    fn rule(&mut self, name: &str, alternatives: &[String]) {
        let _ = writeln!(self.rules, "{name}: {}", alternatives.join(" | "));
    }

    fn fresh(&self) -> String {
        // The text written so far only grows, so that its length is a number not used before.
        format!("{}x{}", self.prefix, self.rules.len())
    }

    fn meaning(&mut self, schema: &'a Value) -> Meaning<'a> {
        let Some(rules) = schema.as_object() else { return Meaning::Any };
        if let Some(reference) = rules.get("$ref").and_then(Value::as_str) {
            return Meaning::Reference(reference);
        }
        if let Some(only) = rules.get("const") {
            return Meaning::Constants(std::slice::from_ref(only));
        }
        if let Some(values) = rules.get("enum").and_then(Value::as_array) {
            return Meaning::Constants(values);
        }
        let alternatives = ["anyOf", "oneOf"].iter().find_map(|keyword| rules.get(*keyword)?.as_array());
        match (alternatives, rules.get("type")) {
            // Beside an object's keys they say which of these belong together, seldom what else it may be.
            _ if rules.contains_key("properties") && declares_object(rules) => Meaning::Object(rules),
            (Some(all), Some(kind)) if kind == "object" => {
                if self.are_objects(all) {
                    Meaning::Alternatives(all)
                } else {
                    Meaning::Object(rules)
                }
            }
            (Some(all), _) if !rules.contains_key("properties") => Meaning::Alternatives(all),
            (_, Some(Value::String(kind))) if kind == "object" => Meaning::Object(rules),
            (_, Some(Value::String(kind))) => Meaning::Types(vec![kind.as_str()], rules),
            (_, Some(Value::Array(kinds))) => {
                let mut named = HashSet::new();
                let kinds = kinds.iter().filter_map(Value::as_str).filter(|kind| named.insert(*kind));
                Meaning::Types(kinds.collect(), rules)
            }
            _ => Meaning::Any,
        }
    }

    fn are_objects(&mut self, alternatives: &'a [Value]) -> bool {
        !alternatives.is_empty() && alternatives.iter().all(|schema| self.is_object(schema))
    }

    /// Whether every value of a schema is an object, as far as is seen without following its alternatives.
    fn is_object(&mut self, schema: &'a Value) -> bool {
        let schema = match schema.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.end(reference).map_or(schema, |(_, schema)| schema),
            None => schema,
        };
        let other = |rules: &Map<String, Value>| ["$ref", "const", "enum"].iter().any(|key| rules.contains_key(*key));
        schema.as_object().is_some_and(|rules| declares_object(rules) && !other(rules))
    }

    /// An expression for the values of a schema; any value where the schema is not understood.
    fn schema(&mut self, schema: &'a Value) -> String {
        match self.meaning(schema) {
            Meaning::Any => ANY.to_owned(),
            Meaning::Reference(reference) => self.reference(reference),
            Meaning::Constants(values) => one_of(values.iter().map(|value| self.constant(value))),
            Meaning::Alternatives(all) => one_of(all.iter().map(|schema| self.schema(schema))),
            Meaning::Object(rules) => self.object(rules),
            Meaning::Types(kinds, rules) => one_of(kinds.into_iter().map(|kind| self.of_type(kind, rules))),
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
                    // A rule, as it stands there twice: written out, lists of lists would double level by level.
                    let item = self.schema(items);
                    let name = self.fresh();
                    self.rule(&name, &[item]);
                    format!(r#""[" ({name} ("," {name})*)? "]""#)
                }
                None => "list".to_owned(),
            },
            "object" => self.object(rules),
            _ => ANY.to_owned(),
        }
    }

    /// What a reference into the schema points to; any value where it leads nowhere but back to itself.
    fn reference(&mut self, reference: &'a str) -> String {
        let Some(end @ (reference, _)) = self.end(reference) else { return ANY.to_owned() };
        if let Some(rule) = self.seen.get(reference) {
            return rule.clone();
        }
        let rule = format!("{}r{}", self.prefix, self.seen.len());
        self.seen.insert(reference, rule.clone());
        self.pending.push(end);
        rule
    }

    /// Where a reference leads when those that it points to are followed; each is followed once.
    fn end(&mut self, mut reference: &'a str) -> Option<End<'a>> {
        let mut followed = Vec::new();
        let end = loop {
            if let Some(end) = self.ends.get(reference) {
                break *end;
            }
            // Whoever comes back to it meanwhile goes round in a circle.
            self.ends.insert(reference, None);
            followed.push(reference);
            let Some(schema) = depth::target(self.root, reference) else { break None };
            match schema.get("$ref").and_then(Value::as_str) {
                Some(further) => reference = further,
                None => break Some((reference, schema)),
            }
        };
        self.ends.extend(followed.into_iter().map(|reference| (reference, end)));
        end
    }

    /// Writes what references point to. What comes back to itself through alternatives alone has no text of its own: any
    /// value is let through, as with references that do.
    fn settle(&mut self) {
        let mut written = Vec::new();
        while let Some(end) = self.pending.pop() {
            written.push((end, self.schema(end.1)));
        }
        let grounded = self.grounded(written.iter().map(|(end, _)| *end));
        for ((reference, schema), meaning) in written {
            let meaning = match grounded.contains(reference) {
                true => meaning,
                false if self.is_object(schema) => ANY_OBJECT.to_owned(),
                false => ANY.to_owned(),
            };
            let rule = self.seen[reference].clone();
            self.rule(&rule, &[meaning]);
        }
    }

    /// The references by which something else than references and alternatives can be reached.
    fn grounded(&mut self, ends: impl Iterator<Item = End<'a>>) -> HashSet<&'a str> {
        let mut leading_to: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut found = Vec::new();
        for (reference, schema) in ends {
            let mut leads = Vec::new();
            if self.leads(schema, &mut leads) {
                found.push(reference);
            }
            leads.into_iter().for_each(|lead| leading_to.entry(lead).or_default().push(reference));
        }
        let mut grounded = HashSet::new();
        while let Some(reference) = found.pop() {
            if grounded.insert(reference) {
                found.extend(leading_to.remove(reference).unwrap_or_default());
            }
        }
        grounded
    }

    /// Whether one of a schema's alternatives is no reference; `to` takes the references.
    fn leads(&mut self, schema: &'a Value, to: &mut Vec<&'a str>) -> bool {
        match self.meaning(schema) {
            Meaning::Reference(reference) => match self.end(reference) {
                Some((end, _)) => {
                    to.push(end);
                    false
                }
                None => true,
            },
            // Where one stands by itself, it does not matter what the others refer to.
            Meaning::Alternatives(all) if !all.is_empty() => all.iter().any(|schema| self.leads(schema, to)),
            _ => true,
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

    /// An object of the keys that its schema names: the required ones, and any of the others.
    fn object(&mut self, rules: &'a Map<String, Value>) -> String {
        let properties = rules.get("properties").and_then(Value::as_object);
        let named = rules.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let mut required = HashSet::new();
        let undeclared: Vec<&str> = named
            .filter(|key| required.insert(*key))
            .filter(|key| !properties.is_some_and(|properties| properties.contains_key(*key)))
            .collect();
        let declared = properties.into_iter().flatten().map(|(key, schema)| (key.as_str(), Some(schema)));
        let keys = sorted(declared.chain(undeclared.into_iter().map(|key| (key, None))));
        if keys.is_empty() {
            return ANY_OBJECT.to_owned();
        }
        let pairs: Vec<Pair> = keys
            .into_iter()
            .map(|(key, schema)| {
                let value = schema.map_or_else(|| ANY.to_owned(), |schema| self.schema(schema));
                Pair { text: format!("{} {value}", self.key(key)), required: required.contains(key) }
            })
            .collect();
        let inside = self.pairs(&pairs);
        match may_be_left_out(&pairs) {
            true => format!(r#""{{" ({inside})? "}}""#),
            false => format!(r#""{{" {inside} "}}""#),
        }
    }

    /// One or more of these pairs, in their order, and all that are required. By halves: a rule that led from each key to the
    /// next would be compiled with a stack as deep as there are keys.
    fn pairs(&mut self, pairs: &[Pair]) -> String {
        if let [pair] = pairs {
            return pair.text.clone();
        }
        let (left, right) = pairs.split_at(pairs.len() / 2);
        let (first, second) = (self.pairs(left), self.pairs(right));
        let mut ways = match may_be_left_out(right) {
            true => vec![format!(r#"{first} ("," {second})?"#)],
            false => vec![format!(r#"{first} "," {second}"#)],
        };
        if may_be_left_out(left) {
            ways.push(second);
        }
        let name = self.fresh();
        self.rule(&name, &ways);
        name
    }
}

/// A key of an object with its value.
struct Pair {
    text: String,
    required: bool,
}

fn may_be_left_out(pairs: &[Pair]) -> bool {
    pairs.iter().all(|pair| !pair.required)
}

/// As the template sorts keys: by their small letters.
fn sorted<K: AsRef<str>, V>(pairs: impl Iterator<Item = (K, V)>) -> Vec<(K, V)> {
    let mut pairs: Vec<(K, V)> = pairs.collect();
    pairs.sort_by_cached_key(|(key, _)| key.as_ref().to_lowercase());
    pairs
}

/// Any of these; what nothing is left of is any value.
fn one_of(expressions: impl Iterator<Item = String>) -> String {
    match expressions.collect::<Vec<_>>().as_slice() {
        [] => ANY.to_owned(),
        [one] => one.clone(),
        all => format!("({})", all.join(" | ")),
    }
}
