//! The study of the latest run of a folder, made anew of what lies there: manifest and records.

use std::path::Path;

use super::manifest::{MANIFEST, Manifest};
use super::record::Record;
use super::{Study, export, store};
use crate::error::{Error, Result};

/// What the latest run of `dir` would put together of `records`, those of the folder: its own points, in the order of
/// its plan. `study.json` is not needed but where an older version made the folder.
///
/// # Errors
/// If the folder is of no run, or nothing of the latest is on record.
pub fn assemble(dir: &Path, records: &[Record]) -> Result<Study> {
    let Some(manifest) = Manifest::read(dir)? else {
        let old = export::read(dir)?;
        return Ok(Study::from_records(old.environment, old.command, records));
    };
    let Some(latest) = manifest.latest else {
        // Which points are the plan's is not known, but most folders hold those of one plan.
        let (environment, command) = match export::read(dir) {
            Ok(old) => (old.environment, old.command),
            Err(_) => {
                let first = manifest.environments.into_iter().next();
                (first.unwrap_or_default(), manifest.command)
            }
        };
        return Ok(Study::from_records(environment, command, records));
    };
    let own = store::of_points(records, &latest.points);
    if own.is_empty() {
        return Err(Error::Config(format!(
            "{}: no point of the command that it names is on record; give that command again",
            dir.join(MANIFEST).display()
        )));
    }
    Ok(Study::from_records(
        latest.environment,
        manifest.command,
        &own,
    ))
}

/// Whether `dir` holds a run that [`assemble`] can make something of.
pub fn is_there(dir: &Path) -> bool {
    dir.join(MANIFEST).is_file() || dir.join(export::STUDY).is_file()
}
