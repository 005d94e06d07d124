//! What may be called, and what strict tools demand of a call's arguments: a subset of JSON Schema, checked when a call
//! has been read.
//!
//! Pure. A keyword outside the subset is refused when the tool is declared, so that nothing is quietly not checked.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::decimal::Decimal;
use super::depth::target;

/// Keywords that demand nothing. `format` is one of them by the standard's own default.
const ANNOTATIONS: [&str; 11] = [
    "title",
    "description",
    "default",
    "examples",
    "format",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$schema",
    "$id",
    "$comment",
];
/// Keywords whose value is a schema, a list of schemas, or schemas by name.
const ONE: [&str; 2] = ["additionalProperties", "items"];
const LISTS: [&str; 3] = ["anyOf", "allOf", "oneOf"];
const NAMED: [&str; 3] = ["properties", "$defs", "definitions"];
/// Keywords whose value is a number.
const BOUNDS: [&str; 9] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
];
const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];

/// Most steps taken for one call, some hundredths of a second, and most schemas within each other: references may lead in
/// circles, and alternatives multiply. A list of a thousand objects with twenty properties takes less than half of them.
const EFFORT: usize = 300_000;
const DEPTH: usize = 200;
/// Bytes of text that are measured in one step.
const MEASURED: usize = 16;

/// The tools that a request offers, with the schemas that calls of the strict ones must fit. A call of another tool, or
/// one that does not fit, is no call.
#[derive(Debug, Clone, Default)]
pub struct CallableTools(HashMap<String, Option<Value>>);

/// A schema of which not everything can be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{keyword:?} at {place} cannot be checked")]
pub struct UncheckedSchema {
    /// Where, as a path into the schema.
    pub place: String,
    /// The keyword.
    pub keyword: String,
}

impl CallableTools {
    /// Adds a tool that may be called with any arguments, and says whether it is new; one that is not stays as it was.
    pub fn insert(&mut self, tool: &str) -> bool {
        let new = !self.0.contains_key(tool);
        self.0.entry(tool.to_owned()).or_default();
        new
    }

    /// Adds a strict tool; no schema demands nothing.
    ///
    /// # Errors
    /// [`UncheckedSchema`] where the schema uses what is not checked here.
    pub fn insert_strict(&mut self, tool: &str, schema: Option<&Map<String, Value>>) -> Result<(), UncheckedSchema> {
        let schema = Value::Object(schema.cloned().unwrap_or_default());
        Understanding { root: &schema, seen: HashSet::new(), pending: Vec::new() }.of_all()?;
        self.0.insert(tool.to_owned(), Some(schema));
        Ok(())
    }

    /// Whether a call is one of these tools, and as it demands; JSON text of an object.
    pub(super) fn admit(&self, tool: &str, arguments: &str) -> bool {
        let Some(schema) = self.0.get(tool) else { return false };
        let Some(root) = schema else { return true };
        let mut check = Check { root, effort: EFFORT, depth: DEPTH };
        // What was not looked at for want of effort may have been the second of alternatives that exclude each other.
        serde_json::from_str(arguments).is_ok_and(|value| check.fits(root, &value)) && check.effort > 0
    }
}

/// A look through a schema, and all that it refers to, for what cannot be checked.
struct Understanding<'a> {
    root: &'a Value,
    /// Where the schemas are that have been looked at.
    seen: HashSet<*const Value>,
    /// References that have been met, and not followed yet: a long chain of them costs no stack.
    pending: Vec<&'a str>,
}

impl<'a> Understanding<'a> {
    fn of_all(&mut self) -> Result<(), UncheckedSchema> {
        self.of(self.root, "its root")?;
        while let Some(reference) = self.pending.pop() {
            if let Some(schema) = target(self.root, reference) {
                self.of(schema, reference)?;
            }
        }
        Ok(())
    }

