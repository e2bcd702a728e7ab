//! What is left of a base's accuracy: the same documents scored by two variants, pair by pair.

use serde_json::{Map, Value, json};

use super::record::{TaskAnswers, TaskGroup};
use crate::stats::{self, Paired};

/// What a variant made of one task.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    /// The task.
    pub name: &'a str,
    /// The groups that it is part of.
    pub groups: &'a [TaskGroup],
    /// Its documents and figures.
    pub answers: &'a TaskAnswers,
}

/// How one task came out for a variant and for its base.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    /// The task, or the group whose documents are taken together.
    pub name: String,
    /// Whether it is a group.
    pub group: bool,
    /// Whether it counts in the average by itself, not within a group.
    pub counts: bool,
    /// The metric.
    pub metric: String,
    /// The filter behind it, or `none`.
    pub filter: String,
    /// Documents that both scored.
    pub documents: usize,
    /// The base's figure.
    pub base: f64,
    /// The variant's.
    pub value: f64,
    /// Its standard error; of a group, pooled over its tasks.
    pub value_stderr: Option<f64>,
    /// The variant's figure over the base's, which publishers call recovery; `None` where the base has none.
    pub ratio: Option<f64>,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// Its 95 % interval, which a few documents without a difference do not make a point, as they do its error.
    pub ratio_interval: Option<stats::Interval>,
    /// The difference of the figures, documents paired; where they are right or wrong, with the score interval.
    pub difference: Paired,
    /// Documents that the variant alone gets right, and those that the base alone does; where they are right or wrong.
    pub discordant: Option<(usize, usize)>,
    /// The two-sided exact McNemar test of these; `None` where documents are not just right or wrong.
    pub p_value: Option<f64>,
}

/// The mean figure over tasks, every task the same weight and a group as one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Average {
    /// How many tasks and groups it is over.
    pub tasks: usize,
    /// The base's.
    pub base: f64,
    /// The variant's.
    pub value: f64,
    /// Its standard error.
    pub value_stderr: Option<f64>,
    /// The variant's over the base's; `None` where the base has none.
    pub ratio: Option<f64>,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// Its 95 % interval.
    pub ratio_interval: Option<stats::Interval>,
    /// The variant's less the base's, documents paired; its interval is made of those of the tasks.
    pub difference: Paired,
}

/// A variant against its base on every task.
#[derive(Debug, Clone, PartialEq)]
pub struct Recoveries {
    /// Group by group, then task by task.
    pub tasks: Vec<Recovery>,
    /// Over all of them; `None` if there is no figure to compare by.
    pub average: Option<Average>,
}

/// The values of one task's documents, for base and variant.
struct Unit {
    name: String,
    group: bool,
    metric: String,
    filter: String,
    base: Vec<f64>,
    other: Vec<f64>,
    /// How many of these each of its tasks has.
    sizes: Vec<usize>,
    /// Whether it counts in the average by itself, not within a group.
    counts: bool,
}

impl Recoveries {
    /// Compares `other` with `base`, which scored the same documents of the same tasks; `None` if they did not.
    pub fn new(base: &[Scored<'_>], other: &[Scored<'_>]) -> Option<Self> {
        let units = units(base, other)?;
        let counted: Vec<&Unit> = units.iter().filter(|unit| unit.counts).collect();
        Some(Self {
            tasks: units.iter().map(Unit::recovery).collect::<Option<_>>()?,
            average: average(&counted),
        })
    }

