//! Tasks in a study: what each variant made of them, and what that is of its base.

mod csv;
pub(super) mod table;

pub use csv::csv;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::record::{self, TaskAnswers, TaskQuestion};
use super::recovery::{Average, LeftOut, Recoveries, Recovery, Scored};
use super::study::{Interval, Variant, is_zero};
use crate::stats::{self, Paired};

/// A task, or a group of tasks that are taken together. Where it has no figures, the reason stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// The name.
    pub name: String,
    /// Whether it is a group, whose tasks are listed too.
    pub group: bool,
    /// Whether it counts in the average by itself: what is part of a group counts within that.
    pub in_average: bool,
    /// Why there are no figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Examples before each document; null for a group.
    pub num_fewshot: Option<usize>,
    /// Documents that were scored.
    pub documents: usize,
    /// Requests that lost their beginning, since they were too long.
    pub truncated_requests: usize,
    /// The metric that it is compared by: the first one for which more is better.
    pub metric: Option<String>,
    /// The filter behind it, or `none`.
    pub filter: Option<String>,
    /// The figure.
    pub value: Option<f64>,
    /// Its standard error; of a group whose documents count alike, pooled over its tasks.
    pub stderr: Option<f64>,
    /// What it is of the base's on the same documents; null where they are not the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versus_base: Option<VersusBase>,
    /// Documents that this variant alone gets right; null where they are not just right or wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub won: Option<usize>,
    /// Documents that the base alone gets right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<usize>,
    /// How likely so uneven a split of these is by chance: the two-sided exact McNemar test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
    /// Every figure of a task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<TaskFigure>,
    /// Whether answers depend on what is answered beside a document; empty where that was not asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub under_load: Vec<TaskUnderLoad>,
    /// Where it was scored, if not where the study was: a place among the environments of the run's manifest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub environment: usize,
}

/// The first documents answered alone, each request in whole, and again under other circumstances.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskUnderLoad {
    /// Documents side by side.
    pub batch: usize,
    /// Tokens of one forward pass.
    pub chunk: usize,
    /// Documents that were answered both ways.
    pub documents: usize,
    /// Those whose answers are not the same to the bit: a log-likelihood, or a text.
    pub differing: usize,
    /// Those that score otherwise by what the task is compared by.
    pub scored_otherwise: usize,
    /// The largest difference of a log-likelihood, in nats; null of generated texts.
    pub largest_difference: Option<f64>,
}

/// One metric behind one filter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskFigure {
    /// The metric.
    pub metric: String,
    /// The filter, or `none`.
    pub filter: String,
    /// The value.
    pub value: f64,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// The mean over tasks, every task the same weight and a group as one task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskAverage {
    /// How many tasks and groups it is over.
    pub tasks: usize,
    /// The mean.
    pub value: f64,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// What it is of the base's; null where they did not score the same documents.
    pub versus_base: Option<VersusBase>,
}

/// A figure against the base's, documents paired.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VersusBase {
    /// The base's figure.
    pub base_value: f64,
    /// 100 × this figure over the base's; null where the base has none.
    pub recovery_percent: Option<f64>,
    /// Its standard error.
    pub recovery_percent_stderr: Option<f64>,
    /// Its 95 % interval. Documents that all agree make the error zero, and still leave this doubt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_percent_ci95: Option<Interval>,
    /// The difference, the base's taken from this one's.
    pub difference: f64,
    /// Its standard error.
    pub difference_stderr: Option<f64>,
    /// Its 95 % interval: of a task the score interval where documents are right or wrong, else a paired bootstrap, of
    /// fewer
    /// than eight documents Student's; of an average, or a group whose tasks count alike, what those of its tasks come to.
    pub difference_ci95: Option<Interval>,
}

impl VersusBase {
    fn new(
        base: f64,
        ratio: Option<f64>,
        stderr: Option<f64>,
        ratio_interval: Option<stats::Interval>,
        difference: Paired,
    ) -> Self {
        let percent = |ratio: f64| 100.0 * ratio;
        Self {
            base_value: base,
            recovery_percent: ratio.map(percent),
            recovery_percent_stderr: stderr.map(percent),
            recovery_percent_ci95: ratio_interval.map(|ends| ends.map(percent).into()),
            difference: difference.mean,
            difference_stderr: difference.stderr,
            difference_ci95: difference.interval.map(Interval::from),
        }
    }
}

impl TaskAverage {
    fn of(average: &Average) -> Self {
        Self {
            tasks: average.tasks,
            value: average.value,
            stderr: average.value_stderr,
            versus_base: Some(VersusBase::new(
                average.base,
                average.ratio,
                average.stderr,
                average.ratio_interval,
                average.difference,
            )),
        }
    }

    /// What is left of the base's figure, in percent.
    pub fn recovery_percent(&self) -> Option<f64> {
        self.versus_base?.recovery_percent
    }
}

