//! Answers to text, thoughts and calls.

use proptest::prelude::*;

use super::fixtures::{demo_tokenizer, ids, plain};
use crate::prompt::{CallableTools, Channel, Delta, Dialect, Opening, Rules, StopStrings, Text};
use crate::scheduler::{FinishReason, Verdict};

/// What a client ends up with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Answer {
    reasoning: String,
    content: String,
    calls: Vec<(String, String)>,
}

impl Answer {
    fn add(&mut self, deltas: Vec<Delta>) {
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => self.reasoning.push_str(&text),
                Delta::Content(text) => self.content.push_str(&text),
                Delta::ToolCall { name, arguments } => self.calls.push((name, arguments)),
            }
        }
    }
}

/// How an answer is asked for.
#[derive(Clone, Copy)]
struct Ask<'a> {
    opening: Opening,
    dialect: Dialect,
    stop: &'a [&'a str],
}

const CHAT: Ask = Ask { opening: Opening::Content, dialect: Dialect::Chat, stop: &[] };

/// Reads canvases as server and client do: the gate says how much belongs to the answer, the reader gets that.
fn read(text: &Text, ask: Ask, canvases: &[&[u32]]) -> (Answer, Option<FinishReason>, usize) {
    let stop = StopStrings::new(ask.stop);
    let mut gate = text.gate(ask.opening, ask.dialect, Rules { stop: Some(&stop), ..Rules::default() });
    let mut reader = text.reader(ask.opening, ask.dialect, Rules { stop: Some(&stop), ..Rules::default() });
    let (mut answer, mut reason, mut kept, mut told) = (Answer::default(), None, 0, 0);
    for canvas in canvases {
        let keep = match gate.commit(canvas) {
            Verdict::Continue => canvas.len(),
            Verdict::Finish { keep, reason: why } => {
                reason = Some(why);
                keep
            }
        };
        kept += keep;
        answer.add(reader.push(&canvas[..keep]));
        told += reader.channels().len();
        if reason.is_some() {
            break;
        }
    }
    answer.add(reader.finish());
    assert_eq!(told + reader.channels().len(), kept);
    assert!(reader.push(&ids("more")).is_empty() && reader.finish().is_empty());
    (answer, reason, kept)
}

fn answer(spelled: &str) -> (Answer, Option<FinishReason>, usize) {
    read(plain(), CHAT, &[&ids(spelled)])
}

fn content(spelled: &str) -> String {
    let (answer, ..) = answer(spelled);
    assert_eq!((answer.reasoning, answer.calls), (String::new(), vec![]), "{spelled}");
    answer.content
}

#[test]
fn thoughts_go_to_their_own_channel() {
    for (spelled, reasoning, said) in [
        ("<|channel>thought\nHm.<channel|>Yes.<turn|>", "Hm.", "Yes."),
        ("<|channel>thought\n<channel|>Yes.<turn|>", "", "Yes."),
        ("<|channel>thought\n \n<channel|>Yes.<turn|>", "", "Yes."),
        ("<|channel>thought<channel|>Yes.", "", "Yes."),
        ("<|channel><channel|>Yes.", "", "Yes."),
        ("<|channel>Hm, no title.<channel|>Yes.", "Hm, no title.", "Yes."),
        ("<|channel>thoughtful<channel|>Yes.", "thoughtful", "Yes."),
        ("<|channel>thought\n\n  Two lines\n after<channel|>Yes.", "\n  Two lines\n after", "Yes."),
        ("<|channel>thought\nUnclosed to the end.", "Unclosed to the end.", ""),
        ("<|channel>thought\nUnclosed.<turn|>", "Unclosed.", ""),
        ("<|channel>thought\nOne.<channel|>Yes.<|channel>thought\nTwo.<channel|> No.", "One.Two.", "Yes. No."),
        ("<|channel>thought\na<|channel>thought\nb<channel|>c", "ab", "c"),
        ("thought\n<channel|>Yes.", "", "Yes."),
        ("<channel|>Yes.", "", "Yes."),
        ("thought\nful", "", "thought\nful"),
        ("thought", "", "thought"),
        ("A thought\n<channel|>x", "", "A thought\nx"),
        ("<pad><bos><|turn>Yes.<pad><|image>", "", "Yes."),
    ] {
        let (answer, ..) = answer(spelled);
        assert_eq!(answer, Answer { reasoning: reasoning.into(), content: said.into(), calls: vec![] }, "{spelled}");
    }
}

