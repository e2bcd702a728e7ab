//! What is said between a run and its workers. Between processes it goes as JSON, one line each.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::bench::Turn;
use crate::error::{Access, Error};
use crate::results::Record;
use crate::results::environment::Environment;
use crate::results::record::{Key, Loaded};

/// What a worker is asked to do. Points are numbered as in the plan of its variant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(in crate::study) enum Request {
    /// First of all: whose worker it is.
    Open(Box<Opening>),
    /// Load the variant and check it.
    Load,
    /// Measure a point from beginning to end.
    Measure {
        /// Which.
        point: usize,
    },
    /// Make the trials of one turn at a point.
    Turn {
        /// Which.
        point: usize,
        /// Which trials of it.
        turn: Turn,
    },
    /// Measure what comes after the last turn at the point.
    Finish {
        /// Which.
        point: usize,
    },
    /// Know who else works for the run. Comes before all that may look who has a context on the device.
    Meet {
        /// The processes of all workers there are now, this one's among them. Each has a context.
        processes: Vec<u32>,
    },
    /// Put the predictions of the variant on the disk, for others to be compared with.
    Predict,
    /// Hold no more than the weights, while others run.
    Rest,
    /// Stop after the step at hand. Gets no answer of its own.
    Stop,
}

impl Request {
    /// Whether what it asks for may end with what the work draws, which needs to know who else has a context.
    pub(in crate::study) fn may_read_power(&self) -> bool {
        matches!(
            self,
            Self::Measure { .. } | Self::Turn { .. } | Self::Finish { .. }
        )
    }
}

/// The variant that a worker is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::study) struct Opening {
    /// Where the run takes place, measured ceilings among it.
    pub(in crate::study) environment: Environment,
    /// What the board drew before anything was opened on it, in watts, or why that is not known.
    pub(in crate::study) bare_idle_watts: std::result::Result<f64, String>,
    /// The plan, of those that the command line stands for.
    pub(in crate::study) plan: usize,
    /// The variant, of those of the plan.
    pub(in crate::study) job: usize,
    /// The addresses of its points, which must come out the same on both sides.
    pub(in crate::study) keys: Vec<Key>,
}

/// What a worker says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum Message {
    /// While it works.
    News(News),
    /// That it works, where there are no news.
    Alive,
    /// At the end of what it was asked to do.
    Answer {
        /// What came of it.
        answer: Answer,
    },
}

/// What a worker tells while it works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "snake_case")]
pub(in crate::study) enum News {
    /// How far it is.
    Progress {
        /// With what.
        phase: Phase,
        /// The share that is done.
        share: f64,
    },
    /// Something worth a line.
    Note {
        /// The line.
        text: String,
    },
}

impl News {
    /// Steps of a phase that are told apart; `None` for what is always worth telling.
    pub(super) fn step(&self) -> Option<(Phase, u32)> {
        match self {
            Self::Progress { phase, share } => Some((*phase, (share * 200.0) as u32)),
            Self::Note { .. } => None,
        }
    }
}

/// What a worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::study) enum Phase {
    /// A checkpoint is quantised.
    Quantise,
    /// Weights are on their way to the device.
    Load,
    /// Checks that come before any number.
    Verify,
    /// The point itself.
    Point,
    /// The energy of its work.
    Energy,
}

/// What came of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(in crate::study) enum Answer {
    /// It is done.
    Done,
    /// The variant is loaded.
    Loaded {
        /// What is known of it since.
        loaded: Box<Loaded>,
    },
    /// A turn is over.
    Paused {
        /// Whether the point needs no more of them.
        enough: bool,
    },
    /// A point is measured.
    Measured {
        /// All that there is of it.
        record: Box<Record>,
    },
    /// It could not be done.
    Failed {
        /// Why.
        fault: Fault,
    },
}

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::study) struct Fault {
    /// What sort of fault it is.
    pub(in crate::study) kind: FaultKind,
    /// The file at fault, where it is one.
    path: Option<PathBuf>,
    /// One sentence for a human.
    text: String,
}

