use super::document::{Comparison, Metric, Verdict};
use super::*;
use crate::results::fixture::{self, Imagined};
use crate::results::record::{Energy, EnergyUse};
use crate::results::{Environment, Record};
use crate::units::{Seconds, Watts};

/// A run of bf16 and int8 in two cells, every time stretched by `factor`.
fn side(name: &str, factor: f64) -> Side {
    let records = fixture::records_of(&fixture::usual()[..2], &[1, 8]);
    side_of(name, records.into_iter().map(|r| stretched(r, factor)))
}

fn side_of(name: &str, records: impl Iterator<Item = Record>) -> Side {
    Side::single(Run {
        label: name.to_owned(),
        environment: Some(fixture::environment()),
        records: records.collect(),
    })
}

fn stretched(mut record: Record, factor: f64) -> Record {
    if let Body::Speed {
        outcome: Ok(speed), ..
    } = &mut record.body
    {
        for trial in &mut speed.trials {
            let times = [
                &mut trial.ttft,
                &mut trial.prefill,
                &mut trial.decode,
                &mut trial.e2e,
            ];
            for time in times.into_iter().chain(&mut trial.itl) {
                *time = Seconds(time.0 * factor);
            }
        }
    }
    record
}

fn compared(base: &Side, other: &Side) -> Comparison {
    compare(base, other, &Rules::default()).unwrap()
}

fn of(comparison: &Comparison, metric: Metric) -> Vec<&Point> {
    let points = comparison.points.iter();
    points.filter(|point| point.metric == metric).collect()
}

fn verdicts(comparison: &Comparison, metric: Metric) -> Vec<Verdict> {
    let points = of(comparison, metric).into_iter();
    points.map(|point| point.verdict).collect()
}

#[test]
fn a_run_is_equivalent_to_itself() {
    let found = compared(&side("a", 1.0), &side("b", 1.0));
    for metric in [
        Metric::ItlMs,
        Metric::DecodeTokensPerSecond,
        Metric::Perplexity,
    ] {
        let all = verdicts(&found, metric);
        assert!(!all.is_empty());
        assert!(
            all.iter().all(|v| *v == Verdict::Equivalent),
            "{metric:?}: {all:?}"
        );
    }
    assert!(found.regressions(0.0).is_empty() && found.unmatched.is_empty());
    let energy = of(&found, Metric::JPerGeneratedToken)[0];
    assert_eq!((energy.ratio, energy.verdict), (1.0, Verdict::Inconclusive));
    assert!(energy.reason.as_ref().unwrap().contains("one window"));
}

#[test]
fn what_takes_longer_is_slower_in_times_and_in_rates() {
    let found = compared(&side("a", 1.0), &side("b", 1.1));
    for metric in [Metric::TtftMs, Metric::ItlMs, Metric::DecodeTokensPerSecond] {
        for point in of(&found, metric) {
            assert_eq!(point.verdict, Verdict::Slower, "{point:?}");
            // As the table shows it: a tenth more time is an eleventh less of a rate.
            let loss = match metric {
                Metric::DecodeTokensPerSecond => 1.0 / 11.0,
                _ => 0.1,
            };
            assert!((point.loss() - loss).abs() < 1e-9, "{point:?}");
            assert!((0.0..=0.001).contains(&point.p_holm.unwrap()));
        }
    }
    assert_eq!(found.regressions(0.02).len(), 3 * 4);
    assert!(found.regressions(0.11).is_empty());
    let back = compared(&side("b", 1.1), &side("a", 1.0));
    assert_eq!(verdicts(&back, Metric::ItlMs), [Verdict::Faster; 4]);
    assert!(back.regressions(0.0).is_empty());
}

#[test]
fn a_threshold_is_judged_by_itself() {
    let wide = Rules {
        margin: 0.05,
        ..Rules::default()
    };
    let found = compare(&side("a", 1.0), &side("b", 1.03), &wide).unwrap();
    assert_eq!(verdicts(&found, Metric::ItlMs), [Verdict::Equivalent; 4]);
    // Below the margin, above it, and no more than what is there.
    assert_eq!(found.regressions(0.01).len(), 3 * 4);
    assert_eq!(found.regressions(0.0295).len(), 2 * 4);
    assert!(found.regressions(0.06).is_empty());
    let back = compare(&side("b", 1.03), &side("a", 1.0), &wide).unwrap();
    assert!(back.regressions(0.0).is_empty());

    let found = compared(&side("a", 1.0), &side("b", 1.5));
    let table = found.table(120);
    for line in found.failure(0.02) {
        let shown = line.rsplit_once(" %").unwrap().0;
        let shown = shown.rsplit(' ').next().unwrap();
        assert!(["+50.0", "-33.3"].contains(&shown), "{line}");
        assert!(table.contains(&format!("{shown} % [")), "{table}");
    }
}

