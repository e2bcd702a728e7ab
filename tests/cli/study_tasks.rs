//! Tasks in a study: the figures of `eval`, resumed, as the axis of the front, and what they cost.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use super::common::{copy_model, number, run, words};

/// Rows whose right answers a small model finds here and there.
fn rows() -> String {
    let row = |i: usize| {
        let query = ["A lamp gives", "Bread is", "Water runs", "The room was"][i % 4];
        let choices = [
            "light",
            "eaten with salt",
            "down the hill",
            "dark",
            "a song",
        ];
        let (first, second) = (choices[i % 5], choices[(i * 3 + 1) % 5]);
        serde_json::json!({"query": query, "choices": [first, second, "zzz"], "gold": i % 3})
    };
    (0..12).map(|i| format!("{}\n", row(i))).collect()
}

/// A folder with a model, two tasks and a group of both.
fn model_folder() -> TempDir {
    let folder = tempdir().unwrap();
    copy_model(folder.path());
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("rows.jsonl", &rows());
    let task = "dataset_path: json\ndataset_kwargs: {data_files: rows.jsonl}\ntest_split: train\n\
                output_type: multiple_choice\ndoc_to_text: query\ndoc_to_choice: choices\ndoc_to_target: gold\n";
    write("one.yaml", &format!("task: one\n{task}"));
    write(
        "two.yaml",
        &format!("task: two\n{task}doc_to_text: 'Q: {{{{query}}}}'\n").replacen(
            "doc_to_text: query\n",
            "",
            1,
        ),
    );
    let group = "group: both\ntask: [one.yaml, two.yaml]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n";
    write("both.yaml", group);
    folder
}

const VARIANTS: &str = "f32,w4a16:g32";
const STUDY: &str = "study --model model --device cpu --min-time 0 --trials 1 --warmup 0 --batch 1,2 --prompt 8 --gen 4 \
                     --no-ppl --no-ceilings --out out --variants f32,w4a16:g32 --tasks both.yaml,rows.jsonl --limit 10";

fn study(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("out/study.json")).unwrap()).unwrap()
}

fn task<'a>(variant: &'a Value, name: &str) -> &'a Value {
    let tasks = variant["tasks"].as_array().unwrap();
    let mut named = tasks.iter().filter(|task| task["name"] == name);
    named
        .next()
        .unwrap_or_else(|| panic!("no {name} in {variant:#}"))
}

