//! How far a schema may lead before it is refused, and that what is let through can be compiled.

use serde_json::{Value, json};

use super::calling::{may_be_called, weather};
use super::fixtures::plain;
use crate::prompt::{Form, Instead};

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