#[test]
fn time_that_is_no_time_in_cycles_is_inconclusive() {
    let clocked = |name, factor: f64, mhz: f64| {
        with_energy(name, factor, |used| {
            used.sm_clock_mhz = Some(mhz);
            used.throttle_reasons = match mhz < 1900.0 {
                true => vec!["thermal".to_owned()],
                false => vec![],
            };
        })
    };
    let base = clocked("a", 1.0, 1980.0);
    let found = compared(&base, &clocked("b", 1.1, 1800.0));
    for point in of(&found, Metric::ItlMs) {
        assert_eq!(point.verdict, Verdict::Inconclusive);
        assert!((point.ratio_in_cycles.unwrap() - 1.0).abs() < 1e-9);
        assert!(point.reason.as_ref().unwrap().contains("in cycles"));
        assert!(!point.is_regression(0.02));
    }
    let rate = of(&found, Metric::DecodeTokensPerSecond)[0];
    assert!(
        (rate.ratio_in_cycles.unwrap() - 1.0).abs() < 1e-9,
        "{rate:?}"
    );
    assert!(
        found.warnings[0].contains("SM clock"),
        "{:?}",
        found.warnings
    );
    assert_eq!(found.warnings[1], "throttled by: nothing and thermal");
    let same = compared(&base, &clocked("b", 1.1, 1980.0));
    assert_eq!(verdicts(&same, Metric::ItlMs), [Verdict::Slower; 4]);
}

#[test]
fn each_figure_is_told_in_cycles_of_the_clock_of_its_own_phase() {
    let clocked = |name, factor: f64, prefill: f64, decode: f64| {
        with_energy(name, factor, |used| {
            used.prefill_check.as_mut().unwrap().sm_clock_mhz = Some(prefill);
            used.decode_check.as_mut().unwrap().sm_clock_mhz = Some(decode);
        })
    };
    let base = clocked("a", 1.0, 1980.0, 1980.0);
    let found = compared(&base, &clocked("b", 1.1, 1800.0, 1980.0));
    assert_eq!(
        verdicts(&found, Metric::TtftMs),
        [Verdict::Inconclusive; 4],
        "its clock was lower as well"
    );
    let same = [Metric::ItlMs, Metric::DecodeTokensPerSecond];
    for metric in same {
        assert_eq!(verdicts(&found, metric), [Verdict::Slower; 4], "{metric:?}");
    }
}

/// A run as [`side`] has it whose energies are changed so.
fn with_energy(name: &str, factor: f64, change: impl Fn(&mut EnergyUse)) -> Side {
    let mut side = side(name, factor);
    for record in &mut side.runs[0].records {
        if let Body::Speed {
            outcome: Ok(speed), ..
        } = &mut record.body
            && let Energy::Measured(used) = &mut speed.energy
        {
            change(used);
        }
    }
    side
}

#[test]
fn energy_is_compared_as_tables_show_it() {
    let base = side("a", 1.0);
    let paused = |used: &mut EnergyUse| {
        // Half of what the window drew went into pauses.
        used.after_work_power = Some(Watts(0.5 * used.decode.0));
        used.decode_check.as_mut().unwrap().pauses = Seconds(1.0);
    };
    let found = compared(&base, &with_energy("b", 1.0, paused));
    let points = of(&found, Metric::JPerGeneratedToken);
    assert_eq!(points.len(), 4);
    for point in points {
        assert!((point.ratio - 0.5).abs() < 1e-9, "{point:?}");
    }
    assert!(found.warnings.is_empty(), "{:?}", found.warnings);
}

