//! Answers held to a schema, or to a call: what fits, what is put in the place of what does not, and where an answer may end.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::calling::weather;
use super::fixtures::{ids, plain};
use crate::prompt::{CalledTool, Form, Instead, Opening};
use crate::scheduler::{Structure, StructureError};

const PERSON: &str = r#"{"name": "Anna", "age": 30}"#;

fn person() -> Form {
    let properties = json!({"name": {"type": "string"}, "age": {"type": "integer"}});
    Form::Schema(
        json!({"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": false}),
    )
}

pub(super) fn structure(form: Form, instead: Instead) -> Box<dyn Structure> {
    plain().blueprint(form, instead).expect("the schema is understood").structure(Opening::Content)
}

pub(super) fn fits(structure: &mut dyn Structure, text: &str) -> (usize, usize) {
    let ids = ids(text);
    (structure.fits(&ids).expect("it can be followed"), ids.len())
}

#[track_caller]
pub(super) fn fit(structure: &mut dyn Structure, text: &str) {
    let (fit, length) = fits(structure, text);
    assert_eq!(fit, length, "{text:?}");
}

/// Asserts that the text fits up to there, and no further.
#[track_caller]
pub(super) fn fits_to(structure: &mut dyn Structure, good: &str, rest: &str) {
    let (fit, length) = fits(structure, &format!("{good}{rest}"));
    assert_eq!((fit, fit < length), (ids(good).len(), true), "{good:?} {rest:?}");
}

/// What is put behind this text when nothing is proposed, as text.
pub(super) fn mend(structure: &mut dyn Structure, before: &str, proposed: &str) -> String {
    let mended = structure.mend(&ids(before), &mut ids(proposed).into_iter()).expect("something may follow");
    plain().decode(&mended)
}