#[test]
fn an_answer_that_starts_inside_a_thought_is_one() {
    let text = plain();
    let open = Ask { opening: Opening::Reasoning, ..CHAT };
    let (answer, reason, _) = read(text, open, &[&ids("Let me see.<channel|>Yes."), &ids(" And no.<turn|><eos>")]);
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("Let me see.", "Yes. And no."));
    assert_eq!(reason, Some(FinishReason::Stop));
    let (answer, ..) = read(text, open, &[&ids("thought\n"), &ids("Hm.")]);
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("Hm.", ""));
}

#[test]
fn calls_become_json_however_they_are_cut() {
    let spelled = "Let me look.<|tool_call>call:now{tz:<|\"|>UTC<|\"|>,deep:{list:[1,-2.5e3,true,false,null,<|\"|>}<|\"|>],\
        empty:{},none:[]}}<tool_call|>\n<|tool_call>call:ping{}<tool_call|><|tool_response>";
    let expected = Answer {
        content: "Let me look.".into(),
        calls: vec![
            (
                "now".into(),
                r#"{"tz":"UTC","deep":{"list":[1,-2.5e3,true,false,null,"}"],"empty":{},"none":[]}}"#.into(),
            ),
            ("ping".into(), "{}".into()),
        ],
        ..Answer::default()
    };
    let text = plain();
    let tokens = ids(spelled);
    for cut in 0..=tokens.len() {
        let (head, tail) = tokens.split_at(cut);
        let (answer, reason, kept) = read(text, CHAT, &[head, tail]);
        assert_eq!((answer, reason, kept), (expected.clone(), Some(FinishReason::ToolCalls), tokens.len()), "{cut}");
    }
}

#[test]
fn how_an_answer_with_calls_ends() {
    for (spelled, calls, reason) in [
        ("<|tool_call>call:f{}<tool_call|><turn|>", 1, Some(FinishReason::ToolCalls)),
        ("<|tool_call>call:f{}<tool_call|><eos>", 1, Some(FinishReason::ToolCalls)),
        ("<|tool_call>call:f{}<tool_call|>Done.<turn|>", 1, Some(FinishReason::ToolCalls)),
        ("<|tool_call>call:f{}<eos>", 1, Some(FinishReason::ToolCalls)),
        ("<|tool_call>call:f{}<tool_call|>", 1, None),
        ("<|tool_call>call:f{}<|tool_call>call:g{}<tool_call|><|tool_response>", 2, Some(FinishReason::ToolCalls)),
        ("<|tool_call>call:f{<turn|>", 0, Some(FinishReason::Stop)),
        ("<|tool_response>", 0, Some(FinishReason::Stop)),
        ("Hi<turn|>ignored<eos>", 0, Some(FinishReason::Stop)),
    ] {
        let (answer, ended, _) = answer(spelled);
        assert_eq!((answer.calls.len(), ended), (calls, reason), "{spelled}");
    }
}

#[test]
fn malformed_calls_are_shown_as_they_were_written() {
    for (inside, shown) in [
        ("call:f{a:}", "call:f{a:}"),
        ("call:f{a:1", "call:f{a:1"),
        ("call:f{a:<|\"|>open}", "call:f{a:\"open}"),
        ("call:f{a:UTC}", "call:f{a:UTC}"),
        ("call:f{a:1,}", "call:f{a:1,}"),
        ("call:f{:1}", "call:f{:1}"),
        ("call:f{a:[1}", "call:f{a:[1}"),
        ("call:f{a:01}", "call:f{a:01}"),
        ("call:f{a:1,b:2,'a':3}", "call:f{a:1,b:2,'a':3}"),
        ("call:f{a:[{b:1,<|\"|>b<|\"|>:2}]}", "call:f{a:[{b:1,\"b\":2}]}"),
        ("call:f{} more", "call:f{} more"),
        ("call:{}", "call:{}"),
        ("f{}", "f{}"),
        ("call:f", "call:f"),
        ("", ""),
    ] {
        assert_eq!(content(&format!("<|tool_call>{inside}<tool_call|><turn|>")), shown);
        assert_eq!(content(&format!("So: <|tool_call>{inside}")), format!("So: {shown}"));
    }
    let deep = format!("call:f{{a:{}", "[".repeat(5000));
    assert_eq!(content(&format!("<|tool_call>{deep}<tool_call|>")), deep);
}

