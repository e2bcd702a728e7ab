//! What is compared: a run, or several of the same thing.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::environment::Environment;
use super::super::manifest::Manifest;
use super::super::record::Record;
use super::super::store::{self, RECORDS};
use super::super::{Study, export};
use crate::error::{Error, Result};

/// The records of a run, with what is known of where it ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What it is called.
    pub label: String,
    /// Where it ran; `None` if that is not on record.
    pub environment: Option<Environment>,
    /// What it measured.
    pub records: Vec<Record>,
}

impl Run {
    /// Reads a run directory, the records file in it, or its study.json, from which alone nothing could be compared.
    ///
    /// # Errors
    /// If there are no records, or what is there is corrupt.
    pub fn open(path: &Path) -> Result<Self> {
        let within = |name: &str| path.file_name().is_some_and(|own| own == name);
        let dir = match path.parent() {
            Some(parent) if !path.is_dir() => parent,
            _ => path,
        };
        let records: Vec<Record> = match path {
            _ if path.is_dir() || within(export::STUDY) => store::read(dir.join(RECORDS))?,
            _ => store::read(path)?,
        };
        if records.is_empty() {
            return Err(Error::data(path, "there is no record in it"));
        }
        let study = dir.join(export::STUDY);
        // A study is written at the end of a run only; the manifest before the first record.
        let environment = match study.is_file() {
            true => Some(export::read(&study)?.environment),
            false => {
                Manifest::read(dir)?.and_then(|manifest| manifest.environments.into_iter().next())
            }
        };
        Ok(Self {
            label: path.display().to_string(),
            environment,
            records,
        })
    }

    /// A run that was just made.
    pub fn made(study: &Study, records: Vec<Record>) -> Self {
        Self {
            label: "this run".to_owned(),
            environment: Some(study.environment.clone()),
            records,
        }
    }
}

/// The first two of these paths that name one run, however they are written.
pub fn repeated<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Option<[&'a Path; 2]> {
    let mut seen: Vec<(PathBuf, &Path)> = Vec::new();
    for path in paths {
        // What is not there is told when it is read.
        let Ok(records) = fs::canonicalize(records_of(path)) else {
            continue;
        };
        if let Some((_, first)) = seen.iter().find(|(own, _)| *own == records) {
            return Some([first, path]);
        }
        seen.push((records, path));
    }
    None
}

/// The file with the records of a run that is named by its folder, by its study.json, or by this file.
fn records_of(path: &Path) -> PathBuf {
    match path.file_name() {
        _ if path.is_dir() => path.join(RECORDS),
        Some(name) if name == export::STUDY => path.with_file_name(RECORDS),
        _ => path.to_owned(),
    }
}

/// One run, or several of the same thing, whose spread then tells what differs from run to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    /// What it is called.
    pub label: String,
    /// At least one.
    pub runs: Vec<Run>,
}

impl Side {
    /// A single run.
    pub fn single(run: Run) -> Self {
        Self {
            label: run.label.clone(),
            runs: vec![run],
        }
    }

    /// The runs that a list with commas names.
    pub fn paths(list: &str) -> impl Iterator<Item = &Path> {
        let paths = list.split(',').filter(|path| !path.is_empty());
        paths.map(Path::new)
    }

    /// Reads the runs of a list with commas.
    ///
    /// # Errors
    /// As [`Run::open`].
    pub fn open(list: &str) -> Result<Self> {
        let runs = Self::paths(list)
            .map(Run::open)
            .collect::<Result<Vec<_>>>()?;
        if runs.is_empty() {
            return Err(Error::Usage(format!("'{list}' names no run")));
        }
        Ok(Self {
            label: list.to_owned(),
            runs,
        })
    }
}