impl Task {
    /// What a record says by itself.
    pub(super) fn measured(question: &TaskQuestion, answers: &TaskAnswers) -> Self {
        let main = answers.main().or(answers.figures.first());
        let figures = answers.figures.iter().map(|figure| TaskFigure {
            metric: figure.metric.clone(),
            filter: figure.filter.clone(),
            value: figure.value,
            stderr: figure.stderr,
            higher_is_better: figure.higher_is_better,
        });
        Self {
            documents: answers.documents.len(),
            truncated_requests: answers.truncated,
            metric: main.map(|figure| figure.metric.clone()),
            filter: main.map(|figure| figure.filter.clone()),
            value: main.map(|figure| figure.value),
            stderr: main.and_then(|figure| figure.stderr),
            figures: figures.collect(),
            in_average: question.groups.is_empty(),
            under_load: answers.under_load.iter().map(under_load).collect(),
            ..Self::empty(&question.name, Some(question.shots))
        }
    }

    /// A task without figures.
    pub(super) fn failed(question: &TaskQuestion, reason: &str) -> Self {
        Self {
            reason: Some(reason.to_owned()),
            in_average: question.groups.is_empty(),
            ..Self::empty(&question.name, Some(question.shots))
        }
    }

    fn group(found: &Recovery) -> Self {
        Self {
            group: true,
            in_average: found.counts,
            documents: found.documents,
            metric: Some(found.metric.clone()),
            filter: Some(found.filter.clone()),
            value: Some(found.value),
            stderr: found.value_stderr,
            ..Self::empty(&found.name, None)
        }
    }

    fn without_figure(group: &LeftOut) -> Self {
        Self {
            group: true,
            reason: Some(group.reason.clone()),
            ..Self::empty(&group.name, None)
        }
    }

    fn empty(name: &str, shots: Option<usize>) -> Self {
        Self {
            name: name.to_owned(),
            group: false,
            in_average: false,
            reason: None,
            num_fewshot: shots,
            documents: 0,
            truncated_requests: 0,
            metric: None,
            filter: None,
            value: None,
            stderr: None,
            versus_base: None,
            won: None,
            lost: None,
            p_value: None,
            figures: Vec::new(),
            under_load: Vec::new(),
            environment: 0,
        }
    }

    fn compare(&mut self, found: &Recovery) {
        self.versus_base = Some(VersusBase::new(
            found.base,
            found.ratio,
            found.stderr,
            found.ratio_interval,
            found.difference,
        ));
        self.won = found.discordant.map(|(won, _)| won);
        self.lost = found.discordant.map(|(_, lost)| lost);
        self.p_value = found.p_value;
    }

    /// Whether it is the same task or group, of whatever variant.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.name, self.group) == (&other.name, other.group)
    }

    /// The metric with its filter, as lm_eval writes it.
    pub fn measure(&self) -> Option<String> {
        let metric = self.metric.as_ref()?;
        Some(match self.filter.as_deref() {
            None | Some("none") => metric.clone(),
            Some(filter) => format!("{metric},{filter}"),
        })
    }
}

fn under_load(found: &record::TaskUnderLoad) -> TaskUnderLoad {
    TaskUnderLoad {
        batch: found.batch,
        chunk: found.chunk,
        documents: found.documents,
        differing: found.differing,
        scored_otherwise: found.scored_otherwise,
        largest_difference: found.largest_difference,
    }
}

/// Adds to a variant that scored `own` its groups, its average, and what they are of the base's, which scored `base`.
/// Without all tasks there is no average: it would be over others than the base's.
pub(super) fn compare(base: &[Scored<'_>], own: &[Scored<'_>], variant: &mut Variant) {
    if variant.failed || variant.tasks.iter().any(|task| task.reason.is_some()) {
        return;
    }
    // A task that failed at first is on record behind the others.
    let at_base = base
        .iter()
        .filter_map(|task| own.iter().find(|other| other.name == task.name));
    let at_base: Vec<Scored<'_>> = at_base.copied().collect();
    let all = at_base.len() == own.len();
    let paired = Recoveries::new(base, &at_base).filter(|_| all);
    let Some(found) = paired.clone().or_else(|| Recoveries::new(own, own)) else {
        return;
    };
    let groups = found.tasks.iter().filter(|task| task.group);
    let groups = groups.map(Task::group);
    let left_out = found.left_out.iter().map(Task::without_figure);
    variant.tasks.splice(0..0, groups.chain(left_out));
    for task in variant.tasks.iter_mut().filter(|task| !task.group) {
        let same = |found: &&Recovery| !found.group && found.name == task.name;
        // What is part of a group without a figure counts by itself.
        if let Some(found) = found.tasks.iter().find(same) {
            task.in_average = found.counts;
        }
    }
    variant.task_average = found.average.as_ref().map(TaskAverage::of);
    let Some(paired) = paired else {
        if let Some(average) = &mut variant.task_average {
            average.versus_base = None;
        }
        return;
    };
    if variant.base {
        return;
    }
    for task in &mut variant.tasks {
        let same = |found: &&Recovery| (&found.name, found.group) == (&task.name, task.group);
        if let Some(found) = paired.tasks.iter().find(same) {
            task.compare(found);
        }
    }
    let lost = variant.task_average.and_then(|a| a.recovery_percent());
    for speed in &mut variant.speed {
        let faster = speed.speedup_vs_base.filter(|&factor| factor > 1.0);
        speed.task_percent_per_speed_percent = lost
            .zip(faster)
            .map(|(recovery, factor)| (1.0 - recovery / 100.0) / (factor - 1.0));
    }
}
