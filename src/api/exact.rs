//! A deserializer that takes JSON for what it is.
//!
//! Serde by itself is laxer: it takes an array for the fields of a struct in their order, an object of one field for a
//! word, and of a key that stands twice in a map the later value. None of it is what a client means.

use std::collections::HashSet;
use std::fmt;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A deserializer of JSON, read exactly, with all that it holds.
pub(crate) struct Exact<D>(pub D);

/// Hands values without anything inside on as they are.
macro_rules! plain {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method(visitor)
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Exact<D> {
    type Error = D::Error;

    plain! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_identifier
        deserialize_ignored_any
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Within::map(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Within::map(visitor))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, Within::map(visitor))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_seq(Within::map(visitor))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple(length, Within::map(visitor))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple_struct(name, length, Within::map(visitor))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Within::map(visitor))
    }

    /// As a map: an array is none.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Within { visitor, keys: Keys::Fields })
    }

    /// As a string: the enums of requests are words.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_str(Word(visitor))
    }
}

/// How the keys of an object are looked at.
enum Keys {
    /// A struct's fields: it counts those it knows by itself, and the others have no effect.
    Fields,
    /// A map's keys: those that have come so far.
    Free(HashSet<String>),
}

/// A visitor that gets what is inside of its value exactly.
struct Within<V> {
    visitor: V,
    keys: Keys,
}

impl<V> Within<V> {
    fn map(visitor: V) -> Within<V> {
        Within { visitor, keys: Keys::Free(HashSet::new()) }
    }
}

/// Hands scalars on as they are.
macro_rules! scalars {
    ($($method:ident: $type:ty),*) => {
        $(fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.visitor.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Within<V> {
    type Value = V::Value;

    scalars! {
        visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str,
        visit_borrowed_str: &'de str, visit_string: String
    }

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Exact(deserializer))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Exact(deserializer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Items(access))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Entries { access, keys: self.keys, again: None })
    }
}

/// A seed that is given an exact deserializer.
struct Inside<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Inside<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Exact(deserializer))
    }
}

/// The items of an array.
struct Items<A>(A);

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Inside(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

/// The entries of an object.
struct Entries<A> {
    access: A,
    keys: Keys,
    /// The key at hand, where it stood before. It is refused together with its value, when the path to it is known.
    again: Option<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let Keys::Free(seen) = &mut self.keys else { return self.access.next_key_seed(seed) };
        let Some(key) = self.access.next_key::<String>()? else { return Ok(None) };
        if !seen.insert(key.clone()) {
            self.again = Some(key.clone());
        }
        seed.deserialize(StringDeserializer::<A::Error>::new(key)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        match self.again.take() {
            Some(key) => Err(A::Error::custom(format_args!("duplicate field `{key}`"))),
            None => self.access.next_value_seed(Inside(seed)),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        self.access.size_hint()
    }
}

/// Takes a string for the variant of an enum.
struct Word<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Word<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<V::Value, E> {
        self.0.visit_enum(StrDeserializer::<E>::new(word))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Map, Value};

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        inner: Option<Inner>,
        many: Option<Vec<Inner>>,
        map: Option<Map<String, Value>>,
        any: Option<Value>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        count: Option<u32>,
        word: Option<Reply>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Reply {
        Yes,
        No,
    }

    fn read(text: &str) -> Result<Outer, serde_json::Error> {
        Outer::deserialize(Exact(&mut serde_json::Deserializer::from_str(text)))
    }

    #[test]
    fn what_is_meant_is_read() {
        let text = r#"{"inner": {"count": 1, "word": "no", "spam": 1, "spam": 2}, "many": [{}, {"word": null}],
                       "map": {"a": {"b": [1, {"c": null}]}}, "any": [{"d": 0.5}], "eggs": [{"e": 1, "e": 2}]}"#;
        let read = read(text).unwrap();
        assert_eq!(read.inner, Some(Inner { count: Some(1), word: Some(Reply::No) }));
        assert_eq!(read.many.unwrap().len(), 2);
        assert_eq!(Value::from(read.map.unwrap()).to_string(), r#"{"a":{"b":[1,{"c":null}]}}"#);
        assert_eq!(read.any.unwrap().to_string(), r#"[{"d":0.5}]"#);
    }

    #[test]
    fn an_array_is_no_object_an_object_no_word_and_a_key_stands_once() {
        for text in [
            "[]",
            "[null, null, null, null]",
            r#"{"inner": [1, "yes"]}"#,
            r#"{"many": [[1, "yes"]]}"#,
            r#"{"inner": {"word": {"yes": null}}}"#,
            r#"{"inner": {"word": 5}}"#,
            r#"{"inner": {"word": "perhaps"}}"#,
            r#"{"inner": {}, "inner": {}}"#,
            r#"{"map": {"a": 1, "a": 1}}"#,
            r#"{"map": {"a": {"b": 1, "b": 1}}}"#,
            r#"{"any": [{"c": 1, "d": 2, "c": 3}]}"#,
        ] {
            assert!(read(text).is_err_and(|error| error.is_data()), "{text}");
        }
    }
}
