//! A run directory: records appended one by one, each on the disk before the next point starts, and the study written
//! whole or not at all.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::environment::Ceilings;
use super::line;
use super::manifest::{MANIFEST, Manifest};
use super::record::{Key, Record};
use crate::error::{Error, Result};

/// The name of the file that holds one record per line.
pub const RECORDS: &str = "records.jsonl";

/// What a run directory keeps one of per line.
pub trait Entry: Clone {
    /// The address of its point.
    fn key(&self) -> &Key;

    /// As a JSON object in one line.
    fn to_json(&self) -> String;

    /// Reads [`Entry::to_json`] back, whether or not a checksum has been added.
    ///
    /// # Errors
    /// What is wrong with the text.
    fn from_json(text: &str) -> Result<Self, String>;
}

/// A run directory of a study.
pub type Store = RunDir<Record>;

/// A run directory, open for writing by this process alone.
#[derive(Debug)]
pub struct RunDir<R> {
    dir: PathBuf,
    /// Holds the lock until it is closed.
    file: File,
    latest: Latest<R>,
    /// The place of the present environment in the manifest.
    environment: usize,
}

/// The latest record of every point, in the order in which the points first appeared.
#[derive(Debug)]
struct Latest<R> {
    records: Vec<R>,
    places: HashMap<Key, usize>,
}

impl<R: Entry> Latest<R> {
    fn put(&mut self, record: R) {
        match self.places.get(record.key()) {
            Some(&place) => self.records[place] = record,
            None => {
                self.places.insert(record.key().clone(), self.records.len());
                self.records.push(record);
            }
        }
    }
}

impl<R: Entry> RunDir<R> {
    /// Opens a run directory, creating it if need be, and reads what is there. A last line that a crash cut short is
    /// removed from the file.
    ///
    /// # Errors
    /// If another process has the run open, a line is corrupt, or the directory cannot be used.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir)
            .map_err(|e| Error::writing(&dir, "cannot create the directory", e))?;
        let path = dir.join(RECORDS);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|e| Error::writing(&path, "cannot open", e))?;
        lock(&file, &path)?;
        let text = read_all(&mut file, &path)?;
        let whole = whole_lines(&text);
        if whole.len() < text.len() {
            file.set_len(whole.len() as u64)
                .and_then(|()| file.sync_all())
                .map_err(|e| Error::writing(&path, "cannot cut off a torn line", e))?;
        }
        let latest = parse(whole, &path)?;
        sync_dir(&dir)?;
        Ok(Self {
            dir,
            file,
            latest,
            environment: 0,
        })
    }

    /// The run directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Appends one record and returns once it is on the disk. A record whose key is already there takes its place.
    ///
    /// # Errors
    /// If the record holds a number that is not finite, or the file cannot be written or is not there any more. Then all
    /// records, this one among them, are in a file of the system's temporary folder, which the error names.
    pub fn append(&mut self, record: R) -> Result<()> {
        let mut line = line::encode(&record)
            .map_err(|what| Error::Internal(format!("record {}: {what}", record.key())))?;
        line.push('\n');
        let before = self.file.metadata().map(|file| file.len());
        // One write per line: a crash can tear the last line, never mix two.
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data())
            .and_then(|()| self.is_in_place());
        self.latest.put(record);
        let Err(error) = written else {
            return Ok(());
        };
        if let Ok(length) = before {
            // What did not fit is cut off; if that fails too, the next to open the run does it.
            let _ = self.file.set_len(length);
        }
        let told = self.rescue(&error);
        let error = std::io::Error::new(error.kind(), told);
        Err(Error::writing(
            self.dir.join(RECORDS),
            "cannot append",
            error,
        ))
    }

    /// Passes if the file that is written is still the one that a later run would find.
    fn is_in_place(&self) -> std::io::Result<()> {
        let found = fs::metadata(self.dir.join(RECORDS));
        let found = found.map_err(|e| std::io::Error::new(e.kind(), "it is not there any more"))?;
        if is_same(&found, &self.file.metadata()?) {
            return Ok(());
        }
        Err(std::io::Error::other("another file has taken its place"))
    }

    /// Puts all records where there may be room; tells the failure, and what became of them.
    fn rescue(&self, error: &std::io::Error) -> String {
        let lines = self.latest.records.iter().map(|record| {
            let line = line::encode(record);
            line.unwrap_or_else(|_| record.to_json()) + "\n"
        });
        let text: String = lines.collect();
        let kept = tempfile::Builder::new()
            .prefix("candlepower-")
            .suffix(".jsonl")
            .tempfile()
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.as_file().sync_all()?;
                file.keep().map_err(|e| e.error)
            });
        let count = self.latest.records.len();
        match kept {
            Ok((_, place)) => format!(
                "{error}; all {count} records are kept in {}: put that file in its place and the same command goes on",
                place.display()
            ),
            Err(other) => {
                format!("{error}; nor could its {count} records be kept elsewhere: {other}")
            }
        }
    }

    /// Writes the manifest of a run, which joins that of earlier runs in this directory.
    ///
    /// # Errors
    /// As [`Manifest::join`], or if the file cannot be read or written.
    pub fn enter(&mut self, mut manifest: Manifest, mix: bool) -> Result<()> {
        if let Some(earlier) = Manifest::read(&self.dir)? {
            self.environment = manifest.join(earlier, mix)?;
        }
        self.put_manifest(&manifest)
    }

    /// Adds to the manifest points that the run is to measure; without a manifest nobody asks for them.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn note_points(&self, points: &[Key]) -> Result<()> {
        let Some(mut manifest) = Manifest::read(&self.dir)? else {
            return Ok(());
        };
        if let Some(latest) = &mut manifest.latest {
            latest.points.extend_from_slice(points);
        }
        self.put_manifest(&manifest)
    }

    /// Adds to the manifest what the device can do at best, which is measured after the run has been let in.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn note_ceilings(&self, ceilings: &Ceilings) -> Result<()> {
        let Some(mut manifest) = Manifest::read(&self.dir)? else {
            return Ok(());
        };
        if let Some(environment) = manifest.environments.get_mut(self.environment) {
            environment.ceilings = Some(ceilings.clone());
        }
        if let Some(latest) = &mut manifest.latest {
            latest.environment.ceilings = Some(ceilings.clone());
        }
        self.put_manifest(&manifest)
    }

    fn put_manifest(&self, manifest: &Manifest) -> Result<()> {
        let text = serde_json::to_string_pretty(manifest)
            .map_err(|e| Error::Internal(format!("cannot write the manifest as JSON: {e}")))?;
        self.write(MANIFEST, (text + "\n").as_bytes()).map(|_| ())
    }

    /// The place of the present environment in the manifest: zero unless records come from several.
    pub fn environment(&self) -> usize {
        self.environment
    }

    /// Whether the point is on record, measured or failed.
    pub fn contains(&self, key: &Key) -> bool {
        self.latest.places.contains_key(key)
    }

    /// The record of a point: a resumed run asks it whether the point failed and is to be tried again.
    pub fn get(&self, key: &Key) -> Option<&R> {
        let place = *self.latest.places.get(key)?;
        self.latest.records.get(place)
    }

    /// The latest record of every point, in the order in which the points first appeared.
    pub fn records(&self) -> &[R] {
        &self.latest.records
    }

    /// Writes a file of the run directory (`study.json`, `report.html`) whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.dir.join(name);
        write_whole(&path, content)?;
        Ok(path)
    }
}

