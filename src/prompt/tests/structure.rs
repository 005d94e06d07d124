//! Answers held to a schema, or to a call: what fits, what is put in the place of what does not, and where an answer may end.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixtures::{ids, plain};
use crate::prompt::{CalledTool, Form, Instead, Opening};
use crate::scheduler::Structure;

const PERSON: &str = r#"{"name": "Anna", "age": 30}"#;

fn person() -> Form {
    let properties = json!({"name": {"type": "string"}, "age": {"type": "integer"}});
    Form::Schema(
        json!({"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": false}),
    )
}

fn structure(form: Form, instead: Instead) -> Box<dyn Structure> {
    plain().blueprint(form, instead).expect("the schema is understood").structure(Opening::Content)
}

fn fits(structure: &mut dyn Structure, text: &str) -> (usize, usize) {
    let ids = ids(text);
    (structure.fits(&ids).expect("it can be followed"), ids.len())
}

#[track_caller]
fn fit(structure: &mut dyn Structure, text: &str) {
    let (fit, length) = fits(structure, text);
    assert_eq!(fit, length, "{text:?}");
}

/// Asserts that the text fits up to there, and no further.
#[track_caller]
fn fits_to(structure: &mut dyn Structure, good: &str, rest: &str) {
    let (fit, length) = fits(structure, &format!("{good}{rest}"));
    assert_eq!((fit, fit < length), (ids(good).len(), true), "{good:?} {rest:?}");
}

