//! A study as a document, `candlepower.study/1`: plain data for machines, and what every table and chart is drawn from.
//!
//! Built by [`Study::from_records`]; reading one back needs no records.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::Environment;
use super::goal::Goal;
use super::roofline::Cost;
use super::tasks::{Task, TaskAverage};

mod energy;
mod memory;

pub use energy::{Energy, EnergyUse, Sampling};
pub use memory::{Amount, Memory};

/// The versions of the document that this program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.study/1")]
    V1,
}

/// Quality against speed, memory and energy, for several variants of one or more models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Study {
    /// The version of this document.
    pub schema: Version,
    /// Where it ran.
    pub environment: Environment,
    /// The exact command line.
    pub command: Vec<String>,
    /// The first model; null if nothing was measured.
    pub model: Option<Model>,
    /// All models, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Model>,
    /// What quality means across the variants.
    pub quality_axis: QualityAxis,
    /// What many tokens take at little loss.
    #[serde(default)]
    pub goal: Goal,
    /// Each variant of each model; the first of a model is its base.
    pub variants: Vec<Variant>,
}

/// What quality means across the variants. Less is better in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QualityAxis {
    /// Perplexity per token: all models share a tokenizer.
    Perplexity,
    /// Bits per byte of text: tokenizers differ, so perplexities do not compare.
    BitsPerByte,
    /// The mean Kullback–Leibler divergence from the base, whose own is zero.
    KlDivergence,
    /// 100 less the mean over tasks in percent: what is answered wrongly, where tasks are scored by accuracy.
    TaskError,
}

/// A model, by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// The name as the user gave it.
    pub name: String,
    /// The revision it was fetched at.
    pub revision: Option<String>,
    /// A hash of its weights and configuration.
    pub digest: String,
    /// A hash of its tokenizer.
    pub tokenizer_digest: String,
    /// Parameters, tied ones once.
    pub parameters: Option<u64>,
}

/// One variant of a model on one engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Variant {
    /// The name as the user gave it.
    pub name: String,
    /// The model it belongs to.
    pub model: String,
    /// Whether the other variants of the model are compared with this one.
    pub base: bool,
    /// What the name stands for.
    pub scheme: Scheme,
    /// All resident weights with scales and zeros; tied weights count once.
    pub weight_bytes: Option<u64>,
    /// Those of the decoder's linear layers.
    pub linear_bytes: Option<u64>,
    /// The type of the activations.
    pub activation_dtype: String,
    /// The format of the KV cache; absent where it has the type of the activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<String>,
    /// The engine that ran it.
    pub engine: String,
    /// Whether the variant has no numbers at all.
    pub failed: bool,
    /// Why it failed, or why it has no perplexity.
    pub reason: Option<String>,
    /// How well it predicts the text.
    pub perplexity: Option<Perplexity>,
    /// What it made of each task; groups come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<Task>,
    /// The mean over tasks; null without all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_average: Option<TaskAverage>,
    /// How fast it is, by batch size, prompt, generated tokens and depth.
    pub speed: Vec<Speed>,
    /// Whether it is on the Pareto front of at least one cell.
    pub on_pareto_front: bool,
    /// Whether it computes what it must.
    pub verification: Option<Verification>,
    /// How loading went.
    pub load: Option<Load>,
}

/// How a variant stores weights and treats activations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Scheme {
    /// Bits of a weight code.
    pub bits: usize,
    /// Columns per scale as asked for; null where a scale covers a row or nothing is quantised.
    pub group_size: Option<usize>,
    /// Whether the zero point is fixed; null where nothing is quantised.
    pub symmetric: Option<bool>,
    /// What happens to the inputs of linear layers.
    pub activations: String,
    /// How codes were found.
    pub method: String,
    /// The type of the scales.
    pub scale_dtype: Option<String>,
    /// Group (columns per scale, or `row`) to the number of linear layers that use it.
    pub groups_used: BTreeMap<String, usize>,
}

