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
    let of =
        |right: usize| -> Vec<f64> { (0..100).map(|i| f64::from(u8::from(i < right))).collect() };
    let twice = compared(&[], &[("a", &of(25), &of(50))]).unwrap();
    near(
        twice.tasks[0].ratio_interval,
        2.0,
        1.984_217 * (0.5_f64 / 99.0).sqrt() / 0.25,
    );
}

fn group(name: &str) -> TaskGroup {
    TaskGroup {
        name: name.to_owned(),
        counts: true,
        by_size: true,
        metric: None,
    }
}

#[test]
fn a_group_by_tasks_is_the_mean_of_its_tasks() {
    let groups = [TaskGroup {
        by_size: false,
        ..group("all")
    }];
    let tasks: [(&str, &[f64], &[f64]); 2] = [
        ("a", &[1.0, 0.0, 1.0, 1.0], &[1.0, 0.0, 1.0, 0.0]),
        ("b", &[1.0, 1.0], &[0.0, 1.0]),
    ];
    let found = compared(&groups, &tasks).unwrap();
    let all = &found.tasks[0];
    // Of all documents together it would be 5/6 and 1/2.
    assert_eq!((all.base, all.value, all.documents), (0.875, 0.5, 6));
    assert!((all.difference.mean + 0.375).abs() < 1e-12);
    // Errors of the differences: 1/4 and 1/2.
    let expected = (1.0_f64 / 16.0 + 0.25).sqrt() / 2.0;
    assert!((all.difference.stderr.unwrap() - expected).abs() < 1e-12);
    assert_eq!((all.discordant, all.p_value), (Some((0, 2)), None));
    // Where there is nothing else, the average is that of the group, and of its tasks one by one.
    let average = found.average.unwrap();
    assert_eq!((average.tasks, average.ratio), (1, all.ratio));
    assert_eq!(average.difference, all.difference);
    let alone = compared(&[], &tasks).unwrap().average.unwrap();
    assert!((alone.ratio.unwrap() - all.ratio.unwrap()).abs() < 1e-12);
    assert_eq!(alone.tasks, 2);
}

/// A second figure of the same documents.
fn also(mut answers: TaskAnswers, metric: &str, values: &[f64], first: bool) -> TaskAnswers {
    let figure = TaskFigure {
        metric: metric.to_owned(),
        values: values.to_vec(),
        ..answers.figures[0].clone()
    };
    let place = if first { 0 } else { answers.figures.len() };
    answers.figures.insert(place, figure);
    answers
}

#[test]
fn different_metrics_are_not_taken_together() {
    let of = |groups, name, answers| Scored {
        name,
        groups,
        answers,
    };
    let plain = answers(&[1.0, 0.0]);
    let other = also(answers(&[1.0, 1.0]), "exact_match", &[0.0, 1.0], true);
    let mixed = [group("mixed")];
    let sides = [of(&mixed, "a", &plain), of(&mixed, "b", &other)];
    let found = Recoveries::new(&sides, &sides).unwrap();
    assert_eq!(found.left_out[0].name, "mixed");
    let reason = &found.left_out[0].reason;
    assert!(reason.contains("acc and exact_match"), "{reason}");
    assert!(found.tasks.iter().all(|task| !task.group && task.counts));
    let average = found.average.unwrap();
    assert_eq!((average.tasks, average.value), (2, 0.5));
    // A group that says what it is compared by takes that of every task that has it.
    let stated = [TaskGroup {
        metric: Some("acc".to_owned()),
        ..group("stated")
    }];
    let mut neither = also(answers(&[0.0, 0.0]), "f1", &[0.5, 0.5], true);
    neither.figures.truncate(1);
    let sides = [
        of(&stated, "a", &plain),
        of(&stated, "b", &other),
        of(&stated, "c", &neither),
    ];
    let found = Recoveries::new(&sides, &sides).unwrap();
    assert!(found.left_out.is_empty());
    let whole = &found.tasks[0];
    assert_eq!(
        (whole.metric.as_str(), whole.value, whole.documents),
        ("acc", 0.75, 4)
    );
    let counts: Vec<bool> = found.tasks.iter().map(|task| task.counts).collect();
    assert_eq!(counts, [true, false, false, true]);
    assert_eq!(found.average.unwrap().tasks, 2);
    let absent = [TaskGroup {
        metric: Some("bleu".to_owned()),
        ..group("absent")
    }];
    let sides = [of(&absent, "a", &plain)];
    let found = Recoveries::new(&sides, &sides).unwrap();
    assert_eq!(found.left_out[0].reason, "none of its tasks has bleu");
    assert!(found.tasks[0].counts);
}

#[test]
fn a_group_within_one_that_is_left_out_counts_itself() {
    let inner = [
        group("outer"),
        TaskGroup {
            counts: false,
            ..group("inner")
        },
    ];
    let plain = answers(&[1.0, 0.0]);
    let other = also(answers(&[1.0, 1.0]), "exact_match", &[0.0, 1.0], true);
    let of = |groups, name, answers| Scored {
        name,
        groups,
        answers,
    };
    let sides = [
        of(&inner[..], "a", &plain),
        of(&inner[..], "b", &plain),
        of(&inner[..1], "c", &other),
    ];
    let found = Recoveries::new(&sides, &sides).unwrap();
    let named = found.tasks.iter().map(|task| (&*task.name, task.counts));
    assert_eq!(
        named.collect::<Vec<_>>(),
        [("inner", true), ("a", false), ("b", false), ("c", true)]
    );
}

#[test]
fn a_group_is_one_task_of_the_average() {
    let groups = [("all", true), ("part", false)].map(|(name, counts)| TaskGroup {
        counts,
        ..group(name)
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