/// What is put behind this text when nothing is proposed, as text.
fn mend(structure: &mut dyn Structure, before: &str, proposed: &str) -> String {
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

#[test]
fn a_call_may_take_the_contents_place_where_tools_are_offered() {
    let call = "<|tool_call>call:weather{city:<|\"|>Paris<|\"|>}<tool_call|><|tool_response>";
    fit(&mut *structure(person(), Instead::Calls), call);
    fits_to(&mut *structure(person(), Instead::Nothing), "", call);
    fits_to(&mut *structure(person(), Instead::Calls), r#"{"name": "#, call);
}

fn weather(parameters: Value) -> Form {
    Form::Call(vec![CalledTool { name: "weather".to_owned(), parameters }])
}

/// Whether a call with these arguments is one that the tool's parameters allow; there are no spaces in it.
fn may_be_called(parameters: &Value, arguments: &str) -> bool {
    let mut call = structure(weather(parameters.clone()), Instead::Nothing);
    let (fit, length) = fits(&mut *call, &format!("<|tool_call>call:weather{arguments}<tool_call|><|tool_response>"));
    fit == length
}

#[test]
fn a_call_that_must_be_made_is_put_down_as_far_as_it_is_certain() {
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let mut call = structure(weather(city), Instead::Nothing);
    let opened = "<|tool_call>call:weather{city:<|\"|>";
    assert_eq!(mend(&mut *call, "", "The capital"), opened);
    fits_to(&mut *call, "", "The capital");
    fits_to(&mut *call, "", "<turn|>");
    fits_to(&mut *call, "<|tool_call>call:", "story");
    fits_to(&mut *call, &format!("{opened}Paris"), "<turn|>");
    assert_eq!(mend(&mut *call, &format!("{opened}Paris"), "<turn|><|\"|>"), "<|\"|>}<tool_call|>");
    fit(&mut *call, &format!("{opened}Paris, or {{Rome}}<|\"|>}}<tool_call|><|tool_response>"));
    // A thought before it is free, and so is what follows.
    fit(
        &mut *call,
        &format!("<|channel>thought\nI call.\n<channel|>{opened}Paris<|\"|>}}<tool_call|>The capital<turn|>"),
    );
    // Canvas by canvas.
    let ids = ids(&format!("{opened}Paris<|\"|>}}<tool_call|><|tool_response>"));
    for (at, &token) in ids.iter().enumerate() {
        assert_eq!(call.fits(&ids[at..]).expect("followed"), ids.len() - at);
        call.commit(&[token]).expect("it fits");
    }
}

#[test]
fn the_arguments_of_a_call_are_of_the_types_that_its_tool_declares() {
    let of = |schema: Value| json!({"type": "object", "properties": {"a": schema}, "required": ["a"]});
    for (schema, good, bad) in [
        (json!({"type": "integer"}), vec!["0", "-12"], vec!["01", "-0", "1.5", "true", "<|\"|>1<|\"|>"]),
        (json!({"type": "number"}), vec!["0", "-1.50e+3"], vec![".5", "x"]),
        (json!({"type": "boolean"}), vec!["true", "false"], vec!["True", "null"]),
        (
            json!({"type": ["null", "string"]}),
            vec!["null", "<|\"|><|\"|>", "<|\"|>a\nb<|\"|>"],
            vec!["1", "a", "\"a\""],
        ),
        (json!({"enum": ["x y", 3, null]}), vec!["<|\"|>x y<|\"|>", "3", "null"], vec!["<|\"|>x<|\"|>", "4"]),
        (
            json!({"const": {"b": [1, "x"], "A": {}}}),
            vec!["{A:{},b:[1,<|\"|>x<|\"|>]}"],
            vec!["{b:[1,<|\"|>x<|\"|>],A:{}}"],
        ),
        (
            json!({"type": "array", "items": {"type": "integer"}}),
            vec!["[]", "[1]", "[1,2]"],
            vec!["[1,]", "[true]", "1"],
        ),
        (json!({"anyOf": [{"type": "integer"}, {"type": "array"}]}), vec!["1", "[1,{a:[]}]"], vec!["true"]),
        (json!({}), vec!["1", "{}", "{x:1,y_z:{a:<|\"|>{<|\"|>}}", "[true,null]"], vec!["", "x", "{1:2}"]),
    ] {
        let parameters = of(schema);
        for value in good {
            assert!(may_be_called(&parameters, &format!("{{a:{value}}}")), "{parameters} {value}");
        }
        for value in bad {
            assert!(!may_be_called(&parameters, &format!("{{a:{value}}}")), "{parameters} {value}");
        }
    }
}

#[test]
fn the_keys_of_a_call_are_those_that_its_tool_declares_in_alphabetical_order() {
    let any = json!({});
    for arguments in ["{}", "{a:1}", "{a:1,b:<|\"|>x<|\"|>}"] {
        assert!(may_be_called(&any, arguments), "{arguments}");
    }
    let integer = json!({"type": "integer"});
    let parameters = json!({
        "properties": {"b": integer, "C": integer, "a b": integer, "a": integer, "": integer},
        "required": ["C", "z"],
    });
    for good in ["{C:1,z:2}", "{a:0,C:1,z:<|\"|>x<|\"|>}", "{<|\"|><|\"|>:1,a:2,<|\"|>a b<|\"|>:3,b:4,C:5,z:[]}"] {
        assert!(may_be_called(&parameters, good), "{good}");
    }
    for bad in ["{}", "{C:1}", "{C:1,}", "{,C:1,z:2}", "{C:1,b:2,z:3}", "{C:1,z:2,q:3}", "{C:1,C:1,z:2}", "{C: 1,z:2}"]
    {
        assert!(!may_be_called(&parameters, bad), "{bad}");
    }
    let tree = json!({
        "properties": {"tree": {"$ref": "#/$defs/tree"}},
        "required": ["tree"],
        "$defs": {"tree": {"properties": {"leaf": integer, "twigs": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}},
    });
    assert!(may_be_called(&tree, "{tree:{leaf:1,twigs:[{},{twigs:[{leaf:2}]}]}}"));
    assert!(!may_be_called(&tree, "{tree:{leaf:1,twigs:[{leaf:{}}]}}"));
}

/// A schema whose references are a chain: `link` says what a definition is that refers to another, `name` what each is called.
fn chain(links: usize, name: impl Fn(usize) -> String, link: impl Fn(Value) -> Value) -> Value {
    let reference = |at: usize| json!({"$ref": format!("#/$defs/{}", name(at))});
    let mut definitions: serde_json::Map<String, Value> =
        (0..links).map(|at| (name(at), link(reference(at + 1)))).collect();
    definitions.insert(name(links), json!({"type": "integer"}));
    json!({"properties": {"a": reference(0)}, "required": ["a"], "$defs": definitions})
}

#[track_caller]
fn assert_survived(schema: Value) {
    for form in [weather(schema.clone()), Form::Schema(schema)] {
        if let Err(error) = plain().blueprint(form, Instead::Nothing) {
            assert!(!error.to_string().contains("too far"), "{error}");
        }
    }
}

#[track_caller]
fn assert_too_far(form: Form) {
    let error = plain().blueprint(form, Instead::Nothing).map(drop).expect_err("too far");
    assert!(error.to_string().contains("it leads too far"), "{error}");
}

#[test]
fn references_may_be_a_long_chain_or_a_circle() {
    let plainly = |at: usize| format!("d{at}");
    let itself = |further: Value| further;
    // As long as is let through: what is done with it must not run out of stack. Longer ones are refused.
    assert_survived(chain(2_400, plainly, itself));
    assert_survived(chain(1_600, plainly, |further| json!({"items": further})));
    assert_survived(chain(1_600, plainly, |further| json!({"type": "array", "items": further})));
    assert_survived(chain(1_200, plainly, |further| json!({"anyOf": [further, {"type": "null"}]})));
    let keyed = |further: Value| json!({"properties": {"a": true, "b": true, "c": true, "d": further, "e": true}});
    assert_survived(chain(1_200, plainly, keyed));
    let merged = |further: Value| json!({"type": "object", "properties": {"a": {}}, "$ref": further["$ref"]});
    assert_survived(chain(1_600, plainly, merged));
    let names: [fn(usize) -> String; 3] = [|at| format!("d{at}"), |at| format!("~1{at}"), |at| format!("~0{at}")];
    for name in names {
        assert_too_far(Form::Schema(chain(4_000, name, itself)));
        assert_too_far(weather(chain(3_000, name, |further| json!({"anyOf": [further]}))));
        assert_too_far(Form::Schema(chain(48_000, name, itself)));
    }
    // What a standard pointer finds is not what the library follows.
    let mut decoys = chain(1_900, |at| format!("d~1{at}"), itself);
    for at in 0..=1_900 {
        decoys["$defs"][format!("d/{at}")] = json!(true);
    }
    assert_too_far(Form::Schema(decoys));
    let circle = json!({
        "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"], "$defs": {"a": {"$ref": "#/$defs/a"}},
    });
    assert!(may_be_called(&circle, "{a:{b:1}}"));
}

#[test]
fn what_comes_back_to_itself_through_alternatives_alone_is_any_value() {
    let of = |a: Value, b: Value| {
        let root = json!({"$ref": "#/$defs/a"});
        json!({"properties": {"x": root}, "required": ["x"], "$defs": {"a": a, "b": b}})
    };
    let [to_a, to_b] = ["a", "b"].map(|name| json!({"$ref": format!("#/$defs/{name}")}));
    let nowhere = of(json!({"anyOf": [to_a, {"oneOf": [to_b]}]}), json!({"anyOf": [to_a, to_b]}));
    assert!(may_be_called(&nowhere, "{x:1}") && may_be_called(&nowhere, "{x:[true]}"));
    let somewhere = of(json!({"anyOf": [to_a, to_b]}), json!({"anyOf": [to_a, {"type": "integer"}]}));
    assert!(may_be_called(&somewhere, "{x:1}") && !may_be_called(&somewhere, "{x:true}"));
    // Arguments are an object even so.
    let object = json!({"type": "object", "anyOf": [{"$ref": "#"}]});
    assert!(may_be_called(&object, "{x:1}") && !may_be_called(&object, "1"));
}

#[test]
fn objects_may_have_many_keys() {
    let keys = |count: usize| (0..count).map(|key| format!("a{key}")).collect::<Vec<_>>();
    let object = |count: usize, value: Value| {
        let properties: serde_json::Map<String, Value> =
            keys(count).into_iter().map(|key| (key, value.clone())).collect();
        json!({"type": "object", "properties": properties, "additionalProperties": false})
    };
    assert_survived(object(4_500, json!({})));
    assert_survived(object(4_500, json!(true)));
    assert_survived(json!({"type": "object", "required": keys(4_500)}));
    for count in [6_000, 450_000] {
        assert_too_far(weather(object(count, json!(true))));
        assert_too_far(Form::Schema(object(count, json!(true))));
    }
    // All of them, in their order.
    let parameters = object(300, json!({"type": "integer"}));
    let mut order = keys(300);
    order.sort();
    let pairs: Vec<String> = order.iter().map(|key| format!("{key}:1")).collect();
    assert!(may_be_called(&parameters, &format!("{{{}}}", pairs.join(","))));
    assert!(may_be_called(&parameters, "{a7:1,a99:2}") && !may_be_called(&parameters, "{a99:1,a7:2}"));
    assert!(!may_be_called(&parameters, "{a7:1,}") && !may_be_called(&parameters, "{,a7:1}"));
}

#[test]
fn lists_of_lists_and_types_named_twice_are_no_explosion() {
    let nested = |kind: Value| {
        let lists = (0..25).fold(json!({"type": "integer"}), |items, _| json!({"type": kind, "items": items}));
        json!({"properties": {"a": lists}, "required": ["a"]})
    };
    for kind in [json!("array"), json!(["array", "array", "array"])] {
        let parameters = nested(kind);
        let value = format!("{}1{}", "[".repeat(25), "]".repeat(25));
        assert!(may_be_called(&parameters, &format!("{{a:{value}}}")));
        assert!(!may_be_called(&parameters, &format!("{{a:[{value}]}}")));
    }
}

#[test]
fn the_alternatives_beside_an_objects_keys_do_not_replace_it() {
    let text = json!({"type": "string"});
    let either = json!([{"required": ["city"]}, {"required": ["zip"]}]);
    let place = |kind: &str| json!({"type": "object", "properties": {"city": text, "zip": text}, kind: either});
    for parameters in [place("anyOf"), place("oneOf"), place("allOf"), json!({"type": "object", "anyOf": either})] {
        assert!(may_be_called(&parameters, "{city:<|\"|>Rome<|\"|>}"), "{parameters}");
        for bad in ["67.37", "<|\"|>Rome<|\"|>", "[]", "null"] {
            assert!(!may_be_called(&parameters, bad), "{parameters} {bad}");
        }
    }
    assert!(!may_be_called(&place("anyOf"), "{city:1}"));
    let inside = json!({"properties": {"place": place("anyOf")}, "required": ["place"]});
    assert!(may_be_called(&inside, "{place:{zip:<|\"|>1<|\"|>}}"));
    assert!(!may_be_called(&inside, "{place:1}") && !may_be_called(&inside, "{place:{street:1}}"));
    // Alternatives that are all objects are the arguments; where one may be something else, any object is.
    let one = json!({"properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let defs = json!({"one": one, "other": {"type": "object", "properties": {"t": text}}});
    let objects = json!([{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/other"}]);
    for union in [json!({"anyOf": objects, "$defs": defs}), json!({"type": "object", "oneOf": objects, "$defs": defs})]
    {
        assert!(may_be_called(&union, "{n:1}") && may_be_called(&union, "{}"), "{union}");
        assert!(!may_be_called(&union, "{n:<|\"|>x<|\"|>}") && !may_be_called(&union, "1"), "{union}");
    }
    for loose in [
        json!({"anyOf": [one, {"type": "integer"}]}),
        json!({"anyOf": []}),
        json!({"enum": [1, {}]}),
        json!({"$ref": "#/x", "x": {"const": 1}}),
    ] {
        assert!(may_be_called(&loose, "{n:1}") && !may_be_called(&loose, "1"), "{loose}");
    }
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
    ] {
        let error = plain().blueprint(Form::Schema(schema.clone()), Instead::Nothing).err();
        let error = error.unwrap_or_else(|| panic!("{schema} is taken")).to_string();
        assert!(error.contains(word), "{schema}: {error}");
    }
}

#[test]
fn a_schema_that_leads_in_circles_comes_to_an_end() {
    let node = json!({"type": "object", "properties": {"n": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["n"], "additionalProperties": false});
    let mut tree = structure(Form::Schema(json!({"$ref": "#/$defs/node", "$defs": {"node": node}})), Instead::Nothing);
    fit(&mut *tree, r#"{"n": {"n": {"n": null}}}<turn|>"#);
    fits_to(&mut *tree, r#"{"n": {"n": null}"#, "<turn|>");
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
    ]
}

proptest! {
    /// Whatever is proposed, position by position: what comes out is JSON that fits, and ends.
    #[test]
    fn nonsense_becomes_what_fits(
        proposals in proptest::collection::vec(proptest::collection::vec(0u32..3072, 0..4), 60),
        which in 0usize..5,
    ) {
        let (schema, judge) = judged().swap_remove(which);
        let mut structure = structure(Form::Schema(schema.clone()), Instead::Nothing);
        let (mut text, ends) = (Vec::new(), ids("<turn|><eos>"));
        for proposed in proposals {
            let proposed = proposed.into_iter().filter(|id| !ends.contains(id));
            text.extend(structure.mend(&text, &mut proposed.into_iter()).expect("something may follow"));
            prop_assert_eq!(structure.fits(&text), Ok(text.len()));
            if text.contains(&ends[0]) {
                break;
            }
        }
        let written = plain().decode(&text);
        let written = written.strip_suffix("<turn|>");
        prop_assert!(written.is_some(), "{} is not at an end: {:?}", schema, plain().decode(&text));
        let value: Value = serde_json::from_str(written.unwrap_or_default()).expect("JSON");
        prop_assert!(judge(&value), "{} does not fit {}", value, schema);
    }
}