/// A perplexity with everything needed to judge or recompute it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Perplexity {
    /// How the text was cut and scored.
    pub protocol: String,
    /// Tokens of context that a segment offers.
    pub context: usize,
    /// Tokens from one window to the next, where the protocol leaves that open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// exp(mean negative log-likelihood per token).
    pub value: f64,
    /// Its standard error over segments, by the delta method.
    pub stderr: Option<f64>,
    /// Its standard error as llama.cpp estimates it: as if tokens were independent, which makes it too small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_over_tokens: Option<f64>,
    /// The lower end of its 95 % interval over segments: a bootstrap, of fewer than eight Student's.
    pub ci95_low: Option<f64>,
    /// The upper end.
    pub ci95_high: Option<f64>,
    /// The sum of negative log-likelihoods, in nats.
    pub nll_sum: f64,
    /// Tokens that were predicted.
    pub tokens_scored: u64,
    /// Segments that were scored.
    pub segments: usize,
    /// Tokens of the whole text.
    pub tokens_total: u64,
    /// Bits per byte of the scored text: comparable across tokenizers.
    pub bits_per_byte: Option<f64>,
    /// Its standard error over segments.
    pub bits_per_byte_stderr: Option<f64>,
    /// exp(sum of negative log-likelihoods / words of text), where the protocol counts words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word_perplexity: Option<f64>,
    /// exp(sum of negative log-likelihoods / bytes of text).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub byte_perplexity: Option<f64>,
    /// The text.
    pub text: Text,
    /// The sum of negative log-likelihoods of each segment, in nats.
    pub segment_nll: Vec<f64>,
    /// The scored tokens of each segment.
    pub segment_tokens: Vec<u64>,
    /// Against the base on the same segments; null for the base.
    pub delta_vs_base: Option<Delta>,
    /// 100 × the base's perplexity over this one; null where they did not score the same tokens by the same protocol.
    pub recovery_percent: Option<f64>,
    /// How far the predictions are from the base's; null for the base.
    pub divergence: Option<Divergence>,
    /// How far the base's predictions are from its own in another batch size: what is not more than this is no difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_floor: Option<Divergence>,
    /// Whether losses depend on what runs beside a sequence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub under_load: Vec<UnderLoad>,
    /// Where it was scored, if not where the study was: a place among the environments of the run's manifest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub environment: usize,
}

pub(super) fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The same tokens scored alone, in whole prompts, and again under other circumstances.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UnderLoad {
    /// Sequences side by side.
    pub batch: usize,
    /// Tokens of one forward pass.
    pub chunk: usize,
    /// Tokens scored.
    pub tokens: u64,
    /// Whether every loss is the same to the bit.
    pub equal: bool,
    /// What the mean loss gains, in nats per token.
    pub loss_difference: f64,
    /// The largest difference of a token's loss, in nats.
    pub largest_difference: f64,
}

/// A text, by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Text {
    /// The name.
    pub name: String,
    /// A hash of its bytes, with the algorithm in front.
    pub digest: String,
}

/// A perplexity against the base's, paired segment by segment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Delta {
    /// The difference of the perplexities.
    pub value: f64,
    /// The standard error of the difference.
    pub stderr: Option<f64>,
    /// The lower end of the 95 % interval of the difference, paired by segment: a bootstrap, of fewer than eight Student's.
    pub ci95_low: Option<f64>,
    /// The upper end.
    pub ci95_high: Option<f64>,
    /// This perplexity over the base's.
    pub ratio: f64,
    /// The standard error of the ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_stderr: Option<f64>,
    /// The logarithm of the ratio: the mean paired difference of losses, in nats per token.
    pub ln_ratio: f64,
    /// Its standard error over segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ln_ratio_stderr: Option<f64>,
    /// Its 95 % interval, paired by segment: a bootstrap, of fewer than eight Student's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ln_ratio_ci95: Option<Interval>,
    /// What its standard error would be if the two were measured on texts of their own: what pairing is worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ln_ratio_stderr_unpaired: Option<f64>,
    /// How likely so large a mean difference is if the signs of the segments' differences are chance (sign-flip test,
    /// two-sided); of fewer than eight segments, by Student's paired test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
}

