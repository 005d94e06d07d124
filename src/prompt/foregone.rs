//! How much text a schema leaves no choice about. What must be written is put down at once: the library follows it letter by
//! letter, with a state for each, however long it is. Pure.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::depth::literal_target;

/// About as many characters, in bytes of JSON, as can be certain one after the other. Where several schemas meet on a value,
/// all that is certain in any of them counts as one.
pub(super) fn length(root: &Value) -> usize {
    Reckoning { root, of: HashMap::new() }.schema(root).longest
}

/// Text of which some is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Run {
    /// Whether all of it is.
    fixed: bool,
    /// What is certain at its beginning and at its end, and the longest that is anywhere.
    head: usize,
    tail: usize,
    longest: usize,
    /// All that is certain.
    total: usize,
}

impl Run {
    /// Nothing of it is certain.
    const FREE: Run = Run { fixed: false, head: 0, tail: 0, longest: 0, total: 0 };

    fn text(length: usize) -> Run {
        Run { fixed: true, head: length, tail: length, longest: length, total: length }
    }

    fn then(self, next: Run) -> Run {
        Run {
            fixed: self.fixed && next.fixed,
            head: if self.fixed { self.head.saturating_add(next.head) } else { self.head },
            tail: if next.fixed { self.tail.saturating_add(next.tail) } else { next.tail },
            longest: self.longest.max(next.longest).max(self.tail.saturating_add(next.head)),
            total: self.total.saturating_add(next.total),
        }
    }

    /// One of two: when the beginning of one is chosen, its end is certain.
    fn or(self, other: Run) -> Run {
        Run {
            fixed: false,
            head: self.head.max(other.head),
            tail: self.tail.max(other.tail),
            longest: self.longest.max(other.longest),
            total: self.total.max(other.total),
        }
    }

    fn and(self, other: Run) -> Run {
        match (self.total, other.total) {
            (_, 0) => self,
            (0, _) => other,
            (a, b) => Run::text(a.saturating_add(b)),
        }
    }

    fn times(self, count: u64) -> Run {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        match count {
            0 => Run::text(0),
            1 => self,
            _ if self.fixed => Run::text(self.head.saturating_mul(count)),
            _ => Run { total: self.total.saturating_mul(count), ..self.then(self) },
        }
    }

    fn or_nothing(self) -> Run {
        self.or(Run::FREE)
    }
}

/// What stands around a key.
const PUNCTUATION: usize = 6;

struct Reckoning<'a> {
    root: &'a Value,
    /// What has been reckoned, by where the schema is; nothing of those that are being reckoned.
    of: HashMap<*const Value, Run>,
}

impl<'a> Reckoning<'a> {
    fn schema(&mut self, schema: &'a Value) -> Run {
        let Value::Object(map) = schema else { return Run::FREE };
        if let Some(known) = self.of.get(&std::ptr::from_ref(schema)) {
            return *known;
        }
        self.of.insert(schema, Run::FREE);
        let run = self.of_map(map);
        self.of.insert(schema, run);
        run
    }

    fn of_map(&mut self, map: &'a Map<String, Value>) -> Run {
        let list = |keyword: &str| map.get(keyword).and_then(Value::as_array).into_iter().flatten();
        let written = |value: &Value| Run::text(value.to_string().len());
        let mut run = map.get("const").map_or(Run::FREE, written);
        run = run.and(list("enum").map(written).reduce(Run::or).unwrap_or(Run::FREE));
        if map.get("type").is_some_and(|kind| kind == "null") {
            run = run.and(Run::text(4));
        }
        for part in list("allOf") {
            run = run.and(self.schema(part));
        }
        for keyword in ["anyOf", "oneOf"] {
            run = run.and(list(keyword).map(|part| self.schema(part)).reduce(Run::or).unwrap_or(Run::FREE));
        }
        let target = map.get("$ref").and_then(Value::as_str).and_then(|to| literal_target(self.root, to));
        run = run.and(target.map_or(Run::FREE, |target| self.schema(target)));
        run.and(self.keys(map)).and(self.items(map))
    }

