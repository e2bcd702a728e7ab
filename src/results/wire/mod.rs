//! Records on disk: `candlepower.record/1`, one JSON object per line.
//!
//! Field names are those of the field, with the unit as a suffix. A change that old readers cannot follow takes a new
//! version; the domain types in [`super::record`] may change freely.

mod convert;
mod energy;
mod memory;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::energy::{Energy, EnergyCheck, EnergyUse, Sampling};
use self::memory::{Amount, Memory};
use super::roofline::{Cost, Limits};
use super::study::is_zero;

/// The versions of the wire form that this program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(super) enum Version {
    #[serde(rename = "candlepower.record/1")]
    V1,
}

/// One measured point: what was measured, and all samples or the reason why there are none.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Record")]
pub(super) struct Record {
    pub(super) schema: Version,
    /// BLAKE3 (128 bits, hex) over canonical JSON of what identifies the point.
    pub(super) key: String,
    pub(super) subject: Subject,
    /// What is known since the variant was loaded; null if it never was.
    pub(super) loaded: Option<Loaded>,
    #[serde(flatten)]
    pub(super) body: Body,
    /// Where it was measured, if that is not where the first records of the run were: a place among the environments of
    /// `manifest.json`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) environment: usize,
    /// The first 16 hex digits of BLAKE3 over the line as it reads without this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) checksum: Option<String>,
}

/// The kind of the point.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Body {
    /// How well the variant predicts a text.
    Quality {
        task: QualityTask,
        #[serde(flatten)]
        outcome: Outcome<Perplexity>,
    },
    /// How many of a task's documents the variant answers rightly.
    Task {
        task: TaskQuestion,
        #[serde(flatten)]
        outcome: Outcome<TaskAnswers>,
    },
    /// How fast the variant is in one cell of the sweep.
    Speed {
        cell: Cell,
        #[serde(flatten)]
        outcome: Outcome<Speed>,
    },
}

/// Whether there is a result.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub(super) enum Outcome<T> {
    /// The point was measured.
    Ok { result: T },
    /// The point has no numbers.
    Failed { reason: String },
}

/// Everything that identifies what was measured.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Subject {
    pub(super) model: Model,
    pub(super) variant: String,
    pub(super) scheme: Scheme,
    pub(super) activation_dtype: String,
    /// The format of the KV cache; absent where it has the type of the activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kv_cache: Option<String>,
    pub(super) engine: String,
    pub(super) device: String,
    pub(super) tool_version: String,
}

/// A model, by content.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) revision: Option<String>,
    pub(super) digest: String,
    pub(super) tokenizer_digest: String,
    /// Tied parameters count once.
    pub(super) parameters: Option<u64>,
}

/// How a variant stores weights and treats activations.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Scheme {
    /// Bits of a weight code.
    pub(super) bits: usize,
    /// Columns per scale; null where a scale covers a whole row or nothing is quantised.
    pub(super) group_size: Option<usize>,
    pub(super) symmetric: Option<bool>,
    pub(super) activations: String,
    pub(super) method: String,
    pub(super) scale_dtype: Option<String>,
}

/// What is known about a variant once it is on the device.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Loaded {
    /// All resident weights with scales and zeros; tied weights count once.
    pub(super) weight_bytes: u64,
    /// Those of the decoder's linear layers.
    pub(super) linear_bytes: u64,
    /// Group (columns per scale, or `row`) to the number of linear layers that use it.
    pub(super) groups_used: BTreeMap<String, usize>,
    pub(super) load: Load,
    pub(super) verification: Verification,
}

/// How loading went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Load {
    pub(super) load_s: f64,
    pub(super) read_bytes: u64,
    pub(super) peak_host_bytes: Option<u64>,
}

/// Whether the variant computes what it must.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Verification {
    pub(super) passed: bool,
    pub(super) checks: Vec<Check>,
}

/// One check of a variant.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) passed: bool,
    pub(super) detail: String,
}

/// A text and the way it is cut and scored.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct QualityTask {
    pub(super) protocol: String,
    pub(super) context: usize,
    /// Tokens from one window to the next, where the protocol leaves that open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stride: Option<usize>,
    pub(super) text: Text,
    /// What the predictions are compared with; absent for the base itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base: Option<Base>,
}

/// The variant of the same model that predictions are compared with.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Base {
    pub(super) variant: String,
    /// How many of its most likely tokens are compared one by one, the rest as one; null for the whole vocabulary.
    pub(super) top_k: Option<usize>,
}

/// A text, by content.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Text {
    pub(super) name: String,
    pub(super) digest: String,
}

/// The losses of a text, segment by segment.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Perplexity {
    pub(super) segments: Vec<Segment>,
    pub(super) tokens_total: u64,
    pub(super) bytes_scored: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) words_scored: Option<u64>,
    /// The sum over tokens of squared negative log-likelihoods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) nll_squares: Option<f64>,
    /// Against the base; of the base itself, against its own predictions in another batch size.
    pub(super) divergence: Option<Divergence>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) under_load: Vec<UnderLoad>,
    /// A digest of how the model really ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) configuration: Option<String>,
}

/// The same tokens scored alone, in whole prompts, and again under other circumstances.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(super) struct UnderLoad {
    pub(super) batch: usize,
    /// Tokens of one forward pass.
    pub(super) chunk: usize,
    pub(super) tokens: u64,
    /// In nats.
    pub(super) nll: f64,
    /// The same, each sequence alone and in one pass.
    pub(super) nll_alone: f64,
    /// Of a token, in nats.
    pub(super) largest_difference: f64,
}

/// One segment of a scored text.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(super) struct Segment {
    /// The sum of negative log-likelihoods, in nats.
    pub(super) nll: f64,
    pub(super) tokens: u64,
}

