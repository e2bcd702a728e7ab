//! From records to a study.

use std::collections::HashSet;

use super::environment::Environment;
use super::goal::Goal;
use super::pareto::{self, Point};
use super::record::{self, Body, Cell, Loaded, Record, Subject};
use super::recovery::Scored;
use super::speedup::{self, Phase};
use super::study::{
    Check, Interval, Load, Model, Perplexity, QualityAxis, Scheme, Speed, Study, Variant,
    Verification, Version,
};
use super::tasks::{self, Task};
use super::{quality, timing};
use crate::error::{Error, Result};

impl Study {
    /// Puts records together. Variants and models stand in the order in which the records name them, and the first
    /// variant of a model is its base: hand the records over in the order of the plan.
    ///
    /// A variant that failed a check has no numbers, whatever was measured after it.
    pub fn from_records(
        environment: Environment,
        command: Vec<String>,
        records: &[Record],
    ) -> Self {
        let mut models: Vec<Model> = Vec::new();
        let mut variants: Vec<Variant> = Vec::new();
        let mut scored: Vec<Vec<Scored<'_>>> = Vec::new();
        for record in records {
            let model = model(&record.subject);
            if !models.contains(&model) {
                models.push(model);
            }
            let place = variants
                .iter()
                .position(|variant| is_of(variant, &record.subject))
                .unwrap_or_else(|| {
                    variants.push(unmeasured(&record.subject));
                    scored.push(Vec::new());
                    variants.len() - 1
                });
            add(&mut variants[place], record, &mut scored[place]);
        }
        for variant in &mut variants {
            compare_configurations(variant, records);
        }
        let mut study = Self {
            schema: Version::V1,
            environment,
            command,
            quality_axis: QualityAxis::Perplexity,
            goal: Goal::default(),
            model: models.first().cloned(),
            models: if models.len() > 1 { models } else { Vec::new() },
            variants,
        };
        study.settle_failures();
        study.settle_turns(records);
        study.compare_with_bases(&scored, records);
        study.quality_axis = study.usual_axis();
        study.mark_fronts();
        study.settle_goal();
        study
    }

    /// How well the text is predicted; without that, tasks, if there are any.
    fn usual_axis(&self) -> QualityAxis {
        let no_text = self.variants.iter().all(|v| v.perplexity.is_none());
        if no_text && self.variants.iter().any(|v| v.task_average.is_some()) {
            QualityAxis::TaskError
        } else {
            self.text_axis()
        }
    }

    /// The same study with another quality axis, which decides what is on a Pareto front.
    ///
    /// # Errors
    /// [`Error::Usage`] if no variant has a figure on it, or figures do not compare.
    pub fn on_axis(mut self, axis: QualityAxis) -> Result<Self> {
        if axis == QualityAxis::KlDivergence && self.models.len() > 1 {
            return Err(Error::Usage(
                "--quality-axis kl: a divergence is from a model's own base, and there are several models".into(),
            ));
        }
        // One that lacks its figure is on no front; if all do, this is not the study for the axis.
        let shown = || self.variants.iter().filter(|v| !v.failed);
        let others = shown().any(|v| !v.base);
        let mut judged = shown().filter(|v| !(others && v.base)).peekable();
        if judged.peek().is_some() && judged.all(|v| v.quality(axis).is_none()) {
            return Err(Error::Usage(format!(
                "--quality-axis: no variant has a {}",
                axis.name()
            )));
        }
        self.quality_axis = axis;
        for variant in &mut self.variants {
            variant.on_pareto_front = false;
            variant
                .speed
                .iter_mut()
                .for_each(|s| s.on_pareto_front = false);
        }
        self.mark_fronts();
        Ok(self)
    }

