//! What fails costs what failed: crashes, hangs, lack of memory, kills, signals, and folders that go away.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use super::common::{Run, command, run, words};

/// Four points: `bf16` at batch 1 and 2, then `int8`.
const BENCH: &str = "bench --device cpu --variants bf16,int8 --batch 1,2 --prompt 8 --gen 4 --min-time 0 --trials 4 --warmup 1 \
                     --no-ceilings --out out";
/// As many, each of which takes its time.
const SLOW: &str = "bench --device cpu --variants bf16,int8 --batch 1,2 --prompt 8 --gen 4 --min-time 1 --trials 4 --warmup 1 \
                    --no-ceilings --out out";

fn lines_of(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("out/records.jsonl")).unwrap_or_default();
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What became of each point of [`BENCH`], in the order of its plan: the reason of the failure, or nothing.
fn reasons(folder: &Path) -> Vec<String> {
    let records = lines_of(folder);
    let points = [("bf16", 1), ("bf16", 2), ("int8", 1), ("int8", 2)];
    let of = |(variant, batch): (&str, u64)| {
        let mut found = records.iter().filter(|record| {
            record["subject"]["variant"] == variant && record["cell"]["batch"] == batch
        });
        let record = found
            .next()
            .unwrap_or_else(|| panic!("no {variant} at {batch}"));
        assert!(found.next().is_none(), "{variant} at {batch} twice");
        assert_eq!(record["status"] == "ok", record["reason"].is_null());
        record["reason"].as_str().unwrap_or_default().to_owned()
    };
    points.map(of).to_vec()
}

fn with_faults(faults: &str, more: &str) -> (TempDir, Run) {
    let folder = tempdir().unwrap();
    let line = format!("{BENCH} {more}");
    let output = command(folder.path(), &words(&line))
        .env("CANDLEPOWER_FAULT", faults)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let run = Run {
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    };
    (folder, run)
}

/// Fails at some points and says what must be among the reasons; the same command then measures what is missing.
fn fails(faults: &str, more: &str, expected: [&str; 4]) {
    let (folder, failed) = with_faults(faults, more);
    assert_eq!(failed.code, 3, "{}", failed.stderr);
    let reasons = reasons(folder.path());
    for (reason, expected) in reasons.iter().zip(expected) {
        assert_eq!(reason.is_empty(), expected.is_empty(), "{reasons:?}");
        assert!(
            reason.contains(expected),
            "{reason:?} instead of {expected}"
        );
    }
    let whole = expected.iter().filter(|reason| reason.is_empty()).count();
    let again = run(folder.path(), &words(&format!("{BENCH} {more}"))).expect(0);
    assert_eq!(again.stderr.matches("on record").count(), whole);
    assert_eq!(lines_of(folder.path()).len(), 4 + (4 - whole));
}

#[test]
fn a_panic_and_a_kill_cost_a_point_each() {
    fails("panic@2,kill@3", "", ["", "on purpose", "SIGKILL", ""]);
    fails(
        "panic@2,kill@3",
        "--turns 1",
        ["", "on purpose", "SIGKILL", ""],
    );
}

#[test]
fn want_of_memory_spares_larger_cells_the_attempt() {
    let not_tried = "not tried: out of memory at batch 1";
    fails("oom@1", "", ["no room", not_tried, "", ""]);
    fails("oom@1", "--turns 1", ["no room", not_tried, "", ""]);
    fails("oom@4", "", ["", "", "", "no room"]);
}

#[test]
fn a_failed_device_and_a_garbled_answer_cost_a_point_each() {
    fails(
        "device@1,garbage@4",
        "",
        ["ILLEGAL_ADDRESS", "", "", "this is no message"],
    );
}

#[test]
fn what_hangs_is_ended() {
    fails("hang@2", "--hang-limit 2", ["", "--hang-limit", "", ""]);
}

#[test]
fn failures_on_purpose_are_for_children() {
    let (_, failed) = with_faults("oom@1", "--isolate off");
    assert_eq!(failed.expect(2).error().matches("--isolate").count(), 1);
    let (_, failed) = with_faults("flood@1", "");
    assert!(failed.stderr.contains("flood@1"), "{}", failed.stderr);
}

