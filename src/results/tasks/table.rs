//! What variants made of their tasks, as a table: a row for each task, a column for each variant.

use super::super::columns::{self, Column, column};
use super::super::format;
use super::super::study::{Study, Variant};
use super::{Task, VersusBase};

/// Chance below which a difference is marked.
const SIGNIFICANT: f64 = 0.05;

/// How much is said of a figure, from all that there is to what a narrow terminal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Detail {
    /// The figure with its error, and its recovery with half of its interval.
    Whole,
    /// Recovery without its interval, which the averages have.
    FigureError,
}

impl Detail {
    /// What the cells are.
    pub(in super::super) const fn title(self) -> &'static str {
        match self {
            Self::Whole => {
                "Tasks: figures in % ± standard error; after the dot, recovery: what that is of the base's, ± half of its 95 % interval"
            }
            Self::FigureError => {
                "Tasks: figures in % ± standard error; after the dot, recovery: what that is of the base's"
            }
        }
    }

    fn cell(self, value: f64, stderr: Option<f64>, versus_base: Option<VersusBase>) -> String {
        let figure = format::share_with_error(value, stderr);
        let recovery = versus_base.and_then(|found| match self {
            Self::Whole => recovery(found),
            Self::FigureError => Some(format::percent_with_error(found.recovery_percent?, None)),
        });
        match recovery {
            Some(recovery) => format!("{figure} · {recovery}"),
            None => figure,
        }
    }
}

/// What is left of the base's figure, with half of its interval.
pub(in super::super) fn recovery(versus_base: VersusBase) -> Option<String> {
    let recovery = versus_base.recovery_percent?;
    let half = versus_base
        .recovery_percent_ci95
        .map(|ends| 0.5 * (ends.high - ends.low));
    Some(format::percent_with_error(recovery, half))
}

/// Every task of every variant and their average, with all that there is. No columns if there are no tasks.
pub(in super::super) fn all(study: &Study) -> Vec<Column> {
    of(study, &rows(study.variants.iter()), Detail::Whole)
}

/// The same for a terminal of this width: parts of groups left out, and of the rest as much as fits, in several parts if
/// variants are many. Empty if there are no tasks.
pub(in super::super) fn shown(study: &Study, width: usize) -> String {
    let all = rows(study.variants.iter());
    let mut rows: Vec<&Task> = all.iter().copied().filter(|task| task.in_average).collect();
    if rows.is_empty() {
        rows.clone_from(&all);
    }
    let whole = of(study, &rows, Detail::Whole);
    let (detail, table) = match columns::fits(&whole, width) {
        true => (Detail::Whole, whole),
        false => (Detail::FigureError, of(study, &rows, Detail::FigureError)),
    };
    if table.is_empty() {
        return String::new();
    }
    let mut out = format::wrapped(detail.title(), width) + "\n";
    let parts = columns::parts(table, width).into_iter();
    let parts: Vec<String> = parts
        .map(|part| columns::laid_out(part, width) + "\n")
        .collect();
    out += &parts.join("\n");
    if rows.len() < all.len() {
        let line = format!(
            "The {} tasks within these groups are in report.html and tasks.csv",
            all.len() - rows.len()
        );
        out += &format::wrapped(&line, width);
        out.push('\n');
    }
    out
}

/// Each task and group once, in the order in which variants name them.
pub(in super::super) fn rows<'a>(variants: impl Iterator<Item = &'a Variant>) -> Vec<&'a Task> {
    let mut rows: Vec<&Task> = Vec::new();
    for task in variants.flat_map(|variant| &variant.tasks) {
        match rows.iter_mut().find(|row| row.is_same(task)) {
            // One that failed does not know its metric.
            Some(row) if row.metric.is_none() => *row = task,
            Some(_) => {}
            None => rows.push(task),
        }
    }
    rows
}

impl Task {
    fn is_marked(&self) -> bool {
        self.p_value.is_some_and(|p| p < SIGNIFICANT)
    }
}

fn of(study: &Study, rows: &[&Task], detail: Detail) -> Vec<Column> {
    if rows.is_empty() {
        return Vec::new();
    }
    let name = |task: &&Task| {
        let measure = task.measure();
        let measure = measure.map_or_else(String::new, |measure| format!(" ({measure})"));
        let group = if task.group { ", all" } else { "" };
        Some(format!("{}{group}{measure}", task.name))
    };
    let names = rows.iter().map(name).chain([Some("average".to_owned())]);
    let mut columns = vec![column("task", 255, names)];
    for variant in &study.variants {
        let cell = |row: &&Task| {
            let task = variant.tasks.iter().find(|task| task.is_same(row))?;
            let mark = if task.is_marked() { "*" } else { "" };
            Some(detail.cell(task.value?, task.stderr, task.versus_base) + mark)
        };
        let cells = rows.iter().map(cell).chain([average(variant, detail)]);
        columns.push(column(&study.label(variant), 200, cells));
    }
    columns
}

