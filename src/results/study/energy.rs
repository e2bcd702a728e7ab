//! What the work of a cell draws.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::record;
use crate::units::Seconds;

/// What a cell's work draws.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Energy {
    /// Nothing is known.
    Unavailable {
        /// Why.
        reason: String,
    },
    /// Found over two windows after the trials.
    Measured(Box<EnergyUse>),
}

/// Energy over two windows after the trials of a cell, one of prefill and one of decode; gross unless it says net. Figures
/// per token are null where counter and integral are so far apart that nothing can be concluded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EnergyUse {
    /// Drawn while prompts were processed.
    pub prefill_joules: f64,
    /// Drawn while tokens were generated.
    pub decode_joules: f64,
    /// Prompt tokens processed.
    pub prompt_tokens: u64,
    /// Tokens generated in the decode windows.
    pub generated_tokens: u64,
    /// Prefill energy per prompt token.
    pub j_per_prompt_token: Option<f64>,
    /// Decode energy per generated token.
    pub j_per_generated_token: Option<f64>,
    /// Prefill energy per prompt token above the idle draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_j_per_prompt_token: Option<f64>,
    /// Decode energy per generated token above the idle draw.
    pub net_j_per_generated_token: Option<f64>,
    /// The inverse of `j_per_prompt_token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_per_joule: Option<f64>,
    /// The inverse of `j_per_generated_token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated_tokens_per_joule: Option<f64>,
    /// Mean power of the prefill window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_watts: Option<f64>,
    /// Mean power of the decode window.
    pub mean_watts: Option<f64>,
    /// 100 × the prefill's power over the limit in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_percent_of_power_limit: Option<f64>,
    /// 100 × the decode's power over the limit in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_percent_of_power_limit: Option<f64>,
    /// The draw before anything was opened on the board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_without_context_watts: Option<f64>,
    /// The draw with the model loaded and nothing running.
    pub idle_watts: Option<f64>,
    /// The draw right after work, the clocks still up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_work_watts: Option<f64>,
    /// The mean clock of the multiprocessors.
    pub sm_clock_mhz: Option<f64>,
    /// The same of the prefill window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_sm_clock_mhz: Option<f64>,
    /// The same of the decode window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_sm_clock_mhz: Option<f64>,
    /// The mean memory clock.
    pub memory_clock_mhz: Option<f64>,
    /// The highest temperature.
    pub temperature_c: Option<f64>,
    /// Reasons the device gave for lowering its clocks.
    pub throttle_reasons: Vec<String>,
    /// 100 × the difference of counter and integral over the counter, of the window where it is larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagreement_percent: Option<f64>,
    /// Whether that is more than should be.
    #[serde(default)]
    pub suspect: bool,
    /// Why nothing shall be concluded from the figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// What reading the sensors cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// What is not known, each with its reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// What reading the sensors cost, on a thread of their own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sampling {
    /// Queries.
    pub reads: usize,
    /// Mean time of one.
    pub mean_ms: f64,
    /// 99th percentile of it; null of fewer than a hundred.
    pub p99_ms: Option<f64>,
    /// The longest.
    pub max_ms: f64,
    /// 100 × the share of the time that was spent in them.
    pub percent_of_time: f64,
}

impl From<&record::Energy> for Energy {
    fn from(energy: &record::Energy) -> Self {
        match energy {
            record::Energy::Unavailable { reason } => Self::Unavailable {
                reason: reason.clone(),
            },
            record::Energy::Measured(used) => Self::Measured(Box::new(used.as_ref().into())),
        }
    }
}

impl From<&record::EnergyUse> for EnergyUse {
    fn from(used: &record::EnergyUse) -> Self {
        let limit = used.power_limit.filter(|limit| limit.0 > 0.0);
        let of_limit = |power: Option<crate::units::Watts>| Some(100.0 * power?.0 / limit?.0);
        let inverse = |per_token: Option<f64>| per_token.filter(|&j| j > 0.0).map(|j| 1.0 / j);
        let checks = [&used.prefill_check, &used.decode_check];
        let disagreements = checks.into_iter().flatten().filter_map(|c| c.disagreement);
        let (prompt, generated) = (used.per_prompt_token(), used.per_generated_token());
        Self {
            prefill_joules: used.prefill.0,
            decode_joules: used.decode.0,
            prompt_tokens: used.prompt_tokens,
            generated_tokens: used.generated_tokens,
            j_per_prompt_token: prompt,
            j_per_generated_token: generated,
            net_j_per_prompt_token: used.net_per_prompt_token(),
            net_j_per_generated_token: used.net_per_generated_token(),
            prompt_tokens_per_joule: inverse(prompt),
            generated_tokens_per_joule: inverse(generated),
            prefill_watts: used.prefill_power().map(|power| power.0),
            mean_watts: used.mean_power.map(|power| power.0),
            prefill_percent_of_power_limit: of_limit(used.prefill_power()),
            decode_percent_of_power_limit: of_limit(used.mean_power),
            idle_without_context_watts: used.idle_power_without_context.map(|power| power.0),
            idle_watts: used.idle_power.map(|power| power.0),
            after_work_watts: used.after_work_power.map(|power| power.0),
            sm_clock_mhz: used.sm_clock_mhz,
            prefill_sm_clock_mhz: used.prefill_sm_clock(),
            decode_sm_clock_mhz: used.decode_sm_clock(),
            memory_clock_mhz: used.memory_clock_mhz,
            temperature_c: used.temperature_c,
            throttle_reasons: used.throttle_reasons.clone(),
            disagreement_percent: disagreements.reduce(f64::max).map(|share| 100.0 * share),
            suspect: used.is_suspect(),
            rejected: used.rejected.clone(),
            sampling: used.sampling.map(Into::into),
            missing: used.missing.clone(),
        }
    }
}

impl From<record::Sampling> for Sampling {
    fn from(cost: record::Sampling) -> Self {
        Self {
            reads: cost.reads,
            mean_ms: cost.mean.millis(),
            p99_ms: cost.p99.map(Seconds::millis),
            max_ms: cost.max.millis(),
            percent_of_time: 100.0 * cost.share,
        }
    }
}