/// The records of these points, in the order of the points, without those that have none: a folder may hold more than
/// what one plan asks.
pub fn of_points<R: Entry>(records: &[R], points: &[Key]) -> Vec<R> {
    let known: HashMap<&Key, &R> = records.iter().map(|r| (r.key(), r)).collect();
    let found = points.iter().filter_map(|point| known.get(point));
    found.map(|&record| record.clone()).collect()
}

/// Reads the records of a run directory, or of a records file, without claiming it; a torn last line is left out.
///
/// # Errors
/// If there is none, or a line is corrupt.
pub fn read<R: Entry>(path: impl AsRef<Path>) -> Result<Vec<R>> {
    let path = path.as_ref();
    let path = if path.is_dir() {
        path.join(RECORDS)
    } else {
        path.to_owned()
    };
    let mut file = File::open(&path).map_err(|e| Error::reading(&path, "cannot open", e))?;
    let text = read_all(&mut file, &path)?;
    Ok(parse(whole_lines(&text), &path)?.records)
}

/// Writes a file beside its final place and moves it there, so that no reader ever sees half of it.
///
/// # Errors
/// If it cannot be written.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path
        .file_name()
        .ok_or_else(|| Error::Usage(format!("'{}' names no file", path.display())))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.part", std::process::id()));
    let part = dir.join(hidden);
    let written = File::create(&part)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&part, path));
    if let Err(error) = written {
        // The first failure is the one to tell; a leftover part file harms nobody.
        let _ = fs::remove_file(&part);
        return Err(Error::writing(path, "cannot write", error));
    }
    sync_dir(dir)
}

/// Whether two names lead to one file.
#[cfg(unix)]
fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}

fn lock(file: &File, path: &Path) -> Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Error::Usage(format!(
            "{}: another process is writing this run; wait for it or choose another --out",
            path.display()
        )),
        TryLockError::Error(source) => Error::writing(path, "cannot lock", source),
    })
}

fn read_all(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut bytes))
        .map_err(|e| Error::reading(path, "cannot read", e))?;
    Ok(bytes)
}

