//! What is left of a base's accuracy: the same documents scored by two variants, pair by pair.

use super::results::{Figure, SuiteScore, TaskScore};
use crate::stats::{self, Paired};

/// How one task came out for a variant and for its base.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    /// The task, or the group whose documents are taken together.
    pub name: String,
    /// The metric, and the filter behind it.
    pub metric: String,
    /// The filter behind it, or `none`.
    pub filter: String,
    /// The base's figure.
    pub base: f64,
    /// The variant's.
    pub value: f64,
    /// The variant's figure over the base's, which publishers call recovery; `None` where the base has none.
    pub ratio: Option<f64>,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// The difference of the figures, documents paired.
    pub difference: Paired,
    /// Documents that the variant alone gets right, and those that the base alone does; where they are right or wrong.
    pub discordant: Option<(usize, usize)>,
    /// The two-sided exact McNemar test of these; `None` where documents are not just right or wrong.
    pub p_value: Option<f64>,
}

/// A variant against its base on every task.
#[derive(Debug, Clone, PartialEq)]
pub struct Recoveries {
    /// Task by task; a group stands for its tasks, which follow it.
    pub tasks: Vec<Recovery>,
    /// The mean figure of the variant over that of the base, every task the same weight and a group as one task.
    pub ratio: Option<f64>,
    /// Its standard error.
    pub stderr: Option<f64>,
}

/// The values of one task's documents, for base and variant.
struct Unit {
    name: String,
    figure: Figure,
    base: Vec<f64>,
    other: Vec<f64>,
    /// Whether it counts in the average by itself, not within a group.
    counts: bool,
}

impl Recoveries {
    /// Compares `other` with `base`, which scored the same documents; `None` if they did not.
    pub fn new(base: &SuiteScore, other: &SuiteScore) -> Option<Self> {
        let units = units(base, other)?;
        let counted: Vec<&Unit> = units.iter().filter(|unit| unit.counts).collect();
        let ratio = ratio(&counted);
        Some(Self {
            tasks: units.iter().map(Unit::recovery).collect::<Option<_>>()?,
            ratio,
            stderr: ratio.and_then(|ratio| ratio_error(&counted, ratio)),
        })
    }
}

fn units(base: &SuiteScore, other: &SuiteScore) -> Option<Vec<Unit>> {
    if base.tasks.len() != other.tasks.len() {
        return None;
    }
    let mut single = Vec::new();
    for (base_task, task) in base.tasks.iter().zip(&other.tasks) {
        // A task whose figures are all better when smaller has nothing to recover.
        let Some(figure) = task.main() else { continue };
        let ids = |task: &TaskScore| task.samples.iter().map(|s| s.document).collect::<Vec<_>>();
        if base_task.task.name != task.task.name || ids(base_task) != ids(task) {
            return None;
        }
        single.push(Unit {
            name: task.task.name.clone(),
            figure: figure.clone(),
            base: base_task.values(figure),
            other: task.values(figure),
            counts: !other
                .groups
                .iter()
                .any(|g| g.group.tasks.contains(&task.task.name)),
        });
    }
    let mut units = Vec::new();
    for group in &other.groups {
        let own = || {
            single
                .iter()
                .filter(|unit| group.group.tasks.contains(&unit.name))
        };
        let Some(first) = own().next() else { continue };
        let mut others = other.groups.iter();
        units.push(Unit {
            name: group.group.name.clone(),
            figure: first.figure.clone(),
            base: own().flat_map(|unit| unit.base.clone()).collect(),
            other: own().flat_map(|unit| unit.other.clone()).collect(),
            counts: !others.any(|g| g.group.members.contains(&group.group.name)),
        });
    }
    units.append(&mut single);
    Some(units)
}

impl Unit {
    fn recovery(&self) -> Option<Recovery> {
        let ratio = ratio(&[self]);
        let binary = |values: &[f64]| values.iter().all(|&value| value == 0.0 || value == 1.0);
        let pairs = || self.base.iter().zip(&self.other);
        let discordant = (binary(&self.base) && binary(&self.other)).then(|| {
            let won = pairs().filter(|(base, other)| other > base).count();
            let lost = pairs().filter(|(base, other)| other < base).count();
            (won, lost)
        });
        Some(Recovery {
            name: self.name.clone(),
            metric: self.figure.metric.clone(),
            filter: self.figure.filter.clone(),
            base: stats::mean(&self.base)?,
            value: stats::mean(&self.other)?,
            ratio,
            stderr: ratio.and_then(|ratio| ratio_error(&[self], ratio)),
            difference: stats::paired_difference(&self.base, &self.other)?,
            discordant,
            p_value: discordant.map(|(won, lost)| stats::mcnemar(won, lost)),
        })
    }
}

