//! A mapping that is taken apart key by key, so that none is overlooked and every complaint names file, task and key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::yaml::FUNCTION;
use crate::error::{Error, Result};

/// What is left of a mapping of a task definition.
pub(super) struct Keys {
    path: PathBuf,
    /// Where in the file it stands: a task, or a key of one.
    place: String,
    map: Map<String, Value>,
}

impl Keys {
    pub(super) fn new(path: &Path, place: &str, map: Map<String, Value>) -> Self {
        Self {
            path: path.to_owned(),
            place: place.to_owned(),
            map,
        }
    }

    /// Of a value that must be a mapping.
    pub(super) fn of(path: &Path, place: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self::new(path, place, map)),
            other => Err(Error::data(
                path,
                format!("{place}: expected a mapping, found {other}"),
            )),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A complaint about a key.
    pub(super) fn fault(&self, key: &str, what: impl std::fmt::Display) -> Error {
        Error::data(&self.path, format!("{}: {key}: {what}", self.place))
    }

    fn is_python(&self, key: &str, name: &Value) -> Error {
        self.fault(
            key,
            format!("the function {name} is Python, which cannot run here: write a template"),
        )
    }

    /// Takes a key out; a null is the same as nothing.
    ///
    /// # Errors
    /// If it is a function in Python.
    pub(super) fn take(&mut self, key: &str) -> Result<Option<Value>> {
        let value = self.map.remove(key).filter(|value| !value.is_null());
        match value.as_ref().and_then(|value| value.get(FUNCTION)) {
            Some(name) => Err(self.is_python(key, name)),
            None => Ok(value),
        }
    }

    /// Takes out the name of a function.
    pub(super) fn function(&mut self, key: &str) -> Result<Option<String>> {
        let value = self.map.remove(key).filter(|value| !value.is_null());
        match value {
            None => Ok(None),
            Some(value) => match value.get(FUNCTION).and_then(Value::as_str) {
                Some(name) => Ok(Some(name.to_owned())),
                None => Err(self.fault(key, "expected !function")),
            },
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.fault(key, format!("expected a text, found {other}"))),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key)? {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.fault(key, format!("expected true or false, found {other}"))),
        }
    }

    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        match self.take(key)? {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.fault(key, format!("expected a number, found {value}"))),
            },
        }
    }

    pub(super) fn count(&mut self, key: &str) -> Result<Option<usize>> {
        match self.take(key)? {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(count) => Ok(Some(count)),
                None => Err(self.fault(key, format!("expected a whole number, found {value}"))),
            },
        }
    }

    /// One text or a list of them.
    pub(super) fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        let one = |value: &Value| value.as_str().map(str::to_owned);
        match self.take(key)? {
            None => Ok(None),
            Some(value) => {
                let texts = match &value {
                    Value::Array(items) => items.iter().map(one).collect(),
                    single => one(single).map(|text| vec![text]),
                };
                match texts {
                    Some(texts) => Ok(Some(texts)),
                    None => Err(self.fault(key, format!("expected texts, found {value}"))),
                }
            }
        }
    }

    pub(super) fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>> {
        match self.take(key)? {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.fault(key, format!("expected a list, found {other}"))),
        }
    }

    /// A text that must be there.
    pub(super) fn required(&mut self, key: &str) -> Result<String> {
        self.text(key)?.ok_or_else(|| self.fault(key, "is missing"))
    }

    /// Leaves out keys that change no score.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.map.remove(*key);
        }
    }

    /// Complains of a key that nothing has taken; nulls say nothing.
    pub(super) fn finish(self) -> Result<()> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => Err(match value.get(FUNCTION) {
                Some(name) => self.is_python(key, name),
                None => self.fault(key, "this key is not supported"),
            }),
        }
    }
}
