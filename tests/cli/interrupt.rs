//! Ctrl-C in the middle of a study.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::tempdir;

use super::common::{command, copy_model, run, words};

const LONG: &str = "study --device cpu --variants bf16,int8 --batch 1,2 --prompt 8 --gen 8 --ppl-segments 2 --trials 3 --warmup 0 \
                    --min-time 2 --out out";

/// Waits until `condition` holds, for at most a minute.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{what} does not come"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn interrupt(child: &Child) {
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on() {
    let folder = tempdir().unwrap();
    let records = folder.path().join("out/records.jsonl");
    let finished = || {
        fs::read_to_string(&records)
            .unwrap_or_default()
            .matches('\n')
            .count()
    };
    let mut child = command(folder.path(), &words(LONG))
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.path().join("said")).unwrap())
        .spawn()
        .unwrap();
    wait_for("the quality of both variants", || finished() >= 2);
    // In the midst of the four seconds of the first cell.
    std::thread::sleep(Duration::from_millis(500));
    let begun = finished();
    let begin = Instant::now();
    interrupt(&child);
    let status = child.wait().unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "it took {:?} to end",
        begin.elapsed()
    );
    assert_eq!(status.code(), Some(130));
    let kept = fs::read_to_string(&records).unwrap();
    let shown = fs::read_to_string(folder.path().join("said")).unwrap();
    assert!(shown.contains("finishing the cell at hand"), "{shown}");
    // Both variants take turns at a cell.
    let now = finished();
    assert_eq!(
        now,
        begun + 2,
        "the cell at hand is finished, and none begun"
    );
    assert!(
        kept.lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "a half-written record"
    );
    for name in ["study.json", "study.csv", "report.html"] {
        assert!(
            !folder.path().join("out").join(name).exists(),
            "{name} looks like a finished study"
        );
    }

    let quick = LONG.replace("--min-time 2", "--min-time 0");
    let again = run(folder.path(), &words(&quick)).expect(0);
    let all = fs::read_to_string(&records).unwrap();
    assert!(all.starts_with(&kept), "finished points are measured anew");
    assert_eq!(all.lines().count(), 6);
    assert_eq!(
        again.stderr.matches("on record").count(),
        kept.lines().count(),
        "{}",
        again.stderr
    );
}

#[test]
fn ctrl_c_keeps_what_tasks_were_answered() {
    const ROWS: usize = 1500;
    let folder = tempdir().unwrap();
    copy_model(folder.path());
    let row = |i: usize| {
        format!(
            "{{\"query\": \"Lamp {i} gives\", \"choices\": [\"light\", \"a sound\"], \"gold\": {}}}\n",
            i % 2
        )
    };
    let path = folder.path().join("rows.jsonl");
    fs::write(path, (0..ROWS).map(row).collect::<String>()).unwrap();
    let line =
        "eval --model model --variant f32 --device cpu --tasks rows.jsonl --json --log-samples";
    let part = folder.path().join("log.jsonl.part");
    let mut child = command(folder.path(), &words(&format!("{line} log.jsonl")))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the first answer", || {
        fs::metadata(&part).is_ok_and(|m| m.len() > 0)
    });
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!folder.path().join("log.jsonl").exists(), "half a log");

    let again = run(folder.path(), &words(&format!("{line} log.jsonl"))).expect(0);
    let known = again
        .stderr
        .lines()
        .find_map(|line| line.strip_suffix(" documents were answered before"));
    let known: usize = known.expect("nothing was kept").parse().unwrap();
    assert!((1..ROWS).contains(&known));
    assert!(!part.exists());
    let whole = run(folder.path(), &words(&format!("{line} whole.jsonl"))).expect(0);
    assert_eq!(again.json()["results"], whole.json()["results"]);
    let log = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(log("log.jsonl"), log("whole.jsonl"));
}