    fn of(&mut self, schema: &'a Value, place: &str) -> Result<(), UncheckedSchema> {
        if !self.seen.insert(schema) {
            return Ok(());
        }
        let wrong = |keyword: &str| UncheckedSchema { place: place.to_owned(), keyword: keyword.to_owned() };
        let map = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(map) => map,
            _ => return Err(wrong("a value that is no schema")),
        };
        for (keyword, rule) in map {
            let name = keyword.as_str();
            let inside = |inner: &str| format!("{place}.{keyword}{inner}");
            let known = match (name, rule) {
                (_, _) if ANNOTATIONS.contains(&name) => true,
                (_, rule) if ONE.contains(&name) => self.of(rule, &inside("")).map(|()| true)?,
                (_, Value::Array(all)) if LISTS.contains(&name) => {
                    let mut all = all.iter().enumerate();
                    all.try_for_each(|(index, rule)| self.of(rule, &inside(&format!("[{index}]"))))?;
                    true
                }
                (_, Value::Object(named)) if NAMED.contains(&name) => {
                    named.iter().try_for_each(|(key, rule)| self.of(rule, &inside(&format!(".{key}"))))?;
                    true
                }
                (_, rule) if BOUNDS.contains(&name) => rule.is_number(),
                ("type", Value::String(kind)) => TYPES.contains(&kind.as_str()),
                ("type", Value::Array(kinds)) => {
                    kinds.iter().all(|kind| kind.as_str().is_some_and(|k| TYPES.contains(&k)))
                }
                ("required", Value::Array(names)) => names.iter().all(Value::is_string),
                ("enum", Value::Array(_)) | ("const", _) => true,
                ("$ref", Value::String(to)) => self.refer(to),
                _ => false,
            };
            if !known {
                return Err(wrong(keyword));
            }
        }
        Ok(())
    }

    /// Whether a reference leads anywhere; what it leads to is looked at later.
    fn refer(&mut self, reference: &'a str) -> bool {
        self.pending.push(reference);
        target(self.root, reference).is_some()
    }
}

/// One check of one call.
struct Check<'a> {
    root: &'a Value,
    /// What is left of [`EFFORT`] and of [`DEPTH`].
    effort: usize,
    depth: usize,
}

impl Check<'_> {
    fn fits(&mut self, schema: &Value, value: &Value) -> bool {
        if self.depth == 0 || !self.spend(1) {
            return false;
        }
        self.depth -= 1;
        let fits = match schema {
            Value::Object(map) => map.iter().all(|(keyword, rule)| self.obeys(map, keyword, rule, value)),
            schema => *schema == Value::Bool(true),
        };
        self.depth += 1;
        fits
    }

    /// Takes steps off what is left; where there are not as many, nothing is left.
    fn spend(&mut self, steps: usize) -> bool {
        self.effort = self.effort.saturating_sub(steps);
        self.effort > 0
    }

    /// One keyword of a schema that has been understood. A rule about another type of value holds.
    fn obeys(&mut self, schema: &Map<String, Value>, keyword: &str, rule: &Value, value: &Value) -> bool {
        if !self.spend(steps(keyword, rule, value)) {
            return false;
        }
        match (keyword, rule, value) {
            ("type", Value::Array(kinds), _) => kinds.iter().any(|kind| is(value, kind)),
            ("type", kind, _) => is(value, kind),
            ("enum", Value::Array(all), _) => all.iter().any(|one| same(one, value)),
            ("const", one, _) => same(one, value),
            ("$ref", Value::String(to), _) => target(self.root, to).is_some_and(|schema| self.fits(schema, value)),
            ("anyOf", Value::Array(all), _) => all.iter().any(|schema| self.fits(schema, value)),
            ("allOf", Value::Array(all), _) => all.iter().all(|schema| self.fits(schema, value)),
            ("oneOf", Value::Array(all), _) => all.iter().filter(|schema| self.fits(schema, value)).count() == 1,
            ("required", Value::Array(names), Value::Object(map)) => {
                names.iter().all(|name| name.as_str().is_some_and(|name| map.contains_key(name)))
            }
            ("properties", Value::Object(rules), Value::Object(map)) => {
                rules.iter().all(|(name, rule)| map.get(name).is_none_or(|value| self.fits(rule, value)))
            }
            ("additionalProperties", rule, Value::Object(map)) => {
                let named = schema.get("properties").and_then(Value::as_object);
                let mut others = map.iter().filter(|(name, _)| !named.is_some_and(|named| named.contains_key(*name)));
                others.all(|(_, value)| self.fits(rule, value))
            }
            ("items", rule, Value::Array(items)) => items.iter().all(|item| self.fits(rule, item)),
            ("minItems", rule, Value::Array(items)) => within(rule, count(items.len()), Decimal::ge),
            ("maxItems", rule, Value::Array(items)) => within(rule, count(items.len()), Decimal::le),
            ("minLength", rule, Value::String(text)) => within(rule, count(text.chars().count()), Decimal::ge),
            ("maxLength", rule, Value::String(text)) => within(rule, count(text.chars().count()), Decimal::le),
            (_, rule, Value::Number(number)) => {
                let number = Decimal::of(number);
                match keyword {
                    "minimum" => within(rule, number, Decimal::ge),
                    "maximum" => within(rule, number, Decimal::le),
                    "exclusiveMinimum" => within(rule, number, Decimal::gt),
                    "exclusiveMaximum" => within(rule, number, Decimal::lt),
                    "multipleOf" => within(rule, number, Decimal::is_multiple),
                    _ => true,
                }
            }
            _ => true,
        }
    }
}

