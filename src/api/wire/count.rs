//! Numbers that count from 1, and ids of tokens.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// Reads such a number, or null, and says of what is none that it would have to be at least 1. The bounds themselves are
/// checked with the other ranges; without this, a refusal of -1 would recommend 0.
pub(crate) fn from_one<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_option(Shape(PhantomData))
}

struct Shape<T>(PhantomData<T>);

impl<'de, T: TryFrom<u64>> Visitor<'de> for Shape<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number, at least 1")
    }

    fn visit_none<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<T>, D::Error> {
        deserializer.deserialize_u64(self)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Option<T>, E> {
        T::try_from(number).map(Some).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Option<T>, E> {
        Err(E::invalid_value(Unexpected::Signed(number), &self))
    }
}

/// An id of a token. Whether the model has such a token is not seen here.
pub(crate) struct Id(pub u32);

impl Id {
    /// What it may be, for errors.
    const EXPECTED: &str = "a token id, a whole number below 2^32";

    /// From any whole number.
    pub(crate) fn of<E: Error>(number: u64) -> Result<Id, E> {
        let wrong = |_| E::invalid_value(Unexpected::Unsigned(number), &Id::EXPECTED);
        u32::try_from(number).map(Id).map_err(wrong)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl Visitor<'_> for Shape {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Id::EXPECTED)
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
                Id::of(number)
            }
        }
        deserializer.deserialize_u64(Shape)
    }
}

/// Reads ids of tokens, or null.
pub(crate) fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u32>>, D::Error> {
    Ok(Option::<Vec<Id>>::deserialize(deserializer)?.map(plain))
}

/// The numbers alone.
pub(crate) fn plain(ids: Vec<Id>) -> Vec<u32> {
    ids.into_iter().map(|Id(id)| id).collect()
}
