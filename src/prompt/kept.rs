//! What of a schema can be kept to. The library that follows schemas takes some rules and keeps them in part: numbers that a
//! double does not hold, more properties than it can tell apart, keywords that an older draft does not know. Such a schema
//! is refused before it is compiled, by keyword and place, or put so that it is kept. Pure.

use std::collections::HashSet;

use serde_json::{Map, Number, Value};

use super::decimal::Decimal;
use super::depth::literal_target;
use super::error::PromptError;
use super::foregone;
use super::meeting::{self, Crowd, MOST_PATTERNS};

/// 2^53: the whole numbers up to it are all doubles.
const EXACT: u64 = 1 << 53;

/// Most characters that a schema may leave no choice about, one after the other: far more than a canvas holds, and each
/// costs memory.
const MOST_FOREGONE: usize = 16_384;

/// Most items that a list must have. As many are more than an answer can hold.
const MOST_NEEDED: u64 = 10_000;

/// What a keyword's value holds.
enum Holding {
    Schema,
    List,
    Named,
    Nothing,
}

fn holding(keyword: &str, rule: &Value) -> Holding {
    match (keyword, rule) {
        ("additionalProperties" | "items" | "additionalItems", Value::Object(_)) => Holding::Schema,
        ("allOf" | "anyOf" | "oneOf" | "items" | "prefixItems", Value::Array(_)) => Holding::List,
        ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(_)) => Holding::Named,
        _ => Holding::Nothing,
    }
}

/// Puts a schema so that more of it is kept, without letting anything through that it does not. Which draft it says it is
/// written for makes no difference: a keyword that the draft does not know is meant all the same.
pub(super) fn put(schema: &mut Value) {
    if let Value::Object(root) = schema {
        root.shift_remove("$schema");
    }
    tighten(schema);
}

/// Bounds that no double is, such as the largest integer of 64 bits, are moved to a double inside of them.
fn tighten(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    for (keyword, rule) in map {
        let outer = match keyword.as_str() {
            "minimum" | "exclusiveMinimum" => -1.0,
            "maximum" | "exclusiveMaximum" => 1.0,
            _ => 0.0,
        };
        if let Some(number) = rule.as_f64().map(|number| number * outer).filter(|number| *number > EXACT as f64) {
            // A few doubles further in, since it may have been rounded outwards. Beyond integers the library has none.
            let inside = number.min(2f64.powi(63)) * (1.0 - 2.0 * f64::EPSILON);
            *rule = Value::from(outer * inside);
        }
        match holding(keyword, rule) {
            Holding::Schema => tighten(rule),
            Holding::List => rule.as_array_mut().into_iter().flatten().for_each(tighten),
            Holding::Named => rule.as_object_mut().into_iter().flatten().for_each(|(_, schema)| tighten(schema)),
            Holding::Nothing => {}
        }
    }
}

/// Refuses a schema of which the library would not keep everything. It has been [`put`].
pub(super) fn check(root: &Value) -> Result<(), PromptError> {
    let mut walk = Walk { root, place: Vec::new(), seen: HashSet::new(), pending: Vec::new() };
    walk.all().map_err(PromptError::Structure)?;
    meeting::crowd(root).map_err(|crowd| {
        PromptError::Structure(match crowd {
            Crowd::Patterns => format!(
                "more than {MOST_PATTERNS} of its patterns and formats meet on one value, through allOf, $ref or alternatives; \
                 write one pattern for them"
            ),
            Crowd::Multiples => {
                "more than one multipleOf meets on one value, through allOf, $ref or alternatives; write one for them".to_owned()
            }
            Crowd::Rules => "too many of its rules meet, through allOf, $ref and alternatives; send a simpler one".to_owned(),
        })
    })?;
    match foregone::length(root) > MOST_FOREGONE {
        true => Err(PromptError::Structure(format!(
            "it leaves no choice about more than {MOST_FOREGONE} characters; make its constants and required names shorter"
        ))),
        false => Ok(()),
    }
}

