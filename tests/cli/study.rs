//! The main job: four files, their schemas, resuming.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use super::common::{Run, copy_model, fixture, number, run, words, write_text};

const SMALL: &str = "study --device cpu --min-time 0 --trials 1 --warmup 0 --batch 1,2 --prompt 8 --gen 4 --ppl-segments 2 --out out";

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn assert_valid(schema: &Value, value: &Value, what: &str) {
    let validator = jsonschema::validator_for(schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{what}: {}", errors.join("\n"));
    // A schema that takes anything would prove nothing.
    assert!(
        !validator.is_valid(&serde_json::json!({"schema": 1})),
        "{what}: the schema takes anything"
    );
}

fn assert_summary(summary: &Value, what: &str) {
    for key in ["mean", "p50", "min", "max", "n"] {
        assert!(summary[key].is_number(), "{what}.{key} in {summary}");
    }
    for key in ["p90", "p95", "p99"] {
        let there = summary
            .get(key)
            .unwrap_or_else(|| panic!("{what}.{key} in {summary}"));
        assert!(
            there.is_null() || there.is_number(),
            "{what}.{key} in {summary}"
        );
    }
    let n = summary["n"].as_u64().unwrap();
    assert!(
        n >= 100 || summary["p99"].is_null(),
        "{what}: p99 of {n} samples"
    );
}

fn assert_complete(study: &Value) {
    for key in ["schema", "environment", "model", "command", "variants"] {
        assert!(!study[key].is_null(), "{key}");
    }
    for variant in study["variants"].as_array().unwrap() {
        let name = variant["name"].as_str().unwrap();
        for key in ["bits", "group_size", "symmetric", "activations", "method"] {
            assert!(variant["scheme"].get(key).is_some(), "{name}: scheme.{key}");
        }
        assert!(
            number(variant, "/weight_bytes") >= number(variant, "/linear_bytes"),
            "{name}"
        );
        assert!(variant["on_pareto_front"].is_boolean(), "{name}");
        let perplexity = &variant["perplexity"];
        for key in [
            "protocol",
            "context",
            "value",
            "stderr",
            "nll_sum",
            "tokens_scored",
            "segments",
            "delta_vs_base",
        ] {
            assert!(perplexity.get(key).is_some(), "{name}: perplexity.{key}");
        }
        let speeds = variant["speed"].as_array().unwrap();
        assert!(!speeds.is_empty(), "{name}");
        for speed in speeds {
            for key in ["batch", "prompt_tokens", "generated_tokens"] {
                assert!(speed[key].is_u64(), "{name}: speed.{key}");
            }
            for key in ["prefill_tokens_per_second", "decode_tokens_per_second"] {
                assert!(
                    speed[key].as_f64().is_some_and(|x| x > 0.0),
                    "{name}: speed.{key}"
                );
            }
            for key in ["ttft_ms", "itl_ms", "e2e_ms"] {
                assert_summary(&speed[key], &format!("{name}: {key}"));
            }
            for part in ["weights", "kv", "activations", "total"] {
                assert!(
                    number(speed, &format!("/memory/{part}/predicted_bytes")) > 0.0,
                    "{name}: {part}"
                );
            }
            // Without NVML there is a reason, never a zero.
            assert!(
                speed["energy"]["reason"].is_string(),
                "{name}: {}",
                speed["energy"]
            );
        }
    }
}

/// Quotes end an address, and so does whatever else cannot be in one; the names of XML languages are loaded by nobody.
fn loads(html: &str) -> Vec<&str> {
    let ends = |c: char| c.is_whitespace() || "\"'<>)".contains(c);
    html.match_indices("http")
        .map(|(at, _)| html[at..].split(ends).next().unwrap())
        .filter(|url| url.starts_with("http://") || url.starts_with("https://"))
        .filter(|url| !url.starts_with("http://www.w3.org/"))
        .collect()
}

fn assert_opens_offline(html: &str) {
    assert_eq!(loads(html), Vec::<&str>::new());
    for tag in ["<link", "<script src", "<img src=\"/", "@import", "url(//"] {
        assert!(!html.contains(tag), "{tag}");
    }
    assert!(html.contains("<svg") && html.trim_end().ends_with("</html>"));
}

#[test]
fn every_format_of_the_cache_is_a_row_of_its_own() {
    let folder = tempdir().unwrap();
    let line = "study --device cpu --min-time 0 --trials 1 --warmup 0 --batch 2 --prompt 8 --gen 4 --ppl-segments 2 \
                --variants bf16 --kv-cache auto,int8,fp8 --no-ceilings --out out";
    let first = run(folder.path(), &words(line)).expect(0);
    for label in ["bf16 · kv int8", "bf16 · kv fp8"] {
        assert!(first.stdout.contains(label), "{}", first.stdout);
    }
    let out = folder.path().join("out");
    let schemas = run(folder.path(), &["schema"]).expect(0).json();
    let study = json_of(&out.join("study.json"));
    assert_valid(&schemas["candlepower.study/1"], &study, "study.json");
    let variants = study["variants"].as_array().unwrap();
    // 4 layers, 2 heads, 2 slots of 12 positions, keys and values of 64 numbers each.
    let vectors = 4 * 2 * 2 * 12 * 2;
    for (variant, (format, bytes)) in variants.iter().zip([
        (Value::Null, 64 * 4),
        (Value::from("int8"), 64 + 4),
        (Value::from("fp8"), 64 + 4),
    ]) {
        assert_eq!(variant["kv_cache"], format);
        for amount in ["predicted_bytes", "measured_bytes"] {
            let kv = number(&variant["speed"][0], &format!("/memory/kv/{amount}"));
            assert_eq!(kv, f64::from(vectors * bytes), "{format}: {amount}");
        }
        let delta = &variant["perplexity"]["delta_vs_base"];
        assert_eq!(delta.is_null(), format.is_null(), "{variant}");
    }
    let values: Vec<f64> = variants
        .iter()
        .map(|v| number(v, "/perplexity/value"))
        .collect();
    assert!(
        values[0] != values[1] && values[1] != values[2],
        "{values:?}"
    );
    let records = fs::read_to_string(out.join("records.jsonl")).unwrap();
    assert_eq!(records.lines().count(), 3 * 2);
    for line in records.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_valid(&schemas["candlepower.record/1"], &record, "records.jsonl");
    }
    let csv = fs::read_to_string(out.join("study.csv")).unwrap();
    assert!(csv.lines().next().unwrap().contains("kv_cache"), "{csv}");
    let again = run(folder.path(), &words(line)).expect(0);
    assert_eq!(again.stderr.matches("on record").count(), 6);
}