    /// A variant failed if a check did, or if it has a reason and no figure at all.
    fn settle_failures(&mut self) {
        for variant in &mut self.variants {
            variant
                .speed
                .sort_by_key(|s| (s.depth, s.prompt_tokens, s.generated_tokens, s.batch));
            let broken = variant.verification.as_ref().and_then(|verification| {
                let check = verification.checks.iter().find(|check| !check.passed)?;
                Some(format!("{}: {}", check.name, check.detail))
            });
            let measured = variant.perplexity.is_some()
                || variant.tasks.iter().any(|task| task.reason.is_none())
                || variant.speed.iter().any(|s| !s.failed);
            variant.failed = broken.is_some() || !measured;
            if !variant.failed {
                continue;
            }
            let cell_reason = || variant.speed.iter().find_map(|s| s.reason.clone());
            let task_reason = || variant.tasks.iter().find_map(|task| task.reason.clone());
            let reason = broken
                .or_else(|| variant.reason.clone())
                .or_else(task_reason)
                .or_else(cell_reason);
            variant.perplexity = None;
            variant.tasks.clear();
            variant.speed.clear();
            variant.reason = Some(reason.unwrap_or_else(|| "nothing was measured".to_owned()));
        }
    }

    /// Blocks count as turns only where some other variant had its own between them.
    fn settle_turns(&mut self, records: &[Record]) {
        for cell in self.cells() {
            let all: Vec<Option<Samples<'_>>> = self
                .variants
                .iter()
                .map(|variant| samples(variant, cell, records))
                .collect();
            for (variant, own) in self.variants.iter_mut().zip(&all) {
                let speed = variant.speed.iter_mut().find(|s| s.cell() == cell);
                let (Some(speed), Some(own)) = (speed, own) else {
                    continue;
                };
                let beside = |other: &&Samples<'_>| {
                    other.environment == own.environment
                        && speedup::took_turns(own.speed, other.speed)
                };
                if all.iter().flatten().find(beside).is_none() {
                    speed.blocks = 0;
                }
            }
        }
    }

    fn compare_with_bases(&mut self, scored: &[Vec<Scored<'_>>], records: &[Record]) {
        let mut seen = HashSet::new();
        for variant in &mut self.variants {
            variant.base = seen.insert(variant.model.clone());
        }
        let bases: Vec<Variant> = self.variants.iter().filter(|v| v.base).cloned().collect();
        let places: Vec<usize> = (0..self.variants.len())
            .filter(|&place| self.variants[place].base)
            .collect();
        for (variant, own) in self.variants.iter_mut().zip(scored) {
            let base = bases.iter().zip(&places);
            if let Some((base, &place)) = base.into_iter().find(|b| b.0.model == variant.model) {
                compare(base, variant, records);
                tasks::compare(&scored[place], own, variant);
            }
        }
    }

    fn mark_fronts(&mut self) {
        let cells: HashSet<_> = self
            .variants
            .iter()
            .flat_map(|variant| variant.speed.iter().map(super::study::Speed::cell))
            .collect();
        for cell in cells {
            let points: Vec<Point> = self
                .variants
                .iter()
                .map(|variant| Point {
                    loss: self
                        .quality(variant)
                        .map_or(f64::NAN, |quality| quality.value),
                    speed: variant
                        .at(cell)
                        .and_then(|speed| speed.decode_tokens_per_second)
                        .unwrap_or(f64::NAN),
                })
                .collect();
            for (variant, on_front) in self.variants.iter_mut().zip(pareto::front(&points)) {
                let speed = variant.speed.iter_mut().find(|s| s.cell() == cell);
                if let (Some(speed), true) = (speed, on_front) {
                    speed.on_pareto_front = true;
                    variant.on_pareto_front = true;
                }
            }
        }
    }
}

fn is_of(variant: &Variant, subject: &Subject) -> bool {
    variant.name == subject.variant
        && variant.model == subject.model.name
        && variant.engine == subject.engine
        && variant.kv_cache == subject.kv_cache
}