/// How far predictions are from the base's on the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Divergence {
    /// The mean Kullback–Leibler divergence from the base, in nats per token.
    pub mean_kl: f64,
    /// Its standard error over segments.
    pub stderr: Option<f64>,
    /// The median over tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_kl: Option<f64>,
    /// The 90th percentile over tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90_kl: Option<f64>,
    /// The 99th percentile over tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_kl: Option<f64>,
    /// The largest of a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_kl: Option<f64>,
    /// The share of positions where both name the same most likely token.
    pub top1_agreement: f64,
    /// Its standard error over segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1_stderr: Option<f64>,
    /// The mean change of the probability of the text's own tokens, the base's taken from this one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_delta_p: Option<f64>,
    /// The root of the mean square of these changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rms_delta_p: Option<f64>,
    /// How many of the base's most likely tokens are compared one by one, the rest as one, which can only lower a
    /// divergence; null for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// The mean probability that the base gives to the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside_top_k: Option<f64>,
    /// Over this many tokens.
    pub tokens: u64,
}

/// One cell of the sweep. Where it failed, the reason stands and the figures are null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Speed {
    /// Sequences side by side.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt_tokens: usize,
    /// Tokens generated for each.
    pub generated_tokens: usize,
    /// Tokens already in the cache before the prompt.
    pub depth: usize,
    /// Whether the cell has no numbers.
    pub failed: bool,
    /// Why.
    pub reason: Option<String>,
    /// Counted trials.
    pub trials: usize,
    /// Trials thrown away before them.
    pub warmup_trials: usize,
    /// What ended the sampling.
    pub stop_reason: Option<String>,
    /// Time to first token, one sample per trial.
    pub ttft_ms: Option<Stats>,
    /// Inter-token latency, one sample per decode step.
    pub itl_ms: Option<Stats>,
    /// Time per output token, (last − first) / (n − 1), one sample per trial.
    pub tpot_ms: Option<Stats>,
    /// Request handed over to last token, one sample per trial.
    pub e2e_ms: Option<Stats>,
    /// Whether TTFT had settled, trial by trial; null of fewer than ten trials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_steadiness: Option<Steadiness>,
    /// Whether the mean inter-token latency had settled, trial by trial; null of fewer than ten trials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub itl_steadiness: Option<Steadiness>,
    /// How the inter-token latencies are spread.
    pub itl_histogram: Option<Histogram>,
    /// Prompt tokens of the whole batch per second of prefill: sums over sums.
    pub prefill_tokens_per_second: Option<f64>,
    /// Its 95 % interval over trials: a bootstrap, of fewer than eight Student's.
    pub prefill_tokens_per_second_ci95: Option<Interval>,
    /// Generated tokens of the whole batch, the first of each row aside, per second of decode: sums over sums.
    pub decode_tokens_per_second: Option<f64>,
    /// Its 95 % interval over trials: a bootstrap, of fewer than eight Student's.
    pub decode_tokens_per_second_ci95: Option<Interval>,
    /// Decode rate over the base's in the same cell (prefill rate where nothing was decoded).
    pub speedup_vs_base: Option<f64>,
    /// Its 95 % interval: paired by turn where both took as many turns, else over the trials of each. Null for the base,
    /// and where either was measured elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speedup_vs_base_ci95: Option<Interval>,
    /// What being one percent faster than the base costs: by how many percent perplexity rises. Null where it is not
    /// faster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl_percent_per_speed_percent: Option<f64>,
    /// The same of tasks: by how many percent of the base's their average falls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_percent_per_speed_percent: Option<f64>,
    /// Seconds of decode that the goal's tokens take at this rate; null where the variant does not keep enough quality.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal_seconds: Option<f64>,
    /// Joules of decode, gross; null where that is not known or the variant does not keep enough quality.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal_joules: Option<f64>,
    /// How near prefill comes to what the device can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_utilisation: Option<Utilisation>,
    /// How near decode comes to what the device can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_utilisation: Option<Utilisation>,
    /// The same work by the device's own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceFigures>,
    /// Where the device memory went.
    pub memory: Option<Memory>,
    /// What its work draws.
    pub energy: Option<Energy>,
    /// Trials that heat or the power supply slowed; null where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttling: Option<Throttling>,
    /// Blocks that the trials were made in, between those of other variants; zero where they were made in one go, or when
    /// no other variant had its turns.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub blocks: usize,
    /// Where it was measured, if not where the study was: a place among the environments of the run's manifest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub environment: usize,
    /// Whether no variant beats it in both quality and decode speed in this cell.
    pub on_pareto_front: bool,
}