/// A step into a schema.
#[derive(Clone, Copy)]
enum Step<'a> {
    To(&'a str),
    At(usize),
}

/// A walk through a schema and what it refers to.
struct Walk<'a> {
    root: &'a Value,
    /// Where it is.
    place: Vec<Step<'a>>,
    /// Where the schemas are that it has been to.
    seen: HashSet<*const Value>,
    /// References to be followed.
    pending: Vec<&'a str>,
}

impl<'a> Walk<'a> {
    fn all(&mut self) -> Result<(), String> {
        self.schema(self.root)?;
        while let Some(reference) = self.pending.pop() {
            if let Some(schema) = literal_target(self.root, reference) {
                self.place = vec![Step::To(reference)];
                self.schema(schema)?;
            }
        }
        Ok(())
    }

    /// Where it is, in words.
    fn place(&self) -> String {
        let mut words = String::new();
        let from_root = !matches!(self.place.first(), Some(Step::To(reference)) if reference.starts_with('#'));
        if from_root {
            words.push_str("its root");
        }
        for step in &self.place {
            match step {
                Step::To(key) if words.is_empty() => words.push_str(key),
                Step::To(key) => words.extend([".", key]),
                Step::At(index) => words.push_str(&format!("[{index}]")),
            }
        }
        words
    }

    fn within(&mut self, step: Step<'a>, look: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<(), String> {
        self.place.push(step);
        look(self)?;
        self.place.pop();
        Ok(())
    }

    fn schema(&mut self, schema: &'a Value) -> Result<(), String> {
        let Value::Object(map) = schema else { return Ok(()) };
        if !self.seen.insert(schema) {
            return Ok(());
        }
        self.whole(map)?;
        for (keyword, rule) in map {
            self.within(Step::To(keyword), |walk| walk.rule(keyword, rule))?;
        }
        Ok(())
    }

    fn rule(&mut self, keyword: &'a str, rule: &'a Value) -> Result<(), String> {
        match (keyword, rule) {
            ("const" | "enum", value) => return self.constant(value),
            ("$ref", Value::String(reference)) => self.pending.push(reference),
            // They are looked at where something refers to them.
            ("$defs" | "definitions", _) => {}
            (_, Value::Number(number)) => return self.number(keyword, number),
            _ => {}
        }
        match (holding(keyword, rule), rule) {
            (Holding::Schema, _) => self.schema(rule),
            (Holding::List, Value::Array(all)) => {
                let mut all = all.iter().enumerate();
                all.try_for_each(|(index, schema)| self.within(Step::At(index), |walk| walk.schema(schema)))
            }
            (Holding::Named, Value::Object(named)) if !matches!(keyword, "$defs" | "definitions") => {
                let mut named = named.iter();
                named.try_for_each(|(key, schema)| self.within(Step::To(key), |walk| walk.schema(schema)))
            }
            _ => Ok(()),
        }
    }

    /// A value that must be written as it is.
    fn constant(&mut self, value: &'a Value) -> Result<(), String> {
        match value {
            Value::Number(number) if !is_exact(number) => Err(format!(
                "{number} at {} cannot be written exactly: numbers from -{EXACT} to {EXACT} can be; write it as a string",
                self.place()
            )),
            Value::Array(values) => {
                let mut values = values.iter().enumerate();
                values.try_for_each(|(index, value)| self.within(Step::At(index), |walk| walk.constant(value)))
            }
            Value::Object(map) => {
                let mut map = map.iter();
                map.try_for_each(|(key, value)| self.within(Step::To(key), |walk| walk.constant(value)))
            }
            _ => Ok(()),
        }
    }

