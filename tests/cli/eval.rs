//! Tasks from outside: tables, JSON, logs, going on after a stop, and bad input.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::common::{copy_model, fits_a_terminal, keeps_to_schema, number, run, words};

const ROWS: &str = r#"{"query": "A lamp gives", "choices": ["light", "bread and salt"], "gold": 0}
{"query": "Bread is", "choices": ["eaten", "lit", "sung"], "gold": 2}
{"query": "Water runs", "choices": ["down", "up"], "gold": 0}
"#;

/// A folder with a model and a task's rows in it.
fn model_folder() -> TempDir {
    let folder = tempdir().unwrap();
    copy_model(folder.path());
    fs::write(folder.path().join("rows.jsonl"), ROWS).unwrap();
    folder
}

const EVAL: &str = "eval --model model --variant f32 --device cpu --tasks";

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn results_have_the_layout_of_lm_eval() {
    let folder = model_folder();
    let line = format!("{EVAL} rows.jsonl --json --log-samples log.jsonl --limit 2");
    let found = run(folder.path(), &words(&line)).expect(0).json();
    keeps_to_schema(&found, "candlepower.evaluation/1");
    let acc = number(&found, "/results/rows/acc,none");
    assert!((0.0..=1.0).contains(&acc));
    number(&found, "/results/rows/acc_norm_stderr,none");
    assert_eq!(found["n-samples"]["rows"]["original"], 3);
    assert_eq!(found["n-samples"]["rows"]["effective"], 2);
    assert_eq!(found["n-shot"]["rows"], 0);
    assert_eq!(
        found["higher_is_better"]["rows"],
        json!({"acc": true, "acc_norm": true})
    );
    assert_eq!(found["config"]["limit"], 2.0);

    let log = lines(&folder.path().join("log.jsonl"));
    assert_eq!(log.len(), 2);
    assert_eq!(log[1]["task"], "rows");
    assert_eq!(log[1]["doc_id"], 1);
    assert_eq!(log[1]["loglikelihood"].as_array().unwrap().len(), 3);
    assert_eq!(log[1]["is_greedy"].as_array().unwrap().len(), 3);
    let mean = log.iter().map(|line| number(line, "/acc")).sum::<f64>() / 2.0;
    assert_eq!(mean, acc);
    assert!(
        !log[0].to_string().contains("lamp"),
        "texts were not asked for"
    );
    assert!(!folder.path().join("log.jsonl.part").exists());

    let table = run(
        folder.path(),
        &words(&format!("{EVAL} rows.jsonl --limit 0.5")),
    )
    .expect(0);
    assert!(
        table.stdout.contains("2 of 3") && table.stdout.contains("acc_norm"),
        "{}",
        table.stdout
    );
}

#[test]
fn a_yaml_task_with_examples_runs_and_its_log_can_hold_texts() {
    let folder = model_folder();
    let task = "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files: {train: rows.jsonl, test: rows.jsonl}\n\
                training_split: train\ntest_split: test\noutput_type: multiple_choice\n\
                doc_to_text: \"Q: {{query}}\\nA:\"\ndoc_to_choice: choices\ndoc_to_target: gold\n\
                metric_list:\n  - {metric: acc}\n  - {metric: acc_bytes}\n  - {metric: acc_mutual_info}\n";
    fs::write(folder.path().join("mine.yaml"), task).unwrap();
    let line =
        format!("{EVAL} mine.yaml --num-fewshot 2 --json --log-samples log.jsonl --log-texts");
    let found = run(folder.path(), &words(&line)).expect(0).json();
    assert_eq!(found["n-shot"]["mine"], 2);
    number(&found, "/results/mine/acc_mutual_info,none");
    let log = lines(&folder.path().join("log.jsonl"));
    let context = log[0]["requests"][0]["context"].as_str().unwrap();
    assert_eq!(context.matches("Q: ").count(), 3, "{context}");
    assert!(context.ends_with("Q: A lamp gives\nA:"));
    // Two choices, with and without their context.
    assert_eq!(log[0]["loglikelihood"].as_array().unwrap().len(), 4);
    assert_eq!(log[1]["target"], 2);
}