/// Trials that heat or the power supply slowed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Throttling {
    /// How many the figures leave out.
    pub left_out: usize,
    /// Whether the figures are of slowed trials, because there was no other.
    pub all: bool,
    /// What slowed them.
    pub reasons: Vec<String>,
    /// How long the device was left alone to cool.
    pub cooled_s: f64,
}

/// What the device's own clock says of a cell: sums over sums.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceFigures {
    /// A prefill, up to the first tokens.
    pub prefill_ms: f64,
    /// A decode step; null where nothing was decoded.
    pub itl_ms: Option<f64>,
    /// 100 × the part of the inter-token latency that the device did not take; null where nothing was decoded. Near zero
    /// where the host keeps up, and negative by what the clocks differ.
    pub host_gap_percent: Option<f64>,
}

/// How near some work comes to what the device can do. Bytes and operations are what its shapes need at least, so the
/// shares are of useful work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Utilisation {
    /// What a prefill, or a decode step, costs at least.
    pub cost: Cost,
    /// Bytes moved per second, decimal GB/s.
    pub gb_per_s: f64,
    /// Operations per second, in TFLOP/s.
    pub tflop_per_s: f64,
    /// 100 × bytes moved over what could be read at the measured rate; null where that was not measured.
    pub percent_of_read: Option<f64>,
    /// 100 × operations over what products of the type do at the measured rate; null where that was not measured.
    pub percent_of_matmul: Option<f64>,
    /// Which of the two binds: `read`, or `matmul` with its type.
    pub limit: Option<String>,
    /// The time that it leaves at best.
    pub floor_ms: Option<f64>,
    /// 100 × that over the time.
    pub percent_of_limit: Option<f64>,
}

/// A summary of samples. A quantile is null where there are too few samples for it: p90 needs 10, p95 20, p99 100.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// The arithmetic mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: Option<f64>,
    /// The 95th percentile.
    pub p95: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
    /// The smallest sample.
    pub min: f64,
    /// The largest sample.
    pub max: f64,
    /// How many samples there are.
    pub n: usize,
    /// The lower end of the 95 % interval of the median over trials, of a single one over its samples: a bootstrap, of
    /// fewer than eight Student's.
    pub ci95_low: Option<f64>,
    /// The upper end.
    pub ci95_high: Option<f64>,
}

/// Whether a series of trials had settled, by change points of mean and variance. What counts is one percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Steadiness {
    /// What kind of series it is.
    pub kind: SeriesKind,
    /// The first trial, counted from one, from which on they are like the last.
    pub from_trial: usize,
}

/// What kind of series trials make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SeriesKind {
    /// The same from beginning to end.
    Flat,
    /// Slower at first.
    WarmUp,
    /// Faster at first.
    Slowdown,
    /// Still changing in the last quarter.
    NoSteadyState,
}

/// Counts over bins of one width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Histogram {
    /// Where the first bin begins.
    pub low_ms: f64,
    /// The width of a bin.
    pub bin_ms: f64,
    /// Samples in each bin.
    pub counts: Vec<u64>,
    /// Samples beyond the last bin.
    pub above: u64,
}

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Whether a variant computes what it must.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verification {
    /// Whether at least one check ran and every one passed.
    pub passed: bool,
    /// Each check that ran.
    pub checks: Vec<Check>,
}

/// One check of a variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// The figures behind the verdict.
    pub detail: String,
}

/// How loading went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Load {
    /// From opening the files to the last weight on the device, quantising included.
    pub seconds: f64,
    /// What was read.
    pub bytes: u64,
    /// Decimal gigabytes per second.
    pub gb_per_s: Option<f64>,
    /// The host memory high-water mark.
    pub peak_host_bytes: Option<u64>,
}