#[test]
fn a_study_has_the_figures_of_eval_and_resumes() {
    let folder = model_folder();
    let first = run(folder.path(), &words(STUDY)).expect(0);
    for text in [
        "tasks ± se",
        "of tasks",
        "task error",
        "both, all (acc)",
        "rows (acc)",
        "The 2 tasks within these groups",
        // On the CPU every sum runs in one order whatever runs beside it.
        "under load: answers at batch 2 and in chunks are those given alone",
    ] {
        assert!(first.stdout.contains(text), "{text}:\n{}", first.stdout);
    }
    let found = study(folder.path());
    assert_eq!(found["quality_axis"], "task_error");
    let schemas = run(folder.path(), &["schema"]).expect(0).json();
    let validator = jsonschema::validator_for(&schemas["candlepower.study/1"]).unwrap();
    validator.validate(&found).unwrap_or_else(|e| panic!("{e}"));
    let records = fs::read_to_string(folder.path().join("out/records.jsonl")).unwrap();
    let validator = jsonschema::validator_for(&schemas["candlepower.record/1"]).unwrap();
    for line in records.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        validator
            .validate(&record)
            .unwrap_or_else(|e| panic!("{e}"));
    }
    assert_eq!(records.lines().count(), 2 * (3 + 2));
    assert_eq!(records.matches("\"kind\":\"task\"").count(), 2 * 3);

    for variant in found["variants"].as_array().unwrap() {
        let rows = task(variant, "rows");
        let ways = rows["under_load"].as_array().unwrap();
        assert_eq!(ways.len(), 2, "{rows:#}");
        for way in ways {
            assert_eq!(
                (&way["differing"], &way["documents"]),
                (&0.into(), &2.into())
            );
        }
    }
    fs::create_dir(folder.path().join("copy")).unwrap();
    for name in ["study.json", "records.jsonl"] {
        let of = |run: &str| folder.path().join(run).join(name);
        fs::copy(of("out"), of("copy")).unwrap();
    }
    let same = run(folder.path(), &words("compare out copy --json"))
        .expect(0)
        .json();
    let scores = same["points"].as_array().unwrap().iter();
    let scores: Vec<&Value> = scores.filter(|p| p["metric"] == "task_score").collect();
    assert_eq!(scores.len(), 2 * 3);
    // The same answers to ten documents at most leave room for more than the margin.
    let unsure = |point: &&Value| point["verdict"] == "inconclusive";
    assert!(scores.iter().all(unsure), "{scores:#?}");
    let manifest = fs::read(folder.path().join("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(
        manifest["plan"]["tasks"]["groups"],
        serde_json::json!(["both"])
    );
    assert_eq!(manifest["plan"]["tasks"]["limit"], 10);
    assert_eq!(manifest["seeds"]["examples of tasks"], 1234);
    let csv = fs::read_to_string(folder.path().join("out/tasks.csv")).unwrap();
    // The group, its tasks and the rows with acc and acc_norm, and the average.
    let of_w4 = csv.lines().filter(|line| line.contains(",w4a16:g32,"));
    assert_eq!(of_w4.count(), 1 + 2 * 3 + 1, "{csv}");
    let exported = run(folder.path(), &words("export out --format tasks-csv")).expect(0);
    assert_eq!(exported.stdout, csv);

    let line = format!(
        "eval --model model --device cpu --tasks both.yaml,rows.jsonl --limit 10 --json --variants {VARIANTS}"
    );
    let eval = run(folder.path(), &words(&line)).expect(0).json();
    for (place, variant) in found["variants"].as_array().unwrap().iter().enumerate() {
        let scored = &eval["variants"][place]["results"];
        for name in ["both", "one", "two", "rows"] {
            let task = task(variant, name);
            let acc = number(&scored[name], "/acc,none");
            assert!((number(task, "/value") - acc).abs() < 1e-12, "{name}");
            let stderr = number(&scored[name], "/acc_stderr,none");
            assert!((number(task, "/stderr") - stderr).abs() < 1e-12, "{name}");
        }
        let norm = number(&scored["rows"], "/acc_norm,none");
        assert_eq!(number(task(variant, "rows"), "/figures/1/value"), norm);
    }
    let against = &eval["recovery"][0];
    let w4 = &found["variants"][1];
    for name in ["both", "one", "two", "rows"] {
        let (own, theirs) = (task(w4, name), &against["tasks"][name]);
        for (field, theirs) in [("won", "won"), ("lost", "lost"), ("p_value", "mcnemar_p")]
            .map(|(own, name)| (own, &theirs[name]))
        {
            assert_eq!(&own[field], theirs, "{name}: {field}");
        }
        assert_eq!(
            own["versus_base"]["difference"], theirs["difference"],
            "{name}"
        );
    }
    let recovery = number(w4, "/task_average/versus_base/recovery_percent");
    assert!((recovery - 100.0 * number(against, "/average_recovery")).abs() < 1e-9);

    let again = run(folder.path(), &words(STUDY)).expect(0);
    assert_eq!(
        again.stderr.matches("on record").count(),
        10,
        "{}",
        again.stderr
    );
    let after = fs::read_to_string(folder.path().join("out/records.jsonl")).unwrap();
    assert_eq!(after, records, "something was measured anew");
    assert_eq!(study(folder.path())["variants"], found["variants"]);
    // Another right answer is another question, although the model reads the same.
    let rows = rows().replacen("\"gold\":0", "\"gold\":1", 1);
    fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
    let changed = run(folder.path(), &words(STUDY)).expect(0);
    assert_eq!(
        changed.stderr.matches("on record").count(),
        4,
        "{}",
        changed.stderr
    );
}