#[test]
fn a_text_fits_as_far_as_the_schema_allows() {
    let mut person = structure(person(), Instead::Nothing);
    fit(&mut *person, &format!("{PERSON}<turn|><eos><eos>story"));
    fit(&mut *person, r#"{"name": "An"#);
    fits_to(&mut *person, r#"{"name": "Anna", "age": "#, r#""30"}"#);
    fits_to(&mut *person, r#"{"name": "Anna""#, "}");
    fits_to(&mut *person, PERSON, " more");
    fits_to(&mut *person, "", "The capital");
    // An answer ends where the text is complete, and nowhere else.
    fits_to(&mut *person, r#"{"name": "Anna""#, "<turn|>");
    // Tokens that are no text stand nowhere in it.
    fits_to(&mut *person, r#"{"name""#, "<|image>");
    // Asking changes nothing.
    fit(&mut *person, &format!("{PERSON}<turn|>"));
}

#[test]
fn the_best_that_may_stand_is_put_there_with_what_must_follow() {
    let mut person = structure(person(), Instead::Nothing);
    assert_eq!(mend(&mut *person, "", "The capital { ["), r#"{"name": ""#);
    assert_eq!(mend(&mut *person, "", "none of these"), r#"{"name": ""#);
    assert_eq!(mend(&mut *person, r#"{"name": "Anna""#, "The"), r#", "age":"#);
    assert_eq!(mend(&mut *person, PERSON, "more<turn|>"), "<turn|>");
    assert_eq!(mend(&mut *person, PERSON, "more"), "<turn|>");
}

#[test]
fn a_thought_before_the_content_is_free() {
    let mut person = structure(person(), Instead::Nothing);
    let thought = "<|channel>thought\nI make JSON.\n<channel|>";
    fit(&mut *person, &format!("{thought}{PERSON}<turn|>"));
    fits_to(&mut *person, thought, "The");
    fits_to(&mut *person, "<|channel>thought\nI make", "<turn|>");
    assert_eq!(mend(&mut *person, "<|channel>thought\nI make", "more"), "<channel|>");
    // One that the prompt has opened already.
    let blueprint = plain().blueprint(Form::Json, Instead::Nothing).expect("understood");
    let mut opened = blueprint.structure(Opening::Reasoning);
    fit(&mut *opened, &format!("I make JSON.\n<channel|>{PERSON}<turn|>"));
    // In the middle of the content there is none.
    fits_to(&mut *person, r#"{"name": "#, "<|channel>");
}

const CALL: &str = "<|tool_call>call:weather{city:<|\"|>Paris<|\"|>}<tool_call|>";

/// A tool to be called as in [`CALL`].
fn weather_tool() -> CalledTool {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    CalledTool { name: "weather".to_owned(), parameters }
}

fn person_or_calls() -> Box<dyn Structure> {
    structure(person(), Instead::Calls(vec![weather_tool()]))
}

#[test]
fn calls_may_take_the_contents_place_where_tools_are_offered() {
    let mut either = person_or_calls();
    for end in ["<|tool_response>", "<turn|>more"] {
        fit(&mut *either, &format!("{CALL}{end}"));
        fit(&mut *either, &format!("{CALL}{CALL}{end}"));
        fit(&mut *either, &format!("{PERSON}{end}"));
    }
    fits_to(&mut *structure(person(), Instead::Nothing), "", CALL);
    fits_to(&mut *either, r#"{"name": "#, CALL);
    fits_to(&mut *either, PERSON, CALL);
    // A call is one of the tools, as they are declared, and nothing follows it but further ones.
    fits_to(&mut *either, "<|tool_call>", "weather Paris");
    fits_to(&mut *either, "<|tool_call>call:", "story{}");
    fits_to(&mut *either, "<|tool_call>call:weather{", "1");
    for rest in ["The capital", "<|channel>", PERSON] {
        fits_to(&mut *either, CALL, rest);
    }
    assert_eq!(mend(&mut *either, "", "The<|tool_call>{"), "<|tool_call>call:weather{city:<|\"|>");
    assert_eq!(mend(&mut *either, CALL, "The capital<|tool_response>"), "<|tool_response>");
    // Nobody is made to call.
    assert_eq!(mend(&mut *either, "", "The capital"), r#"{"name": ""#);
    for text in [format!("{CALL}{CALL}<|tool_response>"), format!("{PERSON}<turn|>")] {
        let mut either = person_or_calls();
        let ids = ids(&text);
        for (at, &token) in ids.iter().enumerate() {
            assert_eq!(either.fits(&ids[at..]).expect("followed"), ids.len() - at);
            if at + 1 < ids.len() {
                either.commit(&[token]).expect("it fits");
            }
        }
    }
}

#[test]
fn a_call_ends_a_thought() {
    let thought = "<|channel>thought\nI look.";
    let called = format!("{thought}{CALL}");
    let mut either = person_or_calls();
    fit(&mut *either, &format!("{called}<|tool_response>"));
    fits_to(&mut *either, &called, PERSON);
    // Where one must be made, that is it; where none may be, it is foreign.
    let must = || structure(Form::Call(vec![weather_tool()]), Instead::Nothing);
    fit(&mut *must(), &format!("{called}<|tool_response>"));
    fits_to(&mut *must(), &format!("{thought}<|tool_call>call:"), "story{}");
    let mut call = must();
    call.commit(&ids(&called)).expect("it fits");
    fit(&mut *call, "<|tool_response>");
    let mut nothing = structure(person(), Instead::Nothing);
    fits_to(&mut *nothing, thought, CALL);
    assert_eq!(mend(&mut *nothing, thought, "more"), "<channel|>");
}

/// What comes of it when nothing is proposed.
#[track_caller]
fn written(structure: &mut dyn Structure) -> String {
    let mut text: Vec<u32> = Vec::new();
    while !text.ends_with(&ids("<turn|>")) {
        text.extend(structure.mend(&text, &mut std::iter::empty()).expect("something may follow"));
        assert_eq!(structure.fits(&text), Ok(text.len()), "{:?}", plain().decode(&text));
    }
    plain().decode(&text)
}

#[test]
fn text_that_must_stand_there_may_spell_control_tokens() {
    let value = json!({"<eos>": ["<mask>", " <|image|>\n<|\"|>"], "<|tool_call>": "<pad>"});
    let mut json = structure(Form::Schema(json!({"const": value})), Instead::Nothing);
    let text = written(&mut *json);
    let text = text.strip_suffix("<turn|>").expect("it ends");
    assert_eq!(serde_json::from_str::<Value>(text).expect("JSON"), value);
    let parameters = json!({"properties": {"<eos>": {"const": "<tool_call|><|\"|>"}}, "required": ["<eos>"]});
    let mut call = structure(weather(parameters), Instead::Nothing);
    assert_eq!(
        written(&mut *call),
        "<|tool_call>call:weather{<|\"|><eos><|\"|>:<|\"|><tool_call|><|\"|><|\"|>}<tool_call|><turn|>"
    );
}

#[test]
fn a_token_that_the_tokeniser_does_not_know_stands_nowhere() {
    let beyond = 1 << 20;
    let mut person = structure(person(), Instead::Nothing);
    let opened = ids(r#"{"name": ""#);
    let with_beyond: Vec<u32> = opened.iter().copied().chain([beyond]).collect();
    assert_eq!(person.fits(&with_beyond), Ok(opened.len()));
    let mended = person.mend(&opened, &mut [beyond, ids("Anna")[0]].into_iter()).expect("something may follow");
    assert_eq!(mended[0], ids("Anna")[0]);
    fit(&mut *person, PERSON);
    let mut call = structure(weather(json!({})), Instead::Nothing);
    assert_eq!(call.fits(&[ids("<|tool_call>")[0], beyond]), Ok(1));
}

#[test]
fn canvases_follow_each_other() {
    let mut person = structure(person(), Instead::Nothing);
    let tokens = ids(PERSON);
    for (at, &token) in tokens.iter().enumerate() {
        assert_eq!(person.fits(&tokens[at..]).expect("followed"), tokens.len() - at);
        person.commit(&[token]).expect("it fits");
    }
    fit(&mut *person, "<turn|>");
    fits_to(&mut *person, "", "}");
    assert!(structure(Form::Json, Instead::Nothing).commit(&ids("story")).is_err());
}

#[test]
fn two_answers_of_one_blueprint_do_not_know_each_other() {
    let blueprint = plain().blueprint(person(), Instead::Nothing).expect("understood");
    let mut first = blueprint.structure(Opening::Content);
    let mut second = blueprint.structure(Opening::Content);
    first.commit(&ids(r#"{"name": "#)).expect("it fits");
    fit(&mut *second, PERSON);
    fit(&mut *first, r#""Anna", "age": 3}<turn|>"#);
}

#[test]
fn what_cannot_be_enforced_is_refused_with_its_name() {
    for (schema, word) in [
        (json!({"type": "nonsense"}), "nonsense"),
        (json!({"allOf": [{"type": "string"}, {"type": "integer"}]}), "incompatible"),
        (json!({"type": "string", "pattern": "("}), "regex"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"not": {"type": "string"}}), "not"),
        (json!(false), "nsatisfiable"),
        (json!({"const": i64::MIN}), "-9223372036854775808 at its root.const"),
        (json!({"type": "integer", "minimum": -1e19, "maximum": -1e19}), "its root.maximum"),
        (json!({"type": "number", "multipleOf": 0.1, "minimum": 0.05, "maximum": 0.06}), "multiple"),
        (json!({"type": "number", "multipleOf": 0.1, "minimum": 0.05, "maximum": 0.15}), "exclude each other"),
        (json!({"type": "array", "minItems": 1_000_000}), "1000000 at its root.minItems"),
        (json!({"oneOf": [{"type": "string", "minLength": 1}, {"type": "string", "maxLength": 5}]}), "write anyOf"),
        (json!({"$schema": "http://json-schema.org/draft-06/schema#", "if": {}, "then": {}}), "then"),
        (json!({"$schema": "http://json-schema.org/draft-07/schema#", "dependentRequired": {}}), "dependentRequired"),
        (json!({"x-guidance": {}}), "x-guidance"),
    ] {
        let error = plain().blueprint(Form::Schema(schema.clone()), Instead::Nothing).err();
        let error = error.unwrap_or_else(|| panic!("{schema} is taken")).to_string();
        assert!(error.contains(word), "{schema}: {error}");
    }
}

#[test]
fn what_an_older_draft_does_not_know_is_meant_all_the_same() {
    let rules =
        json!({"type": "object", "properties": {"a": {"const": 5}}, "required": ["a"], "additionalProperties": false});
    for draft in ["draft-04", "draft-06", "draft-07"] {
        let mut rules = rules.clone();
        rules["$schema"] = json!(format!("http://json-schema.org/{draft}/schema#"));
        let mut of_draft = structure(Form::Schema(rules), Instead::Nothing);
        fit(&mut *of_draft, r#"{"a": 5}<turn|>"#);
        fits_to(&mut *of_draft, r#"{"a": "#, "6}");
    }
}

#[test]
fn much_that_must_follow_is_put_down_in_parts() {
    let text = "a word ".repeat(2_000);
    let mut long = structure(Form::Schema(json!({"const": text})), Instead::Nothing);
    let first = long.mend(&[], &mut std::iter::empty()).expect("something may follow");
    assert!((600..8_192).contains(&first.len()), "{} tokens", first.len());
    assert_eq!(long.fits(&first), Ok(first.len()));
    let second = long.mend(&first, &mut std::iter::empty()).expect("something may follow");
    let both: Vec<u32> = first.into_iter().chain(second).collect();
    assert_eq!(long.fits(&both), Ok(both.len()));
}

#[test]
fn a_canvas_that_is_begun_anew_is_not_charged_twice() {
    let hostile = json!({"type": "string", "pattern": "^.*[aeiou].{200}$"});
    // As much as is done before it is given up.
    let tries = |begun_anew: &[usize]| {
        let mut structure = structure(Form::Schema(hostile.clone()), Instead::Nothing);
        let mut given_up = 0;
        for &steps in begun_anew.iter().chain([&usize::MAX]) {
            structure.restart();
            let mut text = Vec::new();
            given_up = (0..steps.min(256))
                .position(|position| {
                    let mut proposed = (0..64).map(|rank| (position * 641 + rank * 89) as u32 % 3000 + 70);
                    structure.mend(&text, &mut proposed).map(|mended| text.extend(mended)).is_err()
                })
                .unwrap_or(usize::MAX);
        }
        given_up
    };
    let alone = tries(&[]);
    assert!(alone < 256);
    for begun_anew in [&[1][..], &[alone / 2], &[alone - 1], &[alone - 1, alone / 3, alone - 1]] {
        assert_eq!(tries(begun_anew), alone, "{begun_anew:?}");
    }
}

#[test]
fn a_schema_that_leads_in_circles_comes_to_an_end() {
    let node = json!({"type": "object", "properties": {"n": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["n"], "additionalProperties": false});
    let mut tree = structure(Form::Schema(json!({"$ref": "#/$defs/node", "$defs": {"node": node}})), Instead::Nothing);
    fit(&mut *tree, r#"{"n": {"n": {"n": null}}}<turn|>"#);
    fits_to(&mut *tree, r#"{"n": {"n": null}"#, "<turn|>");
}

/// Mends 256 positions, in canvases of that many, something else being proposed each time; says how far that went.
fn mended(rules: &Value, canvas: usize) -> Result<(), (u32, StructureError)> {
    let mut structure = structure(Form::Schema(rules.clone()), Instead::Nothing);
    let mut text = Vec::new();
    for position in 0..256 {
        let mut proposed = (0..64).map(|rank| (position * 641 + rank * 89) % 3000 + 70);
        text.extend(structure.mend(&text, &mut proposed).map_err(|error| (position, error))?);
        if text.len() >= canvas {
            structure.commit(&text).map_err(|error| (position, error))?;
            text.clear();
        }
    }
    Ok(())
}

#[test]
fn a_schema_that_takes_too_much_work_is_given_up() {
    for rules in [
        json!({"type": "string", "format": "email"}),
        json!({"type": "string", "format": "date-time"}),
        json!({"type": "string", "format": "uri"}),
        json!({"type": "string", "pattern": "^[A-Z][a-z]+( [A-Z][a-z]+){0,3}$"}),
        json!({"type": "string", "minLength": 20, "maxLength": 2000}),
        json!({"type": "array", "items": {"type": "integer", "minimum": -123, "maximum": 987654}}),
    ] {
        assert_eq!(mended(&rules, usize::MAX), Ok(()), "{rules}");
    }
    // It must remember which of the last characters were vowels.
    let hostile = json!({"type": "string", "pattern": "^.*[aeiou].{200}$"});
    let (alone, error) = mended(&hostile, usize::MAX).expect_err("too much work");
    assert!(matches!(&error, StructureError::TooComplex(why) if why.contains("too long")), "{error}");
    // What counts is the work on one canvas.
    let (far, error) = mended(&hostile, 16).expect_err("too many states");
    assert!(far > alone, "{far} {alone}");
    assert!(matches!(&error, StructureError::TooComplex(why) if why.contains("states")), "{error}");
}

/// Whether a value fits.
type Judge = fn(&Value) -> bool;

/// Schemas, judged by hand.
fn judged() -> Vec<(Value, Judge)> {
    vec![
        (json!({"type": "boolean"}), Value::is_boolean),
        (json!({"enum": ["Paris", "Rome", 3]}), |value| value == "Paris" || value == "Rome" || value == 3),
        (json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}), |value| {
            value.as_array().is_some_and(|items| (1..=3).contains(&items.len()) && items.iter().all(Value::is_boolean))
        }),
        (
            json!({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "string", "maxLength": 4}}, "required": ["a", "b"], "additionalProperties": false}),
            |value| value["a"].is_null() && value["b"].as_str().is_some_and(|text| text.chars().count() <= 4),
        ),
        (json!({"type": "integer", "minimum": 3, "maximum": 40}), |value| {
            value.as_i64().is_some_and(|number| (3..=40).contains(&number))
        }),
        (json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX}), |value| {
            value.is_i64() || value.as_f64() == Some(-0.0)
        }),
        (json!({"type": "integer", "minimum": 1u64 << 52, "maximum": u64::MAX}), |value| {
            value.as_u64().is_some_and(|number| number >= 1 << 52)
        }),
        (json!({"type": "number", "exclusiveMinimum": -1e300, "exclusiveMaximum": 1e300}), Value::is_number),
        (json!({"enum": [(1u64 << 53) - 1, 0.125, -1e-9]}), |value| {
            *value == (1u64 << 53) - 1 || *value == 0.125 || *value == -1e-9
        }),
        (json!({"type": "string", "maxLength": 6, "allOf": [{"pattern": "a"}, {"pattern": "b$"}]}), |value| {
            value.as_str().is_some_and(|text| text.contains('a') && text.ends_with('b') && text.chars().count() <= 6)
        }),
        (
            json!({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "patternProperties": {"^[xy]$": {"const": 5}}, "additionalProperties": false, "minProperties": 2, "maxProperties": 2}),
            |value| {
                value["a"].is_null()
                    && value.as_object().is_some_and(|map| map.len() == 2)
                    && value.to_string().contains('5')
            },
        ),
    ]
}

proptest! {
    /// Whatever is proposed, position by position: what comes out is JSON that fits, and ends, be it by one of the tokens
    /// that do that and are proposed too early.
    #[test]
    fn nonsense_becomes_what_fits(
        proposals in proptest::collection::vec(proptest::collection::vec(0u32..3072, 0..4), 60),
        which in 0..judged().len(),
    ) {
        let (schema, judge) = judged().swap_remove(which);
        let mut structure = structure(Form::Schema(schema.clone()), Instead::Nothing);
        let (mut text, ends) = (Vec::new(), ids("<turn|><eos><|tool_response>"));
        for proposed in proposals {
            text.extend(structure.mend(&text, &mut proposed.into_iter()).expect("something may follow"));
            prop_assert_eq!(structure.fits(&text), Ok(text.len()));
            if text.iter().any(|id| ends.contains(id)) {
                break;
            }
        }
        let end = text.pop();
        prop_assert!(end.is_some_and(|id| ends.contains(&id)), "{} is not at an end: {:?}", schema, plain().decode(&text));
        let value: Value = serde_json::from_str(&plain().decode(&text)).expect("JSON");
        prop_assert!(judge(&value), "{} does not fit {}", value, schema);
    }
}