    /// As JSON, in names akin to lm_eval's, which has no layout for it.
    pub fn layout(&self, variant: &str, base: &str) -> Value {
        let tasks = self.tasks.iter().map(|task| {
            let interval = task.difference.interval;
            let entry = json!({
                "metric": task.metric,
                "filter": task.filter,
                "base": task.base,
                "value": task.value,
                "recovery": task.ratio,
                "recovery_stderr": task.stderr,
                "recovery_interval": task.ratio_interval.map(|i| [i.low, i.high]),
                "difference": task.difference.mean,
                "difference_stderr": task.difference.stderr,
                "difference_interval": interval.map(|i| [i.low, i.high]),
                "won": task.discordant.map(|(won, _)| won),
                "lost": task.discordant.map(|(_, lost)| lost),
                "mcnemar_p": task.p_value,
            });
            (task.name.clone(), entry)
        });
        let average = self.average.as_ref();
        json!({
            "variant": variant,
            "base": base,
            "average_recovery": average.and_then(|a| a.ratio),
            "average_recovery_stderr": average.and_then(|a| a.stderr),
            "average_recovery_interval": average.and_then(|a| a.ratio_interval).map(|i| [i.low, i.high]),
            "tasks": tasks.collect::<Map<_, _>>(),
        })
    }
}

fn units(base: &[Scored<'_>], other: &[Scored<'_>]) -> Option<Vec<Unit>> {
    if base.len() != other.len() {
        return None;
    }
    let mut single = Vec::new();
    for (base, other) in base.iter().zip(other) {
        if base.name != other.name || base.answers.documents != other.answers.documents {
            return None;
        }
        // A task whose figures are all better when smaller has nothing to recover.
        let Some(figure) = other.answers.main() else {
            continue;
        };
        let of_base = base.answers.main()?;
        if (&of_base.metric, &of_base.filter) != (&figure.metric, &figure.filter) {
            return None;
        }
        let unit = Unit {
            name: other.name.to_owned(),
            group: false,
            metric: figure.metric.clone(),
            filter: figure.filter.clone(),
            base: of_base.values.clone(),
            other: figure.values.clone(),
            sizes: vec![figure.values.len()],
            counts: other.groups.is_empty(),
        };
        single.push((unit, other.groups));
    }
    let mut units: Vec<Unit> = Vec::new();
    for group in single.iter().flat_map(|(_, groups)| groups.iter()) {
        if units.iter().any(|unit| unit.name == group.name) {
            continue;
        }
        let own = || {
            let members = single
                .iter()
                .filter(|(_, groups)| groups.iter().any(|other| other.name == group.name));
            members.map(|(unit, _)| unit)
        };
        let Some(first) = own().next() else { continue };
        units.push(Unit {
            name: group.name.clone(),
            group: true,
            metric: first.metric.clone(),
            filter: first.filter.clone(),
            base: own().flat_map(|unit| unit.base.clone()).collect(),
            other: own().flat_map(|unit| unit.other.clone()).collect(),
            sizes: own().map(|unit| unit.other.len()).collect(),
            counts: group.counts,
        });
    }
    units.extend(single.into_iter().map(|(unit, _)| unit));
    Some(units)
}

impl Unit {
    fn recovery(&self) -> Option<Recovery> {
        let ratio = ratio(&[self]);
        let discordant = self.discordant();
        let mut difference = stats::paired_difference(&self.base, &self.other)?;
        difference.interval = self.score_interval().or(difference.interval);
        Some(Recovery {
            name: self.name.clone(),
            group: self.group,
            counts: self.counts,
            metric: self.metric.clone(),
            filter: self.filter.clone(),
            documents: self.other.len(),
            base: stats::mean(&self.base)?,
            value: stats::mean(&self.other)?,
            value_stderr: self.error(&self.other),
            ratio,
            stderr: ratio.and_then(|ratio| ratio_error(&[self], ratio)),
            ratio_interval: ratio.and_then(|ratio| ratio_interval(&[self], ratio)),
            difference,
            discordant,
            p_value: discordant.map(|(won, lost)| stats::mcnemar(won, lost)),
        })
    }

    /// Documents that the variant alone gets right, and those that the base alone does; `None` where some are neither
    /// right nor wrong.
    fn discordant(&self) -> Option<(usize, usize)> {
        let binary = |values: &[f64]| values.iter().all(|&value| value == 0.0 || value == 1.0);
        let pairs = || self.base.iter().zip(&self.other);
        (binary(&self.base) && binary(&self.other)).then(|| {
            let won = pairs().filter(|(base, other)| other > base).count();
            let lost = pairs().filter(|(base, other)| other < base).count();
            (won, lost)
        })
    }

