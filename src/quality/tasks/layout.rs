//! Results as lm_eval lays them out in its `results_*.json`, so that its tools read them: `candlepower.evaluation/1`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::document::EXAMPLE_SEED;
use super::results::{Figure, SuiteScore};

/// Where results come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Provenance {
    /// The name of the model.
    pub model: String,
    /// The variant.
    pub variant: String,
    /// The type of activations.
    pub dtype: String,
    /// The format of the KV cache.
    pub kv_cache: String,
    /// The kind of device.
    pub device: String,
    /// Parameters of the model.
    pub parameters: Option<u64>,
    /// Tokens that the model reads at most at once.
    pub max_length: usize,
    /// The limit that was asked for, as it was written.
    pub limit: Option<f64>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// The versions of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.evaluation/1")]
    V1,
}

/// The document: what came of every task and group, by their names, and how.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct LmEvalResults {
    /// The version of this document, which lm_eval's tools pass over.
    pub schema: Version,
    /// Figures of tasks and groups as `metric,filter` and `metric_stderr,filter`, with `alias` and `sample_len`.
    pub results: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Those of groups again.
    pub groups: BTreeMap<String, BTreeMap<String, Entry>>,
    /// The members of each group.
    pub group_subtasks: BTreeMap<String, Vec<String>>,
    /// The definition of each task in lm_eval's keys, with the number of examples.
    pub configs: BTreeMap<String, Map<String, Value>>,
    /// The version of each task and group, as its definition has it.
    pub versions: BTreeMap<String, Value>,
    /// Examples before each document.
    #[serde(rename = "n-shot")]
    pub shots: BTreeMap<String, usize>,
    /// For each task, whether more of a metric is better.
    pub higher_is_better: BTreeMap<String, BTreeMap<String, bool>>,
    /// Documents of each task.
    #[serde(rename = "n-samples")]
    pub samples: BTreeMap<String, SampleCounts>,
    /// How the run was asked for.
    pub config: RunConfig,
    /// `candlepower`.
    pub model_source: String,
    /// The name of the model.
    pub model_name: String,
    /// The same as a file could be called.
    pub model_name_sanitized: String,
    /// Tokens that the model reads at most at once.
    pub max_length: usize,
    /// Seconds, as text.
    pub total_evaluation_time_seconds: String,
    /// The version of this program.
    pub candlepower_version: String,
}

/// What stands under a key of a task.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Entry {
    /// A number of documents.
    Count(usize),
    /// A figure or its standard error.
    Figure(f64),
    /// An alias, or `N/A` for a standard error that there is none of.
    Text(String),
}

/// Documents of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SampleCounts {
    /// Those of the split.
    pub original: usize,
    /// Those that were scored.
    pub effective: usize,
    /// Requests that lost their beginning, since they were too long.
    pub truncated_requests: usize,
}

/// How the run was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RunConfig {
    /// `candlepower`.
    pub model: String,
    /// The model, the variant and the types, as lm_eval writes arguments.
    pub model_args: String,
    /// Parameters of the model.
    pub model_num_parameters: Option<u64>,
    /// The type of activations.
    pub model_dtype: String,
    /// `ragged`: sequences of any lengths side by side.
    pub batch_size: String,
    /// `cuda` or `cpu`.
    pub device: String,
    /// The limit that was asked for, as it was written.
    pub limit: Option<f64>,
    /// 0: standard errors are computed, not drawn.
    pub bootstrap_iters: usize,
    /// The seed by which examples are drawn.
    pub fewshot_seed: u32,
}

/// The document.
pub fn layout(score: &SuiteScore, from: &Provenance) -> LmEvalResults {
    let mut found = LmEvalResults {
        schema: Version::V1,
        results: BTreeMap::new(),
        groups: BTreeMap::new(),
        group_subtasks: BTreeMap::new(),
        configs: BTreeMap::new(),
        versions: BTreeMap::new(),
        shots: BTreeMap::new(),
        higher_is_better: BTreeMap::new(),
        samples: BTreeMap::new(),
        config: config(from),
        model_source: "candlepower".into(),
        model_name: from.model.clone(),
        model_name_sanitized: from.model.replace('/', "__"),
        max_length: from.max_length,
        total_evaluation_time_seconds: format!("{:.3}", from.seconds),
        candlepower_version: env!("CARGO_PKG_VERSION").into(),
    };
    for task in &score.tasks {
        let name = || task.task.name.clone();
        let alias = task.task.alias.as_ref().unwrap_or(&task.task.name);
        let entry = figures(alias, task.samples.len(), &task.figures);
        found.results.insert(name(), entry);
        let mut definition = task.task.definition.clone();
        definition.insert("num_fewshot".into(), task.shots.into());
        found.configs.insert(name(), definition);
        found.versions.insert(name(), task.task.version.clone());
        found.shots.insert(name(), task.shots);
        let each = task.figures.iter();
        let each = each.map(|f| (f.metric.clone(), f.higher_is_better));
        found.higher_is_better.insert(name(), each.collect());
        let counts = SampleCounts {
            original: task.of,
            effective: task.samples.len(),
            truncated_requests: task.truncated,
        };
        found.samples.insert(name(), counts);
    }
    for group in &score.groups {
        let name = || group.group.name.clone();
        let alias = group.group.alias.as_ref().unwrap_or(&group.group.name);
        let entry = figures(alias, group.documents, &group.figures);
        found.results.insert(name(), entry.clone());
        found.groups.insert(name(), entry);
        found.versions.insert(name(), group.group.version.clone());
        found
            .group_subtasks
            .insert(name(), group.group.members.clone());
    }
    found
}

fn config(from: &Provenance) -> RunConfig {
    RunConfig {
        model: "candlepower".into(),
        model_args: format!(
            "pretrained={},variant={},dtype={},kv_cache={}",
            from.model, from.variant, from.dtype, from.kv_cache
        ),
        model_num_parameters: from.parameters,
        model_dtype: from.dtype.clone(),
        batch_size: "ragged".into(),
        device: from.device.clone(),
        limit: from.limit,
        bootstrap_iters: 0,
        fewshot_seed: EXAMPLE_SEED,
    }
}

/// The figures of a task under lm_eval's keys: `metric,filter` and `metric_stderr,filter`.
fn figures(alias: &str, documents: usize, figures: &[Figure]) -> BTreeMap<String, Entry> {
    let mut entry = BTreeMap::from([
        ("alias".to_owned(), Entry::Text(alias.to_owned())),
        ("sample_len".to_owned(), Entry::Count(documents)),
    ]);
    for figure in figures {
        let Figure { metric, filter, .. } = figure;
        entry.insert(format!("{metric},{filter}"), Entry::Figure(figure.value));
        let stderr = figure
            .stderr
            .map_or_else(|| Entry::Text("N/A".into()), Entry::Figure);
        entry.insert(format!("{metric}_stderr,{filter}"), stderr);
    }
    entry
}