/// Everything up to the last newline: what follows it was being written when the process died.
fn whole_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .rposition(|&b| b == b'\n')
        .map_or(0, |at| at + 1);
    &bytes[..end]
}

fn parse<R: Entry>(bytes: &[u8], path: &Path) -> Result<Latest<R>> {
    let mut latest = Latest {
        records: Vec::new(),
        places: HashMap::new(),
    };
    for (number, bytes) in bytes.split(|&b| b == b'\n').enumerate() {
        if bytes.is_empty() {
            continue;
        }
        let place = || format!("{}:{}", path.display(), number + 1);
        let text = std::str::from_utf8(bytes)
            .map_err(|error| Error::data(place(), format!("not UTF-8: {error}")))?;
        latest.put(line::decode(text).map_err(|what| Error::data(place(), what))?);
    }
    Ok(latest)
}

/// Makes a new or renamed directory entry survive a power cut. Only Unix can open a directory as a file.
fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    File::open(dir)
        .and_then(|handle| handle.sync_all())
        .map_err(|e| Error::writing(dir, "cannot sync the directory", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    fn filled(dir: &Path) -> Vec<Record> {
        let records = fixture::records();
        let mut store = Store::open(dir).unwrap();
        for record in &records {
            store.append(record.clone()).unwrap();
        }
        records
    }

    #[test]
    fn a_run_resumes_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let records = filled(dir.path());
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.records(), records);
        assert!(store.contains(&records[0].key));
        assert_eq!(store.get(&records[1].key), Some(&records[1]));
        assert_eq!(read::<Record>(dir.path()).unwrap(), records);
    }

    #[test]
    fn points_choose_among_the_records_and_order_them() {
        let records = fixture::records();
        let absent = Key("no such point".to_owned());
        let points = [records[2].key.clone(), absent, records[0].key.clone()];
        let chosen = of_points(&records, &points);
        assert_eq!(chosen, [records[2].clone(), records[0].clone()]);
    }

    #[test]
    fn a_torn_last_line_is_cut_off_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let records = filled(dir.path());
        let path = dir.path().join(RECORDS);
        let length = fs::metadata(&path).unwrap().len();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(length - 7).unwrap();
        drop(file);

        let last = records.len() - 1;
        assert_eq!(read::<Record>(dir.path()).unwrap(), records[..last]);
        let mut store = Store::open(dir.path()).unwrap();
        assert!(!store.contains(&records[last].key));
        store.append(records[last].clone()).unwrap();
        drop(store);
        assert_eq!(read::<Record>(dir.path()).unwrap(), records);
    }

    #[test]
    fn a_corrupt_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let path = dir.path().join(RECORDS);
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines[1] = "{\"schema\":";
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("records.jsonl:2: "), "{error}");
        assert_eq!(error.exit_code(), 65);
    }

    /// Where the error says that the records are.
    fn rescued(error: &Error) -> PathBuf {
        let told = error.to_string();
        let place = told.split("kept in ").nth(1).unwrap();
        PathBuf::from(place.split(": put").next().unwrap())
    }

    #[test]
    fn records_that_the_disk_does_not_take_are_kept_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let records = filled(dir.path());
        let mut store = Store::open(dir.path()).unwrap();
        // A file that takes nothing, as a full disk does.
        store.file = File::open(dir.path().join(RECORDS)).unwrap();
        let error = store.append(records[0].clone()).unwrap_err();
        assert_eq!(error.exit_code(), 74);
        assert!(error.to_string().contains("records.jsonl"), "{error}");
        let place = rescued(&error);
        assert_eq!(read::<Record>(&place).unwrap(), records);
        fs::remove_file(place).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_run_whose_folder_is_gone_is_kept_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let records = filled(&run);
        let mut store = Store::open(&run).unwrap();
        fs::remove_dir_all(&run).unwrap();
        let error = store.append(records[0].clone()).unwrap_err();
        assert!(error.to_string().contains("not there any more"), "{error}");
        let place = rescued(&error);
        assert_eq!(read::<Record>(&place).unwrap(), records);
        fs::remove_file(place).unwrap();
    }

    #[test]
    fn a_second_writer_is_turned_away() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop(first);
        assert!(Store::open(dir.path()).is_ok());
    }

    #[test]
    fn a_repeated_point_replaces_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let records = filled(dir.path());
        let mut store = Store::open(dir.path()).unwrap();
        store.append(records[0].clone()).unwrap();
        assert_eq!(store.records().len(), records.len());
        drop(store);
        assert_eq!(read::<Record>(dir.path()).unwrap().len(), records.len());
    }

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.write("study.json", b"one").unwrap();
        let path = store.write("study.json", b"two").unwrap();
        assert_eq!(fs::read(path).unwrap(), b"two");
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(store.write("no/such/place", b"").is_err());
    }
}
