//! YAML as JSON values. What a tag such as `!function utils.score` stands for becomes an object whose one key is the tag.

use std::path::Path;

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};

/// The key under which the name after a `!function` tag is kept.
pub(super) const FUNCTION: &str = "!function";

/// Parses a file of one document; `path` is for messages.
///
/// # Errors
/// If it is not YAML, holds several documents, or a value or key has no place in JSON.
pub(super) fn parse(path: &Path, text: &str) -> Result<Value> {
    let documents =
        Yaml::load_from_str(text).map_err(|e| Error::data(path, format!("bad YAML: {e}")))?;
    match documents.as_slice() {
        [document] => converted(document).map_err(|what| Error::data(path, what)),
        [] => Err(Error::data(path, "the file is empty")),
        _ => Err(Error::data(path, "holds more than one YAML document")),
    }
}

fn converted(node: &Yaml<'_>) -> Result<Value, String> {
    Ok(match node {
        Yaml::Value(scalar) => match scalar {
            Scalar::Null => Value::Null,
            Scalar::Boolean(b) => Value::Bool(*b),
            Scalar::Integer(n) => Value::from(*n),
            Scalar::FloatingPoint(x) => {
                let number = Number::from_f64(x.into_inner());
                Value::Number(number.ok_or_else(|| format!("{x} is no finite number"))?)
            }
            Scalar::String(text) => Value::String(text.to_string()),
        },
        Yaml::Sequence(items) => {
            Value::Array(items.iter().map(converted).collect::<Result<_, _>>()?)
        }
        Yaml::Mapping(entries) => {
            let mut map = Map::new();
            let mut merged = Vec::new();
            for (key, value) in entries {
                let value = converted(value)?;
                match key_of(key)? {
                    key if key == "<<" => merged.push(value),
                    key => {
                        map.insert(key, value);
                    }
                }
            }
            for defaults in merged {
                merge(&mut map, defaults)?;
            }
            Value::Object(map)
        }
        Yaml::Tagged(tag, inner) => {
            let inner = converted(inner)?;
            if tag.is_yaml_core_schema() {
                inner
            } else {
                let mut map = Map::new();
                map.insert(format!("!{}", tag.suffix), inner);
                Value::Object(map)
            }
        }
        _ => return Err("holds a value that cannot be read".to_owned()),
    })
}

fn key_of(key: &Yaml<'_>) -> Result<String, String> {
    match converted(key)? {
        Value::String(key) => Ok(key),
        other @ (Value::Number(_) | Value::Bool(_)) => Ok(other.to_string()),
        other => Err(format!("{other} is no key")),
    }
}

/// Takes over what is not there yet, as the key `<<` asks.
fn merge(map: &mut Map<String, Value>, defaults: Value) -> Result<(), String> {
    match defaults {
        Value::Object(defaults) => {
            for (key, value) in defaults {
                map.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::Array(all) => all.into_iter().try_for_each(|one| merge(map, one)),
        other => Err(format!("<< needs a mapping, not {other}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_becomes_json() {
        let text = "a: &x {k: 1, on: [true, ~, 1.5, 'yes']}\nb: !function utils.f\nc: \"two\\nlines \\\n  joined\"\nd:\n  <<: *x\n  k: 2\n\"e\": |\n  kept\n";
        let value = parse(Path::new("t.yaml"), text).unwrap();
        let expected = json!({
            "a": {"k": 1, "on": [true, null, 1.5, "yes"]}, "b": {"!function": "utils.f"}, "c": "two\nlines joined",
            "d": {"k": 2, "on": [true, null, 1.5, "yes"]}, "e": "kept\n",
        });
        assert_eq!(value, expected);
        let bad = parse(Path::new("t.yaml"), "a: [1\nb: 2").unwrap_err();
        assert!(bad.to_string().contains("line 2"), "{bad}");
        assert_eq!(bad.exit_code(), 65);
        assert!(parse(Path::new("t.yaml"), "").is_err());
    }
}