/// How much of a rule and of the value a keyword goes through by itself.
fn steps(keyword: &str, rule: &Value, value: &Value) -> usize {
    let listed = match rule {
        Value::Array(all) => all.len(),
        Value::Object(named) => named.len(),
        _ => 0,
    };
    let measured = match (keyword, value) {
        ("additionalProperties", Value::Object(map)) => map.len(),
        ("minLength" | "maxLength", Value::String(text)) => text.len() / MEASURED,
        _ => 0,
    };
    1 + listed + measured
}

fn count(of: usize) -> Option<Decimal> {
    u64::try_from(of).ok().map(Decimal::from)
}

/// Whether a measure and a bound stand to each other as they should.
fn within(rule: &Value, measured: Option<Decimal>, holds: impl Fn(&Decimal, &Decimal) -> bool) -> bool {
    let bound = rule.as_number().and_then(Decimal::of);
    measured.zip(bound).is_some_and(|(measured, bound)| holds(&measured, &bound))
}

fn is(value: &Value, kind: &Value) -> bool {
    match (kind.as_str(), value) {
        (Some("object"), Value::Object(_))
        | (Some("array"), Value::Array(_))
        | (Some("string"), Value::String(_))
        | (Some("boolean"), Value::Bool(_))
        | (Some("null"), Value::Null)
        | (Some("number"), Value::Number(_)) => true,
        (Some("integer"), Value::Number(number)) => number.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => false,
    }
}

