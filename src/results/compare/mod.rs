//! Two runs against each other, or many: whether what one measured differs from what another did, and by how much.
//!
//! `side` is what is compared, `conditions` what forbids or qualifies it, `figures` what of a record is compared,
//! [`document`] what comes out, and `table` and [`history`] how it is shown. The statistics are those of
//! [`stats::contrast`](crate::stats::contrast).

mod conditions;
pub mod document;
mod figures;
pub mod history;
mod side;
mod table;

use std::collections::HashMap;

pub use document::Comparison;
pub use history::{History, Reference};
pub use side::{Run, Side, repeated};

use super::names;
use super::record::{Body, Key, Record, Subject};
use crate::error::{Error, Result};
use crate::stats::verdict::holm;
use document::{Metric, Point, RunNote, Unmatched, Version, Whose};
use figures::Found;

/// What a figure differs by from run to run on a GPU: a difference of half a percent between single runs is then chance,
/// which is the least gap that NVBench's comparison believes.
const GPU_RUN_NOISE: f64 = 0.002;

/// By what runs are judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// A smaller difference of a time, a rate or an energy does not count, as a share.
    pub margin: f64,
    /// A smaller difference of a perplexity does not count, as a share.
    pub quality_margin: f64,
    /// A smaller difference of a task's score does not count, as a share.
    pub task_margin: f64,
    /// What a figure differs by from run to run, as a share (standard deviation), to allow for where both sides have one
    /// run. Where `None`, a GPU's habit; a CPU has none, since it is shared with whatever else runs, and a single run of
    /// each side tells nothing there.
    pub run_noise: Option<f64>,
    /// Whether runs of other hardware are compared all the same.
    pub across_hardware: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            margin: 0.01,
            quality_margin: 0.001,
            task_margin: 0.01,
            run_noise: None,
            across_hardware: false,
        }
    }
}

/// Compares `other` with `base`, question by question.
///
/// # Errors
/// [`Error::Config`] if they are of other hardware and that is not forced, or have nothing in common.
pub fn compare(base: &Side, other: &Side, rules: &Rules) -> Result<Comparison> {
    let found = conditions::check(base, other);
    if let (false, [_, ..]) = (rules.across_hardware, found.grave.as_slice()) {
        return Err(Error::Config(format!(
            "{} and {} do not compare: {}; give --across-hardware to compare them all the same",
            base.label,
            other.label,
            found.grave.join("; ")
        )));
    }
    let usual = conditions::on_gpu(base).then_some(GPU_RUN_NOISE);
    let run_noise = rules.run_noise.or(usual);
    let (pairs, unmatched) = joined(base, other);
    if pairs.is_empty() {
        return Err(Error::Config(format!(
            "{} and {} have no measured point in common (model, variant, cell, text and protocol or task, dtype, engine)",
            base.label, other.label
        )));
    }
    let names = Names::of(pairs.iter().map(|pair| &pair.base[0].subject));
    let mut points: Vec<Point> = pairs
        .iter()
        .flat_map(|pair| {
            let label = names.label(&pair.base[0].subject);
            figures::of(&pair.base, &pair.other, run_noise)
                .into_iter()
                .map(move |found| point(label.clone(), pair, found))
        })
        .collect();
    judge(&mut points, rules);
    let mut warnings = found.grave;
    warnings.extend(found.light);
    warnings.extend(conditions::clocks(&pairs));
    warnings.extend(conditions::throttling(&pairs));
    warnings.extend(
        pairs
            .iter()
            .filter_map(|pair| figures::without(&pair.base, &pair.other)),
    );
    warnings.extend(
        pairs
            .iter()
            .filter_map(|pair| figures::without_energy(&pair.base, &pair.other)),
    );
    Ok(Comparison {
        schema: Version::V1,
        base: RunNote::of(base),
        other: RunNote::of(other),
        margin_percent: 100.0 * rules.margin,
        quality_margin_percent: 100.0 * rules.quality_margin,
        task_margin_percent: 100.0 * rules.task_margin,
        run_noise_percent: run_noise.map(|noise| 100.0 * noise),
        warnings,
        unmatched,
        points,
    })
}

/// The records of one question, of every run that answered it.
struct Pair<'a> {
    base: Vec<&'a Record>,
    other: Vec<&'a Record>,
}

