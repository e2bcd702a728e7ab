//! Ctrl-C in the middle of a study.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::tempdir;

use super::common::{command, run, words};

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
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the first timed point", || finished() >= 2);
    let begin = Instant::now();
    interrupt(&child);
    let status = child.wait().unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "it took {:?} to end",
        begin.elapsed()
    );
    assert_eq!(status.code(), Some(130));
    let kept = fs::read_to_string(&records).unwrap();
    assert!((2..6).contains(&finished()), "{} points", finished());
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