#[test]
fn a_rejected_energy_is_left_out_and_its_reason_is_told() {
    let (usual, reason) = (side("a", 1.0), "in decode, 43 % apart");
    let rejected = with_energy("b", 1.0, |used| used.rejected = Some(reason.to_owned()));
    let unknown = with_energy("c", 1.0, |used| {
        used.after_work_power = None;
        used.decode_check.as_mut().unwrap().pauses = Seconds(1.0);
    });
    for (base, other, whose, why) in [
        (&usual, &rejected, "the other", reason),
        (&rejected, &usual, "the base", reason),
        (&usual, &unknown, "the other", "is not known"),
    ] {
        let found = compared(base, other);
        assert!(of(&found, Metric::JPerGeneratedToken).is_empty());
        assert_eq!(of(&found, Metric::ItlMs).len(), 4);
        assert_eq!(found.warnings.len(), 4, "{:?}", found.warnings);
        let first = &found.warnings[0];
        assert!(
            first.starts_with("bf16, ") && first.contains(whose) && first.ends_with(why),
            "{first}"
        );
    }
    // What was not measured at all stands on its own record.
    let mut none = side("d", 1.0);
    for record in &mut none.runs[0].records {
        if let Body::Speed {
            outcome: Ok(speed), ..
        } = &mut record.body
        {
            let reason = "no board".to_owned();
            speed.energy = Energy::Unavailable { reason };
        }
    }
    let found = compared(&usual, &none);
    assert!(of(&found, Metric::JPerGeneratedToken).is_empty() && found.warnings.is_empty());
}

#[test]
fn a_perplexity_is_compared_segment_by_segment() {
    let mut worse = fixture::usual();
    worse.truncate(1);
    let base = side_of("a", fixture::records_of(&worse, &[]).into_iter());
    let with = |loss: f64| {
        let variant = Imagined {
            loss,
            ..worse[0].clone()
        };
        side_of("b", fixture::records_of(&[variant], &[]).into_iter())
    };
    // Far less than what segments differ by, and found all the same: they are the same segments.
    let found = compared(&base, &with(0.004));
    let point = of(&found, Metric::Perplexity)[0];
    assert_eq!(point.verdict, Verdict::Worse, "{point:?}");
    assert!((point.loss() - 0.004).abs() < 4e-4, "{point:?}");
    assert_eq!(
        verdicts(&compared(&base, &with(0.0002)), Metric::Perplexity),
        [Verdict::Equivalent]
    );
}

#[test]
fn several_runs_tell_what_differs_between_runs() {
    let side = |name, factors: &[f64]| Side {
        label: String::from(name),
        runs: factors
            .iter()
            .flat_map(|&factor| side(name, factor).runs)
            .collect(),
    };
    // Single runs would be 3 % apart and sure of it; runs of one side differ as much.
    let base = side("a", &[1.0, 1.03, 0.98]);
    let found = compared(&base, &side("b", &[1.02, 1.05, 0.99]));
    let point = of(&found, Metric::ItlMs)[0];
    assert_eq!(point.verdict, Verdict::Inconclusive, "{point:?}");
    assert_eq!(point.run_noise_from, Some(document::NoiseFrom::Runs));
    assert!((1.0..5.0).contains(&point.run_noise_percent.unwrap()));
    let apart = compared(&base, &side("b", &[1.32, 1.35, 1.29]));
    assert_eq!(verdicts(&apart, Metric::ItlMs), [Verdict::Slower; 4]);
}

#[test]
fn other_hardware_is_refused_and_other_drivers_are_named() {
    let changed = |change: fn(&mut Environment)| {
        let mut side = side("b", 1.0);
        change(side.runs[0].environment.as_mut().unwrap());
        side
    };
    let base = side("a", 1.0);
    let capped = changed(|e| e.device.power_limit_watts = Some(350.0));
    let error = compare(&base, &capped, &Rules::default()).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().contains("power limit"), "{error}");
    let forced = Rules {
        across_hardware: true,
        ..Rules::default()
    };
    let found = compare(&base, &capped, &forced).unwrap();
    assert!(found.warnings.iter().any(|w| w.contains("350 W")));
    let newer = compared(
        &base,
        &changed(|e| e.device.driver = Some("999.1".to_owned())),
    );
    assert_eq!(newer.warnings.len(), 1, "{:?}", newer.warnings);
    assert!(newer.warnings[0].contains("driver") && newer.warnings[0].contains("999.1"));
    let mut unknown = side("b", 1.0);
    unknown.runs[0].environment = None;
    assert!(compared(&base, &unknown).warnings[0].contains("study.json"));
}

