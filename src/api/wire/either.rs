//! Values that may be written in several ways. Parsed by hand rather than as untagged enums, so that errors keep the
//! position and unknown fields inside are still noticed.

use std::fmt;

use serde::Serialize;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use utoipa::ToSchema;

use super::chat::ContentPart;
use super::count::{Id, plain};
use super::options::{NamedTool, ProgressOptions};
use super::responses::InputItem;

/// One or more stop strings.
#[derive(Debug, Clone, PartialEq, ToSchema)]
#[serde(untagged)]
pub enum Stop {
    /// A single one.
    One(String),
    /// Up to four.
    Many(Vec<String>),
}

impl Stop {
    /// The strings.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Stop::One(text) => vec![text],
            Stop::Many(texts) => texts,
        }
    }
}

/// Text, or the parts that make it up.
#[derive(Debug, Clone, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts, in order.
    Parts(Vec<ContentPart>),
}

/// What is to be answered.
#[derive(Debug, Clone, ToSchema)]
#[serde(untagged)]
pub enum Input {
    /// What the user says.
    Text(String),
    /// A conversation.
    Items(Vec<InputItem>),
}

/// A prompt for plain continuation, in one of four forms.
#[derive(Debug, Clone, PartialEq, ToSchema)]
#[serde(untagged)]
pub enum Prompt {
    /// One text.
    Text(String),
    /// Several texts, each continued by itself.
    Texts(Vec<String>),
    /// One prompt as token ids.
    Tokens(Vec<u32>),
    /// Several prompts as token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// Whether, and how, a stream tells of canvases being denoised.
#[derive(Debug, Clone, Copy, PartialEq, ToSchema)]
#[serde(untagged)]
pub enum Progress {
    /// On with the defaults, or off.
    Switch(bool),
    /// On, with these settings.
    Options(ProgressOptions),
}

/// Which tools the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// One tool by name.
    Named(NamedTool),
}

/// Implements `Deserialize` for a type that is text or something else.
macro_rules! text_or {
    ($type:ty, $expecting:literal, text => $text:expr, $method:ident($access:ident: $bound:ident) => $other:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Shape;
                impl<'de> Visitor<'de> for Shape {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        Ok($text(text.to_owned()))
                    }
                    fn $method<A: $bound<'de>>(self, $access: A) -> Result<$type, A::Error> {
                        $other
                    }
                }
                deserializer.deserialize_any(Shape)
            }
        }
    };
}

text_or!(Stop, "a string or an array of strings", text => Stop::One, visit_seq(access: SeqAccess) => {
    collect(access).map(Stop::Many)
});
text_or!(Content, "a string or an array of content parts", text => Content::Text, visit_seq(access: SeqAccess) => {
    collect(access).map(Content::Parts)
});
text_or!(Input, "a string or an array of messages", text => Input::Text, visit_seq(access: SeqAccess) => {
    collect(access).map(Input::Items)
});
text_or!(ToolChoice, "\"none\", \"auto\" or a named tool", text => ToolChoice::Mode, visit_map(access: MapAccess) => {
    NamedTool::deserialize(MapAccessDeserializer::new(access)).map(ToolChoice::Named)
});
text_or!(
    Prompt,
    "a string, an array of strings, an array of token ids or an array of arrays of token ids",
    text => Prompt::Text,
    visit_seq(access: SeqAccess) => collect_prompt(access)
);

fn collect<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(mut access: A) -> Result<Vec<T>, A::Error> {
    let mut all = Vec::new();
    while let Some(item) = access.next_element()? {
        all.push(item);
    }
    Ok(all)
}

/// The first item decides which form it is.
fn collect_prompt<'de, A: SeqAccess<'de>>(mut access: A) -> Result<Prompt, A::Error> {
    fn rest<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(first: T, access: A) -> Result<Vec<T>, A::Error> {
        let mut all = vec![first];
        all.extend(collect::<A, T>(access)?);
        Ok(all)
    }
    match access.next_element::<PromptItem>()? {
        None => Ok(Prompt::Tokens(Vec::new())),
        Some(PromptItem::Text(first)) => rest(first, access).map(Prompt::Texts),
        Some(PromptItem::Token(first)) => rest(first, access).map(|all| Prompt::Tokens(plain(all))),
        Some(PromptItem::Tokens(first)) => {
            let lists = rest(first, access)?;
            Ok(Prompt::TokenLists(lists.into_iter().map(plain).collect()))
        }
    }
}

/// The first item of a prompt given as an array.
enum PromptItem {
    Text(String),
    Token(Id),
    Tokens(Vec<Id>),
}

impl<'de> Deserialize<'de> for PromptItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = PromptItem;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or an array of token ids")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PromptItem, E> {
                Ok(PromptItem::Text(text.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<PromptItem, E> {
                Id::of(id).map(PromptItem::Token)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<PromptItem, A::Error> {
                collect(access).map(PromptItem::Tokens)
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

impl<'de> Deserialize<'de> for Progress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Progress;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean or an object of progress options")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Progress, E> {
                Ok(Progress::Switch(on))
            }
            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Progress, A::Error> {
                ProgressOptions::deserialize(MapAccessDeserializer::new(access)).map(Progress::Options)
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn a_prompt_has_four_forms() {
        let read = |value: Value| from_value::<Prompt>(value);
        assert_eq!(read(json!("a")).unwrap(), Prompt::Text("a".into()));
        assert_eq!(read(json!(["a", "b"])).unwrap(), Prompt::Texts(vec!["a".into(), "b".into()]));
        assert_eq!(read(json!([1, 2])).unwrap(), Prompt::Tokens(vec![1, 2]));
        assert_eq!(read(json!([[1], [2, 3]])).unwrap(), Prompt::TokenLists(vec![vec![1], vec![2, 3]]));
        for wrong in [json!(1), json!([1, "a"]), json!(["a", 1]), json!([-1]), json!([1e12]), json!({}), json!([null])]
        {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