#[test]
fn it_is_the_same_study_in_one_process_and_in_several() {
    let line = "study --device cpu --variants bf16,int8 --batch 1,2 --prompt 8 --gen 4 --min-time 0 --trials 4 --ppl-segments 2 \
                --no-ceilings --out";
    let folder = tempdir().unwrap();
    run(folder.path(), &words(&format!("{line} a"))).expect(0);
    run(folder.path(), &words(&format!("{line} b --isolate off"))).expect(0);
    run(folder.path(), &words(&format!("{line} c --turns 1"))).expect(0);
    let read = |out: &str| -> Vec<Value> {
        let text = fs::read_to_string(folder.path().join(out).join("records.jsonl")).unwrap();
        text.lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect()
    };
    let (a, b, mut c) = (read("a"), read("b"), read("c"));
    let keys = |records: &[Value]| -> Vec<Value> {
        records.iter().map(|record| record["key"].clone()).collect()
    };
    assert_eq!(keys(&a), keys(&b));
    // One variant after the other: another order, the same points.
    assert_ne!(keys(&a), keys(&c));
    assert!(c.iter().all(|r| r["result"]["blocks"].is_null()));
    let order = keys(&a);
    c.sort_by_key(|record| order.iter().position(|key| *key == record["key"]));
    assert_eq!(keys(&a), keys(&c));
    for (one, other) in a.iter().zip(&b).filter(|(r, _)| r["kind"] == "quality") {
        assert_eq!(one["result"], other["result"]);
    }
    for record in a.iter().filter(|r| r["kind"] == "speed") {
        let blocks = record["result"]["blocks"].as_array().unwrap();
        let of = |name: &str| -> Vec<f64> {
            blocks
                .iter()
                .map(|block| block[name].as_f64().unwrap())
                .collect()
        };
        assert_eq!(of("trials"), [1.0; 4]);
        assert!(of("begin_s").is_sorted());
    }
    // Forward, backward, backward, forward.
    let begins = |variant: &str| -> Vec<f64> {
        let found = a.iter().find(|r| {
            r["kind"] == "speed" && r["subject"]["variant"] == variant && r["cell"]["batch"] == 1
        });
        let blocks = found.unwrap()["result"]["blocks"].as_array().unwrap();
        blocks
            .iter()
            .map(|b| b["begin_s"].as_f64().unwrap())
            .collect()
    };
    let first: Vec<bool> = begins("bf16")
        .iter()
        .zip(begins("int8"))
        .map(|(a, b)| *a < b)
        .collect();
    assert_eq!(first, [true, false, false, true]);
}