#[test]
fn free_text_is_held_against_references() {
    let folder = model_folder();
    let rows = "{\"prompt\": \"Say yes:\", \"reference\": \"yes\"}\n{\"prompt\": \"And no:\", \"reference\": [\"no\", \"nay\"]}\n";
    fs::write(folder.path().join("own.jsonl"), rows).unwrap();
    let task = "include: own.jsonl.yaml\ntask: short\ngeneration_kwargs: {until: [\"\\n\"], max_gen_toks: 4}\n";
    fs::write(folder.path().join("short.yaml"), task).unwrap();
    let base = "dataset_path: json\ndataset_kwargs: {data_files: own.jsonl}\ntest_split: train\ndoc_to_text: prompt\n\
                doc_to_target: reference\nmetric_list: [{metric: exact_match}, {metric: f1}, {metric: rougeL}]\n";
    fs::write(folder.path().join("own.jsonl.yaml"), base).unwrap();
    let line = format!("{EVAL} short.yaml --json --log-samples log.jsonl");
    let found = run(folder.path(), &words(&line)).expect(0).json();
    for metric in ["exact_match", "f1", "rougeL"] {
        let value = number(&found, &format!("/results/short/{metric},none"));
        assert!((0.0..=1.0).contains(&value));
    }
    assert!(lines(&folder.path().join("log.jsonl"))[0]["resps"][0].is_string());
}

#[test]
fn a_run_that_was_stopped_goes_on() {
    let folder = model_folder();
    let line = format!("{EVAL} rows.jsonl --json --log-samples log.jsonl --force");
    let whole = run(folder.path(), &words(&line)).expect(0).json();
    let log = lines(&folder.path().join("log.jsonl"));
    // What a stopped run leaves: answers under its key. One of them is made up, so that it shows.
    let again = run(folder.path(), &words(&line)).expect(0);
    assert!(
        !again.stderr.contains("answered before"),
        "{}",
        again.stderr
    );
    let part = folder.path().join("log.jsonl.part");
    fs::write(&part, "{\"key\":\"another run\",\"task\":\"rows\",\"doc_id\":0,\"loglikelihood\":[-1.0,-2.0],\"is_greedy\":[true,false]}\n{\"key\": \"torn").unwrap();
    let after = run(folder.path(), &words(&line)).expect(0);
    assert_eq!(after.json()["results"], whole["results"]);
    assert_eq!(lines(&folder.path().join("log.jsonl")), log);
    assert!(!part.exists());
}

#[test]
fn variants_are_held_against_the_first() {
    let folder = model_folder();
    let run_of = |variants: &str, json: &str| {
        let line =
            "eval --model model --device cpu --tasks rows.jsonl --log-samples log.jsonl --variants";
        run(
            folder.path(),
            &words(&format!("{line} {variants} --force {json}")),
        )
        .expect(0)
    };
    let found = run_of("f32,bf16,w4a16:g32", "--json").json();
    keeps_to_schema(&found, "candlepower.evaluations/1");
    assert_eq!(found["variants"].as_array().unwrap().len(), 3);
    let against = &found["recovery"][1];
    assert_eq!(
        (&against["variant"], &against["base"]),
        (&json!("w4a16:g32"), &json!("f32"))
    );
    let task = &against["tasks"]["rows"];
    let (base, value) = (number(task, "/base"), number(task, "/value"));
    assert!((number(task, "/difference") - (value - base)).abs() < 1e-12);
    let (won, lost) = (number(task, "/won"), number(task, "/lost"));
    assert!(((won - lost) / 3.0 - (value - base)).abs() < 1e-12);
    assert!(number(task, "/mcnemar_p") > 0.0);
    let log = lines(&folder.path().join("log.jsonl"));
    assert_eq!(log.len(), 9);
    assert_eq!(log[8]["variant"], "w4a16:g32");

    let table = run_of("f32,int8", "").stdout;
    assert!(table.contains("int8 against f32: recovery"), "{table}");
    fits_a_terminal(&table);
    for head in ["± se", "difference [95 % CI]", "won : lost", "p (McNemar)"] {
        assert!(table.contains(head), "{head}: {table}");
    }
}

