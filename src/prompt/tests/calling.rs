//! Calls that must be made: the language of their arguments, and what is put down where the model would write something else.

use serde_json::{Value, json};

use super::fixtures::ids;
use super::structure::{fit, fits, fits_to, mend, structure};
use crate::prompt::{CalledTool, Form, Instead};

pub(super) fn weather(parameters: Value) -> Form {
    Form::Call(vec![CalledTool { name: "weather".to_owned(), parameters }])
}

/// Whether a call with these arguments is one that the tool's parameters allow; there are no spaces in it.
pub(super) fn may_be_called(parameters: &Value, arguments: &str) -> bool {
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
fn a_call_is_no_longer_or_deeper_than_is_read() {
    let any = json!({});
    let nested = |levels: usize| format!("{{a:{}{}}}", "[".repeat(levels), "]".repeat(levels));
    assert!(may_be_called(&any, &nested(31)));
    assert!(!may_be_called(&any, &nested(32)));
    let of = |kind: &str| json!({"properties": {"a": {"type": kind}}, "required": ["a"]});
    for good in ["1234567890123456789", "-1234567890123456789", "0"] {
        assert!(may_be_called(&of("integer"), &format!("{{a:{good}}}")), "{good}");
    }
    for good in ["-0.123456789012345678e-99", "1e99", "1234567890123456789.5"] {
        assert!(may_be_called(&of("number"), &format!("{{a:{good}}}")), "{good}");
    }
    for bad in ["12345678901234567890", "1e400", "0.1234567890123456789"] {
        assert!(!may_be_called(&of("number"), &format!("{{a:{bad}}}")), "{bad}");
        assert!(!may_be_called(&of("integer"), &format!("{{a:{bad}}}")), "{bad}");
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
