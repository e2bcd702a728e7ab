//! One cell of the microbenchmark: `candlepower.kernel/1`, a line of `records.jsonl`. Plain data whose field names are
//! those of the file, with the unit as a suffix.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::record::Key;
use super::super::roofline::{Cost, Limits};
use super::super::store::{Entry, RunDir};

/// A run directory of the microbenchmark.
pub type Store = RunDir<Record>;

/// The versions of the line that this program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.kernel/1")]
    V1,
}

/// One cell: an op at one shape, number of tokens and variant, with all samples or the reason why there are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "KernelRecord")]
pub struct Record {
    /// The version of this line.
    pub schema: Version,
    /// BLAKE3 (128 bits, hex) over canonical JSON of the subject.
    pub key: Key,
    /// What was timed.
    pub subject: Subject,
    /// Where the shape occurs, such as `llama-3.1-8b qkv`.
    pub roles: Vec<String>,
    /// The figures, or why there are none.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The first 16 hex digits of BLAKE3 over the line as it reads without this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}

/// Everything that identifies a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    /// The op, such as `linear`.
    pub op: String,
    /// Its sizes other than the number of tokens, such as `n` and `k`.
    pub sizes: BTreeMap<String, usize>,
    /// Rows of its input.
    pub tokens: usize,
    /// The variant of the weights; the type of the activations for an op without weights.
    pub variant: String,
    /// The type of the activations.
    pub activation_dtype: String,
    /// The device by name.
    pub device: String,
    /// Host threads that the reference ops are spread over; null on a GPU.
    pub threads: Option<usize>,
    /// The version of this program.
    pub tool_version: String,
}

/// Whether a cell has figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// Verified, then timed.
    Ok {
        /// What was found.
        result: Box<Measured>,
    },
    /// Verified, and not to be timed.
    Verified {
        /// How the op was computed.
        plan: String,
        /// How the result was judged.
        verification: Verification,
    },
    /// Not timed.
    Failed {
        /// Why: what the verification found, or what went wrong.
        reason: String,
    },
}

/// The figures of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// How the op was computed: the plan that it chose.
    pub plan: String,
    /// Whether the CPU reference was timed: what a GPU is held to, not what a CPU could do at best.
    pub cpu_reference: bool,
    /// What told the time: `host clock`, or `events over graph replays`.
    pub timer: String,
    /// The traffic and arithmetic that the op cannot do without.
    pub cost: Cost,
    /// What the device can do at best, measured in the same run.
    pub limits: Limits,
    /// How the result was judged before anything was timed.
    pub verification: Verification,
    /// Calls on buffers that no cache holds.
    pub cold: Timing,
    /// Calls on the same buffers again and again.
    pub warm: Timing,
    /// A plain kernel that only reads as many bytes as the op moves, timed in the same way, cold.
    pub read_floor: Timing,
    /// The vendor's library at the same shape, timed in the same way, cold.
    pub peer: Peer,
    /// The last-level cache that cold buffers are to exceed; null where it is not known.
    pub cache_bytes: Option<u64>,
}

/// How a result was judged, element by element.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verification {
    /// Elements compared with plain sums in f64.
    pub elements: u64,
    /// The largest error of an element as a share of what it may be; at most 1.
    pub worst: f64,
    /// The error of all together, relative to their size.
    pub whole: f64,
}

/// Samples of one way of calling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// Time per call in each sample.
    pub samples_s: Vec<f64>,
    /// Calls in a sample.
    pub calls: usize,
    /// Sets of buffers that the calls take turns on.
    pub copies: usize,
    /// Bytes of all of them.
    pub rotated_bytes: u64,
    /// Samples thrown away before the first.
    pub warmup_samples: usize,
    /// What ended the sampling.
    pub stop_reason: String,
}

/// A library's product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Peer {
    /// There is none to compare with.
    Unavailable {
        /// Why.
        reason: String,
    },
    /// Timed.
    Measured {
        /// The library and what it was asked for.
        name: String,
        /// Its samples.
        timing: Timing,
    },
}

impl Record {
    /// A record under the key of its cell.
    pub fn new(subject: Subject, roles: Vec<String>, outcome: Outcome) -> Self {
        Self {
            schema: Version::V1,
            key: subject.key(),
            subject,
            roles,
            outcome,
            checksum: None,
        }
    }

    /// Why the cell failed; `None` if it did not.
    pub fn failure(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Ok { .. } | Outcome::Verified { .. } => None,
            Outcome::Failed { reason } => Some(reason),
        }
    }
}

impl Outcome {
    /// Whether a run that times its cells, or only verifies them, finds here what it wants.
    pub fn serves(&self, verify_only: bool) -> bool {
        match self {
            Self::Ok { .. } => true,
            Self::Verified { .. } => verify_only,
            Self::Failed { .. } => false,
        }
    }
}

impl Subject {
    /// The address of the cell, known before it is measured.
    pub fn key(&self) -> Key {
        Key::over("kernel", self, ())
    }
}

impl Entry for Record {
    fn key(&self) -> &Key {
        &self.key
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain data becomes JSON")
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        // The line is sealed; the record in memory is not.
        Ok(Self {
            checksum: None,
            ..record
        })
    }
}
