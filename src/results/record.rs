//! What is known about one point of a study, as plain data: all samples kept, failures included.
//!
//! Measuring writes records; comparing, plotting and reporting only read them. How a record looks on disk is the
//! business of `wire`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::roofline::{Cost, Limits};
use crate::units::{Bytes, Seconds};

mod energy;
mod memory;

pub use energy::{Energy, EnergyCheck, EnergyUse, Sampling};
pub use memory::{Amount, Memory};

/// One point: what was measured, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "super::wire::Record", from = "super::wire::Record")]
pub struct Record {
    /// The address of the point: [`Key::of_quality`], [`Key::of_task`] or [`Key::of_speed`].
    pub key: Key,
    /// What was measured.
    pub subject: Subject,
    /// What is known since the variant was loaded; `None` if it never was.
    pub loaded: Option<Loaded>,
    /// The question that was asked, and its answer.
    pub body: Body,
    /// Where it was measured: a place among the environments of the run's manifest.
    pub environment: usize,
}

/// The address of a point: a hash over everything that identifies it, nothing that was measured.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Key(pub(super) String);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Record {
    /// A record under the key of its point.
    pub fn new(subject: Subject, loaded: Option<Loaded>, body: Body) -> Self {
        let key = match &body {
            Body::Quality { task, .. } => Key::of_quality(&subject, task),
            Body::Task { task, .. } => Key::of_task(&subject, task),
            Body::Speed { cell, .. } => Key::of_speed(&subject, *cell),
        };
        Self {
            key,
            subject,
            loaded,
            body,
            environment: 0,
        }
    }

    /// Why the point failed; `None` if it did not.
    pub fn failure(&self) -> Option<&str> {
        match &self.body {
            Body::Quality {
                outcome: Err(failure),
                ..
            }
            | Body::Task {
                outcome: Err(failure),
                ..
            }
            | Body::Speed {
                outcome: Err(failure),
                ..
            } => Some(&failure.reason),
            _ => None,
        }
    }
}

/// What a record asks and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// How well the variant predicts a text.
    Quality {
        /// The text and the protocol.
        task: QualityTask,
        /// The losses, or why there are none.
        outcome: Result<Perplexity, Failure>,
    },
    /// How many of a task's documents the variant answers rightly.
    Task {
        /// The task.
        task: TaskQuestion,
        /// What came of each document, or why nothing did.
        outcome: Result<TaskAnswers, Failure>,
    },
    /// How fast the variant is in one cell of the sweep.
    Speed {
        /// The shape of the work.
        cell: Cell,
        /// The samples, or why there are none.
        outcome: Result<Speed, Failure>,
    },
}

/// Why a point has no numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One sentence for a human.
    pub reason: String,
}

/// Everything that identifies what was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// The model.
    pub model: Model,
    /// The name of the variant as the user gave it, such as `w4a16:g64`.
    pub variant: String,
    /// What the name stands for.
    pub scheme: Scheme,
    /// The type of the activations, such as `bf16`.
    pub activation_dtype: String,
    /// The format of the KV cache, such as `int8`; `None` where it has the type of the activations.
    pub kv_cache: Option<String>,
    /// The engine that ran it, such as `candlepower` or `candle`.
    pub engine: String,
    /// The device by name, such as `NVIDIA H200`.
    pub device: String,
    /// The version of this program.
    pub tool_version: String,
}

/// A model, by content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The name as the user gave it.
    pub name: String,
    /// The revision it was fetched at, where it has one.
    pub revision: Option<String>,
    /// A hash of its weights and configuration, or the seed of its dummy weights.
    pub digest: String,
    /// A hash of its tokenizer: perplexities compare only where it is the same.
    pub tokenizer_digest: String,
    /// How many parameters it has, tied ones once.
    pub parameters: Option<u64>,
}

/// How a variant stores weights and treats activations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    /// Bits of a weight code.
    pub bits: usize,
    /// Columns per scale; `None` where a scale covers a whole row or nothing is quantised.
    pub group_size: Option<usize>,
    /// Whether the zero point is fixed; `None` where nothing is quantised.
    pub symmetric: Option<bool>,
    /// What happens to the inputs of linear layers, such as `float` or `int8-per-token`.
    pub activations: String,
    /// How codes were found, such as `none`, `rtn` or `gptq`.
    pub method: String,
    /// The type of the scales, where there are any.
    pub scale_dtype: Option<String>,
}

/// What is known about a variant once it is on the device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "super::wire::Loaded", from = "super::wire::Loaded")]
pub struct Loaded {
    /// All resident weights with their scales and zeros; tied weights count once.
    pub weight_bytes: Bytes,
    /// Those of them that belong to the decoder's linear layers.
    pub linear_bytes: Bytes,
    /// How many linear layers use which group; a scale per row is named `row`, plain weights are absent.
    pub groups_used: BTreeMap<String, usize>,
    /// How loading went.
    pub load: Load,
    /// Whether the variant computes what it must.
    pub verification: Verification,
}

