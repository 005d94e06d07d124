//! What of a schema meets on one value: through `allOf`, references, alternatives and their siblings, and below these through
//! the same keys and items. The library makes one automaton of all patterns that meet, which doubles with each of them, and
//! one step of all multiples, in too few bits. Pure.
//!
//! Counted is never less than what meets; alternatives count as the largest of them.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::depth::literal_target;

/// Most patterns and formats that may meet on a value; with eight the library gives up by itself, if late.
pub(super) const MOST_PATTERNS: usize = 6;

/// Most rules that are looked at while the schema's rules are put together, some tenths of a second.
const MOST_LOOKS: usize = 2_000_000;

/// What a schema does too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crowd {
    /// More than [`MOST_PATTERNS`].
    Patterns,
    /// More than one `multipleOf`.
    Multiples,
    /// So many rules meet that they cannot be looked through.
    Rules,
}

/// Rules for one value.
enum Rules<'a> {
    /// Those that a schema states itself.
    Own(&'a Map<String, Value>),
    All(Vec<Rules<'a>>),
    /// Alternatives.
    Any(Vec<Rules<'a>>),
}

/// A value inside another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Inner<'a> {
    Key(&'a str),
    /// Under a key that is not declared.
    OtherKey,
    Item,
}

/// Says what too much of meets on one value of this schema, if anything does.
pub(super) fn crowd(root: &Value) -> Result<(), Crowd> {
    let (mut patterns, mut multiples) = (0, 0);
    count(root, &mut patterns, &mut multiples);
    if patterns <= MOST_PATTERNS && multiples == 0 {
        return Ok(());
    }
    let mut assembly = Assembly { root, looks: MOST_LOOKS, within: HashSet::new() };
    let mut pending = vec![assembly.rules(root)?];
    let mut seen = HashSet::new();
    while let Some(rules) = pending.pop() {
        if rules.largest(&|own| ["pattern", "format"].iter().filter(|key| own.contains_key(**key)).count())
            > MOST_PATTERNS
        {
            return Err(Crowd::Patterns);
        }
        if rules.largest(&|own| usize::from(own.contains_key("multipleOf"))) > 1 {
            return Err(Crowd::Multiples);
        }
        let mut inner = HashSet::new();
        let mut own = Vec::new();
        rules.look_in(&mut own);
        own.iter().for_each(|own| inside(own, &mut inner));
        own.sort_by_key(|own| std::ptr::from_ref(*own));
        own.dedup_by_key(|own| std::ptr::from_ref(*own));
        // The same rules together have the same inside.
        if !seen.insert(own.into_iter().map(std::ptr::from_ref).collect::<Vec<_>>()) {
            continue;
        }
        for inner in inner {
            pending.extend(assembly.inside(&rules, inner)?);
        }
    }
    Ok(())
}

/// How often the keywords stand anywhere in a value.
fn count(value: &Value, patterns: &mut usize, multiples: &mut usize) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                *patterns += usize::from(key == "pattern" || key == "format");
                *multiples += usize::from(key == "multipleOf");
                count(value, patterns, multiples);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| count(value, patterns, multiples)),
        _ => {}
    }
}

/// The values inside that a schema has rules for.
fn inside<'a>(own: &'a Map<String, Value>, inner: &mut HashSet<Inner<'a>>) {
    let named = own.get("properties").and_then(Value::as_object);
    inner.extend(named.into_iter().flatten().map(|(key, _)| Inner::Key(key)));
    if own.contains_key("additionalProperties") || own.contains_key("patternProperties") {
        inner.insert(Inner::OtherKey);
    }
    if ["items", "prefixItems", "additionalItems"].iter().any(|key| own.contains_key(*key)) {
        inner.insert(Inner::Item);
    }
}

impl<'a> Rules<'a> {
    /// The sum of what the rules count together, with the largest of alternatives.
    fn largest(&self, counted: &impl Fn(&Map<String, Value>) -> usize) -> usize {
        match self {
            Rules::Own(own) => counted(own),
            Rules::All(all) => all.iter().map(|rules| rules.largest(counted)).sum(),
            Rules::Any(any) => any.iter().map(|rules| rules.largest(counted)).max().unwrap_or(0),
        }
    }

