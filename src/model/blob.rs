//! Positioned reads from a file or from bytes inside the binary: no mapping (a file that shrinks under a map kills the
//! process), no shared cursor (threads read at the same time), no copy beyond what is asked for.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian and are read as they are");

/// How a file begins that Git LFS keeps in the place of a large one until that is fetched.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses a file that begins like this if it only stands for another.
pub(super) fn refuse_pointer(path: &Path, head: &[u8]) -> Result<()> {
    if !head.starts_with(POINTER) {
        return Ok(());
    }
    Err(Error::data(
        path,
        "a pointer of Git LFS, not the file itself: fetch it with 'git lfs pull' in its repository, or download it",
    ))
}

/// A readable sequence of bytes with a name for messages.
#[derive(Debug)]
pub(super) struct Blob {
    path: PathBuf,
    len: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File(Positioned),
    Embedded(&'static [u8]),
}

impl Blob {
    /// Opens a file for reading.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::reading(path, "cannot open", e))?;
        let about = file
            .metadata()
            .map_err(|e| Error::reading(path, "cannot read the size", e))?;
        if !about.is_file() {
            return Err(Error::data(path, "not a regular file"));
        }
        let blob = Self {
            path: path.to_owned(),
            len: about.len(),
            content: Content::File(Positioned::new(file)),
        };
        if blob.len >= POINTER.len() as u64 {
            let mut head = [0; POINTER.len()];
            blob.read_exact_at(0, &mut head)?;
            refuse_pointer(path, &head)?;
        }
        Ok(blob)
    }

    /// Bytes that are part of the binary; `name` stands for the path in messages.
    pub(super) fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self {
            path: PathBuf::from(name),
            len: bytes.len() as u64,
            content: Content::Embedded(bytes),
        }
    }

    /// The file's path, for messages and records.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` from byte `offset` on.
    pub(super) fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match &self.content {
            Content::File(file) => file
                .read_exact_at(offset, out)
                .map_err(|e| Error::reading(&self.path, "cannot read", e)),
            Content::Embedded(bytes) => {
                let from = usize::try_from(offset).ok();
                let part = from.and_then(|from| bytes.get(from..)?.get(..out.len()));
                let part = part.ok_or_else(|| Error::data(&self.path, "read past the end"))?;
                out.copy_from_slice(part);
                Ok(())
            }
        }
    }
}

#[cfg(unix)]
#[derive(Debug)]
struct Positioned(File);

#[cfg(unix)]
impl Positioned {
    fn new(file: File) -> Self {
        Self(file)
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, out, offset)
    }
}

#[cfg(not(unix))]
#[derive(Debug)]
struct Positioned(std::sync::Mutex<File>);

#[cfg(not(unix))]
impl Positioned {
    fn new(file: File) -> Self {
        Self(std::sync::Mutex::new(file))
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        use std::io::{Read, Seek};
        let mut file = self.0.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(io::SeekFrom::Start(offset))?;
        file.read_exact(out)
    }
}