    /// The score interval of the difference, where documents are right or wrong.
    fn score_interval(&self) -> Option<stats::Interval> {
        let (won, lost) = self.discordant()?;
        stats::paired_proportions(won, lost, self.other.len())
    }

    /// How far that reaches below and above the difference found.
    fn score_reach(&self) -> Option<[f64; 2]> {
        let (ends, (won, lost)) = (self.score_interval()?, self.discordant()?);
        let found = (won as f64 - lost as f64) / self.other.len() as f64;
        Some([found - ends.low, ends.high - found])
    }

    /// How far an interval of a mean over its documents reaches by its standard error.
    fn linear_reach(&self, stderr: f64) -> f64 {
        stats::Interval::student(0.0, stderr, self.other.len()).high
    }

    /// The standard error of the mean of `other − ratio · base` over its documents.
    fn residual_error(&self, ratio: f64) -> Option<f64> {
        let pairs = self.other.iter().zip(&self.base);
        let residuals: Vec<f64> = pairs.map(|(other, base)| other - ratio * base).collect();
        stats::standard_error(&residuals)
    }

    /// The standard error of the mean of values of its documents, which vary within each task.
    fn error(&self, values: &[f64]) -> Option<f64> {
        let mut rest = values;
        let parts = self.sizes.iter().map(|&size| {
            let (own, others) = rest.split_at(size);
            rest = others;
            Some((size, stats::standard_error(own)?))
        });
        stats::pooled_standard_error(&parts.collect::<Option<Vec<_>>>()?)
    }
}

fn average(units: &[&Unit]) -> Option<Average> {
    let n = units.len() as f64;
    let mean = |of: fn(&Unit) -> &[f64]| (n > 0.0).then(|| sum_of_means(units, of) / n);
    let (base, value) = (mean(|unit| &unit.base)?, mean(|unit| &unit.other)?);
    // Tasks are independent: their squared errors add up.
    let error = |of: &dyn Fn(&Unit) -> Vec<f64>| {
        let squares = units
            .iter()
            .map(|unit| Some(unit.error(&of(unit))?.powi(2)));
        Some(squares.sum::<Option<f64>>()?.sqrt() / n)
    };
    let differences = |unit: &Unit| -> Vec<f64> {
        let pairs = unit.other.iter().zip(&unit.base);
        pairs.map(|(other, base)| other - base).collect()
    };
    let ratio = ratio(units);
    let (mean, stderr) = (value - base, error(&differences));
    let reaches = units.iter().map(|unit| {
        let linear = unit.linear_reach(unit.error(&differences(unit))?);
        Some(unit.score_reach().unwrap_or([linear; 2]))
    });
    let reach = together(reaches);
    Some(Average {
        tasks: units.len(),
        base,
        value,
        value_stderr: error(&|unit| unit.other.clone()),
        ratio,
        stderr: ratio.and_then(|ratio| ratio_error(units, ratio)),
        ratio_interval: ratio.and_then(|ratio| ratio_interval(units, ratio)),
        difference: Paired {
            mean,
            stderr,
            interval: reach.map(|[below, above]| stats::Interval {
                low: mean - below / n,
                high: mean + above / n,
            }),
        },
    })
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
    let squares = units
        .iter()
        .map(|unit| Some(unit.residual_error(ratio)?.powi(2)));
    let squares: f64 = squares.sum::<Option<f64>>()?;
    Some(squares.sqrt() / sum_of_means(units, |unit| &unit.base))
}

/// The 95 % interval of that ratio: what each task's figure may be off by is what that linearisation says or the score
/// interval of its difference, whichever reaches further. Near a ratio of one they agree for many documents, and only
/// the second is more than zero where no document differs; far above one only the first counts how unsure the base is.
fn ratio_interval(units: &[&Unit], ratio: f64) -> Option<stats::Interval> {
    let reaches = units.iter().map(|unit| {
        let linear = unit.linear_reach(unit.residual_error(ratio)?);
        let score = unit.score_reach().unwrap_or([linear; 2]);
        Some(score.map(|reach| reach.max(linear)))
    });
    let base = sum_of_means(units, |unit| &unit.base);
    let [below, above] = together(reaches)?;
    Some(stats::Interval {
        low: ratio - below / base,
        high: ratio + above / base,
    })
}