fn average(variant: &Variant, detail: Detail) -> Option<String> {
    let average = variant.task_average?;
    let versus_base = average.versus_base.filter(|_| !variant.base);
    Some(detail.cell(average.value, average.stderr, versus_base))
}

/// What the mark of some figures means; `None` if there is none.
pub(in super::super) fn mark(study: &Study) -> Option<String> {
    let marked = |v: &Variant| v.tasks.iter().any(Task::is_marked);
    study.variants.iter().any(marked).then(|| {
        "*: of the documents that only one of variant and base gets right, so uneven a split has p < 0.05 (exact McNemar test, \
         each task by itself)"
            .to_owned()
    })
}

/// Whether answers depend on what is answered beside a document.
pub(in super::super) fn under_load(study: &Study) -> Vec<String> {
    let (mut same, mut differing): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for variant in &study.variants {
        let label = study.label(variant);
        for task in &variant.tasks {
            for found in &task.under_load {
                // Chunks go by the longest request, which differs from task to task.
                let (how, in_short) = if found.batch > 1 {
                    let how = format!("at batch {}", found.batch);
                    (how.clone(), how)
                } else {
                    (
                        format!("in chunks of {}", found.chunk),
                        "in chunks".to_owned(),
                    )
                };
                if found.differing > 0 {
                    let most = found.largest_difference.map_or_else(String::new, |nats| {
                        format!(", a log-likelihood by up to {nats:.1e} nats")
                    });
                    differing.push(format!(
                        "{label}, {}: {how}, answers to {} of {} documents differ from those given alone{most}; {} score \
                         otherwise",
                        task.name, found.differing, found.documents, found.scored_otherwise
                    ));
                } else if !same.contains(&in_short) {
                    same.push(in_short);
                }
            }
        }
    }
    if differing.is_empty() && !same.is_empty() {
        return vec![format!(
            "under load: answers {} are those given alone, to the bit",
            same.join(" and ")
        )];
    }
    differing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    #[test]
    fn a_column_for_each_variant_and_the_average_last() {
        let columns = all(&fixture::task_study());
        assert_eq!(columns.len(), 6);
        let names = &columns[0].cells;
        assert_eq!(names[0], "mmlu, all (acc)");
        assert_eq!(names[1], "arc_easy (acc)");
        assert_eq!(names.last().unwrap(), "average");
        assert!(columns[1].cells.iter().all(|cell| !cell.contains('·')));
        let w4 = &columns[4].cells;
        assert!(w4[1].contains(" · ") && w4[1].ends_with('*'), "{w4:?}");
        // Without all tasks there is no average.
        assert_eq!(columns[5].cells.last().unwrap(), "–");
        assert!(all(&fixture::study()).is_empty());
    }

    #[test]
    fn a_terminal_loses_errors_before_variants() {
        let study = fixture::task_study();
        for width in [60, 80, 100, 140, 200] {
            let shown = shown(&study, width);
            let widest = shown.lines().map(|line| line.chars().count()).max();
            assert!(widest.unwrap() <= width, "{width}:\n{shown}");
            for variant in &study.variants {
                assert!(shown.contains(&variant.name), "{width}:\n{shown}");
            }
            assert!(shown.contains("mmlu, all") && !shown.contains("mmlu_anatomy"));
            assert!(shown.contains("The 2 tasks within"), "{shown}");
        }
        let narrow = shown(&study, 80);
        assert!(narrow.contains(Detail::FigureError.title().split(',').next().unwrap()));
        assert_eq!(
            narrow.matches("average").count(),
            2,
            "in two parts:\n{narrow}"
        );
        assert!(shown(&study, 200).contains(Detail::Whole.title()));
        assert_eq!(shown(&fixture::study(), 80), "");
    }

    #[test]
    fn what_depends_on_the_batch_is_said() {
        let mut study = fixture::task_study();
        let said = |study: &Study| under_load(study).join("\n");
        assert!(
            said(&study).contains("answers at batch 64 and in chunks are those given alone"),
            "{}",
            said(&study)
        );
        let found = &mut study.variants[1].tasks[1].under_load[0];
        (found.differing, found.scored_otherwise) = (3, 1);
        found.largest_difference = Some(2e-3);
        assert!(
            said(&study).contains(
                "int8, arc_easy: at batch 64, answers to 3 of 16 documents differ from those given alone, a log-likelihood \
                 by up to 2.0e-3 nats; 1 score otherwise"
            ),
            "{}",
            said(&study)
        );
    }
}
