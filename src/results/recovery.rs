//! What is left of a base's accuracy: the same documents scored by two variants, pair by pair.

mod documents;

use super::record::{TaskAnswers, TaskFigure, TaskGroup};
use crate::stats::{self, Paired};
use documents::{Documents, Mean};

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
    /// The task, or the group whose tasks are taken together.
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
    /// Its standard error; of a group whose documents count alike, pooled over its tasks.
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
    /// The two-sided exact McNemar test of these; `None` where documents are not just right or wrong, or do not count
    /// alike.
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

/// A group without a figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The group.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// A variant against its base on every task.
#[derive(Debug, Clone, PartialEq)]
pub struct Recoveries {
    /// Group by group, then task by task.
    pub tasks: Vec<Recovery>,
    /// Groups whose tasks cannot be taken together; these count one by one.
    pub left_out: Vec<LeftOut>,
    /// Over all of them; `None` if there is no figure to compare by.
    pub average: Option<Average>,
}

/// What is compared: a task, or a group of them.
struct Unit {
    name: String,
    group: bool,
    metric: String,
    filter: String,
    /// Those that count alike; of several the mean is taken.
    parts: Vec<Documents>,
    /// Whether it counts in the average by itself, not within a group.
    counts: bool,
}

impl Recoveries {
    /// Compares `other` with `base`, which scored the same documents of the same tasks; `None` if they did not.
    pub fn new(base: &[Scored<'_>], other: &[Scored<'_>]) -> Option<Self> {
        let (units, left_out) = units(base, other)?;
        Some(Self {
            tasks: units.iter().map(Unit::recovery).collect::<Option<_>>()?,
            left_out,
            average: average(&units),
        })
    }
}

/// A task of both sides.
struct Member<'a> {
    base: Scored<'a>,
    other: Scored<'a>,
}

impl Member<'_> {
    /// The metric and the filter that it is compared by; `None` of a task whose figures are all better when smaller, which
    /// has nothing to recover.
    fn main(&self) -> Option<(&str, &str)> {
        let figure = self.other.answers.main()?;
        Some((&figure.metric, &figure.filter))
    }

    /// What both have for this metric behind this filter.
    fn documents(&self, metric: &str, filter: &str) -> Option<Documents> {
        let of = |side: &Scored<'_>| {
            let same = |figure: &&TaskFigure| {
                (figure.metric.as_str(), figure.filter.as_str()) == (metric, filter)
            };
            let found = side.answers.figures.iter().find(same);
            found.map(|figure| figure.values.clone())
        };
        let (base, other) = (of(&self.base)?, of(&self.other)?);
        let sizes = vec![other.len()];
        Some(Documents { base, other, sizes })
    }

    fn is_of(&self, group: &TaskGroup) -> bool {
        self.other.groups.iter().any(|own| own.name == group.name)
    }
}

fn units(base: &[Scored<'_>], other: &[Scored<'_>]) -> Option<(Vec<Unit>, Vec<LeftOut>)> {
    if base.len() != other.len() {
        return None;
    }
    let mut members = Vec::new();
    let mut tasks = Vec::new();
    for (&base, &other) in base.iter().zip(other) {
        if base.name != other.name || base.answers.documents != other.answers.documents {
            return None;
        }
        let member = Member { base, other };
        let Some((metric, filter)) = member.main() else {
            continue;
        };
        let of_base = base.answers.main()?;
        if (of_base.metric.as_str(), of_base.filter.as_str()) != (metric, filter) {
            return None;
        }
        tasks.push(Unit {
            name: other.name.to_owned(),
            group: false,
            metric: metric.to_owned(),
            filter: filter.to_owned(),
            parts: vec![member.documents(metric, filter)?],
            counts: true,
        });
        members.push(member);
    }
    let (mut groups, mut left_out): (Vec<Unit>, Vec<LeftOut>) = (Vec::new(), Vec::new());
    // A group stands before those that it holds, and what counts within one group does not count again.
    for group in members.iter().flat_map(|member| member.other.groups) {
        let is_known = groups.iter().any(|unit| unit.name == group.name)
            || left_out.iter().any(|left| left.name == group.name);
        if is_known {
            continue;
        }
        match taken_together(group, &members) {
            Ok((mut unit, own)) => {
                unit.counts = group.counts || own.iter().all(|&place| tasks[place].counts);
                if unit.counts {
                    own.iter().for_each(|&place| tasks[place].counts = false);
                }
                groups.push(unit);
            }
            Err(reason) => left_out.push(LeftOut {
                name: group.name.clone(),
                reason,
            }),
        }
    }
    groups.extend(tasks);
    Some((groups, left_out))
}