#[test]
fn what_only_one_side_measured_is_said() {
    let base = side("a", 1.0);
    let usual = fixture::usual();
    let mut records = fixture::records_of(&usual[..1], &[1]);
    records.extend(
        fixture::failed(&usual[0], &[8], "out of memory")
            .into_iter()
            .skip(1),
    );
    let other = side_of("b", records.into_iter());
    let found = compared(&base, &other);
    assert_eq!(found.unmatched.len(), 4, "{:?}", found.unmatched);
    assert_eq!(found.unmatched[0].reason.as_deref(), Some("out of memory"));
    // What the other side lost of the base's; what it measured beyond is no loss.
    let (all, tried) = (found.lost(false), found.lost(true));
    assert_eq!((all.len(), tried.len()), (4, 1), "{all:?}");
    assert!(
        tried[0].starts_with("not compared: bf16, batch 8"),
        "{}",
        tried[0]
    );
    assert!(
        tried[0].ends_with("in b it failed: out of memory"),
        "{}",
        tried[0]
    );
    assert!(compared(&other, &base).lost(false).is_empty());
    let nothing = side_of("c", fixture::records_of(&usual[2..3], &[1]).into_iter());
    let error = compare(&base, &nothing, &Rules::default()).unwrap_err();
    assert_eq!(error.exit_code(), 64);
}

#[test]
fn tables_fit_and_say_what_was_found() {
    let (base, slower) = (side("before", 1.0), side("after", 1.1));
    let found = compared(&base, &slower);
    let history = History::of(
        &[base.clone(), side("same", 1.0), slower, side("back", 1.0)],
        Reference::Previous,
        &Rules::default(),
    );
    let history = history.unwrap();
    for width in [60, 80, 120] {
        for shown in [found.table(width), history.table(width)] {
            let widest = shown.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(width), "{width}:\n{shown}");
        }
    }
    let shown = found.table(80);
    for part in [
        "after against before",
        "ITL ms",
        "+10.0 % [",
        "slower",
        "one run each",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    let shown = history.table(100);
    for part in ["▲", "▼", "back", "the run before"] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    let markdown = found.markdown(Some(0.02));
    assert!(
        markdown.contains("**regression beyond 2 %: bf16, batch 1"),
        "{markdown}"
    );
    assert!(markdown.contains("| variant | figure |"), "{markdown}");
    assert!(history.markdown().contains("| run |"));
}

#[test]
fn documents_keep_to_their_schemas() {
    let found = compared(&side("a", 1.0), &side("b", 1.1));
    let value = serde_json::to_value(&found).unwrap();
    let schema = jsonschema::validator_for(&crate::results::comparison_schema()).unwrap();
    schema
        .validate(&value)
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(serde_json::from_value::<Comparison>(value).unwrap(), found);
}

/// Tasks of bf16 and int8, of which the second side answers those of int8 wrongly where `wrong` says so.
fn tasks(name: &str, wrong: impl Fn(usize) -> bool) -> Side {
    let mut records = fixture::task_records();
    records.retain(|r| ["bf16", "int8"].contains(&r.subject.variant.as_str()));
    for record in &mut records {
        let is_int8 = record.subject.variant == "int8";
        if let (true, Body::Task { outcome, task }) = (is_int8, &mut record.body)
            && task.name == "arc_easy"
        {
            let figure = &mut outcome.as_mut().unwrap().figures[0];
            for (place, value) in figure.values.iter_mut().enumerate() {
                *value *= f64::from(!wrong(place));
            }
        }
    }
    side_of(name, records.into_iter())
}

/// A task of four documents, each scored so.
fn few(value: f64) -> Side {
    let mut records = fixture::task_records();
    records.truncate(1);
    let Body::Task { outcome, .. } = &mut records[0].body else {
        panic!("no task");
    };
    let answers = outcome.as_mut().unwrap();
    answers.documents.truncate(4);
    for figure in &mut answers.figures {
        figure.values = vec![value; 4];
        figure.value = value;
    }
    side_of("few", records.into_iter())
}