/// How far the predictions are from the base variant's on the same tokens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(super) struct Divergence {
    /// Nats per token.
    pub(super) mean_kl: f64,
    pub(super) stderr: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) spread: Option<KlSpread>,
    pub(super) top1_agreement: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) top1_stderr: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) true_token: Option<TrueTokenShift>,
    /// The mean probability that the base gives to tokens that are compared as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) outside_top_k: Option<f64>,
    pub(super) tokens: u64,
}

/// Quantiles over tokens of a divergence, in nats.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(super) struct KlSpread {
    pub(super) p50: f64,
    pub(super) p90: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) max: f64,
}

/// Differences of the probability that two variants give to the tokens of the text.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(super) struct TrueTokenShift {
    pub(super) mean: f64,
    pub(super) rms: f64,
}

/// A task as it was put to the model.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct TaskQuestion {
    pub(super) name: String,
    /// Over its definition and every request in tokens.
    pub(super) digest: String,
    /// Examples before each document.
    pub(super) num_fewshot: usize,
    /// Documents that are asked about, the first of the split.
    pub(super) documents: usize,
    /// Null for the tokenizer's habit.
    pub(super) add_bos: Option<bool>,
    pub(super) max_length_tokens: usize,
    /// The groups that it was asked as part of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) groups: Vec<TaskGroup>,
}

/// A group of tasks that also have one figure together. What is usual is left out, so that addresses of old stay.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct TaskGroup {
    pub(super) name: String,
    /// Whether it counts in an average as one task.
    pub(super) counts: bool,
    /// Whether every document counts the same in its figure; else every task does.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub(super) by_size: bool,
    /// The metric whose unfiltered figures are taken together; absent where it is what each of its tasks is compared by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metric: Option<String>,
}

const fn yes() -> bool {
    true
}

const fn is_yes(flag: &bool) -> bool {
    *flag
}

/// What came of a task, document by document.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct TaskAnswers {
    /// Documents of the whole split.
    pub(super) documents_of_split: usize,
    /// Requests that lost their beginning, since they were too long.
    pub(super) truncated_requests: usize,
    /// The place in the split of each document.
    pub(super) doc_id: Vec<usize>,
    pub(super) figures: Vec<TaskFigure>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) under_load: Vec<TaskUnderLoad>,
    /// A digest of how the model really ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) configuration: Option<String>,
}

/// The first documents answered alone and in whole, and again under other circumstances.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct TaskUnderLoad {
    pub(super) batch: usize,
    pub(super) chunk_tokens: usize,
    pub(super) documents: usize,
    /// Documents whose answers are not the same to the bit.
    pub(super) differing: usize,
    /// Documents that score otherwise by what the task is compared by.
    pub(super) scored_otherwise: usize,
    /// Of a log-likelihood, in nats; null of generated texts.
    pub(super) largest_difference: Option<f64>,
}

/// One metric behind one filter.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct TaskFigure {
    pub(super) metric: String,
    pub(super) filter: String,
    pub(super) value: f64,
    pub(super) stderr: Option<f64>,
    pub(super) higher_is_better: bool,
    /// Of each document.
    pub(super) values: Vec<f64>,
}

/// The shape of the work in one cell of a sweep.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(super) struct Cell {
    pub(super) batch: usize,
    pub(super) prompt_tokens: usize,
    pub(super) generated_tokens: usize,
    /// Tokens already in the cache before the prompt.
    pub(super) depth: usize,
}

/// The samples of one cell.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Speed {
    pub(super) trials: Vec<Trial>,
    /// The blocks that the trials were made in, where variants took turns; absent where all were made in one go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) blocks: Vec<Block>,
    pub(super) warmup_trials: usize,
    pub(super) stop_reason: Option<String>,
    pub(super) memory: Memory,
    pub(super) energy: Energy,
    /// What the work costs at least; null where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) work: Option<Box<Work>>,
    /// Trials that heat or the power supply slowed; absent where there was none.
    #[serde(default, skip_serializing_if = "Throttling::is_nothing")]
    pub(super) throttling: Throttling,
    /// A digest of how the model really ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) configuration: Option<String>,
}

/// Trials that heat or the power supply slowed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub(super) struct Throttling {
    /// Those that are not among `trials` for it, in their order.
    pub(super) left_out: Vec<ThrottledTrial>,
    /// What slowed those among `trials`; empty unless no trial went without.
    pub(super) counted: Vec<String>,
    /// How long the device was left alone to cool.
    pub(super) cooled_s: f64,
}

/// A trial that was slowed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct ThrottledTrial {
    pub(super) reasons: Vec<String>,
    pub(super) trial: Trial,
}

impl Throttling {
    fn is_nothing(&self) -> bool {
        self.left_out.is_empty() && self.counted.is_empty()
    }
}

/// Trials that were made one after another before another variant had its turn.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(super) struct Block {
    /// From the beginning of the run.
    pub(super) begin_s: f64,
    pub(super) trials: usize,
}

/// What the work of a cell costs at least, and measured ceilings of the device.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Work {
    /// The prefill of a trial.
    pub(super) prefill: Cost,
    /// A decode step, in the mean over a trial; null where nothing is decoded.
    pub(super) decode_step: Option<Cost>,
    pub(super) limits: Limits,
}

/// One trial, in host time.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Trial {
    pub(super) ttft_s: f64,
    pub(super) prefill_s: f64,
    pub(super) decode_s: f64,
    pub(super) e2e_s: f64,
    /// One gap per decode step; the rows of a batch share it.
    pub(super) itl_s: Vec<f64>,
    /// The same by the device's own clock; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<DeviceTime>,
}

/// A trial by the device's own clock.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(super) struct DeviceTime {
    pub(super) prefill_s: f64,
    pub(super) decode_s: f64,
}
