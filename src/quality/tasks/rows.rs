//! The rows of data sets: JSON Lines, JSON, and parquet files; from the disk or the hub.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::task::Task;
use super::template::Row;
use crate::error::{Error, Result};

/// The splits of a task's data that were read so far.
pub(super) struct Rows<'a> {
    task: &'a Task,
    splits: BTreeMap<String, Vec<Row>>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(task: &'a Task) -> Self {
        Self {
            task,
            splits: BTreeMap::new(),
        }
    }

    /// The rows of a split, all with the same columns: what a row lacks is null.
    ///
    /// # Errors
    /// If the split does not exist, a file cannot be read, or it holds no rows.
    pub(super) fn split(&mut self, split: &str) -> Result<&[Row]> {
        if !self.splits.contains_key(split) {
            let mut rows = Vec::new();
            for file in files(self.task, split)? {
                rows.extend(read(&file, self.task.source.field.as_deref())?);
            }
            if rows.is_empty() {
                return Err(Error::data(
                    &self.task.path,
                    format!("{}: the split '{split}' holds no rows", self.task.name),
                ));
            }
            self.splits.insert(split.to_owned(), evened(rows));
        }
        Ok(self.splits.get(split).map_or(&[], Vec::as_slice))
    }
}

/// Gives every row the columns of all.
fn evened(mut rows: Vec<Row>) -> Vec<Row> {
    let columns: BTreeSet<String> = rows.iter().flat_map(|row| row.keys().cloned()).collect();
    for row in rows.iter_mut().filter(|row| row.len() < columns.len()) {
        for column in &columns {
            if !row.contains_key(column) {
                row.insert(column.clone(), Value::Null);
            }
        }
    }
    rows
}

fn files(task: &Task, split: &str) -> Result<Vec<PathBuf>> {
    let source = &task.source;
    let fault = |what: String| Error::data(&task.path, format!("{}: {what}", task.name));
    if source.files.is_empty() {
        return super::repository::files(source, split).map_err(|error| match error {
            Error::Usage(what) => fault(what),
            other => other,
        });
    }
    let paths = source.files.get(split).ok_or_else(|| {
        let known: Vec<&str> = source.files.keys().map(String::as_str).collect();
        fault(format!(
            "data_files has no split '{split}', only {}",
            known.join(", ")
        ))
    })?;
    Ok(paths.iter().map(|path| placed(&task.path, path)).collect())
}

/// A path as it is if it exists, as it does for lm_eval; else beside the task's file.
fn placed(task: &Path, path: &str) -> PathBuf {
    let own = PathBuf::from(path);
    match task.parent().map(|folder| folder.join(path)) {
        Some(beside) if !own.exists() && beside.exists() => beside,
        _ => own,
    }
}

/// The rows of one file, by the ending of its name.
///
/// # Errors
/// [`Error::Data`] with the line at fault.
pub(super) fn read(path: &Path, field: Option<&str>) -> Result<Vec<Row>> {
    if path.extension().is_some_and(|ending| ending == "parquet") {
        return parquet(path);
    }
    let bytes = std::fs::read(path).map_err(|e| Error::reading(path, "cannot read", e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::data(
            path,
            format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to()),
        )
    })?;
    let text = text.trim_start_matches('\u{feff}');
    if let Some(field) = field {
        return in_field(path, text, field);
    }
    if text.trim_start().starts_with('[') {
        return rows_of(path, parse(path, text)?);
    }
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let place = || format!("line {}", number + 1);
            match serde_json::from_str(line) {
                Ok(Value::Object(row)) => Ok(row),
                Ok(_) => Err(Error::data(path, format!("{}: not a JSON object", place()))),
                Err(e) => Err(Error::data(
                    path,
                    format!("{}: bad JSON at column {}: {e}", place(), e.column()),
                )),
            }
        })
        .collect()
}

#[cfg(feature = "hub")]
fn parquet(path: &Path) -> Result<Vec<Row>> {
    crate::quality::parquet::rows(path)
}

#[cfg(not(feature = "hub"))]
fn parquet(path: &Path) -> Result<Vec<Row>> {
    Err(Error::data(
        path,
        "parquet files need a build with the feature `hub`",
    ))
}

fn parse(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::data(path, format!("bad JSON: {e}")))
}

fn in_field(path: &Path, text: &str, field: &str) -> Result<Vec<Row>> {
    match parse(path, text)? {
        Value::Object(mut map) => {
            let rows = map.remove(field);
            rows_of(
                path,
                rows.ok_or_else(|| Error::data(path, format!("has no key '{field}'")))?,
            )
        }
        _ => Err(Error::data(path, format!("has no key '{field}'"))),
    }
}

fn rows_of(path: &Path, value: Value) -> Result<Vec<Row>> {
    let Value::Array(items) = value else {
        return Err(Error::data(path, "expected a list of objects"));
    };
    let rows = items
        .into_iter()
        .enumerate()
        .map(|(number, item)| match item {
            Value::Object(row) => Ok(row),
            _ => Err(Error::data(
                path,
                format!("item {number} is not a JSON object"),
            )),
        });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_read_and_faults_have_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, "{\"a\": 1}\n\n{\"b\": \"x\"}\r\n").unwrap();
        let rows = evened(read(&path, None).unwrap());
        assert_eq!(
            json!(rows),
            json!([{"a": 1, "b": null}, {"a": null, "b": "x"}])
        );
        for (text, said) in [
            ("{\"a\": 1}\n{\"a\": \n", "line 2"),
            ("{}\n\n[1]\n", "line 3: not a JSON object"),
            ("[{}, 1]", "item 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path, None).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
            assert_eq!(error.exit_code(), 65);
        }
        std::fs::write(&path, "{\"data\": [{\"a\": 1}]}").unwrap();
        assert_eq!(read(&path, Some("data")).unwrap().len(), 1);
        assert!(
            read(&path, Some("rows"))
                .unwrap_err()
                .to_string()
                .contains("'rows'")
        );
        assert_eq!(
            read(&folder.path().join("none"), None)
                .unwrap_err()
                .exit_code(),
            65
        );
    }
}