#[test]
fn a_study_writes_files_that_keep_to_their_schemas_and_resumes() {
    let folder = tempdir().unwrap();
    let first = run(folder.path(), &words(SMALL)).expect(0);
    assert!(first.stdout.contains("w4a16"), "{}", first.stdout);
    assert!(
        first.stderr.to_lowercase().contains("cpu"),
        "the device is not named: {}",
        first.stderr
    );
    let out = folder.path().join("out");
    let mut names: Vec<String> = fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "base-logits",
            "manifest.json",
            "records.jsonl",
            "report.html",
            "study.csv",
            "study.json"
        ]
    );

    let schemas = run(folder.path(), &["schema"]).expect(0).json();
    let study = json_of(&out.join("study.json"));
    assert_valid(&schemas["candlepower.study/1"], &study, "study.json");
    let manifest = json_of(&out.join("manifest.json"));
    assert_valid(
        &schemas["candlepower.manifest/1"],
        &manifest,
        "manifest.json",
    );
    assert_complete(&study);
    let variants: Vec<&str> = study["variants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(variants, ["bf16", "int8", "w4a16"]);
    let records = fs::read_to_string(out.join("records.jsonl")).unwrap();
    assert_eq!(records.lines().count(), 3 * (1 + 2));
    for line in records.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_valid(&schemas["candlepower.record/1"], &record, "records.jsonl");
    }
    let csv = fs::read_to_string(out.join("study.csv")).unwrap();
    assert!(csv.lines().count() > 6, "{csv}");
    let columns = csv.lines().next().unwrap().split(',').count();
    assert!(columns > 5, "{csv}");
    assert_opens_offline(&fs::read_to_string(out.join("report.html")).unwrap());

    let again = run(folder.path(), &words(SMALL)).expect(0);
    assert_eq!(
        fs::read_to_string(out.join("records.jsonl")).unwrap(),
        records,
        "something was measured anew"
    );
    assert_eq!(
        again.stderr.matches("on record").count(),
        9,
        "{}",
        again.stderr
    );
    assert_eq!(
        json_of(&out.join("study.json"))["variants"],
        study["variants"]
    );

    let report = run(folder.path(), &["report", "out", "--json"])
        .expect(0)
        .json();
    assert_eq!(report["variants"], study["variants"]);
    assert_eq!(
        report["command"],
        json_of(&out.join("study.json"))["command"]
    );
}

