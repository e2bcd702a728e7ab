//! JSON files of bounded size, and objects whose keys must differ.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, Result};

/// Largest configuration or shard index that is read.
pub(super) const CONFIG_LIMIT: u64 = 64 << 20;

/// The whole file, if it has at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path, "cannot open", e))?;
    let mut bytes = Vec::new();
    // The limit holds for what is read, not for what the file system says: a pipe or a growing file has no size.
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, "cannot read", e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::data(
            path,
            format!("larger than {} MiB", limit >> 20),
        ));
    }
    Ok(bytes)
}

/// Parses a JSON file of at most [`CONFIG_LIMIT`] bytes.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, &read_bounded(path, CONFIG_LIMIT)?)
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
}