/// How far a sum reaches whose independent parts reach so far below and above: squares add up on either side (Zou and
/// Donner, "Construction of Confidence Limits about Effect Measures", Statistics in Medicine 27, 2008).
fn together(reaches: impl Iterator<Item = Option<[f64; 2]>>) -> Option<[f64; 2]> {
    let mut squares = [0.0; 2];
    for reach in reaches {
        let reach = reach?;
        squares[0] += reach[0] * reach[0];
        squares[1] += reach[1] * reach[1];
    }
    Some(squares.map(f64::sqrt))
}

#[cfg(test)]
mod tests {
    use super::super::record::TaskFigure;
    use super::*;

    fn answers(values: &[f64]) -> TaskAnswers {
        TaskAnswers {
            of: 9,
            truncated: 0,
            under_load: Vec::new(),
            configuration: None,
            documents: (0..values.len()).collect(),
            figures: vec![TaskFigure {
                metric: "acc".to_owned(),
                filter: "none".to_owned(),
                value: stats::mean(values).unwrap(),
                stderr: stats::standard_error(values),
                higher_is_better: true,
                values: values.to_vec(),
            }],
        }
    }

    fn compared(groups: &[TaskGroup], tasks: &[(&str, &[f64], &[f64])]) -> Option<Recoveries> {
        let all: Vec<(TaskAnswers, TaskAnswers)> = tasks
            .iter()
            .map(|(_, base, other)| (answers(base), answers(other)))
            .collect();
        let of = |other: bool| -> Vec<Scored<'_>> {
            let each = tasks.iter().zip(&all);
            each.map(|(task, pair)| Scored {
                name: task.0,
                groups,
                answers: if other { &pair.1 } else { &pair.0 },
            })
            .collect()
        };
        Recoveries::new(&of(false), &of(true))
    }

    #[test]
    fn recovery_is_the_share_of_the_bases_figure() {
        let found = compared(
            &[],
            &[
                ("a", &[1.0, 1.0, 1.0, 0.0], &[1.0, 1.0, 0.0, 0.0]),
                ("b", &[1.0, 1.0], &[1.0, 0.0]),
            ],
        )
        .unwrap();
        let a = &found.tasks[0];
        assert!((a.ratio.unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(a.discordant, Some((0, 1)));
        assert_eq!(a.p_value, Some(1.0));
        assert!((a.difference.mean + 0.25).abs() < 1e-12);
        // Residuals 1/3, 1/3, -2/3, 0 have a standard deviation of sqrt(2/9).
        let expected = (2.0_f64 / 9.0 / 4.0).sqrt() / 0.75;
        assert!((a.stderr.unwrap() - expected).abs() < 1e-12);
        // Means 0.75 and 1 against 0.5 and 0.5.
        let average = found.average.unwrap();
        assert!((average.ratio.unwrap() - 1.0 / 1.75).abs() < 1e-12);
        assert_eq!(
            (average.tasks, average.value, average.base),
            (2, 0.5, 0.875)
        );
        // Errors of the means: sqrt(1/12) and 1/2; of the differences: 1/4 and 1/2.
        let expected = (1.0_f64 / 12.0 + 0.25).sqrt() / 2.0;
        assert!((average.value_stderr.unwrap() - expected).abs() < 1e-12);
        assert!((average.difference.mean + 0.375).abs() < 1e-12);
        let expected = (1.0_f64 / 16.0 + 0.25).sqrt() / 2.0;
        assert!((average.difference.stderr.unwrap() - expected).abs() < 1e-12);
        let same = compared(&[], &[("a", &[1.0, 0.0], &[1.0, 0.0])]).unwrap();
        let same = same.average.unwrap();
        assert_eq!((same.ratio, same.stderr), (Some(1.0), Some(0.0)));
    }

    #[test]
    fn documents_that_all_agree_leave_a_doubt() {
        let values: Vec<f64> = (0..20).map(|i| f64::from(u8::from(i < 10))).collect();
        let near = |ends: Option<stats::Interval>, centre: f64, reach: f64| {
            let ends = ends.unwrap();
            let found = [ends.low - (centre - reach), ends.high - (centre + reach)];
            assert!(found.iter().all(|off| off.abs() < 1e-6), "{ends:?}");
        };
        let same = compared(&[], &[("a", &values, &values)]).unwrap();
        let a = &same.tasks[0];
        assert_eq!((a.ratio, a.stderr), (Some(1.0), Some(0.0)));
        // Twenty of twenty agree: z² / (20 + z²) is 0.161125, over a base of 0.5.
        near(a.difference.interval, 0.0, 0.161_125_16);
        near(a.ratio_interval, 1.0, 0.322_250_32);
        // Two such tasks: the root of twice the square, over two, and over the base.
        let same = compared(&[], &[("a", &values, &values), ("b", &values, &values)]).unwrap();
        let average = same.average.unwrap();
        near(average.difference.interval, 0.0, 0.113_932_69);
        near(average.ratio_interval, 1.0, 0.227_865_38);
        // From 25 of 100 to 50 the base's own error counts. The residuals are −1 and 1, 25 times each, and else 0: an
        // error of sqrt(0.5 / 99), of which Student's interval of 99 degrees reaches 1.984217 times as far.
        let of = |right: usize| -> Vec<f64> {
            (0..100).map(|i| f64::from(u8::from(i < right))).collect()
        };
        let twice = compared(&[], &[("a", &of(25), &of(50))]).unwrap();
        near(
            twice.tasks[0].ratio_interval,
            2.0,
            1.984_217 * (0.5_f64 / 99.0).sqrt() / 0.25,
        );
    }

    #[test]
    fn a_group_is_one_task_of_the_average() {
        let groups = [("all", true), ("part", false)].map(|(name, counts)| TaskGroup {
            name: name.to_owned(),
            counts,
        });
        let tasks: [(&str, &[f64], &[f64]); 2] = [
            ("a", &[1.0, 0.0, 1.0, 1.0], &[1.0, 0.0, 1.0, 1.0]),
            ("b", &[1.0, 1.0], &[0.0, 0.0]),
        ];
        let found = compared(&groups, &tasks).unwrap();
        let names: Vec<&str> = found.tasks.iter().map(|task| task.name.as_str()).collect();
        assert_eq!(names, ["all", "part", "a", "b"]);
        let all = &found.tasks[0];
        assert!(all.group && !found.tasks[2].group);
        assert_eq!(
            (all.documents, all.value, all.discordant),
            (6, 0.5, Some((0, 2)))
        );
        // Squares within tasks: 0.75 and 0; four degrees of freedom, six documents.
        let expected = (0.75_f64 / 4.0 / 6.0).sqrt();
        assert!((all.value_stderr.unwrap() - expected).abs() < 1e-12);
        let average = found.average.unwrap();
        assert_eq!((average.tasks, average.ratio), (1, all.ratio));
    }

    #[test]
    fn other_documents_do_not_compare() {
        let of = |name, answers| Scored {
            name,
            groups: &[],
            answers,
        };
        let (two, one) = (answers(&[1.0, 1.0]), answers(&[1.0]));
        assert_eq!(Recoveries::new(&[of("a", &two)], &[of("a", &one)]), None);
        assert_eq!(Recoveries::new(&[of("a", &two)], &[of("b", &two)]), None);
        assert_eq!(Recoveries::new(&[of("a", &two)], &[]), None);
        let none = compared(&[], &[("a", &[0.0], &[1.0])]).unwrap();
        assert_eq!(
            (none.average.unwrap().ratio, none.tasks[0].ratio),
            (None, None)
        );
        assert_eq!(Recoveries::new(&[], &[]).unwrap().average, None);
    }
}
