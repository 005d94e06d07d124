//! What each token of an answer belongs to.

use proptest::prelude::*;

use super::fixtures::{ids, plain};
use super::reading::tokens;
use crate::prompt::{Channel, Delta, Dialect, Opening, Rules, StopStrings, TextReader};

/// What the tokens of these pieces belong to, one after the other, and the content they make.
fn told(mut reader: TextReader, pieces: &[&[u32]]) -> (Vec<Channel>, String) {
    let (mut channels, mut content) = (Vec::new(), String::new());
    let mut add = |reader: &TextReader, deltas: Vec<Delta>| {
        channels.extend_from_slice(reader.channels());
        for delta in deltas {
            if let Delta::Content(text) = delta {
                content.push_str(&text);
            }
        }
    };
    for piece in pieces {
        let deltas = reader.push(piece);
        add(&reader, deltas);
    }
    let deltas = reader.finish();
    add(&reader, deltas);
    (channels, content)
}

/// The text of those tokens that are content.
fn spelled(tokens: &[u32], channels: &[Channel]) -> String {
    let said = tokens.iter().zip(channels).filter(|(_, channel)| **channel == Channel::Content);
    String::from_utf8(said.flat_map(|(&id, _)| plain().content_bytes(id)).collect()).expect("whole characters")
}

#[test]
fn channels_tell_what_each_token_is_part_of() {
    let reader = || plain().reader(Opening::Content, Dialect::Chat, Rules::default());
    let parts = [
        ("<|channel>", Channel::Marker),
        ("thought\n", Channel::Marker),
        ("Hm.", Channel::Reasoning),
        ("<channel|>", Channel::Marker),
        ("Yes.", Channel::Content),
        ("<|tool_call>", Channel::Marker),
        ("call:f{}", Channel::Tool),
        ("<tool_call|>", Channel::Marker),
        ("No.", Channel::Content),
        ("<turn|>", Channel::Marker),
        ("after", Channel::Marker),
    ];
    let pieces: Vec<Vec<u32>> = parts.iter().map(|(spelled, _)| ids(spelled)).collect();
    let expected = parts.iter().zip(&pieces).flat_map(|((_, channel), ids)| vec![*channel; ids.len()]);
    let expected: Vec<Channel> = expected.collect();
    let tokens = pieces.concat();
    assert_eq!(told(reader(), &[&tokens]).0, expected);
    assert_eq!(told(reader(), &tokens.chunks(1).collect::<Vec<_>>()).0, expected);
    // Only a call's tokens wait, and what has been told is not told again.
    let mut reader = reader();
    for (piece, (spelled, channel)) in pieces.iter().zip(parts) {
        reader.push(piece);
        let waiting = if channel == Channel::Tool { piece.len() } else { 0 };
        let late = if spelled == "<tool_call|>" { ids("call:f{}").len() } else { 0 };
        assert_eq!(reader.channels().len(), piece.len() - waiting + late, "{spelled}");
        assert!(reader.channels().last().is_none_or(|last| *last == channel), "{spelled}");
    }
    reader.finish();
    assert!(reader.channels().is_empty());
}

#[test]
fn the_tokens_of_a_call_that_is_shown_are_content() {
    let text = plain();
    for (dialect, spelling, content) in [
        (Dialect::Chat, "<|tool_call>weather Paris<tool_call|><turn|>", "weather Paris"),
        (Dialect::Chat, "So: <|tool_call>call:f{a:<|\"|>Köln 日<|\"|>,b:<tool_call|>!", "So: call:f{a:\"Köln 日\",b:!"),
        (Dialect::Chat, "So: <|tool_call>call:f{a:<|\"|>Kö", "So: call:f{a:\"Kö"),
        (Dialect::Chat, "<|tool_call>call:f{}<tool_call|><|tool_call>call:g<tool_call|><|tool_response>", "call:g"),
        (Dialect::Chat, "<|tool_call>call:g<|tool_call>call:f{}<tool_call|><turn|>", "call:g"),
        (Dialect::Chat, "<|tool_call>call:g<|channel>thought\nHm.<channel|>Yes.", "call:gYes."),
        (
            Dialect::ChatWithoutTools,
            "<|tool_call>call:f{}<tool_call|><|tool_call>call:g{}<tool_call|><turn|>",
            "call:f{}call:g{}",
        ),
    ] {
        let tokens = ids(spelling);
        let reader = || text.reader(Opening::Content, dialect, Rules::default());
        let (channels, said) = told(reader(), &[&tokens]);
        assert_eq!((said.as_str(), spelled(&tokens, &channels).as_str()), (content, content), "{spelling}");
        for cut in 0..tokens.len() {
            let (head, tail) = tokens.split_at(cut);
            assert_eq!(told(reader(), &[head, tail]), (channels.clone(), said.clone()), "{spelling} {cut}");
        }
    }
}