    /// All schemas among them.
    fn look_in(&self, into: &mut Vec<&'a Map<String, Value>>) {
        match self {
            Rules::Own(own) => into.push(own),
            Rules::All(parts) | Rules::Any(parts) => parts.iter().for_each(|part| part.look_in(into)),
        }
    }
}

/// Puts rules together that belong to one value.
struct Assembly<'a> {
    root: &'a Value,
    /// What is left of [`MOST_LOOKS`].
    looks: usize,
    /// Where the schemas are whose rules are being put together: one that comes back to itself states nothing further.
    within: HashSet<*const Value>,
}

impl<'a> Assembly<'a> {
    fn look(&mut self) -> Result<(), Crowd> {
        self.looks = self.looks.checked_sub(1).ok_or(Crowd::Rules)?;
        Ok(())
    }

    /// What a schema says of a value itself.
    fn rules(&mut self, schema: &'a Value) -> Result<Rules<'a>, Crowd> {
        self.look()?;
        let Value::Object(own) = schema else { return Ok(Rules::All(Vec::new())) };
        if !self.within.insert(schema) {
            return Ok(Rules::All(Vec::new()));
        }
        let mut all = vec![Rules::Own(own)];
        let list = |keyword: &str| own.get(keyword).and_then(Value::as_array).into_iter().flatten();
        for part in list("allOf") {
            all.push(self.rules(part)?);
        }
        for keyword in ["anyOf", "oneOf"] {
            let alternatives = list(keyword).map(|part| self.rules(part)).collect::<Result<Vec<_>, _>>()?;
            all.extend((!alternatives.is_empty()).then_some(Rules::Any(alternatives)));
        }
        let target = own.get("$ref").and_then(Value::as_str).and_then(|to| literal_target(self.root, to));
        if let Some(target) = target {
            all.push(self.rules(target)?);
        }
        self.within.remove(&std::ptr::from_ref(schema));
        Ok(Rules::All(all))
    }

    /// What rules say of a value inside theirs; `None` where they say nothing.
    fn inside(&mut self, rules: &Rules<'a>, inner: Inner<'a>) -> Result<Option<Rules<'a>>, Crowd> {
        self.look()?;
        let mut of_all = |parts: &[Rules<'a>]| {
            let parts = parts.iter().map(|part| self.inside(part, inner)).filter_map(Result::transpose);
            parts.collect::<Result<Vec<_>, _>>()
        };
        let rules = match rules {
            Rules::All(parts) => Rules::All(of_all(parts)?),
            Rules::Any(parts) => Rules::Any(of_all(parts)?),
            Rules::Own(own) => return self.inside_own(own, inner),
        };
        Ok(matches!(&rules, Rules::All(parts) | Rules::Any(parts) if !parts.is_empty()).then_some(rules))
    }

