//! What is left of a base's tasks, as `eval --json` prints it, in names akin to lm_eval's, which has no layout for it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::recovery::Recoveries;

/// One variant against the base.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Recovered {
    /// The variant.
    pub variant: String,
    /// The variant that it is held against.
    pub base: String,
    /// The mean share of the base's figures that is left; null where there is no average.
    pub average_recovery: Option<f64>,
    /// Its standard error.
    pub average_recovery_stderr: Option<f64>,
    /// Its 95 % interval: lower and upper end.
    pub average_recovery_interval: Option<[f64; 2]>,
    /// Each task and group by its name.
    pub tasks: BTreeMap<String, RecoveredTask>,
    /// Groups whose tasks cannot be taken together, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups_left_out: BTreeMap<String, String>,
}

/// A task, or a group of tasks.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RecoveredTask {
    /// The metric that is compared.
    pub metric: String,
    /// The filter behind it, or `none`.
    pub filter: String,
    /// The base's figure.
    pub base: f64,
    /// The variant's.
    pub value: f64,
    /// The share of the base's figure that is left; null where that is 0.
    pub recovery: Option<f64>,
    /// Its standard error.
    pub recovery_stderr: Option<f64>,
    /// Its 95 % interval: lower and upper end.
    pub recovery_interval: Option<[f64; 2]>,
    /// The paired difference over documents.
    pub difference: f64,
    /// Its standard error.
    pub difference_stderr: Option<f64>,
    /// Its 95 % interval: lower and upper end.
    pub difference_interval: Option<[f64; 2]>,
    /// Documents that only the variant gets right, where documents are right or wrong.
    pub won: Option<usize>,
    /// Documents that only the base gets right.
    pub lost: Option<usize>,
    /// The exact McNemar test of these.
    pub mcnemar_p: Option<f64>,
}

impl Recovered {
    /// `found` of a variant against a base.
    pub fn new(found: &Recoveries, variant: &str, base: &str) -> Self {
        let tasks = found.tasks.iter().map(|task| {
            let found = RecoveredTask {
                metric: task.metric.clone(),
                filter: task.filter.clone(),
                base: task.base,
                value: task.value,
                recovery: task.ratio,
                recovery_stderr: task.stderr,
                recovery_interval: task.ratio_interval.map(|i| [i.low, i.high]),
                difference: task.difference.mean,
                difference_stderr: task.difference.stderr,
                difference_interval: task.difference.interval.map(|i| [i.low, i.high]),
                won: task.discordant.map(|(won, _)| won),
                lost: task.discordant.map(|(_, lost)| lost),
                mcnemar_p: task.p_value,
            };
            (task.name.clone(), found)
        });
        let average = found.average.as_ref();
        Self {
            variant: variant.to_owned(),
            base: base.to_owned(),
            average_recovery: average.and_then(|a| a.ratio),
            average_recovery_stderr: average.and_then(|a| a.stderr),
            average_recovery_interval: average
                .and_then(|a| a.ratio_interval)
                .map(|i| [i.low, i.high]),
            tasks: tasks.collect(),
            groups_left_out: found
                .left_out
                .iter()
                .map(|group| (group.name.clone(), group.reason.clone()))
                .collect(),
        }
    }
}