    fn keys(&mut self, map: &'a Map<String, Value>) -> Run {
        let properties = map.get("properties").and_then(Value::as_object);
        let required = map.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let mut required: HashSet<&str> = required.collect();
        let key = |name: &str| Run::text(name.len() + PUNCTUATION);
        let mut run = Run::text(0);
        for (name, schema) in properties.into_iter().flatten() {
            let pair = key(name).then(self.schema(schema));
            run = run.then(if required.remove(name.as_str()) { pair } else { pair.or_nothing() });
        }
        for name in required {
            run = run.then(key(name).then(Run::FREE));
        }
        let least = map.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
        let patterns = map.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
        let others = patterns.map(|(_, schema)| schema).chain(map.get("additionalProperties"));
        let other = others.map(|schema| self.schema(schema)).reduce(Run::or).unwrap_or(Run::FREE);
        match map.get("additionalProperties") {
            Some(Value::Bool(false)) if !map.contains_key("patternProperties") => run,
            _ => run.then(other.times(least.max(1)).or_nothing()),
        }
    }

    fn items(&mut self, map: &'a Map<String, Value>) -> Run {
        let least = map.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        let listed = |keyword: &str| map.get(keyword).and_then(Value::as_array).into_iter().flatten();
        let separated = |run: Run| Run::text(2).then(run);
        let (mut run, mut count) = (Run::text(0), 0);
        for schema in listed("prefixItems").chain(listed("items")) {
            let item = separated(self.schema(schema));
            run = run.then(if count < least { item } else { item.or_nothing() });
            count += 1;
        }
        let further = ["items", "additionalItems"].iter().filter_map(|keyword| map.get(*keyword));
        let further = further.filter(|schema| **schema != Value::Bool(false));
        match further.map(|schema| self.schema(schema)).reduce(Run::or) {
            Some(item) => run.then(separated(item).times(least.saturating_sub(count))).then(item.or_nothing()),
            None if count > 0 => run,
            None => Run::FREE,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_must_be_written_is_added_up_as_far_as_nothing_is_free() {
        assert_eq!(length(&json!({"type": "string", "maxLength": 100, "description": "long"})), 0);
        assert_eq!(length(&json!({"const": "abc"})), 5);
        assert_eq!(length(&json!({"enum": ["abc", "a", 12]})), 5);
        assert_eq!(length(&json!({"anyOf": [{"const": 1}, {"const": 234}], "allOf": [{"const": 1}]})), 4);
        let free = json!({"type": "string"});
        let object = json!({"required": ["ab", "c", "d"], "properties": {"ab": {"const": 11}, "c": free, "d": free}});
        assert_eq!(length(&object), 2 + PUNCTUATION + 2 + 1 + PUNCTUATION);
        assert_eq!(length(&json!({"items": {"const": "abc"}, "minItems": 10})), 70 + 5);
        assert_eq!(length(&json!({"items": free, "minItems": 10})), 2);
        let listed =
            json!({"prefixItems": [{"const": 1}, {"$ref": "#/x"}], "items": false, "minItems": 2, "x": {"const": 22}});
        assert_eq!(length(&listed), 3 + 4);
        let keys: Map<String, Value> = (0..4_000).map(|at| (format!("key{at}"), free.clone())).collect();
        assert!(length(&json!({"required": keys.keys().collect::<Vec<_>>(), "properties": keys})) < 20);
    }

    #[test]
    fn circles_and_explosions_end() {
        assert_eq!(length(&json!({"$ref": "#", "const": 1})), 1);
        let mut definitions: Map<String, Value> = (0..80)
            .map(|at| {
                let next = json!({"$ref": format!("#/$defs/{}", at + 1)});
                (at.to_string(), json!({"prefixItems": [next, next], "items": false, "minItems": 2}))
            })
            .collect();
        definitions.insert("80".to_owned(), json!({"const": 1}));
        assert_eq!(length(&json!({"$ref": "#/$defs/0", "$defs": definitions})), usize::MAX);
    }
}
