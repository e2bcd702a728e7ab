//! Folders that several commands filled, or one that did not come to its end: `report`, `export`, and what goes on.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use super::common::{run, words};

const QUICK: &str = "--device cpu --threads 2 --min-time 0 --trials 2 --warmup 0 --batch 1 --prompt 8 --gen 4 \
                     --no-ceilings --out out";
const STUDY: &str = "study --no-load-check --ppl-segments 2 --variants bf16,int8";

/// The files that are made of records.
const MADE: [&str; 3] = ["study.json", "study.csv", "report.html"];

fn line(command: &str, more: &str) -> String {
    format!("{command} {QUICK} {more}")
}

fn made(folder: &Path) -> Vec<String> {
    MADE.iter()
        .map(|name| fs::read_to_string(folder.join("out").join(name)).unwrap())
        .collect()
}

#[test]
fn a_report_is_of_the_latest_plan_whatever_else_is_in_the_folder() {
    let folder = tempdir().unwrap();
    let other_base = STUDY.replace("bf16,int8", "int8,bf16");
    for (command, more) in [
        (STUDY, ""),
        (STUDY, "--dtype bf16"),
        (&STUDY.replace("segments 2", "segments 3"), ""),
        (&other_base, ""),
        // Nothing is left to measure, and the order is that of the first.
        (STUDY, ""),
        (STUDY, "--no-kl --quality-axis ppl --for-tokens 5"),
    ] {
        let said = run(folder.path(), &words(&line(command, more))).expect(0);
        let before = made(folder.path());
        let again = run(folder.path(), &["report", "out"]).expect(0);
        assert!(
            said.stdout.contains(again.stdout.trim()),
            "{command} {more}"
        );
        assert!(made(folder.path()) == before, "{command} {more}");
    }
    let bench = line("bench --variants int8", "--force");
    run(folder.path(), &words(&bench)).expect(0);
    let study = || fs::read_to_string(folder.path().join("out/study.json")).unwrap();
    let before = study();
    run(folder.path(), &["report", "out"]).expect(0);
    assert!(study() == before, "a bench");
}

#[test]
fn a_report_needs_nothing_but_the_records_and_the_manifest() {
    let folder = tempdir().unwrap();
    run(folder.path(), &words(&line(STUDY, ""))).expect(0);
    let before = made(folder.path());
    let remove = || {
        for name in MADE {
            fs::remove_file(folder.path().join("out").join(name)).unwrap();
        }
    };
    remove();
    let csv = run(folder.path(), &words("export out --format csv")).expect(0);
    assert_eq!(csv.stdout.trim(), before[1].trim());
    run(folder.path(), &["report", "out"]).expect(0);
    assert!(made(folder.path()) == before);

    // As an interrupted run leaves it.
    remove();
    let path = folder.path().join("out/records.jsonl");
    let records = fs::read_to_string(&path).unwrap();
    let end = records.trim_end().rfind('\n').unwrap();
    fs::write(&path, &records[..=end]).unwrap();
    let report = run(folder.path(), &["report", "out"]).expect(0);
    assert!(report.stdout.contains("bf16"), "{}", report.stdout);
    fs::write(&path, "").unwrap();
    let refused = run(folder.path(), &["report", "out"]).expect(64);
    assert!(
        refused.error().contains("manifest.json"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_report_on_no_folder_makes_none() {
    let folder = tempdir().unwrap();
    let refused = run(folder.path(), &["report", "out"]).expect(64);
    assert!(refused.error().contains("--out"), "{}", refused.stderr);
    assert!(!folder.path().join("out").exists());
}

#[test]
fn a_folder_keeps_to_its_number_of_threads_unless_told() {
    let folder = tempdir().unwrap();
    let bench = line("bench", "");
    run(folder.path(), &words(&bench)).expect(0);
    let other = bench.replace("--threads 2", "--threads 1");
    let refused = run(folder.path(), &words(&other)).expect(64);
    for said in ["threads 2, now 1", "--mix", "--out"] {
        assert!(refused.error().contains(said), "{}", refused.stderr);
    }
    run(folder.path(), &words(&format!("{other} --mix"))).expect(0);
}

#[test]
fn another_chunk_is_another_point() {
    let folder = tempdir().unwrap();
    let bench = line("bench", "--json");
    run(folder.path(), &words(&bench)).expect(0);
    let chunked = format!("{bench} --chunk 4");
    for again in [false, true] {
        let ran = run(folder.path(), &words(&chunked)).expect(0);
        assert_eq!(ran.stderr.contains("on record"), again, "{}", ran.stderr);
        let engine = &ran.json()["variants"][0]["engine"];
        assert_eq!(engine, "candlepower, chunk 4");
    }
    // The default by its number is the default.
    let usual = run(folder.path(), &words(&format!("{bench} --chunk 512"))).expect(0);
    assert!(usual.stderr.contains("on record"), "{}", usual.stderr);
    assert_eq!(usual.json()["variants"][0]["engine"], "candlepower");

    let other = chunked.replace("--out out", "--out other");
    run(folder.path(), &words(&other)).expect(0);
    let plain = bench.replace("--out out", "--out plain");
    run(folder.path(), &words(&plain)).expect(0);
    let compared = run(folder.path(), &["compare", "other", "plain"]).expect(64);
    assert!(compared.error().contains("no measured point in common"));
}

#[test]
fn more_trials_than_are_on_record_are_told_of() {
    let folder = tempdir().unwrap();
    let bench = line("bench", "");
    run(folder.path(), &words(&bench)).expect(0);
    let same = run(folder.path(), &words(&bench)).expect(0);
    assert!(!same.stderr.contains("--force"), "{}", same.stderr);
    let more = bench.replace("--trials 2", "--trials 5");
    let told = run(folder.path(), &words(&more)).expect(0);
    let line = "bf16: 2 of 5 trials, on record; --force measures anew";
    assert!(told.stderr.contains(line), "{}", told.stderr);
}
