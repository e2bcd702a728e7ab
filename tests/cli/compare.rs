//! Runs against each other: verdicts, what is refused, exit codes.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use super::common::{run, words};

const BENCH: &str = "bench --device cpu --threads 2 --variants bf16,int8 --batch 1,2 --prompt 8 --gen 8 --trials 12 --min-time 0 \
                     --no-ceilings";

fn bench(folder: &Path, out: &str) {
    run(folder, &words(&format!("{BENCH} --out {out}"))).expect(0);
}

/// A copy of a run whose times are all `factor` of what they were.
fn stretched(folder: &Path, run: &str, name: &str, factor: f64) {
    fs::create_dir(folder.join(name)).unwrap();
    fs::copy(
        folder.join(run).join("study.json"),
        folder.join(name).join("study.json"),
    )
    .unwrap();
    let text = fs::read_to_string(folder.join(run).join("records.jsonl")).unwrap();
    let line = |line: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        // A line without a checksum is taken as it is.
        record.as_object_mut().unwrap().remove("checksum");
        for trial in record["result"]["trials"].as_array_mut().unwrap() {
            for (name, value) in trial.as_object_mut().unwrap() {
                let times = |x: &mut Value| *x = (x.as_f64().unwrap() * factor).into();
                match value {
                    Value::Array(gaps) => gaps.iter_mut().for_each(times),
                    Value::Number(_) if name.ends_with("_s") => times(value),
                    _ => {}
                }
            }
        }
        record.to_string() + "\n"
    };
    let lines: String = text.lines().map(line).collect();
    fs::write(folder.join(name).join("records.jsonl"), lines).unwrap();
}

fn verdicts(comparison: &Value) -> Vec<&str> {
    let points = comparison["points"].as_array().unwrap().iter();
    points.map(|p| p["verdict"].as_str().unwrap()).collect()
}

#[test]
fn a_regression_is_found_shown_and_ends_with_four() {
    let folder = tempdir().unwrap();
    bench(folder.path(), "before");
    stretched(folder.path(), "before", "after", 3.0);
    // Single runs on a CPU get no verdict unless it is known what differs from run to run.
    let unknown = run(folder.path(), &words("compare before after --fail-on 2%")).expect(0);
    for part in ["+200.0 %", "inconclusive", "ratios without verdicts"] {
        assert!(unknown.stdout.contains(part), "{part}:\n{}", unknown.stdout);
    }
    let json = run(folder.path(), &words("compare before after --json")).expect(0);
    let json = json.json();
    let all = verdicts(&json);
    // Two variants in two cells, three figures each.
    assert_eq!(all, ["inconclusive"; 12]);
    let line = |options: &str| format!("compare before after --run-noise 10% {options}");
    let shown = run(folder.path(), &words(&line(""))).expect(0);
    for part in ["after against before", "+200 % [", "slower", "one run each"] {
        assert!(shown.stdout.contains(part), "{part}:\n{}", shown.stdout);
    }
    let failed = run(folder.path(), &words(&line("--fail-on 2% --markdown"))).expect(4);
    assert!(
        failed.stderr.contains("regression beyond 2 %: bf16"),
        "{}",
        failed.stderr
    );
    assert!(
        failed.stdout.contains("| variant | figure |"),
        "{}",
        failed.stdout
    );
    run(folder.path(), &words(&line("--fail-on 250%"))).expect(0);
    run(folder.path(), &words("compare after before --fail-on 2%")).expect(0);

    stretched(folder.path(), "before", "again", 1.0);
    let schemas = run(folder.path(), &["schema"]).expect(0).json();
    for (line, schema) in [
        ("compare before after --json", "candlepower.comparison/1"),
        (
            "compare before after again --previous --json",
            "candlepower.history/1",
        ),
    ] {
        let document = run(folder.path(), &words(line)).expect(0).json();
        let validator = jsonschema::validator_for(&schemas[schema]).unwrap();
        validator
            .validate(&document)
            .unwrap_or_else(|e| panic!("{schema}: {e}"));
        assert_eq!(document["schema"], schema);
    }
    let history = run(
        folder.path(),
        &words("compare before after again --run-noise 10%"),
    )
    .expect(0);
    assert!(history.stdout.contains('▲'), "{}", history.stdout);

    let against = run(folder.path(), &words(&format!("{BENCH} --against after"))).expect(0);
    assert!(
        against.stdout.contains("this run against after"),
        "{}",
        against.stdout
    );
}

#[test]
fn what_the_other_run_lost_does_not_pass() {
    let folder = tempdir().unwrap();
    bench(folder.path(), "before");
    let cut = |name: &str, factor: f64| {
        stretched(folder.path(), "before", name, factor);
        let path = folder.path().join(name).join("records.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        let batch = |line: &&str| {
            let record: Value = serde_json::from_str(line).unwrap();
            record["cell"]["batch"] != 2
        };
        let kept: Vec<&str> = text.lines().filter(batch).collect();
        assert_eq!(kept.len(), 2);
        fs::write(&path, kept.join("\n") + "\n").unwrap();
    };
    cut("part", 1.0);
    cut("slow", 3.0);
    let line = |other: &str| format!("compare before {other} --run-noise 10% --fail-on 2%");
    let lost = run(folder.path(), &words(&line("part"))).expect(3);
    let told = "not compared: int8, batch 2";
    assert!(lost.stderr.contains(told), "{}", lost.stderr);
    assert!(lost.stdout.contains("in before alone"), "{}", lost.stdout);
    let slow = run(folder.path(), &words(&line("slow"))).expect(4);
    for part in ["regression beyond 2 %: bf16", told] {
        assert!(slow.stderr.contains(part), "{part}: {}", slow.stderr);
    }
    // Without a threshold, and where the other run has more, nothing is asked for.
    run(folder.path(), &words("compare before part")).expect(0);
    run(folder.path(), &words("compare part before --fail-on 2%")).expect(0);
    // A command that asks for less than what is on record loses nothing.
    let less = BENCH.replace("--batch 1,2", "--batch 1");
    let less = format!("{less} --against before --fail-on 2%");
    run(folder.path(), &words(&less)).expect(0);
}

