//! The account of device memory on disk.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the device memory went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(in crate::results) struct Memory {
    pub(in crate::results) weights: Amount,
    pub(in crate::results) kv: Amount,
    pub(in crate::results) activations: Amount,
    /// Outside of the program's own pool; absent where it is not told apart.
    #[serde(default, skip_serializing_if = "Amount::is_unknown")]
    pub(in crate::results) other: Amount,
    pub(in crate::results) total: Amount,
}

/// One line of the memory ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(in crate::results) struct Amount {
    pub(in crate::results) predicted_bytes: Option<u64>,
    pub(in crate::results) measured_bytes: Option<u64>,
}

impl Amount {
    fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}
