//! Tasks inside a study: their documents as tokens, once for each model, what a variant makes of them as a record, and
//! whether that depends on what runs beside.

use super::plan::TaskPlan;
use super::runner::Runner;
use super::tasks::{max_length, tokenizer};
use crate::engine::Limits;
use crate::error::{Error, Result};
use crate::model::{Model, Tokenizer};
use crate::quality::tasks::{Answer, Encoder, Group, SuiteScore, Task, TaskScore, Work};
use crate::results::record::{TaskAnswers, TaskFigure, TaskGroup, TaskQuestion, TaskUnderLoad};
use crate::results::recovery::{Recoveries, Scored};

/// Tokens of the documents that are answered again under other circumstances, and the share of a task that they come to at
/// most, so that a check of many small tasks does not take as long as the tasks.
const SAMPLED_TOKENS: usize = 2048;
const SAMPLED_SHARE: usize = 16;

/// What a model is asked, ready to run.
pub(super) struct Questions {
    asked: Vec<(TaskQuestion, Work)>,
    under_load: bool,
}

/// How a variant is asked.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) model: &'a Model,
    /// Tokens that are read at a time.
    pub(super) chunk: usize,
    /// The most sequences that answers must not depend on.
    pub(super) batch: usize,
}

impl Questions {
    /// Reads the documents of every task and makes tokens of them.
    ///
    /// # Errors
    /// If data, templates or the model's tokenizer are at fault.
    pub(super) fn prepare(plan: &TaskPlan, model: &Model) -> Result<Self> {
        let max_length = max_length(model, plan.max_length)?;
        let encoder = Encoder::new(tokenizer(model)?, plan.add_bos, max_length)?;
        let suite = &plan.suite;
        let asked = suite.tasks.iter().map(|task| {
            let work = Work::prepare(task, plan.shots, plan.limit, &encoder)?;
            let question = TaskQuestion {
                name: task.name.clone(),
                digest: digest(&work),
                shots: work.shots,
                documents: work.documents.len(),
                add_bos: plan.add_bos,
                max_length,
                groups: groups_of(&suite.groups, &suite.tasks, &task.name),
            };
            Ok((question, work))
        });
        Ok(Self {
            asked: asked.collect::<Result<_>>()?,
            under_load: plan.under_load,
        })
    }

    /// One for each task.
    pub(super) fn each(&self) -> impl Iterator<Item = &TaskQuestion> {
        self.asked.iter().map(|(question, _)| question)
    }

    /// What is to be known before anything is asked.
    pub(super) fn notices(&self, plan: &TaskPlan) -> Vec<String> {
        let mut notices = Vec::new();
        for (question, work) in &self.asked {
            let name = &question.name;
            if plan.shots.is_some_and(|wish| wish != question.shots) {
                notices.push(format!(
                    "{name}: its definition says no examples, and keeps to it"
                ));
            }
            if work.truncated > 0 {
                notices.push(format!(
                    "{name}: {} requests were longer than {} tokens and lost their beginning",
                    work.truncated, question.max_length
                ));
            }
        }
        notices
    }