/// The figure of a group by lm_eval's rule: one metric over those of its tasks that have it, by documents or by tasks.
/// Gives the places of these tasks too.
///
/// # Errors
/// Why there is none.
fn taken_together(group: &TaskGroup, members: &[Member<'_>]) -> Result<(Unit, Vec<usize>), String> {
    let own = members.iter().enumerate();
    let own: Vec<(usize, &Member<'_>)> = own.filter(|(_, member)| member.is_of(group)).collect();
    let measures: Vec<(&str, &str)> = own.iter().filter_map(|(_, m)| m.main()).collect();
    let (metric, filter) = match (&group.metric, measures.as_slice()) {
        (Some(metric), _) => (metric.as_str(), "none"),
        (None, [first, rest @ ..]) => match rest.iter().find(|other| *other != first) {
            None => *first,
            Some(other) => {
                return Err(format!(
                    "its tasks are not compared by one metric ({} and {}), so each counts by itself",
                    named(*first),
                    named(*other)
                ));
            }
        },
        (None, []) => return Err("none of its tasks has a figure of which more is better".into()),
    };
    let found = own
        .iter()
        .filter_map(|(place, member)| Some((*place, member.documents(metric, filter)?)));
    let (places, parts): (Vec<usize>, Vec<Documents>) = found.unzip();
    if parts.is_empty() {
        return Err(format!("none of its tasks has {metric}"));
    }
    let parts = match group.by_size {
        true => vec![Documents::pooled(&parts.iter().collect::<Vec<_>>())],
        false => parts,
    };
    let unit = Unit {
        name: group.name.clone(),
        group: true,
        metric: metric.to_owned(),
        filter: filter.to_owned(),
        parts,
        counts: group.counts,
    };
    Ok((unit, places))
}

/// A metric with its filter, as lm_eval writes it.
fn named((metric, filter): (&str, &str)) -> String {
    match filter {
        "none" => metric.to_owned(),
        filter => format!("{metric},{filter}"),
    }
}

impl Unit {
    /// Its parts, which share a weight.
    fn weighted(&self, weight: f64) -> impl Iterator<Item = (f64, &Documents)> {
        let each = weight / self.parts.len() as f64;
        self.parts.iter().map(move |part| (each, part))
    }

    fn recovery(&self) -> Option<Recovery> {
        let found = Mean::of(&self.weighted(1.0).collect::<Vec<_>>())?;
        let each = self.parts.iter().map(Documents::discordant);
        let discordant = each.collect::<Option<Vec<_>>>().map(|each| {
            let sum = |of: fn(&(usize, usize)) -> usize| each.iter().map(of).sum();
            (sum(|(won, _)| *won), sum(|(_, lost)| *lost))
        });
        let (difference, p_value) = match self.parts.as_slice() {
            [alike] => (
                alike.difference()?,
                discordant.map(|(won, lost)| stats::mcnemar(won, lost)),
            ),
            _ => (found.difference, None),
        };
        Some(Recovery {
            name: self.name.clone(),
            group: self.group,
            counts: self.counts,
            metric: self.metric.clone(),
            filter: self.filter.clone(),
            documents: self.parts.iter().map(|part| part.other.len()).sum(),
            base: found.base,
            value: found.value,
            value_stderr: found.value_stderr,
            ratio: found.ratio,
            stderr: found.stderr,
            ratio_interval: found.ratio_interval,
            difference,
            discordant,
            p_value,
        })
    }
}

fn average(units: &[Unit]) -> Option<Average> {
    let counted: Vec<&Unit> = units.iter().filter(|unit| unit.counts).collect();
    let weight = 1.0 / counted.len() as f64;
    let parts: Vec<(f64, &Documents)> = counted
        .iter()
        .flat_map(|unit| unit.weighted(weight))
        .collect();
    let found = Mean::of(&parts)?;
    Some(Average {
        tasks: counted.len(),
        base: found.base,
        value: found.value,
        value_stderr: found.value_stderr,
        ratio: found.ratio,
        stderr: found.stderr,
        ratio_interval: found.ratio_interval,
        difference: found.difference,
    })
}

#[cfg(test)]
mod tests;