    /// A number that a keyword has.
    fn number(&self, keyword: &str, number: &Number) -> Result<(), String> {
        let kept = match keyword {
            "minimum" => is_exact(number) || is_put(number, -1.0),
            "maximum" => is_exact(number) || is_put(number, 1.0),
            "exclusiveMinimum" => is_below(number) || is_put(number, -1.0),
            "exclusiveMaximum" => is_below(number) || is_put(number, 1.0),
            "multipleOf" => is_step(number),
            "minItems" => number.as_u64().is_none_or(|needed| needed <= MOST_NEEDED),
            _ => true,
        };
        let instead = match keyword {
            _ if kept => return Ok(()),
            "multipleOf" => {
                "steps are kept that are above 0, below 2^32 and doubles in decimals, such as 0.01".to_owned()
            }
            "minItems" => format!("lists that must have up to {MOST_NEEDED} items are"),
            _ => format!("bounds from -{EXACT} to {EXACT} are; leave it out, or write a bound within them"),
        };
        Err(format!("{number} at {} cannot be kept to: {instead}", self.place()))
    }

    /// What several keywords of a schema make together.
    fn whole(&self, map: &Map<String, Value>) -> Result<(), String> {
        let required = map.get("required").and_then(Value::as_array).into_iter().flatten();
        // Of the others it cannot tell whether they are the same. One is not the same as the required ones.
        let certain = required.filter_map(Value::as_str).collect::<HashSet<_>>().len() as u64 + 1;
        if let Some(least) = map.get("minProperties").and_then(Value::as_u64).filter(|least| *least > certain) {
            return Err(format!(
                "minProperties {least} at {} cannot be kept to, since keys that are not required may repeat; name as many \
                 keys in the same schema's required, but one",
                self.place()
            ));
        }
        let as_list = matches!(map.get("items"), Some(Value::Array(_)));
        if map.contains_key("prefixItems") && (as_list || map.contains_key("additionalItems")) {
            return Err(format!(
                "prefixItems at {} cannot be kept to beside additionalItems or a list of items; write items for all further ones",
                self.place()
            ));
        }
        Ok(())
    }
}

/// Whether a number is written as it is read: the library reads doubles, and writes all their digits.
fn is_exact(number: &Number) -> bool {
    Decimal::of(number).is_some_and(|number| number.magnitude() <= exact())
}

/// Whether there are doubles on both sides for the whole numbers next to it, too.
fn is_below(number: &Number) -> bool {
    Decimal::of(number).is_some_and(|number| number.magnitude() < exact())
}

fn exact() -> Decimal {
    Decimal::from(EXACT)
}

/// Whether it is a bound on this side that has been [`put`], or need not be.
fn is_put(number: &Number, outer: f64) -> bool {
    let beyond = number.as_f64().map_or(0.0, |number| number * outer);
    beyond == EXACT as f64 || (beyond > EXACT as f64 && beyond < 2f64.powi(63) && number.is_f64())
}