#[test]
fn a_line_that_was_half_written_is_measured_again() {
    let folder = tempdir().unwrap();
    run(folder.path(), &words(SMALL)).expect(0);
    let path = folder.path().join("out/records.jsonl");
    let records = fs::read_to_string(&path).unwrap();
    fs::write(&path, &records[..records.len() - 40]).unwrap();
    run(folder.path(), &words(SMALL)).expect(0);
    let after = fs::read_to_string(&path).unwrap();
    let whole = after
        .lines()
        .filter(|line| serde_json::from_str::<Value>(line).is_ok())
        .count();
    assert_eq!(whole, records.lines().count());
    let kept = records.trim_end().rfind('\n').unwrap();
    assert_eq!(after[..kept], records[..kept], "what was whole is kept");
}

/// The first example of a study of one's own model.
fn example(folder: &Path, model: &str) -> Run {
    write_text(folder);
    let line = format!(
        "study --model {model} --variants bf16,int8,w4a16 --batch 1,4 --prompt 64 --gen 32 --text text.txt --ppl-context 128 \
         --ppl-segments 4 --out out --device cpu --trials 1 --min-time 0 --warmup 0"
    );
    run(folder, &words(&line))
}

#[test]
fn a_study_of_a_folder_and_a_text_file_is_complete() {
    let folder = tempdir().unwrap();
    copy_model(folder.path());
    example(folder.path(), "model").expect(0);
    let study = json_of(&folder.path().join("out/study.json"));
    assert_complete(&study);
    let variants = study["variants"].as_array().unwrap();
    assert!(
        variants[0]["perplexity"]["delta_vs_base"].is_null(),
        "the base has no difference"
    );
    for variant in variants {
        assert_eq!(variant["perplexity"]["tokens_scored"], 4 * 127);
        assert_eq!(variant["speed"].as_array().unwrap().len(), 2);
    }
    for variant in &variants[1..] {
        let delta = &variant["perplexity"]["delta_vs_base"];
        let between =
            number(variant, "/perplexity/value") - number(&variants[0], "/perplexity/value");
        assert!(
            (number(delta, "/value") - between).abs() < 1e-6 * between.abs().max(1.0),
            "{delta}"
        );
        assert!(number(delta, "/ci95_low") <= number(delta, "/ci95_high"));
    }
    // K is 128 or 160 here, so layers get groups of 128 and 32.
    assert_eq!(
        variants[2]["scheme"]["groups_used"]
            .as_object()
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        ["128", "32"]
    );
    let bytes = |i: usize| number(&variants[i], "/linear_bytes");
    assert!(
        bytes(1) < 0.52 * bytes(0) && bytes(2) < 0.29 * bytes(0),
        "weights are stored packed"
    );
}

#[test]
fn two_models_are_compared_in_one_study() {
    let folder = tempdir().unwrap();
    write_text(folder.path());
    let (a, b) = (fixture("tiny-llama"), fixture("tiny-qwen3"));
    let line = format!(
        "study --model {},{} --variants bf16,int8 --batch 1 --prompt 8 --gen 4 --text text.txt --ppl-context 64 --ppl-segments 2 \
         --out out --device cpu --trials 1 --min-time 0 --warmup 0",
        a.display(),
        b.display()
    );
    run(folder.path(), &words(&line)).expect(0);
    let study = json_of(&folder.path().join("out/study.json"));
    assert_eq!(study["variants"].as_array().unwrap().len(), 4);
    let bases = study["variants"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|v| v["base"] == true)
        .count();
    assert_eq!(bases, 2, "each model's first variant is its base");
}