#[test]
fn scores_of_tasks_are_compared_document_by_document() {
    let base = tasks("a", |_| false);
    let same = compared(&base, &tasks("b", |_| false));
    let all = verdicts(&same, Metric::TaskScore);
    assert_eq!(all.len(), 6, "three tasks of two variants");
    // No document of n differs: the difference may still be z² / (n + z²), and the ratio that over the base's score.
    for point in of(&same, Metric::TaskScore) {
        let documents = [900.0, 300.0, 350.0];
        let ends = point.ratio_ci95.unwrap();
        let fits =
            |n: &f64| (ends.high - 1.0 - 3.841_46 / (n + 3.841_46) / point.base).abs() < 1e-5;
        assert!(documents.iter().any(fits), "{point:?}");
        let within = -0.01 < ends.low.ln() && ends.high.ln() < 0.01;
        let expected = if within {
            Verdict::Equivalent
        } else {
            Verdict::Inconclusive
        };
        assert_eq!(point.verdict, expected, "{point:?}");
        assert!(ends.low < 1.0 && 1.0 < ends.high);
    }
    assert!(same.warnings.is_empty() && same.unmatched.is_empty());
    let first = of(&same, Metric::TaskScore)[0];
    assert_eq!(
        first.text.as_deref(),
        Some("arc_easy (acc) · 900 documents · 5-shot")
    );

    // A tenth of the right answers is lost: far from chance, since no other document changes.
    let worse = compared(&base, &tasks("b", |place| place % 10 == 0));
    let int8 = |point: &&&Point| point.variant == "int8" && point.place().starts_with("arc_easy");
    let points = of(&worse, Metric::TaskScore);
    let point = points.iter().find(int8).unwrap();
    assert_eq!(point.verdict, Verdict::Worse, "{point:?}");
    assert!((point.loss() - 0.1).abs() < 0.03, "{point:?}");
    let regressions = worse.regressions(0.05);
    assert_eq!(regressions.len(), 1);
    let back = compared(&tasks("b", |place| place % 10 == 0), &base);
    let points = of(&back, Metric::TaskScore);
    assert_eq!(points.iter().find(int8).unwrap().verdict, Verdict::Better);
    assert!(back.regressions(0.0).is_empty());

    // Three answers of 900 may be chance.
    let hardly = compared(&base, &tasks("b", |place| place < 4));
    let points = of(&hardly, Metric::TaskScore);
    let point = points.iter().find(int8).unwrap();
    assert!(!point.is_regression(0.0), "{point:?}");

    // All of them are lost: a loss of 100 %, not a figure that is missing.
    let nothing = compared(&base, &tasks("b", |_| true));
    let points = of(&nothing, Metric::TaskScore);
    let point = points.iter().find(int8).unwrap();
    assert_eq!((point.other, point.ratio, point.loss()), (0.0, 0.0, 1.0));
    assert_eq!(point.verdict, Verdict::Worse, "{point:?}");
    assert!(point.p_holm.unwrap() < 0.001, "{point:?}");
    assert_eq!(nothing.regressions(0.02), [*point]);
    assert!(nothing.failure(0.02)[0].contains("score -100 % [-100, "));
    assert!(nothing.warnings.is_empty(), "{:?}", nothing.warnings);
    let value = serde_json::to_value(&nothing).unwrap();
    assert_eq!(
        serde_json::from_value::<Comparison>(value).unwrap(),
        nothing
    );
    let few = compared(&few(1.0), &few(0.0));
    let point = of(&few, Metric::TaskScore)[0];
    assert_eq!((point.verdict, point.loss()), (Verdict::Inconclusive, 1.0));
    assert!(!point.is_regression(0.02), "four of four may be chance");

    let rise = compared(&tasks("b", |_| true), &base);
    assert_eq!(of(&rise, Metric::TaskScore).len(), 5);
    assert!(
        rise.warnings
            .iter()
            .any(|text| text.contains("int8, arc_easy") && text.contains("no ratio")),
        "{:?}",
        rise.warnings
    );
    let shown = worse.table(100);
    assert!(
        shown.contains("of a task's score 1 %") && shown.contains("worse"),
        "{shown}"
    );
}

#[test]
fn a_task_is_the_same_question_in_a_group_and_alone() {
    let base = tasks("a", |_| false);
    let mut alone = tasks("b", |_| false);
    for record in &mut alone.runs[0].records {
        if let Body::Task { task, .. } = &mut record.body {
            task.groups.clear();
        }
    }
    let found = compared(&base, &alone);
    assert_eq!(of(&found, Metric::TaskScore).len(), 6);
    assert!(found.unmatched.is_empty());
}

#[test]
fn models_of_one_last_name_are_told_apart() {
    let two_models = |name: &str| {
        let mut both = side(name, 1.0);
        let records = both.runs[0].records.clone();
        both.runs[0].records.clear();
        for folder in ["a/model", "b/model"] {
            both.runs[0].records.extend(records.iter().map(|record| {
                let mut record = record.clone();
                record.subject.model.name = folder.to_owned();
                record.subject.model.digest = format!("blake3:{folder}");
                record
            }));
        }
        both
    };
    let found = compared(&two_models("a"), &two_models("b"));
    for name in ["a/model bf16", "b/model bf16", "a/model int8"] {
        assert!(
            found.points.iter().any(|point| point.variant == name),
            "{name}: {:#?}",
            found.points
        );
    }
}