/// Faults by what is to be done about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::study) enum FaultKind {
    /// [`Error::Usage`].
    Usage,
    /// [`Error::Config`].
    Config,
    /// [`Error::Data`], or a file that could not be read.
    Data,
    /// A file that could not be written.
    Write,
    /// [`Error::NotFinite`]: the fault of one variant, not of the run.
    NotFinite,
    /// [`Error::NoDevice`].
    NoDevice,
    /// [`Error::Device`].
    Device,
    /// [`Error::OutOfMemory`].
    OutOfMemory,
    /// [`Error::Interrupted`].
    Interrupted,
    /// [`Error::Internal`].
    Internal,
    /// The process is gone, or had to be ended.
    Lost,
}

impl Fault {
    /// The worker is gone, because of `text`.
    pub(super) fn lost(text: impl Into<String>) -> Self {
        Self::new(FaultKind::Lost, text)
    }

    pub(super) fn new(kind: FaultKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            path: None,
            text: text.into(),
        }
    }

    /// Whether nothing that the run could do next would fare better.
    pub(in crate::study) fn ends_the_run(&self) -> bool {
        use FaultKind::{Config, Data, Interrupted, Usage, Write};
        matches!(self.kind, Usage | Config | Data | Write | Interrupted)
    }

    /// Whether the worker is of no more use: a device that failed once may fail at everything, and what was being allocated
    /// when the room ran out is lost.
    pub(in crate::study) fn spoils_the_worker(&self) -> bool {
        use FaultKind::{Device, Internal, Lost, OutOfMemory};
        matches!(self.kind, Device | OutOfMemory | Internal | Lost)
    }

    /// The error that it was.
    pub(in crate::study) fn into_error(self) -> Error {
        let Self { kind, path, text } = self;
        match (kind, path) {
            (FaultKind::Usage, _) => Error::Usage(text),
            (FaultKind::Config, _) => Error::Config(text),
            (FaultKind::Data, Some(path)) => Error::Data { path, what: text },
            (FaultKind::Write, Some(path)) => {
                Error::writing(path, "while measuring", io::Error::other(text))
            }
            (FaultKind::NotFinite, _) => Error::NotFinite(text),
            (FaultKind::NoDevice, _) => Error::NoDevice(text),
            (FaultKind::OutOfMemory, _) => Error::OutOfMemory(text),
            (FaultKind::Interrupted, _) => Error::Interrupted,
            (FaultKind::Device | FaultKind::Lost, _) => Error::Device(text),
            (FaultKind::Internal | FaultKind::Data | FaultKind::Write, _) => Error::Internal(text),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: {}", path.display(), self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let told = error.to_string();
        let (kind, path, text) = match error {
            Error::Usage(text) => (FaultKind::Usage, None, text),
            Error::Config(text) => (FaultKind::Config, None, text),
            Error::Data { path, what } => (FaultKind::Data, Some(path), what),
            Error::Io {
                path,
                access,
                doing,
                source,
            } => {
                let kind = match access {
                    Access::Read => FaultKind::Data,
                    Access::Write => FaultKind::Write,
                };
                (kind, Some(path), format!("{doing}: {source}"))
            }
            Error::NotFinite(text) => (FaultKind::NotFinite, None, text),
            Error::NoDevice(text) => (FaultKind::NoDevice, None, text),
            Error::Device(text) => (FaultKind::Device, None, text),
            Error::OutOfMemory(text) => (FaultKind::OutOfMemory, None, text),
            Error::Interrupted => (FaultKind::Interrupted, None, told),
            Error::Internal(text) => (FaultKind::Internal, None, text),
        };
        Self { kind, path, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_words_and_its_exit_code_on_the_way() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        for error in [
            Error::Usage("--batch".into()),
            Error::Config("no fit".into()),
            Error::data("m.gguf", "cut short"),
            Error::reading("m.gguf", "cannot read", missing()),
            Error::NotFinite("logits".into()),
            Error::NoDevice("none".into()),
            Error::Device("launch failed".into()),
            Error::OutOfMemory("no room".into()),
            Error::Interrupted,
            Error::Internal("lost".into()),
        ] {
            let (said, code) = (error.to_string(), error.exit_code());
            let line = serde_json::to_string(&Fault::from(error)).unwrap();
            let back: Fault = serde_json::from_str(&line).unwrap();
            let error = back.into_error();
            assert_eq!((error.to_string(), error.exit_code()), (said, code));
        }
        let written = Fault::from(Error::writing("out", "cannot write", missing())).into_error();
        assert_eq!(written.exit_code(), 74);
        assert!(written.to_string().contains("cannot write"), "{written}");
    }
}