fn unmeasured(subject: &Subject) -> Variant {
    let scheme = subject.scheme.clone();
    Variant {
        name: subject.variant.clone(),
        model: subject.model.name.clone(),
        base: false,
        scheme: Scheme {
            bits: scheme.bits,
            group_size: scheme.group_size,
            symmetric: scheme.symmetric,
            activations: scheme.activations,
            method: scheme.method,
            scale_dtype: scheme.scale_dtype,
            groups_used: Default::default(),
        },
        weight_bytes: None,
        linear_bytes: None,
        activation_dtype: subject.activation_dtype.clone(),
        kv_cache: subject.kv_cache.clone(),
        engine: subject.engine.clone(),
        failed: false,
        reason: None,
        perplexity: None,
        tasks: Vec::new(),
        task_average: None,
        speed: Vec::new(),
        on_pareto_front: false,
        verification: None,
        load: None,
    }
}

fn add<'a>(variant: &mut Variant, record: &'a Record, scored: &mut Vec<Scored<'a>>) {
    if let Some(loaded) = &record.loaded {
        add_loaded(variant, loaded);
    }
    match &record.body {
        Body::Quality { task, outcome } => match outcome {
            // The first text is the one that the study compares by.
            Ok(result) if variant.perplexity.is_none() => {
                variant.perplexity = quality::perplexity(task, result).map(|found| Perplexity {
                    environment: record.environment,
                    ..found
                });
                if variant.perplexity.is_none() {
                    variant.reason = Some("the loss is not a finite number".to_owned());
                }
            }
            Ok(_) => {}
            Err(failure) => variant.reason = Some(failure.reason.clone()),
        },
        Body::Task { task, outcome } => {
            // As with texts, the first of a name that was scored.
            let place = variant
                .tasks
                .iter()
                .position(|other| other.name == task.name);
            let found = match outcome {
                Ok(answers) => Task::measured(task, answers),
                Err(failure) => Task::failed(task, &failure.reason),
            };
            let entry = Task {
                environment: record.environment,
                ..found
            };
            match place {
                None => variant.tasks.push(entry),
                Some(place) if variant.tasks[place].reason.is_some() => {
                    variant.tasks[place] = entry
                }
                Some(_) => return,
            }
            if let Ok(answers) = outcome {
                scored.push(Scored {
                    name: &task.name,
                    groups: &task.groups,
                    answers,
                });
            }
        }
        Body::Speed { cell, outcome } => {
            let figures = match outcome {
                Ok(speed) => timing::measured(*cell, speed),
                Err(failure) => timing::failed(*cell, &failure.reason),
            };
            variant.speed.push(Speed {
                environment: record.environment,
                ..figures
            });
        }
    }
}

fn add_loaded(variant: &mut Variant, loaded: &Loaded) {
    variant.weight_bytes = Some(loaded.weight_bytes.0);
    variant.linear_bytes = Some(loaded.linear_bytes.0);
    variant.scheme.groups_used = loaded.groups_used.clone();
    variant.verification = Some(Verification {
        passed: loaded.verification.passed(),
        checks: loaded
            .verification
            .checks
            .iter()
            .map(|check| Check {
                name: check.name.clone(),
                passed: check.passed,
                detail: check.detail.clone(),
            })
            .collect(),
    });
    variant.load = Some(Load {
        seconds: loaded.load.time.0,
        bytes: loaded.load.read.0,
        gb_per_s: loaded.load.gb_per_s(),
        peak_host_bytes: loaded.load.peak_host.map(|bytes| bytes.0),
    });
}