/// How loading went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// From opening the files to the last weight on the device, quantising included.
    pub time: Seconds,
    /// What was read.
    pub read: Bytes,
    /// The host memory high-water mark.
    pub peak_host: Option<Bytes>,
}

impl Load {
    /// How fast the bytes came, in decimal gigabytes per second; `None` if it took no time.
    pub fn gb_per_s(&self) -> Option<f64> {
        (self.time.0 > 0.0).then(|| self.read.0 as f64 / 1e9 / self.time.0)
    }
}

/// Whether a variant computes what it must: checked before anything is timed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verification {
    /// Each check that ran.
    pub checks: Vec<Check>,
}

impl Verification {
    /// Whether at least one check ran and every one passed.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.passed)
    }
}

/// One check of a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// The figures behind the verdict.
    pub detail: String,
}

/// A text and the way it is cut and scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QualityTask {
    /// The name of the protocol, such as `gptq`.
    pub protocol: String,
    /// Tokens of context that a segment offers.
    pub context: usize,
    /// Tokens from one window to the next, where the protocol leaves that open.
    pub stride: Option<usize>,
    /// The text.
    pub text: Text,
    /// What the predictions are compared with; `None` for the base itself, or where that was not asked.
    pub base: Option<Base>,
}

/// The variant of the same model that predictions are compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub variant: String,
    /// How many of its most likely tokens are compared one by one, the rest as one; `None` for the whole vocabulary.
    pub top_k: Option<usize>,
}

/// A text, by content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The name, such as `wikitext-2-raw-v1/test`.
    pub name: String,
    /// A hash of its bytes, with the algorithm in front: `blake3:…`.
    pub digest: String,
}

/// The losses of a text, segment by segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexity {
    /// In the order of the text. Variants of one model score the same segments, so they compare pair by pair.
    pub segments: Vec<Segment>,
    /// Tokens of the whole text, scored or not.
    pub tokens_total: u64,
    /// Bytes of text that the scored tokens stand for.
    pub bytes_scored: Option<u64>,
    /// Words of text, where the protocol counts them.
    pub words_scored: Option<u64>,
    /// The sum over tokens of squared negative log-likelihoods.
    pub nll_squares: Option<f64>,
    /// How far the predictions are from the base variant's, where that was asked. For the base itself it is the noise
    /// floor: against its own in another batch size.
    pub divergence: Option<Divergence>,
    /// Whether the losses depend on what runs beside a sequence, where that was asked.
    pub under_load: Vec<UnderLoad>,
    /// A digest of how the model really ran, to be held against that of the timed cells.
    pub configuration: Option<String>,
}

/// The same tokens scored alone, in whole prompts, and again under other circumstances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnderLoad {
    /// Sequences side by side.
    pub batch: usize,
    /// Tokens of one forward pass.
    pub chunk: usize,
    /// Tokens scored.
    pub tokens: u64,
    /// Sum of their negative log-likelihoods, in nats.
    pub nll: f64,
    /// The same, each sequence alone and in one pass.
    pub nll_alone: f64,
    /// The largest difference of a token, in nats.
    pub largest_difference: f64,
}

/// One segment of a scored text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// The sum of negative log-likelihoods, in nats.
    pub nll: f64,
    /// Over this many tokens.
    pub tokens: u64,
}

/// How far one variant's predictions are from the base variant's on the same tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// The mean Kullback–Leibler divergence from the base, in nats per token.
    pub mean_kl: f64,
    /// Its standard error over segments.
    pub stderr: Option<f64>,
    /// How it is spread over tokens.
    pub spread: Option<KlSpread>,
    /// The share of positions where both name the same most likely token.
    pub top1_agreement: f64,
    /// Its standard error over segments.
    pub top1_stderr: Option<f64>,
    /// What the probability of the tokens of the text becomes.
    pub true_token: Option<TrueTokenShift>,
    /// The mean probability that the base gives to tokens that are compared as one; zero where all are compared.
    pub outside_top_k: Option<f64>,
    /// Over this many tokens.
    pub tokens: u64,
}

/// Quantiles over tokens of a divergence, in nats. A quantile is `None` where there are too few tokens for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlSpread {
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
    /// The largest.
    pub max: f64,
}

/// Differences of the probability that two variants give to the tokens of the text, the base's taken from the other's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrueTokenShift {
    /// Their mean.
    pub mean: f64,
    /// The root of their mean square.
    pub rms: f64,
}

/// A task as it was put to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskQuestion {
    /// The name of the task, such as `arc_easy`.
    pub name: String,
    /// A hash of its definition and of every request in tokens, with the algorithm in front: `blake3:…`.
    pub digest: String,
    /// Examples before each document.
    pub shots: usize,
    /// Documents that are asked about, the first of the split.
    pub documents: usize,
    /// Whether the tokenizer was told to add its beginning of text; `None` for its habit.
    pub add_bos: Option<bool>,
    /// Tokens that the model reads at most at once.
    pub max_length: usize,
    /// The groups that it was asked as part of.
    pub groups: Vec<TaskGroup>,
}

