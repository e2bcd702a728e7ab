//! Results as lm_eval lays them out in its `results_*.json`, so that its tools read them.

use serde_json::{Map, Value, json};

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

/// The document.
pub fn layout(score: &SuiteScore, from: &Provenance) -> Value {
    let mut results = Map::new();
    let mut groups = Map::new();
    let mut group_subtasks = Map::new();
    let (mut configs, mut versions, mut shots) = (Map::new(), Map::new(), Map::new());
    let (mut directions, mut samples) = (Map::new(), Map::new());
    for task in &score.tasks {
        let name = &task.task.name;
        let mut entry = figures(task.task.alias.as_deref().unwrap_or(name), &task.figures);
        entry.insert("sample_len".into(), task.samples.len().into());
        results.insert(name.clone(), Value::Object(entry));
        let mut definition = task.task.definition.clone();
        definition.insert("num_fewshot".into(), task.shots.into());
        configs.insert(name.clone(), Value::Object(definition));
        versions.insert(name.clone(), task.task.version.clone());
        shots.insert(name.clone(), task.shots.into());
        let each = task
            .figures
            .iter()
            .map(|f| (f.metric.clone(), Value::Bool(f.higher_is_better)));
        directions.insert(name.clone(), Value::Object(each.collect()));
        samples.insert(
            name.clone(),
            json!({"original": task.of, "effective": task.samples.len(), "truncated_requests": task.truncated}),
        );
    }
    for group in &score.groups {
        let name = &group.group.name;
        let mut entry = figures(group.group.alias.as_deref().unwrap_or(name), &group.figures);
        entry.insert("sample_len".into(), group.documents.into());
        results.insert(name.clone(), Value::Object(entry.clone()));
        groups.insert(name.clone(), Value::Object(entry));
        versions.insert(name.clone(), group.group.version.clone());
        group_subtasks.insert(name.clone(), json!(group.group.members));
    }
    json!({
        "results": results,
        "groups": groups,
        "group_subtasks": group_subtasks,
        "configs": configs,
        "versions": versions,
        "n-shot": shots,
        "higher_is_better": directions,
        "n-samples": samples,
        "config": {
            "model": "candlepower",
            "model_args": format!(
                "pretrained={},variant={},dtype={},kv_cache={}",
                from.model, from.variant, from.dtype, from.kv_cache
            ),
            "model_num_parameters": from.parameters,
            "model_dtype": from.dtype,
            "batch_size": "ragged",
            "device": from.device,
            "limit": from.limit,
            "bootstrap_iters": 0,
            "fewshot_seed": EXAMPLE_SEED,
        },
        "model_source": "candlepower",
        "model_name": from.model,
        "model_name_sanitized": from.model.replace('/', "__"),
        "max_length": from.max_length,
        "total_evaluation_time_seconds": format!("{:.3}", from.seconds),
        "candlepower_version": env!("CARGO_PKG_VERSION"),
    })
}

/// The figures of a task under lm_eval's keys: `metric,filter` and `metric_stderr,filter`.
fn figures(alias: &str, figures: &[Figure]) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("alias".into(), alias.into());
    for figure in figures {
        let Figure { metric, filter, .. } = figure;
        entry.insert(format!("{metric},{filter}"), json!(figure.value));
        let stderr = figure.stderr.map_or_else(|| json!("N/A"), |e| json!(e));
        entry.insert(format!("{metric}_stderr,{filter}"), stderr);
    }
    entry
}
