//! Where a study ran. Filled in by whoever measures; here it is only carried along and shown.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The machine, the program and the moment. What is unknown is null, never guessed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// The version of this program.
    pub tool_version: String,
    /// The commit it was built from, 40 hex digits; where files differed from it with `-dirty-` and a hash of what differed
    /// behind them, of older builds `-dirty` alone.
    pub git_commit: Option<String>,
    /// Cargo features it was built with.
    pub features: Vec<String>,
    /// The device that ran the model.
    pub device: Device,
    /// The host.
    pub cpu: Cpu,
    /// The operating system with its version.
    pub os: Option<String>,
    /// When the run began, RFC 3339.
    pub started: Option<String>,
    /// Host threads the engine used.
    pub threads: Option<usize>,
    /// What the device can do at best, measured on it.
    pub ceilings: Option<Ceilings>,
    /// Anything else worth keeping: library versions, environment variables, seeds.
    pub extra: BTreeMap<String, String>,
}

/// The device that ran the model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// The name, such as `NVIDIA H200`.
    pub name: Option<String>,
    /// `cuda` or `cpu`.
    pub kind: Option<String>,
    /// Its memory.
    pub memory_bytes: Option<u64>,
    /// Its last-level cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
    /// The version of the driver.
    pub driver: Option<String>,
    /// The version of CUDA that the driver speaks.
    pub cuda: Option<String>,
    /// The compute capability, such as `9.0`.
    pub compute_capability: Option<String>,
    /// Streaming multiprocessors.
    pub multiprocessors: Option<usize>,
    /// The enforced power limit.
    pub power_limit_watts: Option<f64>,
    /// The highest clock of the multiprocessors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sm_clock_mhz: Option<u32>,
    /// The highest clock of the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_clock_mhz: Option<u32>,
    /// The clock of the multiprocessors that applications are set to, where the board has such a setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_sm_clock_mhz: Option<u32>,
}

/// The host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cpu {
    /// The model name.
    pub model: Option<String>,
    /// Logical cores that this process may use.
    pub cores: Option<usize>,
    /// Host memory.
    pub memory_bytes: Option<u64>,
}

/// What the device can do at best: measured on it by this program, not taken from a data sheet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ceilings {
    /// Reading device memory, decimal GB/s.
    pub read_gb_per_s: Option<f64>,
    /// Copying within device memory, bytes read plus written, decimal GB/s.
    pub copy_gb_per_s: Option<f64>,
    /// Dense matrix products by type of operand, such as `bf16`, in TFLOP/s.
    pub matmul_tflop_per_s: BTreeMap<String, f64>,
    /// Every measurement, those behind the figures above among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<Ceiling>,
    /// What was not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// One measured limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ceiling {
    /// What it limits: `read`, `copy`, `matmul` with its type, or `launch gap`; with a size where that is not the one
    /// that figures are held against.
    pub name: String,
    /// The best of the samples.
    pub best: f64,
    /// The median of the samples.
    pub median: f64,
    /// `B/s`, `FLOP/s` or `s`.
    pub unit: String,
    /// What was done, in a few words.
    pub how: String,
}

/// A limit that was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}
