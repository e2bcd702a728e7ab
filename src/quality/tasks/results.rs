//! What came of a task: per document, over all documents, over groups of tasks.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::document::{Document, Gold};
use super::metric::{Kind, Metric};
use super::score::LogLikelihood;
use super::suite::{Group, Suite};
use super::task::Task;
use crate::stats;

/// What a model said to a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To each request.
    LogLikelihoods(Vec<LogLikelihood>),
    /// The text that it went on with.
    Text(String),
}

/// A scored document.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its place in the split.
    pub document: usize,
    /// What the model said.
    pub answer: Answer,
    /// The values of the document, by metric; where filters differ, by `metric,filter`.
    pub values: BTreeMap<String, f64>,
    /// Texts that filters made, by filter; of generations alone.
    pub filtered: BTreeMap<String, String>,
}

/// One figure of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The metric.
    pub metric: String,
    /// The filter behind it, or `none`.
    pub filter: String,
    /// The value over all documents.
    pub value: f64,
    /// Its standard error; `None` for a single document.
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// What came of a task.
#[derive(Debug, Clone)]
pub struct TaskScore {
    /// The task.
    pub task: Task,
    /// Examples before each document.
    pub shots: usize,
    /// Documents of the split.
    pub of: usize,
    /// Requests that lost their beginning, since they were too long.
    pub truncated: usize,
    /// The documents, in their order.
    pub samples: Vec<Sample>,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// What came of a group.
#[derive(Debug, Clone)]
pub struct GroupScore {
    /// The group.
    pub group: Group,
    /// Documents that were scored.
    pub documents: usize,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// The place of the largest value, the first of several.
fn largest(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (place, value) in values.enumerate() {
        if best.is_none_or(|(_, most)| value > most) {
            best = Some((place, value));
        }
    }
    best.map(|(place, _)| place)
}

impl Sample {
    /// Scores what a model said to a document.
    pub(super) fn new(task: &Task, document: &Document, answer: Answer) -> Self {
        let mut values = BTreeMap::new();
        let mut filtered = BTreeMap::new();
        match &answer {
            Answer::LogLikelihoods(found) => {
                for metric in &task.metrics {
                    let value = of_choices(metric.kind(), task, document, found);
                    values.insert(metric.name().to_owned(), value);
                }
            }
            Answer::Text(text) => {
                let references = match &document.gold {
                    Gold::Texts(texts) => texts.as_slice(),
                    _ => &[],
                };
                for pipeline in &task.filters {
                    let result = pipeline.apply(text);
                    for metric in &task.metrics {
                        let scores = references.iter().map(|r| metric.kind().of_text(&result, r));
                        let best = scores.fold(0.0, f64::max);
                        values.insert(name_of(metric, &pipeline.name), best);
                    }
                    filtered.insert(pipeline.name.clone(), result);
                }
            }
        }
        Self {
            document: document.id,
            answer,
            values,
            filtered,
        }
    }