/// Equality by value, all the way down: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || Decimal::of(a).is_some_and(|a| Decimal::of(b) == Some(a)),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tools(schema: Value) -> Result<CallableTools, UncheckedSchema> {
        let mut tools = CallableTools::default();
        tools.insert_strict("f", schema.as_object()).map(|()| tools)
    }

    #[test]
    fn arguments_fit_or_they_do_not() {
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["city", "days"], "$schema": "x",
            "properties": {
                "city": {"type": "string", "minLength": 2, "maxLength": 5, "description": "Where."},
                "days": {"type": ["integer", "null"], "minimum": 1, "exclusiveMaximum": 8, "multipleOf": 1},
                "unit": {"enum": ["C", "F", 1]},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 2},
                "more": {"anyOf": [{"type": "boolean"}, {"type": "object", "additionalProperties": {"type": "number"}}]},
                "none": false,
                "both": {"allOf": [{"minimum": 2}, {"maximum": 3}]},
                "one": {"oneOf": [{"minimum": 2}, {"maximum": 3}]},
                "fixed": {"const": true}
            },
            "$defs": {"tag": {"type": "string"}}
        });
        let tools = tools(schema).unwrap();
        let with = |key: &str, value: Value| {
            let mut arguments = json!({"city": "Paris", "days": 3});
            arguments[key] = value;
            tools.admit("f", &arguments.to_string())
        };
        for (key, good) in [
            ("city", json!("Köln")),
            ("days", json!(7)),
            ("days", json!(2.0)),
            ("days", json!(null)),
            ("unit", json!("F")),
            ("unit", json!(1.0)),
            ("tags", json!(["a", "b"])),
            ("more", json!(true)),
            ("more", json!({"x": 1.5})),
            ("both", json!(2.5)),
            ("one", json!(1)),
            ("one", json!(9)),
            ("fixed", json!(true)),
        ] {
            assert!(with(key, good.clone()), "{key}: {good}");
        }
        for (key, bad) in [
            ("city", json!("x")),
            ("city", json!("London")),
            ("city", json!(null)),
            ("days", json!(0)),
            ("days", json!(8)),
            ("days", json!(2.5)),
            ("days", json!("3")),
            ("unit", json!("K")),
            ("tags", json!([])),
            ("tags", json!(["a", "b", "c"])),
            ("tags", json!([1])),
            ("more", json!({"x": "y"})),
            ("more", json!("text")),
            ("none", json!(1)),
            ("both", json!(4)),
            ("one", json!(2.5)),
            ("fixed", json!(1)),
            ("other", json!(1)),
        ] {
            assert!(!with(key, bad.clone()), "{key}: {bad}");
        }
        assert!(!tools.admit("f", "{\"city\": \"Paris\"}"));
        assert!(!tools.admit("f", "no JSON"));
    }

    #[test]
    fn what_is_not_offered_cannot_be_called() {
        let mut tools = tools(json!({"required": ["city"]})).unwrap();
        tools.insert("lenient");
        tools.insert("f");
        assert!(tools.admit("lenient", "{}") && tools.admit("lenient", "{\"a\": 1}"));
        assert!(!tools.admit("f", "{}") && tools.admit("f", "{\"city\": 1}"), "what is strict stays so");
        for other in ["another", "F", "f ", ""] {
            assert!(!tools.admit(other, "{}"), "{other:?}");
        }
        assert!(!CallableTools::default().admit("f", "{}"));
    }

    #[test]
    fn what_cannot_be_checked_is_named() {
        let place = |schema: Value| tools(schema).map(|_| ()).map_err(|error| (error.place, error.keyword));
        let named = |place: &str, keyword: &str| Err((place.to_owned(), keyword.to_owned()));
        assert_eq!(place(json!({})), Ok(()));
        assert_eq!(
            place(json!({"properties": {"a": {"items": {"pattern": "^a"}}}})),
            named("its root.properties.a.items", "pattern")
        );
        assert_eq!(place(json!({"anyOf": [true, {"if": {}}]})), named("its root.anyOf[1]", "if"));
        for (schema, keyword) in [
            (json!({"type": "text"}), "type"),
            (json!({"type": 5}), "type"),
            (json!({"required": [1]}), "required"),
            (json!({"enum": 1}), "enum"),
            (json!({"minimum": "1"}), "minimum"),
            (json!({"$ref": "#/nowhere"}), "$ref"),
            (json!({"$ref": "https://example.com/schema"}), "$ref"),
            (json!({"properties": []}), "properties"),
            (json!({"not": {}}), "not"),
        ] {
            assert_eq!(place(schema), named("its root", keyword));
        }
        assert!(tools(json!({"items": 5})).is_err());
        assert!(tools(json!({"format": "date", "title": "x", "default": 1})).is_ok());
    }

    #[test]
    fn what_is_referred_to_must_be_checked_too() {
        let named = |place: &str, keyword: &str| Some((place.to_owned(), keyword.to_owned()));
        let refused = |schema: Value| tools(schema).err().map(|error| (error.place, error.keyword));
        let hidden = json!({"properties": {"n": {"$ref": "#/default"}}, "default": {"pattern": "^z$"}});
        assert_eq!(refused(hidden), named("#/default", "pattern"));
        let twice = json!({"$ref": "#/examples/0", "examples": [{"$ref": "#/examples/1"}, {"items": {"if": {}}}]});
        assert_eq!(refused(twice), named("#/examples/1.items", "if"));
        assert_eq!(
            refused(json!({"$ref": "#/default", "default": 5})),
            named("#/default", "a value that is no schema")
        );
        assert_eq!(refused(json!({"$ref": "#/x", "default": {"$ref": "#/default"}})), named("its root", "$ref"));
        assert_eq!(refused(json!({"$ref": "#/default", "default": {"$ref": "#/default", "minLength": 1}})), None);
    }

    #[test]
    fn values_are_compared_by_what_is_written() {
        let admits = |rule: Value, value: &str| {
            let tools = tools(json!({"properties": {"a": rule}})).unwrap();
            tools.admit("f", &format!("{{\"a\": {value}}}"))
        };
        assert!(!admits(json!({"const": 9_007_199_254_740_993u64}), "9007199254740992"));
        assert!(admits(json!({"const": 9_007_199_254_740_993u64}), "9007199254740993"));
        assert!(!admits(json!({"maximum": 9_007_199_254_740_992u64}), "9007199254740993"));
        assert!(admits(json!({"exclusiveMinimum": 9_007_199_254_740_992u64}), "9007199254740993"));
        assert!(admits(json!({"const": [1, {"b": 2.0}]}), "[1.0, {\"b\": 2}]"));
        for other in ["[1]", "[1, {\"b\": 3}]", "[1, {\"c\": 2}]", "[1, {}]", "[1, {\"b\": 2, \"c\": 3}]"] {
            assert!(!admits(json!({"const": [1, {"b": 2.0}]}), other), "{other}");
        }
        assert!(admits(json!({"multipleOf": 0.01}), "19.99"));
        assert!(!admits(json!({"multipleOf": 0.01}), "19.995"));
        assert!(!admits(json!({"multipleOf": 0}), "0"));
    }

    #[test]
    fn long_lists_are_work() {
        let words = json!((0..9_000).map(|word| format!("word {word}")).collect::<Vec<_>>());
        let with = |times: usize| {
            let mut all = vec![json!({"$ref": "#/$defs/words"}); times];
            all.push(json!(true));
            json!({"properties": {"a": {"anyOf": all}}, "$defs": {"words": {"enum": words}}})
        };
        assert!(tools(with(10)).unwrap().admit("f", "{\"a\": \"none\"}"));
        assert!(!tools(with(900)).unwrap().admit("f", "{\"a\": \"none\"}"));
        let excluding = json!({"oneOf": [true, {"allOf": vec![with(10); 4]}], "$defs": {"words": {"enum": words}}});
        assert!(
            !tools(excluding).unwrap().admit("f", "{\"a\": \"none\"}"),
            "both fit, one was not looked at to the end"
        );
    }

    #[test]
    fn long_arguments_can_be_checked() {
        let properties: Map<String, Value> =
            (0..20).map(|key| (format!("key{key}"), json!({"type": "integer", "minimum": 0}))).collect();
        let names: Vec<&String> = properties.keys().collect();
        let item =
            json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false});
        let value: Map<String, Value> = names.iter().map(|name| ((*name).clone(), json!(1))).collect();
        let schema = json!({"properties": {"a": {"items": item}, "b": {"type": "string", "maxLength": 1_000_000}}});
        let arguments = json!({"a": vec![value; 1_000], "b": "x".repeat(500_000)});
        assert!(tools(schema).unwrap().admit("f", &arguments.to_string()));
    }

    #[test]
    fn circles_and_explosions_end() {
        for schema in [
            json!({"$ref": "#"}),
            json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
            json!({"allOf": [{"oneOf": [{"$ref": "#"}, {"$ref": "#"}]}]}),
        ] {
            assert!(!tools(schema).unwrap().admit("f", "{}"));
        }
    }
}