#[test]
fn a_stop_string_in_a_call_that_is_shown_cuts_its_tokens_off() {
    let text = plain();
    let stop = StopStrings::new(&["is today"]);
    let reader = || text.reader(Opening::Content, Dialect::Chat, Rules { stop: Some(&stop), ..Rules::default() });
    let tokens = ids("So: <|tool_call>weather <|\"|>Paris<|\"|> is today fine<tool_call|><turn|>");
    for cut in 0..tokens.len() {
        let (head, tail) = tokens.split_at(cut);
        let (channels, content) = told(reader(), &[head, tail]);
        assert_eq!(content, "So: weather \"Paris\" ", "{cut}");
        let said = spelled(&tokens, &channels);
        assert!(said.starts_with(content.trim_end()) && !said.contains("today"), "{cut}: {said:?}");
    }
}

#[test]
fn tokens_that_a_stop_string_cuts_off_are_no_content() {
    let text = plain();
    let stop = StopStrings::new(&["cat na"]);
    let tokens = ids("The cat named Tom.");
    let begins = |count: usize| text.decode(&tokens[..count]).len();
    let mut reader = text.reader(Opening::Content, Dialect::Raw, Rules { stop: Some(&stop), ..Rules::default() });
    assert_eq!(reader.push(&tokens), [Delta::Content("The ".into())]);
    for (at, channel) in reader.channels().iter().enumerate() {
        let said = begins(at) < "The ".len();
        assert_eq!(*channel == Channel::Content, said, "token {at} of {:?}", reader.channels());
    }
    // Token by token nothing can be taken back but the one that completes the stop string.
    let mut reader = text.reader(Opening::Content, Dialect::Raw, Rules { stop: Some(&stop), ..Rules::default() });
    let last = (0..tokens.len()).find(|&at| begins(at + 1) >= "The cat na".len()).unwrap();
    for (at, &token) in tokens.iter().enumerate() {
        reader.push(&[token]);
        assert_eq!(reader.channels() == [Channel::Content], at < last, "token {at}");
    }
    // Without a stop string, or without its end, everything is said.
    let mut reader = text.reader(Opening::Content, Dialect::Raw, Rules { stop: Some(&stop), ..Rules::default() });
    let held = ids("The cat n");
    reader.push(&held);
    assert!(reader.channels().iter().all(|channel| *channel == Channel::Content));
    assert_eq!(reader.finish(), [Delta::Content("cat n".into())]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn how_tokens_are_grouped_changes_no_channel(
        tokens in tokens(), cut in 0..40usize, open in prop::bool::ANY, tools in prop::bool::ANY,
    ) {
        let opening = if open { Opening::Reasoning } else { Opening::Content };
        let dialect = if tools { Dialect::Chat } else { Dialect::ChatWithoutTools };
        let reader = || plain().reader(opening, dialect, Rules::default());
        let (whole, _) = told(reader(), &[&tokens]);
        prop_assert_eq!(whole.len(), tokens.len());
        let (head, tail) = tokens.split_at(cut.min(tokens.len()));
        prop_assert_eq!(&told(reader(), &[head, tail]).0, &whole);
        prop_assert_eq!(&told(reader(), &tokens.chunks(1).collect::<Vec<_>>()).0, &whole);
        prop_assert!(tools || !whole.contains(&Channel::Tool), "{:?}", whole);
    }
}