    /// The line of a log: without the document's texts, unless it is given.
    pub fn line(&self, task: &str, texts: Option<&Document>) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert("task".into(), task.into());
        line.insert("doc_id".into(), self.document.into());
        match &self.answer {
            Answer::LogLikelihoods(found) => {
                line.insert(
                    "loglikelihood".into(),
                    found.iter().map(|l| l.sum).collect(),
                );
                line.insert("is_greedy".into(), found.iter().map(|l| l.greedy).collect());
            }
            Answer::Text(text) => {
                line.insert("resps".into(), json!([text]));
                line.insert("filtered_resps".into(), json!(self.filtered));
            }
        }
        for (name, value) in &self.values {
            line.insert(name.clone(), json!(value));
        }
        if let Some(document) = texts {
            line.extend(super::document::texts(document));
            let target = match &document.gold {
                Gold::Choices(places) if places.len() == 1 => json!(places[0]),
                Gold::Choices(places) => json!(places),
                Gold::Texts(texts) if texts.len() == 1 => json!(texts[0]),
                Gold::Texts(texts) => json!(texts),
                Gold::Truths(truths) => json!(truths),
                Gold::Continuation => json!(document.requests[0].continuation),
            };
            line.insert("target".into(), target);
        }
        line
    }
}

fn name_of(metric: &Metric, filter: &str) -> String {
    match filter {
        "none" => metric.name().to_owned(),
        filter => format!("{},{filter}", metric.name()),
    }
}

/// One metric of a document whose continuations were scored.
fn of_choices(kind: &Kind, task: &Task, document: &Document, found: &[LogLikelihood]) -> f64 {
    let right = match &document.gold {
        Gold::Continuation => {
            return match kind {
                Kind::Perplexity => found[0].sum,
                _ => f64::from(found[0].greedy),
            };
        }
        Gold::Truths(truths) => return share_of_true(found, truths),
        Gold::Choices(right) => right,
        Gold::Texts(_) => return f64::NAN,
    };
    debug_assert!(!task.share_of_true);
    let choices = &found[..document.choices.len()];
    let chosen = |divide: &dyn Fn(usize) -> f64| {
        let values = choices.iter().enumerate().map(|(i, l)| l.sum / divide(i));
        largest(values)
    };
    let choice = match kind {
        Kind::AccNorm => chosen(&|i| document.choices[i].chars().count() as f64),
        Kind::AccBytes => chosen(&|i| document.choices[i].len() as f64),
        Kind::AccMutualInfo => {
            let alone = &found[document.choices.len()..];
            largest(
                choices
                    .iter()
                    .zip(alone)
                    .map(|(given, alone)| given.sum - alone.sum),
            )
        }
        Kind::ExactMatch(_) => {
            return f64::from(right.iter().any(|&place| choices[place].greedy));
        }
        _ => chosen(&|_| 1.0),
    };
    f64::from(choice.is_some_and(|choice| right.contains(&choice)))
}

/// The share of the true choices in the probability of all.
fn share_of_true(found: &[LogLikelihood], truths: &[bool]) -> f64 {
    let most = found
        .iter()
        .map(|l| l.sum)
        .fold(f64::NEG_INFINITY, f64::max);
    // Relative to the largest, so that long choices do not all come to zero.
    let mass = |wanted: &dyn Fn(bool) -> bool| -> f64 {
        let chosen = found
            .iter()
            .zip(truths)
            .filter(|(_, truth)| wanted(**truth));
        chosen.map(|(l, _)| (l.sum - most).exp()).sum()
    };
    mass(&|truth| truth) / mass(&|_| true)
}

impl TaskScore {
    pub(super) fn new(
        task: Task,
        shots: usize,
        of: usize,
        truncated: usize,
        samples: Vec<Sample>,
    ) -> Self {
        let mut figures = Vec::new();
        for pipeline in &task.filters {
            for metric in &task.metrics {
                let name = name_of(metric, &pipeline.name);
                let values: Vec<f64> = samples
                    .iter()
                    .map(|s| s.values.get(&name).copied().unwrap_or(f64::NAN))
                    .collect();
                let (value, stderr) = metric.aggregate(&values);
                figures.push(Figure {
                    metric: metric.name().to_owned(),
                    filter: pipeline.name.clone(),
                    value,
                    stderr,
                    higher_is_better: metric.higher_is_better(),
                });
            }
        }
        Self {
            task,
            shots,
            of,
            truncated,
            samples,
            figures,
        }
    }

