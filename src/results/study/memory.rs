//! The account of device memory.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::record;
use crate::units::Bytes;

/// Where the device memory went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Weights with scales and zeros.
    pub weights: Amount,
    /// The key-value cache.
    pub kv: Amount,
    /// Whatever else the program has asked for at its high-water mark: activations, logits, workspaces.
    pub activations: Amount,
    /// Outside of the program's own pool: context, modules, workspaces of libraries, other programs. Null on the CPU, where
    /// it is not told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Amount>,
    /// In use on a GPU, by whatever program; on the CPU, what this process has resident, the program itself included.
    pub total: Amount,
    /// What was measured in total beyond the sum of the parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_bytes: Option<i64>,
}

/// One line of the memory ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Amount {
    /// Computed before the run.
    pub predicted_bytes: Option<u64>,
    /// Found after it.
    pub measured_bytes: Option<u64>,
}

impl From<record::Memory> for Memory {
    fn from(memory: record::Memory) -> Self {
        Self {
            weights: memory.weights.into(),
            kv: memory.kv.into(),
            activations: memory.activations.into(),
            other: memory.other.best().map(|_| memory.other.into()),
            total: memory.total.into(),
            residual_bytes: memory.residual(),
        }
    }
}

impl From<record::Amount> for Amount {
    fn from(amount: record::Amount) -> Self {
        Self {
            predicted_bytes: amount.predicted.map(|bytes| bytes.0),
            measured_bytes: amount.measured.map(|bytes| bytes.0),
        }
    }
}

impl Amount {
    /// What was measured, or else predicted.
    pub fn best(self) -> Option<Bytes> {
        self.measured_bytes.or(self.predicted_bytes).map(Bytes)
    }
}