#[test]
fn the_axis_and_the_goal_can_be_chosen() {
    let folder = model_folder();
    let path = folder.path();
    let line = "study --model model --device cpu --min-time 0 --trials 1 --warmup 0 --batch 1 --prompt 8 --gen 4 \
                --no-ceilings --no-kl --no-load-check --ppl-context 64 --ppl-segments 2 --text text.txt --out out \
                --variants f32,w4a16:g32 --tasks one.yaml --limit 10 --quality-axis tasks --at-recovery 1 --for-tokens 5000 --json";
    super::common::write_text(path);
    let found = run(path, &words(line)).expect(0).json();
    assert_eq!(found["quality_axis"], "task_error");
    assert_eq!(found["goal"]["of"], "task_average");
    let fastest = number(&found, "/goal/fastest/cost");
    let costs: Vec<f64> = found["variants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variant| {
            let rate = number(variant, "/speed/0/decode_tokens_per_second");
            let seconds = number(variant, "/speed/0/goal_seconds");
            assert!((seconds - 5000.0 / rate).abs() < 1e-9 * seconds);
            seconds
        })
        .collect();
    assert_eq!(fastest, costs[0].min(costs[1]));

    let strict = run(path, &words("report out --at-recovery 1000 --json"))
        .expect(0)
        .json();
    assert_eq!(
        strict["quality_axis"], "task_error",
        "the report keeps the axis"
    );
    assert_eq!(
        strict["goal"]["tokens"], 5000,
        "and what is not given of the goal"
    );
    assert!(strict["goal"]["fastest"].is_null());
    assert!(strict["variants"][0]["speed"][0]["goal_seconds"].is_null());
    let text = run(path, &words("report out --quality-axis ppl --json"))
        .expect(0)
        .json();
    assert_eq!(text["quality_axis"], "perplexity");
    let page = fs::read_to_string(path.join("out/report.html")).unwrap();
    assert!(page.contains("<h3>Tasks</h3>") && page.contains("one (acc)"));
    let csv = fs::read_to_string(path.join("out/study.csv")).unwrap();
    assert!(csv.contains("task_recovery_percent") && csv.contains("goal_seconds"));
    let card = run(path, &words("export out --format model-card"))
        .expect(0)
        .stdout;
    assert!(
        card.contains("| one (acc, %)") && card.contains("| Recovery, one |"),
        "{card}"
    );
}

#[test]
fn what_does_not_go_together_is_said_before_anything_is_measured() {
    let folder = model_folder();
    let path = folder.path();
    fs::write(
        path.join("bad.jsonl"),
        "{\"query\": \"a\", \"choices\": [\"b\"], \"gold\": 2}\n",
    )
    .unwrap();
    for (flags, code, said) in [
        ("--quality-axis tasks", 2, "--tasks"),
        ("--limit 3", 2, "--tasks"),
        ("--tasks rows.jsonl --engine candle", 2, "--engine candle"),
        ("--tasks rows.jsonl --weights dummy", 2, "--weights dummy"),
        (
            "--tasks rows.jsonl --no-ppl --quality-axis ppl",
            2,
            "--no-ppl",
        ),
        ("--tasks arc_eazy", 2, "arc_easy"),
        (
            "--tasks rows.jsonl --max-length 100000",
            64,
            "--max-length 100000",
        ),
        ("--tasks bad.jsonl", 65, "the label 2"),
    ] {
        let line = format!("study --model model --device cpu --out out --no-ppl {flags}");
        let line = line.replace("--no-ppl --quality-axis tasks", "--quality-axis tasks");
        let failed = run(path, &words(&line)).expect(code);
        assert!(failed.stderr.contains(said), "{flags}: {}", failed.stderr);
        assert!(!path.join("out").exists(), "{flags}");
    }
}
