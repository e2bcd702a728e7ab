//! JSON files of bounded size, and objects whose keys must differ.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{
    Deserialize, DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

use super::blob::refuse_pointer;
use crate::error::{Error, Result};

/// Largest configuration or shard index that is read.
pub(super) const CONFIG_LIMIT: u64 = 64 << 20;

/// The whole file, if it has at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::reading(path, "cannot open", e))?;
    let mut bytes = Vec::new();
    // The limit holds for what is read, not for what the file system says: a pipe or a growing file has no size.
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::reading(path, "cannot read", e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::data(
            path,
            format!("larger than {} MiB", limit >> 20),
        ));
    }
    refuse_pointer(path, &bytes)?;
    Ok(bytes)
}

/// Parses a JSON file of at most [`CONFIG_LIMIT`] bytes.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, &read_bounded(path, CONFIG_LIMIT)?)
}

/// Parses a JSON file of at most [`CONFIG_LIMIT`] bytes as it is; no object in it may have a key twice.
pub(super) fn read_value(path: &Path) -> Result<Value> {
    read_json::<UniqueValue>(path).map(|value| value.0)
}

/// Parses the content of `path`.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::data(path, format!("bad JSON: {e}")))
}

/// A JSON object in its order; a key that comes twice is an error, where a map would silently keep one.
#[derive(Debug)]
pub(super) struct Unique<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueVisitor<T> {
    type Value = Unique<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, T>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("the key '{key}' comes twice")));
            }
            entries.push((key, value));
        }
        Ok(Unique(entries))
    }
}

/// Any JSON value without a repeated key. Objects in it are in the order of their keys; where the file's own order counts,
/// what is read is a [`Unique`] of these.
pub(super) struct UniqueValue(pub(super) Value);

impl<'de> Deserialize<'de> for UniqueValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor).map(Self)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(UniqueValue(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        let entries = UniqueVisitor(PhantomData).visit_map(map)?.0.into_iter();
        let entries = entries.map(|(key, UniqueValue(value))| (key, value));
        Ok(Value::Object(entries.collect::<Map<_, _>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_key_is_an_error() {
        let good: Unique<u8> = serde_json::from_str(r#"{"b": 1, "a": 2}"#).unwrap();
        assert_eq!(good.0, [("b".to_owned(), 1), ("a".to_owned(), 2)]);
        let bad = serde_json::from_str::<Unique<u8>>(r#"{"a": 1, "a": 1}"#).unwrap_err();
        assert!(bad.to_string().contains("'a' comes twice"), "{bad}");
    }

    #[test]
    fn values_are_read_as_they_are_and_repeated_keys_found_at_any_depth() {
        let text = r#"{"b": [1, -2, 0.5, "x", true, null, {"c": {}}], "a": 18446744073709551615}"#;
        let read: UniqueValue = serde_json::from_str(text).unwrap();
        assert_eq!(read.0, serde_json::from_str::<Value>(text).unwrap());
        let deep = r#"{"b": [{"c": {"d": 1, "d": 2}}]}"#;
        let bad = serde_json::from_str::<UniqueValue>(deep).map(|value| value.0);
        assert!(bad.unwrap_err().to_string().contains("'d' comes twice"));
        // The depth is bounded by the parser.
        let endless = "[".repeat(100_000);
        assert!(serde_json::from_str::<UniqueValue>(&endless).is_err());
    }
}
