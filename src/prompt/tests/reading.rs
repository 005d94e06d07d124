//! Answers to text.

use super::fixtures::{PLAIN, demo_tokenizer, text_with};
use crate::prompt::{Channel, Delta, Dialect, Opening};
use crate::scheduler::{FinishReason, Verdict};

fn ids(text: &str) -> Vec<u32> {
    demo_tokenizer().encode(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn a_thought_an_answer_and_a_call_are_told_apart() {
    let text = text_with(PLAIN);
    let answer = ids(
        "<|channel>thought\nHm.<channel|>Let me see.<|tool_call>call:now{tz:<|\"|>UTC}<|\"|>,n:[1,true]}<tool_call|><|tool_response>",
    );
    let mut gate = text.gate(Opening::Content, Dialect::Chat, &[]);
    let verdict = gate.commit(&answer);
    assert_eq!(verdict, Verdict::Finish { keep: answer.len(), reason: FinishReason::ToolCalls });
    let mut reader = text.reader(Opening::Content, Dialect::Chat, &[]);
    let deltas = reader.push(&answer);
    assert_eq!(
        deltas,
        vec![
            Delta::Reasoning("Hm.".into()),
            Delta::Content("Let me see.".into()),
            Delta::ToolCall { name: "now".into(), arguments: r#"{"tz":"UTC}","n":[1,true]}"#.into() },
        ]
    );
    assert_eq!(reader.channels().len(), answer.len());
    assert_eq!(reader.channels()[0], Channel::Marker);
    assert!(reader.finish().is_empty());
}
