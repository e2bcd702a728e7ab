//! From records to a study.

use std::collections::HashSet;

use super::environment::Environment;
use super::goal::Goal;
use super::pareto::{self, Point};
use super::record::{Body, Loaded, Record, Subject};
use super::recovery::Scored;
use super::study::{
    Check, Load, Model, Perplexity, QualityAxis, Scheme, Speed, Study, Variant, Verification,
    Version,
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
        study.compare_with_bases(&scored);
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

    fn compare_with_bases(&mut self, scored: &[Vec<Scored<'_>>]) {
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
                compare(base, variant);
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

fn compare(base: &Variant, variant: &mut Variant) {
    if let (Some(base), Some(own)) = (&base.perplexity, &mut variant.perplexity) {
        own.recovery_percent = Some(100.0 * base.value / own.value);
        if !variant.base {
            quality::compare(base, own);
        }
    }
    for speed in &mut variant.speed {
        let Some(reference) = base.at(speed.cell()) else {
            continue;
        };
        let decode = ratio(
            speed.decode_tokens_per_second,
            reference.decode_tokens_per_second,
        );
        let prefill = ratio(
            speed.prefill_tokens_per_second,
            reference.prefill_tokens_per_second,
        );
        speed.speedup_vs_base = decode.or(prefill);
        let lost = variant.perplexity.as_ref().and_then(|p| p.delta_vs_base);
        speed.ppl_percent_per_speed_percent = lost
            .zip(speed.speedup_vs_base.filter(|&factor| factor > 1.0))
            .map(|(delta, factor)| (delta.ratio - 1.0) / (factor - 1.0));
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
mod tests {
    use super::*;
    use crate::results::fixture;

    fn study_of(records: &[Record]) -> Study {
        Study::from_records(fixture::environment(), fixture::command(), records)
    }

    #[test]
    fn the_first_variant_is_the_base_of_its_model() {
        let study = study_of(&fixture::records_of(&fixture::usual(), &[8, 1]));
        let bases: Vec<bool> = study.variants.iter().map(|v| v.base).collect();
        assert_eq!(bases, [true, false, false, false, false]);
        let base = &study.variants[0];
        assert_eq!(base.perplexity.as_ref().unwrap().delta_vs_base, None);
        assert_eq!(base.speed[0].speedup_vs_base, Some(1.0));
        assert_eq!(base.speed[0].batch, 1, "cells are in order");
        let w4 = &study.variants[3];
        let delta = w4.perplexity.as_ref().unwrap().delta_vs_base.unwrap();
        assert!((delta.ln_ratio - 0.093).abs() < 0.005, "{delta:?}");
        let factor = w4.speed[0].speedup_vs_base.unwrap();
        assert!(factor > 1.3);
        let price = w4.speed[0].ppl_percent_per_speed_percent.unwrap();
        assert!((price * (factor - 1.0) - (delta.ratio - 1.0)).abs() < 1e-12);
        assert_eq!(base.speed[0].ppl_percent_per_speed_percent, None);
        assert!(w4.on_pareto_front && base.on_pareto_front);
        assert!(
            !study.variants[2].on_pareto_front,
            "w8a8 is worse and slower than int8"
        );
        assert!(study.models.is_empty());
    }

    #[test]
    fn a_variant_that_was_timed_otherwise_than_scored_has_no_numbers() {
        let mut records = fixture::records_of(&fixture::usual()[..1], &[1]);
        let check = |records: &[Record]| {
            let variant = study_of(records).variants.swap_remove(0);
            let checks = variant.verification.unwrap().checks;
            (checks.last().cloned().unwrap(), variant.failed)
        };
        let (last, failed) = check(&records);
        assert_eq!(last.name, "what is timed is what is scored");
        assert!(last.passed && !failed);
        let Body::Speed { outcome, .. } = &mut records[1].body else {
            panic!("the second record is of speed");
        };
        outcome.as_mut().unwrap().configuration = Some("blake3:other".to_owned());
        let (last, failed) = check(&records);
        assert!(!last.passed && failed);
        assert!(
            last.detail.contains("blake3:other and blake3:c0"),
            "{}",
            last.detail
        );
    }

    #[test]
    fn a_failed_variant_has_a_reason_and_no_numbers() {
        let usual = fixture::usual();
        let mut records = fixture::records_of(&usual[..2], &[1]);
        records.extend(fixture::failed(&usual[2], &[1], "no kernel for this group"));
        for record in &mut records {
            if let (true, Some(loaded)) = (record.subject.variant == "int8", &mut record.loaded) {
                loaded.verification.checks[1].passed = false;
            }
        }
        let study = study_of(&records);
        for (place, why) in [(1, "logits agree"), (2, "no kernel")] {
            let variant = &study.variants[place];
            assert!(variant.failed && variant.speed.is_empty() && variant.perplexity.is_none());
            assert!(
                variant.reason.as_ref().unwrap().contains(why),
                "{:?}",
                variant.reason
            );
        }
        assert!(!study.variants[0].failed);
    }

    #[test]
    fn a_cell_may_fail_alone() {
        let study = study_of(&fixture::records());
        let variant = &study.variants[0];
        assert!(!variant.failed);
        let mut records = fixture::records_of(&fixture::usual()[..1], &[1]);
        records.extend(
            fixture::failed(&fixture::usual()[0], &[64], "out of memory")
                .into_iter()
                .skip(1),
        );
        let study = study_of(&records);
        let variant = &study.variants[0];
        assert!(!variant.failed && variant.speed.len() == 2);
        assert_eq!(variant.speed[1].reason.as_deref(), Some("out of memory"));
        assert!(!variant.speed[1].on_pareto_front);
    }

    #[test]
    fn other_tokenizers_are_compared_in_bits_per_byte() {
        let mut variants = fixture::usual();
        variants.truncate(2);
        let other = fixture::Imagined {
            model: "meta-llama/Llama-3.2-1B",
            tokenizer: "blake3:t1",
            ..variants[0].clone()
        };
        variants.push(other);
        let study = study_of(&fixture::records_of(&variants, &[1]));
        assert_eq!(study.quality_axis, QualityAxis::BitsPerByte);
        assert_eq!(study.models.len(), 2);
        assert!(study.variants[2].base);
        let bits = study.variants[2].perplexity.as_ref().unwrap().bits_per_byte;
        assert_eq!(study.quality(&study.variants[2]).map(|q| q.value), bits);
    }

    #[test]
    fn the_axis_decides_what_is_on_the_front() {
        let mut records = fixture::records_of(&fixture::usual(), &[1]);
        // By divergence, w8a8 comes before int8, and is slower all the same.
        for record in &mut records {
            let name = record.subject.variant.clone();
            if let (
                "int8",
                Body::Quality {
                    outcome: Ok(found), ..
                },
            ) = (name.as_str(), &mut record.body)
            {
                found.divergence.as_mut().unwrap().mean_kl = 5.0;
            }
        }
        let study = study_of(&records);
        assert!(study.variants[1].on_pareto_front);
        assert_eq!(
            study.variants[0].perplexity.as_ref().unwrap().divergence,
            None
        );
        assert!(
            study.variants[0]
                .perplexity
                .as_ref()
                .unwrap()
                .noise_floor
                .is_some()
        );
        let by_kl = study.clone().on_axis(QualityAxis::KlDivergence).unwrap();
        assert_eq!(
            by_kl.quality(&by_kl.variants[0]).map(|q| q.value),
            Some(0.0)
        );
        assert!(!by_kl.variants[1].on_pareto_front);
        assert!(by_kl.variants[3].on_pareto_front);
        assert_eq!(by_kl.on_axis(QualityAxis::Perplexity).unwrap(), study);
        for record in &mut records {
            if let Body::Quality {
                outcome: Ok(found), ..
            } = &mut record.body
            {
                found.divergence = None;
            }
        }
        let error = study_of(&records).on_axis(QualityAxis::KlDivergence);
        assert_eq!(error.unwrap_err().exit_code(), 2);
    }

    #[test]
    fn tasks_are_held_against_the_base() {
        let study = fixture::task_study();
        let [base, int8, .., partial] = study.variants.as_slice() else {
            panic!("five variants");
        };
        assert_eq!(base.task_average.unwrap().recovery_percent(), Some(100.0));
        assert!(base.tasks.iter().all(|task| task.versus_base.is_none()));
        let names: Vec<&str> = int8.tasks.iter().map(|task| task.name.as_str()).collect();
        assert_eq!(
            names,
            ["mmlu", "arc_easy", "mmlu_anatomy", "mmlu_astronomy"]
        );
        let group = &int8.tasks[0];
        assert_eq!((group.group, group.documents), (true, 650));
        let pooled = 300.0 * int8.tasks[2].value.unwrap() + 350.0 * int8.tasks[3].value.unwrap();
        assert!((group.value.unwrap() - pooled / 650.0).abs() < 1e-12);
        let average = int8.task_average.unwrap();
        assert_eq!(average.tasks, 2);
        let mean = f64::midpoint(group.value.unwrap(), int8.tasks[1].value.unwrap());
        assert!((average.value - mean).abs() < 1e-12);
        for task in &int8.tasks {
            let (won, lost) = (task.won.unwrap() as f64, task.lost.unwrap() as f64);
            let difference = task.versus_base.unwrap().difference;
            assert!((difference - (won - lost) / task.documents as f64).abs() < 1e-12);
        }
        assert_eq!(partial.task_average, None);
        assert!(!partial.failed && partial.tasks[1].reason.is_some());
    }

    #[test]
    fn tasks_are_an_axis_and_the_usual_one_without_a_text() {
        let study = fixture::task_study();
        assert_eq!(study.quality_axis, QualityAxis::Perplexity);
        let by_tasks = study.clone().on_axis(QualityAxis::TaskError).unwrap();
        assert!(by_tasks.variants[1].on_pareto_front && !by_tasks.variants[4].on_pareto_front);
        let error = fixture::study()
            .on_axis(QualityAxis::TaskError)
            .unwrap_err();
        assert!(
            error.to_string().contains("no variant has a task error"),
            "{error}"
        );
        let mut records = fixture::records_of(&fixture::usual()[..3], &[1]);
        records.extend(fixture::task_records());
        records.retain(|record| record.subject.variant != "w4a16:g64");
        // A task that failed at first is on record behind the others.
        let late = records
            .iter()
            .position(|record| record.subject.variant == "int8");
        let late = records[late.unwrap()..]
            .iter()
            .position(|record| matches!(record.body, Body::Task { .. }))
            .map(|place| place + late.unwrap());
        let late = records.remove(late.unwrap());
        records.push(late);
        records.retain(|record| !matches!(record.body, Body::Quality { .. }));
        let study = study_of(&records);
        assert_eq!(study.quality_axis, QualityAxis::TaskError);
        let int8 = &study.variants[1];
        let error = 100.0 * (1.0 - int8.task_average.unwrap().value);
        assert_eq!(
            study.quality(int8).map(|quality| quality.value),
            Some(error)
        );
        assert!(int8.task_average.unwrap().versus_base.is_some());
        assert!(int8.on_pareto_front);
        assert!(study.on_axis(QualityAxis::Perplexity).is_err());
    }

    #[test]
    fn nothing_makes_an_empty_study() {
        let study = study_of(&[]);
        assert_eq!(study.model, None);
        assert!(study.variants.is_empty());
    }
}