/// A group of tasks that also have one figure together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskGroup {
    /// Its name.
    pub name: String,
    /// Whether it counts in an average as one task; one that is part of another group does not.
    pub counts: bool,
    /// Whether every document counts the same in its figure (lm_eval's `weight_by_size`); else every task does.
    pub by_size: bool,
    /// The metric whose unfiltered figures are taken together; `None` where it is what each of its tasks is compared by.
    pub metric: Option<String>,
}

/// What came of a task, document by document: everything that its figures and their comparison are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskAnswers {
    /// Documents of the whole split.
    pub of: usize,
    /// Requests that lost their beginning, since they were too long.
    pub truncated: usize,
    /// The place in the split of each document.
    pub documents: Vec<usize>,
    /// Each metric behind each filter.
    pub figures: Vec<TaskFigure>,
    /// Whether answers depend on what is answered beside a document, where that was asked.
    pub under_load: Vec<TaskUnderLoad>,
    /// A digest of how the model really ran, to be held against that of the timed cells.
    pub configuration: Option<String>,
}

/// The first documents answered alone, each request in whole, and again under other circumstances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskUnderLoad {
    /// Documents side by side.
    pub batch: usize,
    /// Tokens of one forward pass.
    pub chunk: usize,
    /// Documents that were answered both ways.
    pub documents: usize,
    /// Those whose answers are not the same to the bit.
    pub differing: usize,
    /// Those that score otherwise by what the task is compared by.
    pub scored_otherwise: usize,
    /// The largest difference of a log-likelihood, in nats; `None` of generated texts.
    pub largest_difference: Option<f64>,
}

impl TaskAnswers {
    /// The figure that the task is compared by: its first one for which more is better.
    pub fn main(&self) -> Option<&TaskFigure> {
        self.figures.iter().find(|figure| figure.higher_is_better)
    }
}

/// One figure of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskFigure {
    /// The metric, such as `acc`.
    pub metric: String,
    /// The filter behind it, or `none`.
    pub filter: String,
    /// The value over all documents.
    pub value: f64,
    /// Its standard error; `None` for a single document.
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The value of each document.
    pub values: Vec<f64>,
}

/// The shape of the work in one cell of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// Sequences that run side by side.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt: usize,
    /// Tokens generated for each.
    pub generate: usize,
    /// Tokens already in the cache before the prompt.
    pub depth: usize,
}

/// The samples of one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Speed {
    /// Every counted trial.
    pub trials: Vec<Trial>,
    /// The blocks that the trials were made in, where variants took turns; empty where all were made in one go.
    pub blocks: Vec<Block>,
    /// Trials that ran before them and were thrown away.
    pub warmup_trials: usize,
    /// What ended the sampling, such as `trials` or `time`.
    pub stop_reason: Option<String>,
    /// Where the device memory went.
    pub memory: Memory,
    /// What the trials drew.
    pub energy: Energy,
    /// What the work costs at least, where that is known.
    pub work: Option<Box<Work>>,
    /// Trials during which heat or the power supply slowed the device.
    pub throttling: Throttling,
    /// A digest of how the model really ran: that of a perplexity of the same variant must be the same.
    pub configuration: Option<String>,
}

/// Trials during which heat or the power supply slowed the device. Such a trial is made again once the device has cooled.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Throttling {
    /// Those that are not among the counted ones for it, in their order.
    pub left_out: Vec<ThrottledTrial>,
    /// What slowed the counted ones; empty unless no trial at all went without, so that slowed ones had to count.
    pub counted: Vec<String>,
    /// How long the device was left alone to cool.
    pub cooled: Seconds,
}

/// A trial that was slowed.
#[derive(Debug, Clone, PartialEq)]
pub struct ThrottledTrial {
    /// What slowed it, by the names that `nvidia-smi` prints.
    pub reasons: Vec<String>,
    /// What it gave.
    pub trial: Trial,
}

/// Trials that were made one after another before another variant had its turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block {
    /// When it began, from the beginning of the run.
    pub begin: Seconds,
    /// How many trials it holds, of those that follow the block before it.
    pub trials: usize,
}

/// What the work of a cell costs at least, and what the device could do at best when it was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The prefill of a trial.
    pub prefill: Cost,
    /// A decode step, in the mean over a trial; `None` where nothing is decoded.
    pub decode_step: Option<Cost>,
    /// Ceilings of the device.
    pub limits: Limits,
}

/// One trial: a batch of prompts in, tokens out. Host time: a token exists once its id is visible to the host.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trial {
    /// From handing the request over to the first token.
    pub ttft: Seconds,
    /// The prompt's forward pass.
    pub prefill: Seconds,
    /// From the first token to the last.
    pub decode: Seconds,
    /// From handing the request over to the last token.
    pub e2e: Seconds,
    /// The gaps between consecutive tokens, one per step: the rows of a batch share it.
    pub itl: Vec<Seconds>,
    /// The same work by the device's own clock; `None` where it has none.
    pub device: Option<DeviceTime>,
}

/// How long a device was at a trial, by its own clock. What the host saw beyond that is the host's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceTime {
    /// From the prompts' first launch to the first tokens.
    pub prefill: Seconds,
    /// From there to the last tokens.
    pub decode: Seconds,
}