/// Whether the library's reckoning of a `multipleOf` is right: a whole number of 32 bits, some places behind the point.
fn is_step(number: &Number) -> bool {
    let (mut step, mut places) = (number.as_f64().unwrap_or(0.0), 0);
    while step.fract() != 0.0 {
        (step, places) = (step * 10.0, places + 1);
    }
    let reckoned = Decimal::parse(&format!("{step}e-{places}"));
    step > 0.0 && step <= f64::from(u32::MAX) && reckoned.is_some() && reckoned == Decimal::of(number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(mut schema: Value) -> Option<String> {
        put(&mut schema);
        check(&schema).err().map(|error| error.to_string())
    }

    #[test]
    fn numbers_that_would_be_others_are_refused_by_place() {
        for (schema, number, place) in [
            (json!({"const": i64::MIN}), "-9223372036854775808", "its root.const"),
            (json!({"const": 9_007_199_254_740_993u64}), "9007199254740993", "its root.const"),
            (
                json!({"properties": {"a": {"enum": ["x", [1_234_567_890_123_456_789u64]]}}}),
                "1234567890123456789",
                "its root.properties.a.enum[1][0]",
            ),
            (json!({"type": "integer", "enum": [1e20]}), &json!(1e20).to_string(), "its root.enum[0]"),
            (json!({"minimum": -1e19, "maximum": -1e19}), &json!(-1e19).to_string(), "its root.maximum"),
            (
                json!({"items": {"$ref": "#/$defs/id"}, "$defs": {"id": {"minimum": 9_007_199_254_740_993u64}}}),
                "9007199254740993",
                "#/$defs/id.minimum",
            ),
            (json!({"$ref": "#/x/0", "x": [{"maximum": i64::MAX}]}), "9223372036854775807", "#/x/0.maximum"),
            (json!({"exclusiveMinimum": 9_007_199_254_740_992u64}), "9007199254740992", "its root.exclusiveMinimum"),
            (json!({"anyOf": [{"multipleOf": 0.07}]}), "0.07", "its root.anyOf[0].multipleOf"),
            (json!({"multipleOf": 0}), "0", "its root.multipleOf"),
            (json!({"multipleOf": 4_294_967_296u64}), "4294967296", "its root.multipleOf"),
            (json!({"minItems": 1_000_000}), "1000000", "its root.minItems"),
        ] {
            let error = refusal(schema.clone()).unwrap_or_else(|| panic!("{schema} is taken"));
            assert!(error.contains(&format!(" {number} at {place} ")), "{schema}: {error}");
        }
        for schema in [
            json!({"enum": [9_007_199_254_740_992u64, -9_007_199_254_740_992i64, 0.1, -0.0, 1e-300, 123_456_789.123_456_79]}),
            json!({"minimum": i64::MIN, "maximum": i64::MAX}),
            json!({"minimum": 0, "maximum": u64::MAX, "multipleOf": 0.01}),
            json!({"exclusiveMinimum": -1e300, "exclusiveMaximum": 1e300}),
            json!({"properties": {"minimum": {"default": i64::MAX}}, "$defs": {"unused": {"const": i64::MAX}}}),
        ] {
            assert_eq!(refusal(schema.clone()), None, "{schema}");
        }
    }

    #[test]
    fn bounds_are_moved_inwards_where_schemas_stand() {
        let mut schema = json!({
            "$schema": "http://json-schema.org/draft-04/schema#",
            "const": {"maximum": i64::MAX},
            "properties": {"maximum": {"maximum": i64::MAX, "minimum": i64::MIN}, "near": {"maximum": 1u64 << 53}}
        });
        put(&mut schema);
        assert_eq!(schema.get("$schema"), None);
        assert_eq!(schema["const"]["maximum"], i64::MAX);
        let rules = &schema["properties"]["maximum"];
        assert!(rules["maximum"].as_f64().is_some_and(|most| most < 2f64.powi(63) && most > 9.223_372_036_854e18));
        assert_eq!(rules["minimum"].as_f64().map(|least| -least), rules["maximum"].as_f64());
        assert_eq!(schema["properties"]["near"]["maximum"], 1u64 << 53);
    }

    #[test]
    fn rules_that_would_be_kept_in_part_are_refused() {
        for (schema, word) in [
            (
                json!({"patternProperties": {"^[ab]$": {"const": 5}}, "minProperties": 2}),
                "minProperties 2 at its root ",
            ),
            (json!({"required": ["a", "a"], "minProperties": 3}), "minProperties"),
            (json!({"prefixItems": [true], "additionalItems": false}), "prefixItems"),
            (json!({"prefixItems": [true], "items": [true]}), "prefixItems"),
            (json!({"allOf": (0..9).map(|at| json!({"pattern": at.to_string()})).collect::<Vec<_>>()}), "patterns"),
            (json!({"allOf": [{"multipleOf": 7}, {"multipleOf": 9}]}), "multipleOf"),
            (json!({"const": "x".repeat(MOST_FOREGONE)}), "no choice"),
        ] {
            let error = refusal(schema.clone()).unwrap_or_else(|| panic!("{schema} is taken"));
            assert!(error.contains(word), "{schema}: {error}");
        }
        for schema in [
            json!({"minProperties": 1}),
            json!({"required": ["a", "b"], "minProperties": 3}),
            json!({"items": [true], "additionalItems": false}),
            json!({"prefixItems": [true], "items": false}),
        ] {
            assert_eq!(refusal(schema.clone()), None, "{schema}");
        }
    }
}
