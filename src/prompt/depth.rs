//! How far a schema leads whoever follows its references. Compiling one recurses along them, and a chain of references is as
//! long as the client likes, though the JSON itself is nested by 128 at most. Pure.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::error::PromptError;

/// Most levels, all references together, that a schema may have. Schemas with hundreds of definitions stay below.
const MOST_LEVELS: usize = 5_000;

/// Most values, those that references lead to counted again. As many take the compiler seconds, but for what it compares with
/// each other: that counts by its square.
const MOST_VALUES: usize = 50_000;

/// Pairs of keys that cost as much as one value.
const PAIRS: usize = 500;

/// About as many keys as one object may have: as many pairs as there may be values.
const MOST_KEYS: usize = 4_500;

/// Stack for compiling that many levels or keys: 13 kB for each.
pub(super) const STACK: usize = 64 << 20;

/// Refuses schemas that lead too far to be compiled together.
pub(super) fn check<'a>(schemas: impl IntoIterator<Item = &'a Value>) -> Result<(), PromptError> {
    let mut values = MOST_VALUES;
    let shallow = schemas.into_iter().all(|root| {
        let mut survey = Survey { root, values, seen: HashSet::new(), pending: vec![root] };
        let levels = survey.levels();
        values = survey.values;
        levels.is_some_and(|levels| levels <= MOST_LEVELS)
    });
    let message = || {
        format!(
            "it leads too far, with all that its references lead to: at most {MOST_LEVELS} levels, {MOST_VALUES} values and \
             {MOST_KEYS} keys in one object can be followed; send a smaller one"
        )
    };
    shallow.then_some(()).ok_or_else(|| PromptError::Structure(message()))
}

/// What a reference within a schema leads to, as the standard has it: a JSON pointer.
pub(super) fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// What the library finds by the same reference: it takes the pointer's parts as they are written.
pub(super) fn literal_target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    if reference == "#" || reference == "#/" {
        return Some(root);
    }
    reference.strip_prefix("#/")?.split('/').try_fold(root, |at, part| match at {
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        other => other.get(part),
    })
}

/// What comparing keys costs, in values: the library looks each key of an object up by all that follow it, those too that are
/// required and not declared, and tells each pattern from each other.
fn pairs(map: &Map<String, Value>) -> usize {
    let named = |keyword: &str| map.get(keyword).and_then(Value::as_object).map_or(0, Map::len);
    let required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    let undeclared = required.saturating_sub(named("properties"));
    let squared = |length: usize| length.saturating_mul(length);
    squared(map.len()) / PAIRS + squared(undeclared) / PAIRS + squared(named("patternProperties"))
}

/// A walk through a schema and what it refers to.
struct Survey<'a> {
    root: &'a Value,
    /// How many more may be looked at.
    values: usize,
    seen: HashSet<&'a str>,
    pending: Vec<&'a Value>,
}

impl<'a> Survey<'a> {
    /// No more levels than this are passed on the way through the schema: its own nesting, and that of everything that is
    /// referred to. `None` where there are too many values.
    fn levels(&mut self) -> Option<usize> {
        let mut levels = 0;
        while let Some(schema) = self.pending.pop() {
            levels += self.look(schema)?;
        }
        Some(levels)
    }

    /// The nesting of a value; what it refers to for the first time is looked at later.
    fn look(&mut self, value: &'a Value) -> Option<usize> {
        self.values = self.values.checked_sub(1)?;
        let mut inside = 0;
        match value {
            Value::Object(map) => {
                if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                    self.refer(reference);
                }
                self.values = self.values.checked_sub(pairs(map))?;
                for value in map.values() {
                    inside = inside.max(self.look(value)?);
                }
            }
            Value::Array(values) => {
                for value in values {
                    inside = inside.max(self.look(value)?);
                }
            }
            _ => {}
        }
        Some(1 + inside)
    }

    /// Whatever a compiler may find by a reference counts: the grammar of calls reads it by the standard, the library to
    /// the letter, and with a key such as `~1` they part.
    fn refer(&mut self, reference: &'a str) {
        if self.seen.insert(reference) {
            let (standard, literal) = (target(self.root, reference), literal_target(self.root, reference));
            let other = literal.filter(|literal| standard.is_none_or(|standard| !std::ptr::eq(standard, *literal)));
            self.pending.extend(standard.into_iter().chain(other));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn levels(root: &Value) -> Option<usize> {
        Survey { root, values: MOST_VALUES, seen: HashSet::new(), pending: vec![root] }.levels()
    }

    #[test]
    fn levels_are_counted_through_references_once() {
        assert_eq!(levels(&json!({})), Some(1));
        assert_eq!(levels(&json!({"type": "object", "properties": {"a": {"type": "integer"}}})), Some(4));
        let circle = json!({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}});
        assert_eq!(levels(&circle), Some(5 + 3));
        assert_eq!(levels(&json!({"$ref": "https://example.org/schema"})), Some(2));
    }

    #[test]
    fn a_reference_leads_wherever_one_of_its_readers_finds_something() {
        let deep = json!([[[[]]]]);
        for (key, reference) in [
            ("~1", "#/$defs/~1"),
            ("/", "#/$defs/~1"),
            ("~01", "#/$defs/~001"),
            ("a", "#/$defs/a"),
            ("%20", "#/$defs/%20"),
        ] {
            let found = json!({"$ref": reference, "$defs": {key: deep}});
            assert_eq!(levels(&found), Some(6 + 4), "{reference}");
        }
        for reference in ["#/x/01/0", "#/x/+1/0", "#/x/1/0"] {
            assert_eq!(levels(&json!({"$ref": reference, "x": [1, [deep]]})), Some(7 + 4), "{reference}");
        }
        // Where they find different things, both count.
        let decoy = json!({"$ref": "#/$defs/d~10", "$defs": {"d/0": {}, "d~10": deep}});
        assert_eq!(levels(&decoy), Some(6 + 1 + 4));
        assert_eq!(levels(&json!({"$ref": "#/", "": [[]]})), Some(3 + 2 + 3));
        assert_eq!(levels(&json!({"$ref": "#"})), Some(2 + 2));
    }

    #[test]
    fn values_are_counted_together() {
        let list = |length: usize| json!({"enum": vec![0; length]});
        assert!(check([&list(MOST_VALUES - 2)]).is_ok());
        assert!(check([&list(MOST_VALUES - 1)]).is_err());
        assert!(check([&list(MOST_VALUES / 2), &list(MOST_VALUES / 2)]).is_err());
        let twice = json!({"anyOf": [{"$ref": "#/x/0"}, {"$ref": "#/x/00"}], "x": [list(MOST_VALUES / 3)]});
        assert!(check([&twice]).is_err());
    }

    #[test]
    fn keys_are_counted_in_pairs() {
        let keys = |count: usize| (0..count).map(|at| (format!("a{at}"), json!(true))).collect::<Map<_, _>>();
        let required = |count: usize| json!({"required": keys(count).keys().collect::<Vec<_>>()});
        let patterns = |count: usize| json!({"patternProperties": keys(count)});
        assert!(check([&json!(keys(MOST_KEYS)), &json!({})]).is_ok());
        assert!(check([&json!(keys(5_000))]).is_err());
        assert!(check([&required(MOST_KEYS)]).is_ok());
        assert!(check([&required(5_000)]).is_err());
        let mut all = required(MOST_KEYS);
        all["properties"] = json!(keys(MOST_KEYS));
        assert!(check([&all]).is_ok());
        assert!(check([&patterns(200)]).is_ok());
        assert!(check([&patterns(300)]).is_err());
    }
}