#[test]
fn strings_in_calls_are_verbatim() {
    let inside = "call:write{text:<|\"|>{\"a\": [1, \\\"x\\\"]}\n\t, call:g{} 日本 \u{0}é<|\"|>,<|\"|>quoted key:<|\"|>: \
        \"json \\u0041\" , b : true }";
    let (answer, ..) = answer(&format!("<|tool_call>{inside}<tool_call|>"));
    let (name, arguments) = &answer.calls[0];
    let arguments: serde_json::Value = serde_json::from_str(arguments).unwrap();
    assert_eq!(name, "write");
    let text = "{\"a\": [1, \\\"x\\\"]}\n\t, call:g{} 日本 \u{0}é";
    assert_eq!(arguments, serde_json::json!({"text": text, "quoted key:": "json A", "b": true}));
}

#[test]
fn single_quotes_and_pythons_words_are_read() {
    for (inside, arguments) in [
        (
            "{tags:['x', 'y z'],all:True,none:None,no:False}",
            r#"{"tags":["x","y z"],"all":true,"none":null,"no":false}"#,
        ),
        (r#"{'key':'say "hi", it\'s {1}'}"#, r#"{"key":"say \"hi\", it's {1}"}"#),
        (r#"{"key":"it's \'so\'\u0041\n"}"#, r#"{"key":"it's 'so'A\n"}"#),
        ("{'':''}", r#"{"":""}"#),
        ("{a:{a:1},b:[{a:1},{a:2}]}", r#"{"a":{"a":1},"b":[{"a":1},{"a":2}]}"#),
    ] {
        let (answer, ..) = answer(&format!("<|tool_call>call:f{inside}<tool_call|>"));
        assert_eq!(answer.calls, [("f".into(), arguments.into())], "{inside}: {answer:?}");
    }
    for inside in ["{a:'open}", "{a:'x\"}", "{a:'<|\"|>x'}", "{a:TRUE}", "{a:'\\q'}"] {
        let (answer, ..) = answer(&format!("<|tool_call>call:f{inside}<tool_call|>"));
        assert!(answer.calls.is_empty() && answer.content.starts_with("call:f{"), "{inside}: {answer:?}");
    }
}

#[test]
fn without_tools_a_call_is_content() {
    let text = plain();
    let ask = Ask { dialect: Dialect::ChatWithoutTools, ..CHAT };
    let (answer, reason, _) = read(text, ask, &[&ids("<|tool_call>call:f{}<tool_call|><turn|>")]);
    assert_eq!((answer.content.as_str(), answer.calls.len()), ("call:f{}", 0));
    assert_eq!(reason, Some(FinishReason::Stop));
}

#[test]
fn space_around_calls_is_not_content() {
    let (answer, ..) = answer("\n<|tool_call>call:f{}<tool_call|>\n \n<|tool_call>call:g{}<tool_call|>\n<turn|>");
    assert_eq!((answer.content.as_str(), answer.calls.len()), ("", 2));
    assert_eq!(content("\n \n<turn|>"), "\n \n");
    assert_eq!(content("\n Hi \n<turn|>"), "\n Hi \n");
}

#[test]
fn text_that_looks_like_markers_is_text() {
    let tokenizer = demo_tokenizer();
    let mut bare = tokenizer.clone();
    bare.set_encode_special_tokens(true);
    let spelled = "<|channel>thought\nx<channel|> <|tool_call>call:f{}<tool_call|> <turn|> <eos>";
    let tokens = bare.encode(spelled, false).unwrap().get_ids().to_vec();
    let (answer, reason, _) = read(plain(), CHAT, &[&tokens]);
    assert_eq!((answer.content.as_str(), reason), (spelled, None));
}

#[test]
fn a_plain_continuation_has_no_channels() {
    let text = plain();
    let ask = Ask { dialect: Dialect::Raw, ..CHAT };
    let (answer, reason, _) =
        read(text, ask, &[&ids(" thought\n<|channel>a<channel|>\n<|tool_call>call:f{}<tool_call|>b<eos>c")]);
    assert_eq!((answer.content.as_str(), reason), (" thought\na\ncall:f{}b", Some(FinishReason::Stop)));
    assert!(answer.reasoning.is_empty() && answer.calls.is_empty());
}

#[test]
fn stop_strings_cut_the_content_and_count_up_to_themselves() {
    let text = plain();
    let tokens = ids("One, two, three.<turn|>");
    let stop = Ask { stop: &["two", "three"], ..CHAT };
    for cut in 0..tokens.len() {
        let (head, tail) = tokens.split_at(cut);
        let (answer, reason, kept) = read(text, stop, &[head, tail]);
        assert_eq!((answer.content.as_str(), reason), ("One, ", Some(FinishReason::Stop)));
        assert!(text.decode(&tokens[..kept]).contains("two") && !text.decode(&tokens[..kept - 1]).contains("two"));
    }
    let (answer, reason, _) = read(text, Ask { stop: &["three!", ".."], ..CHAT }, &[&tokens[..tokens.len() - 1]]);
    assert_eq!((answer.content.as_str(), reason), ("One, two, three.", None), "what was held back is given out");
    let thought = ids("<|channel>thought\ntwo<channel|>One, two<turn|>");
    let (answer, ..) = read(text, stop, &[&thought]);
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("two", "One, "), "thoughts are not searched");
    let (answer, reason, _) = read(text, Ask { stop: &["\n"], ..CHAT }, &[&ids("\n\nHi")]);
    assert_eq!((answer.content.as_str(), reason), ("", Some(FinishReason::Stop)));
}

#[test]
fn drafts_show_what_the_canvas_would_say() {
    let text = plain();
    let stop = StopStrings::new(&["END"]);
    let mut reader = text.reader(Opening::Content, Dialect::Chat, Rules { stop: Some(&stop), ..Rules::default() });
    let draft = |reader: &crate::prompt::TextReader, spelled: &str| {
        let draft = reader.draft(&ids(spelled));
        (draft.channel, draft.text)
    };
    assert_eq!(draft(&reader, ""), (Channel::Content, String::new()));
    assert_eq!(draft(&reader, "<|channel>thought\nHm"), (Channel::Reasoning, "Hm".into()));
    assert_eq!(draft(&reader, "<|channel>thought\nHm<channel|>Yes"), (Channel::Content, "Yes".into()));
    assert_eq!(draft(&reader, "Yes E"), (Channel::Content, "Yes E".into()));
    assert_eq!(draft(&reader, "Yes END no"), (Channel::Content, "Yes ".into()));
    assert_eq!(draft(&reader, "Yes<eos>no<eos>"), (Channel::Content, "Yes".into()));
    assert_eq!(draft(&reader, "<|tool_call>call:f{a"), (Channel::Tool, "call:f{a".into()));
    assert_eq!(draft(&reader, "<|tool_call>call:f{}<tool_call|>"), (Channel::Tool, "f{}".into()));
    reader.push(&ids("<|tool_call>call:f{a:"));
    assert_eq!(draft(&reader, "12"), (Channel::Tool, "12".into()), "only this canvas's part");
    assert_eq!(draft(&reader, "1}<tool_call|>Yes"), (Channel::Content, "Yes".into()));
    reader.push(&ids("1}<tool_call|>Yes"));
    assert_eq!(draft(&reader, "."), (Channel::Content, ".".into()));
}

/// Tokens with many markers and bytes among them.
pub(super) fn tokens() -> impl Strategy<Value = Vec<u32>> {
    let spelled = [
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|\"|>",
        "thought",
        "\n",
        "call",
        ":",
        "f",
        "{",
        "}",
        "a",
        ",",
        "1",
        "[",
        "]",
        "true",
        " ",
        "STOP",
        "ST",
        "OP",
        "the",
        " Paris",
        "日",
        "é",
        "<pad>",
        "<|turn>",
        "\u{0}",
        "\"",
        "'",
        "True",
        "\\",
    ];
    let known: Vec<u32> = spelled.iter().flat_map(|spelled| ids(spelled)).collect();
    let ends = ids("<eos><turn|><|tool_response>");
    let token = prop_oneof![
        12 => prop::sample::select(known),
        2 => 0..2600u32,
        1 => prop::sample::select(ends),
    ];
    prop::collection::vec(token, 0..40)
}

#[test]
fn text_before_a_call_does_not_depend_on_stop_strings() {
    let text = plain();
    let call = "<|tool_call>call:weather{}<tool_call|>";
    for (answer, stop, content, why) in [
        (format!("Sure.\n{call}<turn|>"), &["\n\n"][..], "Sure.\n", FinishReason::ToolCalls),
        (format!("Sure.\n{call}<turn|>"), &[], "Sure.\n", FinishReason::ToolCalls),
        (format!("Sure. AB{call}<turn|>"), &["ABC"], "Sure. AB", FinishReason::ToolCalls),
        (format!("AB{call}AD<turn|>"), &["ABC"], "ABAD", FinishReason::ToolCalls),
        (format!("\n{call}<turn|>"), &["\n\n"], "", FinishReason::ToolCalls),
        // What stands on both sides of a call is a stop string all the same.
        (format!("AB{call}CD<turn|>"), &["ABC"], "AB", FinishReason::Stop),
    ] {
        let tokens = ids(&answer);
        let (read, reason, _) = read(text, Ask { stop, ..CHAT }, &[&tokens]);
        assert_eq!((read.content.as_str(), read.calls.len(), reason), (content, 1, Some(why)), "{answer} {stop:?}");
        // Held text comes before the call.
        let stop = StopStrings::new(stop);
        let mut reader = text.reader(Opening::Content, Dialect::Chat, Rules { stop: Some(&stop), ..Rules::default() });
        let deltas = reader.push(&tokens);
        let calls = deltas.iter().position(|delta| matches!(delta, Delta::ToolCall { .. }));
        assert_eq!(calls, Some(usize::from(content.starts_with(['S', 'A']))), "{deltas:?}");
    }
}

#[test]
fn a_call_that_the_offered_tools_do_not_admit_is_content() {
    let text = plain();
    let mut tools = CallableTools::default();
    let schema = serde_json::json!({"properties": {"city": {"type": "string"}}, "required": ["city"]});
    tools.insert_strict("weather", schema.as_object()).unwrap();
    tools.insert("lenient");
    let tools = std::sync::Arc::new(tools);
    let rules = Rules { callable: Some(&tools), ..Rules::default() };
    for (call, is_call) in [
        ("call:weather{city:<|\"|>Rome<|\"|>}", true),
        ("call:weather{city:1}", false),
        ("call:weather{}", false),
        ("call:lenient{}", true),
        ("call:lenient{city:1}", true),
        ("call:other{}", false),
        ("call:Lenient{}", false),
    ] {
        let tokens = ids(&format!("<|tool_call>{call}<tool_call|><turn|>"));
        let reason = match text.gate(Opening::Content, Dialect::Chat, rules).commit(&tokens) {
            Verdict::Finish { reason, .. } => reason,
            Verdict::Continue => panic!("{call} does not end"),
        };
        assert_eq!(reason == FinishReason::ToolCalls, is_call, "{call}");
        let mut answer = Answer::default();
        let mut reader = text.reader(Opening::Content, Dialect::Chat, rules);
        answer.add(reader.push(&tokens));
        answer.add(reader.finish());
        assert_eq!((answer.calls.len(), answer.content.is_empty()), (usize::from(is_call), is_call), "{call}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn how_tokens_are_grouped_changes_nothing(
        tokens in tokens(), cuts in prop::collection::vec(0..40usize, 0..4), stops in prop::bool::ANY, way in 0..4usize,
    ) {
        let text = plain();
        let (opening, dialect) = [
            (Opening::Content, Dialect::Chat), (Opening::Reasoning, Dialect::Chat),
            (Opening::Content, Dialect::ChatWithoutTools), (Opening::Content, Dialect::Raw),
        ][way];
        let ask = Ask { opening, dialect, stop: if stops { &["STOP", "Paris\n"] } else { &[] } };
        let whole = read(text, ask, &[&tokens]);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(tokens.len())).collect();
        cuts.extend([0, tokens.len()]);
        cuts.sort_unstable();
        let canvases: Vec<&[u32]> = cuts.windows(2).map(|cut| &tokens[cut[0]..cut[1]]).collect();
        prop_assert_eq!(&read(text, ask, &canvases), &whole);
        let singles: Vec<&[u32]> = tokens.chunks(1).collect();
        prop_assert_eq!(&read(text, ask, &singles), &whole);
        for (name, arguments) in &whole.0.calls {
            prop_assert!(!name.is_empty() && dialect == Dialect::Chat);
            prop_assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(arguments).is_ok());
        }
        if stops {
            prop_assert!(!whole.0.content.contains("STOP"));
        }
        // No single token of the alphabet spells part of a marker, so none can be in the text.
        for marker in ["<|", "|>", "<eos>", "<pad>"] {
            prop_assert!(tokens.iter().any(|id| (20..276).contains(id) || text.token_bytes(*id).iter().any(|b| b"<|>".contains(b)))
                || !whole.0.content.contains(marker), "{:?}", whole.0);
        }
    }

    #[test]
    fn a_draft_says_what_the_canvas_would_say(before in tokens(), canvas in tokens()) {
        let text = plain();
        let mut reader = text.reader(Opening::Content, Dialect::Chat, Rules::default());
        reader.push(&before);
        let draft = reader.draft(&canvas);
        prop_assert_eq!(&draft, &reader.draft(&canvas), "a draft changes nothing");
        let mut answer = Answer::default();
        answer.add(reader.push(&canvas));
        if draft.channel == Channel::Reasoning {
            prop_assert!(answer.content.trim().is_empty());
            prop_assert!(draft.text.starts_with(&answer.reasoning));
        }
        if draft.channel == Channel::Content && answer.calls.is_empty() {
            prop_assert!(draft.text.starts_with(&answer.content), "{:?} {:?}", draft, answer);
        }
    }
}