/// Adds the check that the cells of a variant were timed as its text and tasks were scored, where the records tell.
fn compare_configurations(variant: &mut Variant, records: &[Record]) {
    let own = || records.iter().filter(|r| is_of(variant, &r.subject));
    let scored = own().filter_map(|record| match &record.body {
        Body::Quality { outcome, .. } => outcome.as_ref().ok()?.configuration.as_deref(),
        Body::Task { outcome, .. } => outcome.as_ref().ok()?.configuration.as_deref(),
        Body::Speed { .. } => None,
    });
    let timed = own().filter_map(|record| match &record.body {
        Body::Speed { outcome, .. } => outcome.as_ref().ok()?.configuration.as_deref(),
        Body::Quality { .. } | Body::Task { .. } => None,
    });
    let (scored, timed): (Vec<&str>, Vec<&str>) = (scored.collect(), timed.collect());
    let (Some(first), Some(_)) = (timed.first(), scored.first()) else {
        return;
    };
    let other = scored.iter().chain(&timed).find(|other| *other != first);
    let check = Check {
        name: "what is timed is what is scored".to_owned(),
        passed: other.is_none(),
        detail: format!("configurations {first} and {}", other.unwrap_or(first)),
    };
    if let Some(verification) = &mut variant.verification {
        verification.passed &= check.passed;
        verification.checks.push(check);
    }
}

/// The samples of a variant in a cell, and where they were taken.
struct Samples<'a> {
    environment: usize,
    speed: &'a record::Speed,
}

fn samples<'a>(variant: &Variant, cell: Cell, records: &'a [Record]) -> Option<Samples<'a>> {
    let own = records.iter().filter(|r| is_of(variant, &r.subject));
    let mut outcomes = own.filter_map(|record| match &record.body {
        Body::Speed { cell: of, outcome } if *of == cell => Some((record.environment, outcome)),
        _ => None,
    });
    // As with the figures of a cell, the first record is the one that counts.
    let (environment, outcome) = outcomes.next()?;
    let speed = outcome.as_ref().ok()?;
    Some(Samples { environment, speed })
}

/// The interval of a variant's speed-up in a cell; `None` where base or variant were measured elsewhere.
fn speedup_interval(
    base: &Variant,
    variant: &Variant,
    cell: Cell,
    phase: Phase,
    records: &[Record],
) -> Option<Interval> {
    let (base, own) = (
        samples(base, cell, records)?,
        samples(variant, cell, records)?,
    );
    let interval = speedup::interval(cell, phase, base.speed, own.speed);
    interval
        .filter(|_| base.environment == own.environment)
        .map(Interval::from)
}

fn compare(base: &Variant, variant: &mut Variant, records: &[Record]) {
    if let (Some(base), Some(own)) = (&base.perplexity, &mut variant.perplexity) {
        match variant.base {
            true => own.recovery_percent = Some(100.0),
            false => quality::compare(base, own),
        }
    }
    for place in 0..variant.speed.len() {
        let own = &variant.speed[place];
        let cell = own.cell();
        let Some(reference) = base.at(cell) else {
            continue;
        };
        let decode = ratio(
            own.decode_tokens_per_second,
            reference.decode_tokens_per_second,
        );
        let prefill = ratio(
            own.prefill_tokens_per_second,
            reference.prefill_tokens_per_second,
        );
        let decode = decode.map(|factor| (factor, Phase::Decode));
        let prefill = prefill.map(|factor| (factor, Phase::Prefill));
        let Some((factor, phase)) = decode.or(prefill) else {
            continue;
        };
        let ends = match variant.base {
            true => None,
            false => speedup_interval(base, variant, cell, phase, records),
        };
        let lost = variant.perplexity.as_ref().and_then(|p| p.delta_vs_base);
        let speed = &mut variant.speed[place];
        speed.speedup_vs_base = Some(factor);
        speed.speedup_vs_base_ci95 = ends;
        speed.ppl_percent_per_speed_percent = lost
            .filter(|_| factor > 1.0)
            .map(|delta| (delta.ratio - 1.0) / (factor - 1.0));
    }
}

fn ratio(own: Option<f64>, base: Option<f64>) -> Option<f64> {
    Some(own? / base.filter(|&base| base > 0.0)?)
}

fn model(subject: &Subject) -> Model {
    let model = subject.model.clone();
    Model {
        name: model.name,
        revision: model.revision,
        digest: model.digest,
        tokenizer_digest: model.tokenizer_digest,
        parameters: model.parameters,
    }
}

#[cfg(test)]
mod tests;
