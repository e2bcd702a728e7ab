//! Tasks for other programs: flat CSV, a row for each variant, task and figure.

use serde::Serialize;

use super::super::study::{Study, Variant};
use super::{Task, TaskFigure, VersusBase};
use crate::error::{Error, Result};

/// A row. The names are the header; figures are as measured, mostly shares.
#[derive(Debug, Serialize)]
struct Row<'a> {
    device: Option<&'a str>,
    model: &'a str,
    variant: &'a str,
    engine: &'a str,
    kv_cache: &'a str,
    base: bool,
    task: &'a str,
    group: bool,
    in_average: bool,
    num_fewshot: Option<usize>,
    documents: Option<usize>,
    truncated_requests: Option<usize>,
    metric: Option<&'a str>,
    filter: Option<&'a str>,
    higher_is_better: Option<bool>,
    value: Option<f64>,
    stderr: Option<f64>,
    base_value: Option<f64>,
    recovery_percent: Option<f64>,
    recovery_percent_stderr: Option<f64>,
    difference: Option<f64>,
    difference_stderr: Option<f64>,
    difference_ci95_low: Option<f64>,
    difference_ci95_high: Option<f64>,
    won: Option<usize>,
    lost: Option<usize>,
    mcnemar_p: Option<f64>,
    reason: Option<&'a str>,
}

/// The text of `tasks.csv`: every figure of every task, those of the metric that a task is compared by with what they are
/// of the base's, and the average last; `None` if there are no tasks.
///
/// # Errors
/// Never in practice: a study is plain data.
pub fn csv(study: &Study) -> Result<Option<Vec<u8>>> {
    if study
        .variants
        .iter()
        .all(|variant| variant.tasks.is_empty())
    {
        return Ok(None);
    }
    let broken = |error: &dyn std::fmt::Display| Error::Internal(format!("tasks.csv: {error}"));
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    let rows = study.variants.iter().flat_map(|variant| {
        let tasks = variant.tasks.iter();
        tasks
            .flat_map(move |task| of_task(study, variant, task))
            .chain(average(study, variant))
    });
    for row in rows {
        writer.serialize(row).map_err(|e| broken(&e))?;
    }
    writer.into_inner().map(Some).map_err(|e| broken(&e))
}

fn of_task<'a>(study: &'a Study, variant: &'a Variant, task: &'a Task) -> Vec<Row<'a>> {
    let main = Row {
        group: task.group,
        in_average: task.in_average,
        num_fewshot: task.num_fewshot,
        documents: Some(task.documents),
        truncated_requests: Some(task.truncated_requests),
        metric: task.metric.as_deref(),
        filter: task.filter.as_deref(),
        value: task.value,
        stderr: task.stderr,
        won: task.won,
        lost: task.lost,
        mcnemar_p: task.p_value,
        reason: task.reason.as_deref(),
        ..empty(study, variant, &task.name, task.versus_base)
    };
    let is_main = |figure: &&TaskFigure| {
        (Some(figure.metric.as_str()), Some(figure.filter.as_str())) == (main.metric, main.filter)
    };
    let others = task.figures.iter().filter(|figure| !is_main(figure));
    let others: Vec<Row<'a>> = others
        .map(|figure| Row {
            num_fewshot: task.num_fewshot,
            documents: Some(task.documents),
            truncated_requests: Some(task.truncated_requests),
            metric: Some(&figure.metric),
            filter: Some(&figure.filter),
            higher_is_better: Some(figure.higher_is_better),
            value: Some(figure.value),
            stderr: figure.stderr,
            ..empty(study, variant, &task.name, None)
        })
        .collect();
    // Of a group the metric is one for which more is better, or it would not be one.
    let better = task.figures.iter().find(is_main);
    let better = better.map(|figure| figure.higher_is_better);
    let main = Row {
        higher_is_better: better.or(task.group.then_some(true)),
        ..main
    };
    std::iter::once(main).chain(others).collect()
}

fn average<'a>(study: &'a Study, variant: &'a Variant) -> Option<Row<'a>> {
    let average = variant.task_average?;
    Some(Row {
        higher_is_better: Some(true),
        value: Some(average.value),
        stderr: average.stderr,
        ..empty(study, variant, "average", average.versus_base)
    })
}

fn empty<'a>(
    study: &'a Study,
    variant: &'a Variant,
    task: &'a str,
    versus_base: Option<VersusBase>,
) -> Row<'a> {
    let ends = versus_base.and_then(|v| v.difference_ci95);
    Row {
        device: study.environment.device.name.as_deref(),
        model: &variant.model,
        variant: &variant.name,
        engine: &variant.engine,
        kv_cache: variant.kv_cache.as_deref().unwrap_or("auto"),
        base: variant.base,
        task,
        group: false,
        in_average: false,
        num_fewshot: None,
        documents: None,
        truncated_requests: None,
        metric: None,
        filter: None,
        higher_is_better: None,
        value: None,
        stderr: None,
        base_value: versus_base.map(|v| v.base_value),
        recovery_percent: versus_base.and_then(|v| v.recovery_percent),
        recovery_percent_stderr: versus_base.and_then(|v| v.recovery_percent_stderr),
        difference: versus_base.map(|v| v.difference),
        difference_stderr: versus_base.and_then(|v| v.difference_stderr),
        difference_ci95_low: ends.map(|ends| ends.low),
        difference_ci95_high: ends.map(|ends| ends.high),
        won: None,
        lost: None,
        mcnemar_p: None,
        reason: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    #[test]
    fn every_figure_has_its_row() {
        let study = fixture::task_study();
        let text = csv(&study).unwrap().unwrap();
        let mut reader = ::csv::Reader::from_reader(text.as_slice());
        let header = reader.headers().unwrap().clone();
        let place = |name: &str| header.iter().position(|head| head == name).unwrap();
        let rows: Vec<::csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        // Of four variants a group, three tasks of two figures, and the average; of the last a task and a failure.
        assert_eq!(rows.len(), 4 * (1 + 3 * 2 + 1) + 2 + 1);
        let of = |variant: &str, task: &str| {
            let mut own = rows
                .iter()
                .filter(|row| (&row[place("variant")], &row[place("task")]) == (variant, task));
            own.next().unwrap()
        };
        let int8 = &study.variants[1];
        let versus_base = int8.task_average.unwrap().versus_base.unwrap();
        let shown: f64 = of("int8", "average")[place("recovery_percent")]
            .parse()
            .unwrap();
        assert_eq!(Some(shown), versus_base.recovery_percent);
        let shown: f64 = of("int8", "mmlu_anatomy")[place("mcnemar_p")]
            .parse()
            .unwrap();
        assert_eq!(Some(shown), int8.tasks[2].p_value);
        let failed = of("w4a16:g64", "mmlu_anatomy");
        assert_eq!(&failed[place("reason")], "the device was lost");
        assert_eq!(&failed[place("value")], "");
        assert_eq!(csv(&fixture::study()).unwrap(), None);
    }
}