#[test]
fn a_log_that_is_there_is_kept_unless_it_is_to_be_replaced() {
    let folder = model_folder();
    let log = folder.path().join("logs/log.jsonl");
    let line = format!("{EVAL} rows.jsonl --limit 1 --log-samples logs/log.jsonl");
    // Its folder is made.
    run(folder.path(), &words(&line)).expect(0);
    assert_eq!(lines(&log).len(), 1);
    let line = line.replace("--limit 1", "--limit 2");
    let refused = run(folder.path(), &words(&line)).expect(2);
    for part in ["logs/log.jsonl", "is there already", "--force"] {
        assert!(refused.error().contains(part), "{}", refused.error());
    }
    assert_eq!((refused.stdout.as_str(), lines(&log).len()), ("", 1));
    run(folder.path(), &words(&format!("{line} --force"))).expect(0);
    assert_eq!(lines(&log).len(), 2);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        // As private as any file that is written here, not more.
        assert_eq!(mode(&log), mode(&folder.path().join("rows.jsonl")));
    }
    let folder_as_log = line.replace("logs/log.jsonl", "logs --force");
    let refused = run(folder.path(), &words(&folder_as_log)).expect(2);
    assert!(
        refused.error().contains("is no file"),
        "{}",
        refused.error()
    );
    run(folder.path(), &words(&format!("{EVAL} rows.jsonl --force"))).expect(2);
}

/// Runs a line that must fail with `code`, say all of `said`, and leave no result.
fn fails(folder: &Path, line: &str, code: i32, said: &[&str]) {
    let line = format!("{line} --log-samples log.jsonl");
    let run = run(folder, &words(&line)).expect(code);
    for said in said {
        assert!(
            run.error().contains(said),
            "'{line}' does not say '{said}': {}",
            run.error()
        );
    }
    assert_eq!(run.stdout, "", "'{line}' prints a result");
    assert!(!folder.join("log.jsonl").exists() && !folder.join("log.jsonl.part").exists());
}

#[test]
fn bad_input_is_named() {
    let folder = model_folder();
    let path = folder.path();
    let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
    fails(
        path,
        &format!("{EVAL} arc_eazy"),
        2,
        &["arc_eazy", "arc_easy"],
    );
    fails(path, &format!("{EVAL} none.yaml"), 65, &["none.yaml"]);
    fails(
        path,
        &format!("{EVAL} arc_easy"),
        65,
        &["ai2_arc", "HF_HUB_OFFLINE"],
    );
    write(
        "bad.jsonl",
        "{\"query\": \"a\", \"choices\": [\"b\"], \"gold\": 0}\n{\"query\": \n",
    );
    fails(
        path,
        &format!("{EVAL} bad.jsonl"),
        65,
        &["bad.jsonl", "line 2"],
    );
    for (row, said) in [
        (
            "{\"query\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 2}",
            "document 0: the label 2 is none of 2 choices",
        ),
        (
            "{\"query\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": -1}",
            "the label -1",
        ),
        (
            "{\"query\": \"a\", \"choices\": [], \"gold\": 0}",
            "doc_to_choice: there are no choices",
        ),
        (
            "{\"query\": \"a\", \"choices\": [\"\"], \"gold\": 0}",
            "a choice is empty",
        ),
        (
            "{\"query\": 7.5, \"choices\": [\"b\"], \"gold\": 0}",
            "doc_to_text",
        ),
        ("{\"sentence\": \"a\"}", "{sentence}"),
    ] {
        write("bad.jsonl", row);
        fails(path, &format!("{EVAL} bad.jsonl"), 65, &["bad.jsonl", said]);
    }
    let task = "dataset_path: json\ndataset_kwargs: {data_files: rows.jsonl}\ntest_split: train\noutput_type: multiple_choice\n\
                doc_to_choice: choices\ndoc_to_target: gold\n";
    for (key, said) in [
        (
            "doc_to_text: '{{qery}}'",
            "bad: document 0: doc_to_text: undefined",
        ),
        ("doc_to_text: '{{query'", "doc_to_text"),
        (
            "doc_to_text: query\nprocess_docs: !function utils.f",
            "process_docs",
        ),
        (
            "doc_to_text: query\nnum_shots: 1",
            "num_shots: this key is not supported",
        ),
        (
            "doc_to_text: query\nmetric_list: [{metric: bleu}]",
            "'bleu'",
        ),
        (
            "doc_to_text: query\nfewshot_split: dev\nnum_fewshot: 1",
            "no split 'dev'",
        ),
        ("doc_to_text: [", "bad YAML"),
    ] {
        write("bad.yaml", &format!("{task}{key}\n"));
        fails(path, &format!("{EVAL} bad.yaml"), 65, &["bad.yaml", said]);
    }
    fails(
        path,
        &format!("{EVAL} rows.jsonl --num-fewshot 9"),
        65,
        &["9 examples are wanted, of 3 rows"],
    );
    fails(
        path,
        &format!("{EVAL} rows.jsonl --max-length 100000"),
        64,
        &["--max-length 100000", "256"],
    );
    run(path, &words(&format!("{EVAL} rows.jsonl --limit 0"))).expect(2);
}
