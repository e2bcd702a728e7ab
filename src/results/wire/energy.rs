//! Energy on disk.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the work of a cell draws.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub(in crate::results) enum Energy {
    /// Nothing is known.
    Unavailable { reason: String },
    /// Found over two windows after the trials, gross.
    Measured(Box<EnergyUse>),
}

/// Energy over a window of prefill and one of decode, gross.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(in crate::results) struct EnergyUse {
    pub(in crate::results) prefill_joules: f64,
    pub(in crate::results) decode_joules: f64,
    pub(in crate::results) prefill_window_s: f64,
    pub(in crate::results) decode_window_s: f64,
    pub(in crate::results) prompt_tokens: u64,
    pub(in crate::results) generated_tokens: u64,
    /// Of the decode window.
    pub(in crate::results) mean_watts: Option<f64>,
    /// Before anything is opened on the board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::results) idle_without_context_watts: Option<f64>,
    /// With the model loaded and nothing running.
    pub(in crate::results) idle_watts: Option<f64>,
    /// Right after work, the clocks still up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::results) after_work_watts: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::results) power_limit_watts: Option<f64>,
    pub(in crate::results) sm_clock_mhz: Option<f64>,
    pub(in crate::results) memory_clock_mhz: Option<f64>,
    pub(in crate::results) temperature_c: Option<f64>,
    pub(in crate::results) throttle_reasons: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::results) prefill_check: Option<EnergyCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::results) decode_check: Option<EnergyCheck>,
    /// Why nothing shall be concluded from the figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::results) rejected: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::results) sampling: Option<Sampling>,
    /// What is not known, each with its reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::results) missing: Vec<String>,
}

/// How the energy of a window was found, and what the other source says.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(in crate::results) struct EnergyCheck {
    /// `counter` or `integral`.
    pub(in crate::results) source: String,
    /// Of the counter, in the window.
    pub(in crate::results) ticks: Option<usize>,
    /// What polling leaves unsure of the time between the first and the last tick, as a share.
    pub(in crate::results) edge_error: Option<f64>,
    /// By integrating power.
    pub(in crate::results) integrated_joules: Option<f64>,
    /// Of the two, as a share of the counter.
    pub(in crate::results) disagreement: Option<f64>,
    /// Whether that is more than should be.
    pub(in crate::results) suspect: bool,
    pub(in crate::results) rounds: u64,
    /// Of random lengths, part of the window.
    pub(in crate::results) pauses_s: f64,
    /// In the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::results) sm_clock_mhz: Option<f64>,
}

/// What reading the sensors cost, on a thread of their own.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(in crate::results) struct Sampling {
    pub(in crate::results) reads: usize,
    pub(in crate::results) mean_s: f64,
    pub(in crate::results) p99_s: Option<f64>,
    pub(in crate::results) max_s: f64,
    /// Of the time that was sampled.
    pub(in crate::results) share: f64,
}