    /// Asks a loaded variant. `progress` is told the share that is done, and may stop the work.
    ///
    /// # Errors
    /// If the model fails, or `progress` does.
    pub(super) fn ask(
        &self,
        question: &TaskQuestion,
        how: Asking<'_>,
        runner: &mut Runner,
        progress: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<TaskAnswers> {
        let asked = self.asked.iter().find(|(asked, _)| asked == question);
        let (_, work) =
            asked.ok_or_else(|| Error::Internal(format!("the task {} was lost", question.name)))?;
        let mut work = work.clone();
        let total = work.open_tokens().max(1) as f64;
        let mut done = 0;
        let tokenizer = tokenizer(how.model)?;
        let sample = work.sample(SAMPLED_TOKENS.min(work.open_tokens() / SAMPLED_SHARE));
        let engine = runner.own_for_scoring(work.limits(how.chunk))?;
        work.run(engine, tokenizer, |_, _, tokens| {
            done += tokens;
            progress(done as f64 / total)
        })?;
        let mut answers = answers(&work.score()?);
        if self.under_load {
            answers.under_load = under_load(&sample, how.batch, runner, tokenizer, progress)?;
        }
        let broken = |figure: &&TaskFigure| {
            !(figure.value.is_finite() && figure.values.iter().all(|value| value.is_finite()))
        };
        match answers.figures.iter().find(broken) {
            Some(figure) => Err(Error::NotFinite(format!(
                "{}: {} is not a finite number",
                question.name, figure.metric
            ))),
            None => Ok(answers),
        }
    }
}

/// Answers documents alone and in whole, then `batch` side by side, then alone but in chunks of a third.
fn under_load(
    sample: &Work,
    batch: usize,
    runner: &mut Runner,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(f64) -> Result<()>,
) -> Result<Vec<TaskUnderLoad>> {
    let longest = sample.limits(usize::MAX).capacity;
    let mut answered = |slots: usize, chunk: usize| {
        let mut work = sample.clone();
        let engine = runner.own_for_scoring(Limits::new(slots, longest, chunk))?;
        work.run(engine, tokenizer, |_, _, _| progress(1.0))?;
        work.score()
    };
    let alone = answered(1, longest)?;
    let batch = batch.min(sample.documents.len());
    let whole = (batch > 1).then_some((batch, batch * longest));
    let third = (1, longest.div_ceil(3));
    let ways = whole.into_iter().chain([third]);
    ways.map(|(batch, chunk)| Ok(difference(&alone, &answered(batch, chunk)?, batch, chunk)))
        .collect()
}

/// How answers differ from those given alone.
fn difference(alone: &TaskScore, other: &TaskScore, batch: usize, chunk: usize) -> TaskUnderLoad {
    let pairs = || alone.samples.iter().zip(&other.samples);
    let figure = alone.figures.iter().find(|figure| figure.higher_is_better);
    let figure = figure.or(alone.figures.first());
    let values = figure.map(|figure| (alone.values(figure), other.values(figure)));
    let scored_otherwise = values.map_or(0, |(alone, other)| {
        let differ = |(a, b): &(&f64, &f64)| a != b;
        alone.iter().zip(&other).filter(differ).count()
    });
    let likelihoods = pairs().filter_map(|(a, b)| match (&a.answer, &b.answer) {
        (Answer::LogLikelihoods(a), Answer::LogLikelihoods(b)) => {
            let differences = a.iter().zip(b).map(|(a, b)| (a.sum - b.sum).abs());
            Some(differences.fold(0.0, f64::max))
        }
        _ => None,
    });
    TaskUnderLoad {
        batch,
        chunk,
        documents: alone.samples.len(),
        differing: pairs().filter(|(a, b)| a.answer != b.answer).count(),
        scored_otherwise,
        largest_difference: likelihoods.reduce(f64::max),
    }
}

/// A hash of what decides how answers are scored: the definition, the requests in tokens, and what is right.
fn digest(work: &Work) -> String {
    let definition = serde_json::Value::Object(work.task.definition.clone());
    let mut hasher = blake3::Hasher::new();
    hasher.update(definition.to_string().as_bytes());
    hasher.update(work.digest().as_bytes());
    for document in &work.documents {
        hasher.update(format!("{:?} {:?}\n", document.choices, document.gold).as_bytes());
    }
    format!("blake3:{}", &hasher.finalize().to_hex()[..32])
}

/// The groups with a figure that a task is part of, how that is made of its tasks', and whether it counts by itself.
fn groups_of<'a>(
    groups: impl IntoIterator<Item = &'a Group>,
    tasks: impl IntoIterator<Item = &'a Task> + Clone,
    task: &str,
) -> Vec<TaskGroup> {
    // By lm_eval's rule a group without metrics to aggregate is a list of names.
    let with_figure = groups
        .into_iter()
        .filter_map(|group| Some((group, group.main_metric(tasks.clone())?)));
    let groups: Vec<(&Group, &str)> = with_figure.collect();
    let own = groups
        .iter()
        .filter(|(group, _)| group.tasks.iter().any(|name| name == task));
    own.map(|(group, metric)| {
        let mut of_group = tasks
            .clone()
            .into_iter()
            .filter(|task| group.tasks.contains(&task.name));
        let is_usual = of_group.all(|task| task.main_measure() == Some((*metric, "none")));
        TaskGroup {
            name: group.name.clone(),
            counts: !groups.iter().any(|(other, _)| around(other, group)),
            by_size: group.by_size,
            metric: (!is_usual).then(|| (*metric).to_owned()),
        }
    })
    .collect()
}