#[test]
fn what_does_not_compare_is_refused() {
    let folder = tempdir().unwrap();
    bench(folder.path(), "two");
    let single = BENCH.replace("--threads 2", "--threads 1");
    run(folder.path(), &words(&format!("{single} --out one"))).expect(0);
    let refused = run(folder.path(), &["compare", "two", "one"]).expect(64);
    assert!(
        refused.error().contains("threads: 2 and 1"),
        "{}",
        refused.stderr
    );
    run(
        folder.path(),
        &["compare", "two", "one", "--across-hardware"],
    )
    .expect(0);
    let other = BENCH.replace("--prompt 8", "--prompt 9");
    run(folder.path(), &words(&format!("{other} --out other"))).expect(0);
    let apart = run(folder.path(), &["compare", "two", "other"]).expect(64);
    assert!(
        apart.error().contains("no measured point in common"),
        "{}",
        apart.stderr
    );
    run(folder.path(), &["compare", "two", "nothing"]).expect(65);
    run(folder.path(), &["compare", "two"]).expect(2);
    run(folder.path(), &["compare", "two", "one", "--previous"]).expect(2);
    run(folder.path(), &words(&format!("{BENCH} --fail-on 2%"))).expect(2);
    run(folder.path(), &words(&format!("{BENCH} --against nothing"))).expect(65);
}

#[test]
fn a_run_is_not_compared_with_itself_and_counts_once() {
    let folder = tempdir().unwrap();
    bench(folder.path(), "one");
    stretched(folder.path(), "one", "two", 1.0);
    let mut same = vec![
        "compare one,one two".to_owned(),
        "compare one two,./one".to_owned(),
        "compare one one".to_owned(),
        "compare one two one --previous".to_owned(),
        "compare one/records.jsonl one/study.json".to_owned(),
        format!("compare one {}/two/../one", folder.path().display()),
        format!("{BENCH} --out one --against one"),
        format!("{BENCH} --out ./one --against two,one"),
        format!("{BENCH} --against two,two"),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("one", folder.path().join("link")).unwrap();
        same.push("compare one link".to_owned());
    }
    for line in &same {
        let refused = run(folder.path(), &words(line)).expect(2);
        let told = refused.error();
        assert!(told.contains("are the same run"), "{line}: {told}");
    }
    run(folder.path(), &words("compare one two")).expect(0);
}

#[test]
fn a_cell_goes_on_until_it_is_known() {
    let folder = tempdir().unwrap();
    let line = "bench --device cpu --variants bf16 --batch 1 --prompt 8 --gen 4 --trials 5 --min-time 0 --no-ceilings --json";
    let reason = |options: &str| {
        let line = format!("{line} {options}");
        let study = run(folder.path(), &words(&line)).expect(0).json();
        let reason = &study["variants"][0]["speed"][0]["stop_reason"];
        reason.as_str().unwrap().to_owned()
    };
    assert_eq!(reason(""), "enough");
    assert_eq!(reason("--precision 90%"), "precise");
    assert_eq!(reason("--precision 0.0001% --max-time 0.2"), "time_limit");
    assert!(
        ["noise_stable", "time_limit"].contains(&reason("--until-stable --max-time 2").as_str())
    );
    run(folder.path(), &words(&format!("{line} --precision little"))).expect(2);
}

#[test]
fn two_programs_are_measured_by_turns() {
    let folder = tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_candlepower");
    let line = format!("{BENCH} --against-program {program} --rounds 2 --out both");
    let line = line.replace("--variants bf16,int8", "--variants bf16");
    let found = run(folder.path(), &words(&format!("{line} --json"))).expect(0);
    let rounds: Vec<&str> = found
        .stderr
        .lines()
        .filter(|line| line.starts_with("round "))
        .collect();
    let expected = [
        "round 1 of 2: base",
        "round 1 of 2: this",
        "round 2 of 2: this",
        "round 2 of 2: base",
    ];
    assert_eq!(rounds, expected);
    let comparison = found.json();
    for side in ["base", "other"] {
        assert_eq!(comparison[side]["runs"], 2, "{comparison:#}");
    }
    // The spread is that of the runs, not what is allowed for.
    let points = comparison["points"].as_array().unwrap();
    assert_eq!(points.len(), 6);
    assert!(
        points.iter().all(|p| p["run_noise_from"] == "runs"),
        "{comparison:#}"
    );
    // The same command finds every run on record.
    let before = fs::read(folder.path().join("both/this-2/records.jsonl")).unwrap();
    let again = run(folder.path(), &words(&line)).expect(0);
    assert!(
        again.stdout.contains("this build (2 runs) against"),
        "{}",
        again.stdout
    );
    assert_eq!(
        fs::read(folder.path().join("both/this-2/records.jsonl")).unwrap(),
        before
    );
    run(
        folder.path(),
        &words(&line.replace("--rounds 2", "--rounds 1")),
    )
    .expect(2);
    let missing = line.replace(program, "no-such-program");
    let failed = run(folder.path(), &words(&missing));
    assert!(
        failed.error().contains("no-such-program: cannot start"),
        "{}",
        failed.stderr
    );
    assert_ne!(failed.code, 0);
}