    fn inside_own(&mut self, own: &'a Map<String, Value>, inner: Inner<'a>) -> Result<Option<Rules<'a>>, Crowd> {
        let named = |keyword: &str, key: &str| own.get(keyword).and_then(|named| named.get(key));
        let each = |keyword: &str| match own.get(keyword) {
            Some(Value::Array(all)) => all.iter().collect::<Vec<_>>(),
            Some(one) => vec![one],
            None => Vec::new(),
        };
        let others = || {
            let patterns = own.get("patternProperties").and_then(Value::as_object);
            patterns.into_iter().flatten().map(|(_, schema)| schema).chain(own.get("additionalProperties"))
        };
        let (certain, alternatives) = match inner {
            Inner::Key(key) => match named("properties", key) {
                Some(schema) => {
                    let patterns = own.get("patternProperties").and_then(Value::as_object);
                    (Some(schema), patterns.into_iter().flatten().map(|(_, schema)| schema).collect())
                }
                None => (None, others().collect()),
            },
            Inner::OtherKey => (None, others().collect()),
            Inner::Item => (None, [each("prefixItems"), each("items"), each("additionalItems")].concat()),
        };
        if certain.is_none() && alternatives.is_empty() {
            return Ok(None);
        }
        let mut all = certain.map(|schema| self.rules(schema)).transpose()?.into_iter().collect::<Vec<_>>();
        all.push(Rules::Any(alternatives.into_iter().map(|schema| self.rules(schema)).collect::<Result<_, _>>()?));
        Ok(Some(Rules::All(all)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patterns(range: std::ops::Range<usize>) -> Vec<Value> {
        range.map(|at| json!({"pattern": format!("a{at}")})).collect()
    }

    #[test]
    fn patterns_that_meet_are_counted() {
        assert_eq!(crowd(&json!({"allOf": patterns(0..MOST_PATTERNS)})), Ok(()));
        assert_eq!(crowd(&json!({"allOf": patterns(0..MOST_PATTERNS), "anyOf": patterns(0..1)})), Err(Crowd::Patterns));
        assert_eq!(crowd(&json!({"allOf": patterns(0..5), "pattern": "x", "format": "date"})), Err(Crowd::Patterns));
        let chain = json!({
            "$ref": "#/$defs/a", "pattern": "x",
            "$defs": {"a": {"$ref": "#/$defs/b", "allOf": patterns(0..3)}, "b": {"allOf": patterns(3..6)}}
        });
        assert_eq!(crowd(&chain), Err(Crowd::Patterns));
        let by_key = |key: &str| json!({"properties": {key: {"allOf": patterns(0..4)}}});
        assert_eq!(crowd(&json!({"allOf": [by_key("a"), by_key("b")]})), Ok(()));
        assert_eq!(crowd(&json!({"allOf": [by_key("a"), by_key("a")]})), Err(Crowd::Patterns));
        let others = json!({"additionalProperties": {"allOf": patterns(4..8)}});
        assert_eq!(crowd(&json!({"allOf": [by_key("a"), others]})), Err(Crowd::Patterns));
        let items = |range| json!({"items": {"items": {"allOf": patterns(range)}}});
        assert_eq!(crowd(&json!({"allOf": [items(0..4), {"anyOf": [true, items(4..8)]}]})), Err(Crowd::Patterns));
    }

    #[test]
    fn alternatives_do_not_meet() {
        assert_eq!(crowd(&json!({"anyOf": patterns(0..50)})), Ok(()));
        let kinds: Vec<Value> = (0..20)
            .map(|at| json!({"properties": {"kind": {"const": at}, "link": {"type": "string", "format": "uri"}}}))
            .collect();
        assert_eq!(crowd(&json!({"items": {"oneOf": kinds}, "multipleOf": 1})), Ok(()));
        let prices: Vec<Value> = (0..20).map(|_| json!({"properties": {"price": {"multipleOf": 0.01}}})).collect();
        assert_eq!(crowd(&json!({"anyOf": prices})), Ok(()));
    }

    #[test]
    fn multiples_that_meet_are_found() {
        assert_eq!(crowd(&json!({"multipleOf": 7})), Ok(()));
        assert_eq!(crowd(&json!({"allOf": [{"multipleOf": 7}, {"multipleOf": 1e-9}]})), Err(Crowd::Multiples));
        let twice =
            json!({"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"multipleOf": 65537}}});
        assert_eq!(crowd(&twice), Err(Crowd::Multiples));
    }

    #[test]
    fn circles_and_explosions_end() {
        let tree = |other: &str| json!({"properties": {"child": {"$ref": other}, "size": {"multipleOf": 1}}});
        let trees = json!({
            "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
            "$defs": {"a": tree("#/$defs/a"), "b": {"properties": {"child": {"$ref": "#/$defs/b"}}}}
        });
        assert_eq!(crowd(&trees), Ok(()));
        assert_eq!(crowd(&json!({"$ref": "#", "multipleOf": 1})), Ok(()));
        let mut definitions: Map<String, Value> = (0..40)
            .map(|at| {
                let next = format!("#/$defs/{}", at + 1);
                (at.to_string(), json!({"allOf": [{"$ref": next}, {"$ref": next}]}))
            })
            .collect();
        definitions.insert("40".to_owned(), json!({"minimum": 0, "multipleOf": 1}));
        assert_eq!(crowd(&json!({"$ref": "#/$defs/0", "$defs": definitions})), Err(Crowd::Rules));
    }
}