/// Whether a group is part of another one, by name or because that has all of its tasks and more.
fn around(outer: &Group, group: &Group) -> bool {
    let holds_all = group.tasks.iter().all(|task| outer.tasks.contains(task));
    let larger = outer.tasks.len() > group.tasks.len() || outer.members.contains(&group.name);
    outer.name != group.name && holds_all && larger
}

/// What came of a task in the terms of records.
fn answers(score: &TaskScore) -> TaskAnswers {
    let figures = score.figures.iter().map(|figure| TaskFigure {
        metric: figure.metric.clone(),
        filter: figure.filter.clone(),
        value: figure.value,
        stderr: figure.stderr,
        higher_is_better: figure.higher_is_better,
        values: score.values(figure),
    });
    TaskAnswers {
        of: score.of,
        truncated: score.truncated,
        documents: score.samples.iter().map(|sample| sample.document).collect(),
        figures: figures.collect(),
        under_load: Vec::new(),
        configuration: None,
    }
}

/// Compares two variants that scored the same documents; `None` if they did not.
pub fn recoveries(base: &SuiteScore, other: &SuiteScore) -> Option<Recoveries> {
    let (of_base, of_other) = (in_records(base), in_records(other));
    Recoveries::new(&views(base, &of_base), &views(other, &of_other))
}

/// The groups and the answers of each task.
fn in_records(score: &SuiteScore) -> Vec<(Vec<TaskGroup>, TaskAnswers)> {
    let groups = || score.groups.iter().map(|group| &group.group);
    let tasks = || score.tasks.iter().map(|task| &task.task);
    let each = score.tasks.iter();
    each.map(|task| {
        let groups = groups_of(groups(), tasks(), &task.task.name);
        (groups, answers(task))
    })
    .collect()
}

fn views<'a>(score: &'a SuiteScore, tasks: &'a [(Vec<TaskGroup>, TaskAnswers)]) -> Vec<Scored<'a>> {
    let each = score.tasks.iter().zip(tasks);
    each.map(|(task, (groups, answers))| Scored {
        name: &task.task.name,
        groups,
        answers,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::quality::tasks::Suite;

    /// The groups of the first task where a group of two has this list of metrics, the second task with `more` of its own.
    fn groups(aggregate: &str, more: &str) -> Vec<TaskGroup> {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "rows.jsonl",
            r#"{"query": "a", "choices": ["b", "c"], "gold": 0}"#,
        );
        let task = "dataset_path: json\ndataset_kwargs: {data_files: rows.jsonl}\ntest_split: train\n\
                    output_type: multiple_choice\ndoc_to_text: query\ndoc_to_choice: choices\n\
                    doc_to_target: gold\n";
        write("one.yaml", &format!("task: one\n{task}"));
        write("two.yaml", &format!("task: two\n{task}{more}"));
        write(
            "both.yaml",
            &format!("group: both\ntask: [one.yaml, two.yaml]\n{aggregate}"),
        );
        let path = folder.path().join("both.yaml").display().to_string();
        let suite = Suite::find(&[path]).unwrap();
        groups_of(&suite.groups, &suite.tasks, "one")
    }

    #[test]
    fn a_group_is_taken_together_as_its_definition_says() {
        let usual = TaskGroup {
            name: "both".to_owned(),
            counts: true,
            by_size: true,
            metric: None,
        };
        let of = |aggregate: &str| groups(&format!("aggregate_metric_list: {aggregate}\n"), "");
        assert_eq!(of("[{metric: acc}]"), vec![usual.clone()]);
        let by_task = TaskGroup {
            by_size: false,
            ..usual.clone()
        };
        assert_eq!(of("[{metric: acc, weight_by_size: false}]"), [by_task]);
        let other = TaskGroup {
            metric: Some("acc_norm".to_owned()),
            ..usual.clone()
        };
        assert_eq!(of("[{metric: acc_norm}]"), [other]);
        // One of its tasks is compared by something else, and has this as well.
        let stated = TaskGroup {
            metric: Some("acc".to_owned()),
            ..usual
        };
        let more = "metric_list: [{metric: acc_norm}, {metric: acc}]\n";
        assert_eq!(
            groups("aggregate_metric_list: [{metric: acc}]\n", more),
            [stated]
        );
        // Only a list of names.
        assert!(groups("", "").is_empty());
    }
}
