//! The one error type. Every error names what is at fault (file, tensor, flag, line) and carries the exit code that a
//! shell sees.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, sorted by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line asks for something that does not exist or does not fit together (exit 2).
    #[error("{0}")]
    Usage(String),
    /// A configuration is well-formed but cannot be run: a group that fits nothing, a batch that cannot fit (exit 64).
    #[error("{0}")]
    Config(String),
    /// A model or data file is missing, truncated or corrupt (exit 65).
    #[error("{}: {what}", path.display())]
    Data {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong with it, naming the tensor, key or line.
        what: String,
    },
    /// A model computes what is no number (exit 65): a sound model does not, so its weights are at fault or the type of its
    /// activations holds too little.
    #[error("{0}")]
    NotFinite(String),
    /// The device asked for is not there (exit 69).
    #[error("{0}")]
    NoDevice(String),
    /// Reading or writing a file failed for reasons outside its content (exit 65 for what is read, 74 for what is written).
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// The file at fault.
        path: PathBuf,
        /// What the file is to the program.
        access: Access,
        /// What was being done, as in "cannot read".
        doing: &'static str,
        /// The system's own word.
        source: std::io::Error,
    },
    /// A fault of the device that may pass, such as a launch that failed (exit 75). The device may be of no more use to
    /// this process.
    #[error("{0}")]
    Device(String),
    /// There is no room for what was asked, on the device or the host; less of it may fit (exit 75).
    #[error("{0}")]
    OutOfMemory(String),
    /// The user asked to stop (exit 130).
    #[error("interrupted")]
    Interrupted,
    /// A broken invariant of this program (exit 70).
    #[error("internal error: {0}")]
    Internal(String),
}

/// What a file is to the program, which decides who is at fault if it cannot be used: whoever named it, or the place that
/// it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// An input: a model, a text, records.
    Read,
    /// An output, in whatever it fails: that it cannot be opened, written, or put in its place.
    Write,
}

impl Error {
    /// A model or data file that is at fault.
    pub fn data(path: impl AsRef<Path>, what: impl fmt::Display) -> Self {
        Self::Data {
            path: path.as_ref().to_owned(),
            what: what.to_string(),
        }
    }

    /// A system call on an input that failed; `doing` as in "cannot open".
    pub fn reading(path: impl AsRef<Path>, doing: &'static str, source: std::io::Error) -> Self {
        Self::io(path.as_ref(), Access::Read, doing, source)
    }

    /// A system call on an output that failed; `doing` as in "cannot open".
    pub fn writing(path: impl AsRef<Path>, doing: &'static str, source: std::io::Error) -> Self {
        Self::io(path.as_ref(), Access::Write, doing, source)
    }

    fn io(path: &Path, access: Access, doing: &'static str, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            access,
            doing,
            source,
        }
    }

    /// The process exit code, after `sysexits.h` where it has one.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Config(_) => 64,
            Self::Data { .. }
            | Self::NotFinite(_)
            | Self::Io {
                access: Access::Read,
                ..
            } => 65,
            Self::NoDevice(_) => 69,
            Self::Internal(_) => 70,
            Self::Io {
                access: Access::Write,
                ..
            } => 74,
            Self::Device(_) | Self::OutOfMemory(_) => 75,
            Self::Interrupted => 130,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_file_fails_by_what_it_is_for_and_not_by_the_words_of_the_error() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        for doing in ["cannot open", "cannot read", "cannot write", "cannot lock"] {
            let (input, output) = (
                Error::reading("in", doing, denied()),
                Error::writing("out", doing, denied()),
            );
            assert_eq!((input.exit_code(), output.exit_code()), (65, 74), "{doing}");
            assert!(output.to_string().starts_with(&format!("out: {doing}: ")));
        }
    }
}