    /// The values of all documents behind a figure.
    pub fn values(&self, figure: &Figure) -> Vec<f64> {
        let name = match figure.filter.as_str() {
            "none" => figure.metric.clone(),
            filter => format!("{},{filter}", figure.metric),
        };
        let value = |sample: &Sample| sample.values.get(&name).copied().unwrap_or(f64::NAN);
        self.samples.iter().map(value).collect()
    }
}

impl GroupScore {
    /// Takes the tasks of a group together.
    pub(super) fn new(group: &Group, tasks: &[TaskScore]) -> Self {
        let own: Vec<&TaskScore> = tasks
            .iter()
            .filter(|t| group.tasks.contains(&t.task.name))
            .collect();
        let figures = group
            .metrics
            .iter()
            .filter_map(|metric| taken_together(group, metric, &own));
        Self {
            group: group.clone(),
            documents: own.iter().map(|task| task.samples.len()).sum(),
            figures: figures.collect(),
        }
    }
}

/// A metric over the tasks of a group that have it: lm_eval's mean by size and pooled standard error.
fn taken_together(group: &Group, metric: &str, tasks: &[&TaskScore]) -> Option<Figure> {
    let of = |task: &TaskScore| {
        let figure = task
            .figures
            .iter()
            .find(|f| f.metric == metric && f.filter == "none")?;
        Some((
            figure.value,
            figure.stderr,
            task.samples.len() as f64,
            figure.higher_is_better,
        ))
    };
    let parts: Vec<(f64, Option<f64>, f64, bool)> =
        tasks.iter().filter_map(|task| of(task)).collect();
    let (.., higher_is_better) = *parts.first()?;
    let size = |n: f64| if group.by_size { n } else { 1.0 };
    let all: f64 = parts.iter().map(|(.., n, _)| size(*n)).sum();
    let value = parts
        .iter()
        .map(|(value, _, n, _)| value * size(*n))
        .sum::<f64>()
        / all;
    let sizes = parts
        .iter()
        .map(|(_, error, n, _)| Some((*n as usize, (*error)?)));
    let sizes: Option<Vec<(usize, f64)>> = sizes.collect();
    let stderr = sizes.and_then(|sizes| stats::pooled_standard_error(&sizes));
    Some(Figure {
        metric: metric.to_owned(),
        filter: "none".into(),
        value,
        stderr,
        higher_is_better,
    })
}

/// What came of a suite.
#[derive(Debug, Clone)]
pub struct SuiteScore {
    /// Every task, in the order of the suite.
    pub tasks: Vec<TaskScore>,
    /// Every group.
    pub groups: Vec<GroupScore>,
}

impl SuiteScore {
    pub(super) fn new(suite: &Suite, tasks: Vec<TaskScore>) -> Self {
        let groups = suite
            .groups
            .iter()
            .map(|group| GroupScore::new(group, &tasks))
            .collect();
        Self { tasks, groups }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sums: &[f64]) -> Vec<LogLikelihood> {
        sums.iter()
            .map(|&sum| LogLikelihood { sum, greedy: false })
            .collect()
    }

    fn document(choices: &[&str], gold: Gold) -> Document {
        Document {
            id: 0,
            requests: Vec::new(),
            choices: choices.iter().map(|&c| c.to_owned()).collect(),
            gold,
        }
    }

    #[test]
    fn choices_are_taken_by_sum_by_characters_and_by_bytes() {
        let task = Suite::find(&["arc_easy".to_owned()])
            .unwrap()
            .tasks
            .remove(0);
        // Per character -4, -3, -3.5; per byte -4, -3, -1.75.
        let document = document(&["a", "bc", "éééé"], Gold::Choices(vec![2]));
        let found = found(&[-4.0, -6.0, -14.0]);
        let value = |kind| of_choices(&kind, &task, &document, &found);
        assert_eq!(value(Kind::Acc), 0.0);
        assert_eq!(value(Kind::AccNorm), 0.0);
        assert_eq!(value(Kind::AccBytes), 1.0);
        assert_eq!(largest([1.0, 3.0, 3.0].into_iter()), Some(1));
    }

    #[test]
    fn mc2_is_the_share_of_probability_even_of_long_choices() {
        let share = share_of_true(
            &found(&[-1000.0, -1000.0 + 3_f64.ln(), -2000.0]),
            &[true, false, true],
        );
        assert!((share - 0.25).abs() < 1e-12, "{share}");
    }

    #[test]
    fn groups_pool_their_tasks_by_size() {
        let task = |name: &str, values: &[f64]| {
            let mut task = Suite::find(&["arc_easy".to_owned()])
                .unwrap()
                .tasks
                .remove(0);
            task.name = name.to_owned();
            let sample = |(document, &value): (usize, &f64)| Sample {
                document,
                answer: Answer::Text(String::new()),
                values: BTreeMap::from([("acc".to_owned(), value), ("acc_norm".to_owned(), value)]),
                filtered: BTreeMap::new(),
            };
            TaskScore::new(
                task,
                0,
                9,
                0,
                values.iter().enumerate().map(sample).collect(),
            )
        };
        let tasks = vec![task("a", &[1.0, 0.0, 1.0, 1.0]), task("b", &[0.0, 0.0])];
        let group = Group {
            name: "g".into(),
            alias: None,
            version: Value::Null,
            tasks: vec!["a".into(), "b".into()],
            members: vec!["a".into(), "b".into()],
            by_size: true,
            metrics: vec!["acc".into()],
        };
        let score = GroupScore::new(&group, &tasks);
        assert_eq!(score.figures[0].value, 0.5);
        // Squares within tasks: 0.75 and 0; four degrees of freedom, six documents.
        let expected = (0.75_f64 / 4.0 / 6.0).sqrt();
        assert!((score.figures[0].stderr.unwrap() - expected).abs() < 1e-12);
    }
}