/// Questions that both sides answered, in the order of the base, and those that one did not.
fn joined<'a>(base: &'a Side, other: &'a Side) -> (Vec<Pair<'a>>, Vec<Unmatched>) {
    let (base, other) = (Answers::of(base), Answers::of(other));
    let mut unmatched = Vec::new();
    let mut pairs = Vec::new();
    for key in &base.order {
        match (base.measured(key), other.measured(key)) {
            (Some(base), Some(other)) => pairs.push(Pair { base, other }),
            (Some(base_records), None) => unmatched.push(Unmatched {
                measured_by: Whose::Base,
                what: figures::question(base_records[0]),
                reason: other.failure(key),
            }),
            _ => {}
        }
    }
    for key in &other.order {
        if let (None, Some(records)) = (base.measured(key), other.measured(key)) {
            unmatched.push(Unmatched {
                measured_by: Whose::Other,
                what: figures::question(records[0]),
                reason: base.failure(key),
            });
        }
    }
    (pairs, unmatched)
}

/// The records of a side by what they ask.
struct Answers<'a> {
    order: Vec<Key>,
    records: HashMap<Key, Vec<&'a Record>>,
}

impl<'a> Answers<'a> {
    fn of(side: &'a Side) -> Self {
        let mut order = Vec::new();
        let mut records: HashMap<Key, Vec<&Record>> = HashMap::new();
        for record in side.runs.iter().flat_map(|run| &run.records) {
            let key = Key::of_question(record);
            if !records.contains_key(&key) {
                order.push(key.clone());
            }
            records.entry(key).or_default().push(record);
        }
        Self { order, records }
    }

    fn measured(&self, key: &Key) -> Option<Vec<&'a Record>> {
        let records = self.records.get(key)?.iter().copied();
        let measured: Vec<&Record> = records.filter(|r| r.failure().is_none()).collect();
        (!measured.is_empty()).then_some(measured)
    }

    fn failure(&self, key: &Key) -> Option<String> {
        let records = self.records.get(key)?;
        records.iter().find_map(|r| r.failure().map(str::to_owned))
    }
}

/// What tells variants apart here.
struct Names {
    engines: bool,
    /// Short names by digest; empty if there is one model.
    models: HashMap<String, String>,
}

impl Names {
    fn of<'a>(subjects: impl Iterator<Item = &'a Subject>) -> Self {
        let all: Vec<&Subject> = subjects.collect();
        let mut models: Vec<(&str, &str)> = Vec::new();
        for model in all.iter().map(|subject| &subject.model) {
            if models.iter().all(|(_, digest)| *digest != model.digest) {
                models.push((&model.name, &model.digest));
            }
        }
        let digests = models.iter().map(|(_, digest)| (*digest).to_owned());
        Self {
            engines: all.iter().any(|s| s.engine != all[0].engine),
            models: match models.len() {
                0 | 1 => HashMap::new(),
                _ => digests.zip(names::shortest(&models)).collect(),
            },
        }
    }

    fn label(&self, subject: &Subject) -> String {
        let mut label = subject.variant.clone();
        if let Some(format) = &subject.kv_cache {
            label = format!("{label} · kv {format}");
        }
        if self.engines {
            label = format!("{label} · {}", subject.engine);
        }
        if let Some(name) = self.models.get(&subject.model.digest) {
            label = format!("{name} {label}");
        }
        label
    }
}

fn point(variant: String, pair: &Pair<'_>, found: Found) -> Point {
    let record = pair.base[0];
    let (cell, text) = match &record.body {
        Body::Speed { cell, .. } => (Some((*cell).into()), None),
        Body::Quality { .. } | Body::Task { .. } => (None, Some(figures::matter(record))),
    };
    Point {
        variant,
        cell,
        text,
        ..Point::of(found)
    }
}

/// Gives every point its verdict: one metric over all cells is a family.
fn judge(points: &mut [Point], rules: &Rules) {
    for metric in Metric::ALL {
        let margin = match metric {
            Metric::Perplexity => rules.quality_margin,
            Metric::TaskScore => rules.task_margin,
            _ => rules.margin,
        };
        let mut family: Vec<&mut Point> = points
            .iter_mut()
            .filter(|point| point.metric == metric && point.p_value.is_some())
            .collect();
        let p_values: Vec<f64> = family.iter().filter_map(|point| point.p_value).collect();
        for (point, adjusted) in family.iter_mut().zip(holm(&p_values)) {
            point.p_holm = Some(adjusted);
            point.judge(margin.ln_1p());
        }
    }
}

#[cfg(test)]
mod tests;
