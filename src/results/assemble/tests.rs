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
    let ends = w4.speed[0].speedup_vs_base_ci95.unwrap();
    assert!(
        ends.low < factor && factor < ends.high && 1.0 < ends.low,
        "{ends:?}"
    );
    assert_eq!(base.speed[0].speedup_vs_base_ci95, None);
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
fn what_was_measured_again_later_took_no_turns() {
    let mut records = fixture::records_of(&fixture::usual()[..3], &[1]);
    let blocks = |records: &[Record]| -> Vec<usize> {
        let study = study_of(records);
        let speeds = study.variants.iter().map(|v| v.speed[0].blocks);
        speeds.collect()
    };
    assert_eq!(blocks(&records), [2, 2, 2]);
    let Body::Speed {
        outcome: Ok(speed), ..
    } = &mut records[3].body
    else {
        panic!("the fourth record is of the second variant's speed");
    };
    for (place, block) in speed.blocks.iter_mut().enumerate() {
        block.begin.0 = 100.0 + 10.0 * place as f64;
    }
    assert_eq!(blocks(&records), [2, 0, 2]);
    // Nor does anyone with whom it had them elsewhere.
    let mut elsewhere = fixture::records_of(&fixture::usual()[..2], &[1]);
    elsewhere[3].environment = 1;
    assert_eq!(blocks(&elsewhere), [0, 0]);
    let study = study_of(&elsewhere);
    let int8 = &study.variants[1].speed[0];
    assert!(int8.speedup_vs_base.is_some() && int8.speedup_vs_base_ci95.is_none());
}

#[test]
fn another_text_is_not_recovered_from() {
    let mut records = fixture::records_of(&fixture::usual()[..2], &[1]);
    let scored = |records: &[Record]| study_of(records).variants[1].perplexity.clone();
    assert!(scored(&records).unwrap().recovery_percent.is_some());
    let Body::Quality { task, .. } = &mut records[2].body else {
        panic!("the third record is of the second variant's text");
    };
    task.text.digest = "blake3:another".to_owned();
    let found = scored(&records).unwrap();
    assert_eq!((found.recovery_percent, found.delta_vs_base), (None, None));
    let shown = crate::results::table::study(&study_of(&records), 200);
    assert!(
        shown.contains(
            "int8: another text than the base's, so its perplexity has no Δ and no recovery"
        ),
        "{shown}"
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