fn sum_of_means(units: &[&Unit], of: impl Fn(&Unit) -> &[f64]) -> f64 {
    units.iter().filter_map(|unit| stats::mean(of(unit))).sum()
}

/// The mean figure of the variant over the base's; `None` if that is zero.
fn ratio(units: &[&Unit]) -> Option<f64> {
    let base = sum_of_means(units, |unit| &unit.base);
    (base > 0.0).then(|| sum_of_means(units, |unit| &unit.other) / base)
}

/// The standard error of that ratio by its linearisation: with `R = Σ aₜ / Σ bₜ` over tasks, the errors of the means of
/// `a − R b` within each task, which are independent, over `Σ bₜ` (Cochran, Sampling Techniques, 3rd ed., section 6.3).
fn ratio_error(units: &[&Unit], ratio: f64) -> Option<f64> {
    let squares = units.iter().map(|unit| {
        let pairs = unit.other.iter().zip(&unit.base);
        let residuals: Vec<f64> = pairs.map(|(other, base)| other - ratio * base).collect();
        stats::standard_error(&residuals).map(|error| error * error)
    });
    let squares: f64 = squares.sum::<Option<f64>>()?;
    Some(squares.sqrt() / sum_of_means(units, |unit| &unit.base))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::results::{Answer, Sample};
    use super::super::suite::Suite;
    use super::*;

    fn score(tasks: &[(&str, &[f64])]) -> SuiteScore {
        let tasks = tasks.iter().map(|(name, values)| {
            let mut task = Suite::find(&["winogrande".to_owned()])
                .unwrap()
                .tasks
                .remove(0);
            task.name = (*name).to_owned();
            let sample = |(document, &value): (usize, &f64)| Sample {
                document,
                answer: Answer::Text(String::new()),
                values: BTreeMap::from([("acc".to_owned(), value)]),
                filtered: BTreeMap::new(),
            };
            let samples = values.iter().enumerate().map(sample).collect();
            TaskScore::new(task, 0, 9, 0, samples)
        });
        SuiteScore {
            tasks: tasks.collect(),
            groups: Vec::new(),
        }
    }

    #[test]
    fn recovery_is_the_share_of_the_bases_figure() {
        let base = score(&[("a", &[1.0, 1.0, 1.0, 0.0]), ("b", &[1.0, 1.0])]);
        let other = score(&[("a", &[1.0, 1.0, 0.0, 0.0]), ("b", &[1.0, 0.0])]);
        let found = Recoveries::new(&base, &other).unwrap();
        let a = &found.tasks[0];
        assert!((a.ratio.unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(a.discordant, Some((0, 1)));
        assert_eq!(a.p_value, Some(1.0));
        assert!((a.difference.mean + 0.25).abs() < 1e-12);
        // Residuals 1/3, 1/3, -2/3, 0 have a standard deviation of sqrt(2/9).
        let expected = (2.0_f64 / 9.0 / 4.0).sqrt() / 0.75;
        assert!((a.stderr.unwrap() - expected).abs() < 1e-12);
        // Means 0.75 and 1 against 0.5 and 0.5.
        assert!((found.ratio.unwrap() - 1.0 / 1.75).abs() < 1e-12);
        let same = Recoveries::new(&base, &base).unwrap();
        assert_eq!((same.ratio, same.stderr), (Some(1.0), Some(0.0)));
    }

    #[test]
    fn other_documents_do_not_compare() {
        let base = score(&[("a", &[1.0, 1.0])]);
        assert_eq!(Recoveries::new(&base, &score(&[("a", &[1.0])])), None);
        assert_eq!(Recoveries::new(&base, &score(&[("b", &[1.0, 1.0])])), None);
        let none = Recoveries::new(&score(&[("a", &[0.0])]), &score(&[("a", &[1.0])])).unwrap();
        assert_eq!((none.ratio, none.tasks[0].ratio), (None, None));
    }
}