#[test]
fn records_from_elsewhere_are_added_to_only_if_told_and_then_marked() {
    let folder = tempdir().unwrap();
    run(folder.path(), &words(&BENCH.replace("1,2", "1"))).expect(0);
    let path = folder.path().join("out/manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    manifest["environments"][0]["device"]["name"] = "another device".into();
    fs::write(&path, manifest.to_string()).unwrap();
    let before = lines_of(folder.path());
    let refused = run(folder.path(), &words(BENCH)).expect(64);
    for said in ["another device", "--mix"] {
        assert!(refused.error().contains(said), "{}", refused.stderr);
    }
    assert_eq!(lines_of(folder.path()), before);
    run(folder.path(), &words(&format!("{BENCH} --mix"))).expect(0);
    let after = lines_of(folder.path());
    assert_eq!(after.len(), 4);
    for (i, record) in after.iter().enumerate() {
        let place = record.get("environment").and_then(Value::as_u64);
        assert_eq!(place, (i >= before.len()).then_some(1));
    }
}

/// Waits until `condition` holds, for at most a minute.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{what} does not come"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn start(folder: &Path, line: &str) -> Child {
    command(folder, &words(line))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn signal(name: &str, child: &Child) {
    let id = child.id().to_string();
    let status = Command::new("kill").args([name, &id]).status().unwrap();
    assert!(status.success());
}

#[test]
fn signals_that_ask_a_program_to_end_are_as_good_as_ctrl_c() {
    for name in ["-TERM", "-USR1"] {
        let folder = tempdir().unwrap();
        // A cell that has begun is finished, and another is left.
        let three = SLOW.replace("--batch 1,2", "--batch 1,2,3");
        let mut child = start(folder.path(), &three);
        wait_for("the first record", || !lines_of(folder.path()).is_empty());
        signal(name, &child);
        let begin = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{name}");
        assert!((2..6).contains(&lines_of(folder.path()).len()), "{name}");
    }
}

#[test]
fn a_second_ctrl_c_waits_for_nothing() {
    let folder = tempdir().unwrap();
    // The hang answers to no request.
    let mut child = command(folder.path(), &words(SLOW))
        .env("CANDLEPOWER_FAULT", "hang@3")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the run", || {
        folder.path().join("out/records.jsonl").exists()
    });
    std::thread::sleep(Duration::from_secs(1));
    signal("-INT", &child);
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the first ended it");
    signal("-INT", &child);
    let begin = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_folder_that_goes_away_takes_no_record_with_it() {
    let folder = tempdir().unwrap();
    let mut child = command(folder.path(), &words(SLOW))
        .env("TMPDIR", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the first record", || !lines_of(folder.path()).is_empty());
    fs::rename(folder.path().join("out"), folder.path().join("moved")).unwrap();
    let output = child.wait_with_output_and_code();
    assert_eq!(output.0, Some(74), "{}", output.1);
    assert!(output.1.contains("records.jsonl") && output.1.contains("are kept in"));
    let kept = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .expect("nothing is kept");
    // What was measured is in that file, and the same command goes on from it.
    fs::create_dir(folder.path().join("out")).unwrap();
    fs::rename(kept, folder.path().join("out/records.jsonl")).unwrap();
    // One only if the folder went away while that one was on its way to the disk.
    let known = lines_of(folder.path()).len();
    assert!((1..4).contains(&known), "{known}");
    let quick = SLOW.replace("--min-time 1", "--min-time 0");
    let again = run(folder.path(), &words(&quick)).expect(0);
    assert_eq!(again.stderr.matches("on record").count(), known);
    assert_eq!(lines_of(folder.path()).len(), 4);
}

trait Finish {
    /// The exit code and what was said.
    fn wait_with_output_and_code(&mut self) -> (Option<i32>, String);
}

impl Finish for Child {
    fn wait_with_output_and_code(&mut self) -> (Option<i32>, String) {
        use std::io::Read;
        let mut said = String::new();
        self.stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (self.wait().unwrap().code(), said)
    }
}

/// Kills a study at random moments until it is through; `CANDLEPOWER_KILLS` says how often at most.
#[test]
fn a_study_that_is_killed_again_and_again_loses_nothing_and_measures_nothing_twice() {
    let kills: u32 = std::env::var("CANDLEPOWER_KILLS").map_or(8, |kills| {
        kills.parse().expect("CANDLEPOWER_KILLS is no number")
    });
    let line = "study --device cpu --variants bf16,int8 --batch 1,2,3,4 --prompt 8 --gen 4 --min-time 0.05 --trials 4 --warmup 0 \
                --ppl-segments 2 --no-ceilings --out out";
    let mut killed = 0;
    let mut moment = 17_u64;
    while killed < kills {
        let folder = tempdir().unwrap();
        let mut known: Vec<Value> = Vec::new();
        for _ in 0..6.min(kills - killed) {
            let mut child = start(folder.path(), line);
            // Anywhere between the start of the program and the end of the study.
            moment = (moment * 6_364_136_223_846_793_005 % 1_000_003).max(1);
            std::thread::sleep(Duration::from_millis(20 + moment % 1000));
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
            let now = lines_of(folder.path());
            assert_eq!(now[..known.len()], known, "a record was lost");
            known = now;
        }
        run(folder.path(), &words(line)).expect(0);
        let records = lines_of(folder.path());
        assert_eq!(records[..known.len()], known, "a record was lost");
        let mut keys: Vec<String> = records.iter().map(|r| r["key"].to_string()).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), records.len(), "a point was measured twice");
        assert_eq!(records.len(), 2 * (1 + 4));
        assert!(records.iter().all(|r| r["status"] == "ok"));
    }
}
