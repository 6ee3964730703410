//! Decoding of strings and lists that refuses too much before it takes the memory: for `deserialize_with`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

/// A string of at most `BYTES` bytes.
pub fn string<'de, const BYTES: usize, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Text::<BYTES>.deserialize(from)
}

/// At most `BYTES` bytes.
pub fn bytes<'de, const BYTES: usize, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    from.deserialize_bytes(Blob::<BYTES>)
}

/// At most `COUNT` strings of at most `BYTES` bytes each.
pub fn strings<'de, const COUNT: usize, const BYTES: usize, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<String>, D::Error> {
    from.deserialize_seq(List::<COUNT, _>(Text::<BYTES>))
}

/// At most `COUNT` items that bound themselves.
pub fn list<'de, const COUNT: usize, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(List::<COUNT, _>(PhantomData::<T>))
}

#[derive(Clone, Copy)]
struct Text<const BYTES: usize>;

impl<'de, const BYTES: usize> DeserializeSeed<'de> for Text<BYTES> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        from.deserialize_str(self)
    }
}

impl<const BYTES: usize> Visitor<'_> for Text<BYTES> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a string of at most {BYTES} bytes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        if text.len() > BYTES { Err(E::invalid_length(text.len(), &self)) } else { Ok(text.to_owned()) }
    }
}

struct Blob<const BYTES: usize>;

impl<const BYTES: usize> Visitor<'_> for Blob<BYTES> {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "at most {BYTES} bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        if bytes.len() > BYTES { Err(E::invalid_length(bytes.len(), &self)) } else { Ok(bytes.to_owned()) }
    }
}

struct List<const COUNT: usize, S>(S);

impl<'de, const COUNT: usize, S: DeserializeSeed<'de> + Copy> Visitor<'de> for List<COUNT, S> {
    type Value = Vec<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a list of at most {COUNT} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        if let Some(count) = items.size_hint().filter(|count| *count > COUNT) {
            return Err(A::Error::invalid_length(count, &self));
        }
        // Grown as items really come: the announced count is only a claim.
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.0)? {
            if list.len() == COUNT {
                return Err(A::Error::invalid_length(COUNT + 1, &self));
            }
            list.push(item);
        }
        Ok(list)
    }
}
