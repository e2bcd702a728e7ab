//! The smaller commands.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::tempdir;

use super::common::{FIXTURES, copy_model, fixture, number, run, words, write_text};

#[test]
fn perplexity_comes_with_all_that_it_takes_to_recompute_it() {
    let folder = tempdir().unwrap();
    let ppl = run(
        folder.path(),
        &words("ppl --variant f32 --device cpu --segments 2 --json"),
    )
    .expect(0)
    .json();
    assert_eq!(ppl["protocol"], "gptq");
    assert_eq!(
        (ppl["segments"].as_u64(), ppl["context"].as_u64()),
        (Some(2), Some(256))
    );
    assert_eq!(
        (
            number(&ppl, "/tokens_scored"),
            number(&ppl, "/tokens_total")
        ),
        (510.0, 13273.0)
    );
    let value = (number(&ppl, "/nll_sum") / number(&ppl, "/tokens_scored")).exp();
    assert!((number(&ppl, "/value") - value).abs() < 1e-9 * value);
    assert!(number(&ppl, "/stderr") > 0.0 && number(&ppl, "/bits_per_byte") > 0.0);
    let plain = run(
        folder.path(),
        &words("ppl --variant f32 --device cpu --segments 2"),
    )
    .expect(0);
    assert!(
        plain.stdout.contains(&format!("{value:.4}")),
        "{}",
        plain.stdout
    );
}

/// Where the protocol's own segments do not fit, they are as long as the model takes, and this is said once.
#[test]
fn segments_fit_the_model_unless_told() {
    let folder = tempdir().unwrap();
    copy_model(folder.path());
    write_text(folder.path());
    let ppl = "ppl --model model --text text.txt --segments 1 --device cpu --json";
    let study = "study --model model --variants bf16,int8 --text text.txt --ppl-segments 1 --batch 1 --prompt 8 --gen 4 \
                 --trials 1 --min-time 0 --warmup 0 --no-ceilings --no-kl --no-load-check --out out --device cpu --json";
    for (line, flag, place) in [
        (ppl, "--context", "/context"),
        (study, "--ppl-context", "/variants/1/perplexity/context"),
    ] {
        let usual = run(folder.path(), &words(line)).expect(0);
        assert_eq!(number(&usual.json(), place), 256.0, "{line}");
        let said = usual.stderr.matches("segments of 256 tokens").count();
        assert_eq!(said, 1, "{line}: {}", usual.stderr);
        let told = run(folder.path(), &words(&format!("{line} {flag} 64"))).expect(0);
        assert_eq!(number(&told.json(), place), 64.0, "{line}");
        assert!(!told.stderr.contains("segments of"), "{}", told.stderr);
    }
}

#[test]
fn energy_that_cannot_be_measured_is_said_where_it_was_asked_for() {
    let line = "bench --variants bf16 --batch 1,1 --prompt 4 --gen 2 --trials 1 --min-time 0 --warmup 0 --no-ceilings \
                --device cpu --json";
    for (flag, said) in [
        ("", false),
        ("--energy-window 0 --idle-window 0", false),
        ("--energy-window 5", true),
    ] {
        let bench = run(Path::new("."), &words(&format!("{line} {flag}"))).expect(0);
        assert_eq!(
            bench.stderr.contains("--energy-window has no effect"),
            said,
            "{flag}: {}",
            bench.stderr
        );
        // A number of a list counts once.
        let speed = bench.json()["variants"][0]["speed"].clone();
        assert_eq!(speed.as_array().map(Vec::len), Some(1), "{speed:#}");
    }
}

#[test]
fn rows_of_a_raw_wikitext_file_are_recognised() {
    let folder = tempdir().unwrap();
    let rows = " \n = Lamp = \n \n The lamp was lit , and it burned . \n".repeat(40);
    fs::write(folder.path().join("raw.txt"), &rows).unwrap();
    let score = |format: &str| {
        let line = format!(
            "ppl --text raw.txt --text-format {format} --context 64 --segments 2 --device cpu --json"
        );
        let run = run(folder.path(), &words(&line)).expect(0);
        (number(&run.json(), "/tokens_total"), run.stderr)
    };
    let [auto, rows, plain] = ["auto", "rows", "plain"].map(score);
    assert_eq!(auto.0, rows.0);
    assert!(plain.0 < rows.0, "rows are joined with blank lines");
    assert!(
        auto.1.contains("rows"),
        "what was taken is not said: {}",
        auto.1
    );
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in FIXTURES {
        let model = fixture(name);
        let bytes = fs::read(model.join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ids = file.tensor("input_ids").unwrap();
        let length = ids.shape()[1];
        let first: Vec<String> = ids
            .data()
            .chunks(8)
            .take(length)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()).to_string())
            .collect();
        let logits = file.tensor("logits").unwrap();
        let truth: Vec<f64> = logits
            .data()
            .chunks(4)
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
            .collect();
        let (list, model) = (first.join(","), model.display().to_string());
        let args = [
            "logits",
            "--model",
            &model,
            "--ids",
            &list,
            "--variant",
            "f32",
            "--device",
            "cpu",
            "--json",
        ];
        let got = run(Path::new("."), &args).expect(0).json();
        let rows = got["logits"].as_array().unwrap();
        assert_eq!(rows.len(), length, "{name}");
        let got: Vec<f64> = rows
            .iter()
            .flat_map(|row| row.as_array().unwrap())
            .map(|x| x.as_f64().unwrap())
            .collect();
        let truth = &truth[..got.len()];
        let largest = truth.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        let worst = got
            .iter()
            .zip(truth)
            .fold(0.0_f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(
            worst <= 1e-4 * largest,
            "{name}: off by {worst} of {largest}"
        );
    }
}

/// What a step costs is known of our own forward pass, and then so is how near it comes to the measured ceilings.
fn near_its_limit(speed: &Value, own: bool) {
    for of in ["prefill_utilisation", "decode_utilisation"] {
        if !own {
            assert!(speed[of].is_null(), "{speed:#}");
            continue;
        }
        let found = &speed[of];
        for figure in ["/gb_per_s", "/tflop_per_s", "/percent_of_read", "/floor_ms"] {
            assert!(number(found, figure) > 0.0, "{figure} of {found}");
        }
        let limit = found["limit"].as_str().unwrap();
        assert!(
            ["read", "matmul f32", "matmul int8"].contains(&limit),
            "{limit}"
        );
    }
}

#[test]
fn speed_alone_is_measured_by_both_engines() {
    let folder = tempdir().unwrap();
    for (engine, variants) in [
        ("candlepower", "bf16,w8a8,w4a16:g64"),
        ("candle", "bf16,f32"),
    ] {
        let line = format!(
            "bench --engine {engine} --variants {variants} --batch 1,2 --prompt 8 --gen 4 --trials 2 --min-time 0 --warmup 0 \
             --device cpu --json"
        );
        let bench = run(folder.path(), &words(&line)).expect(0).json();
        let found = bench["variants"].as_array().unwrap();
        assert_eq!(found.len(), variants.split(',').count(), "{engine}");
        for variant in found {
            assert_eq!(variant["engine"], engine);
            assert_eq!(variant["failed"], false, "{variant:#}");
            let speed = variant["speed"].as_array().unwrap();
            assert_eq!(speed.len(), 2);
            assert!(
                speed
                    .iter()
                    .all(|s| number(s, "/decode_tokens_per_second") > 0.0)
            );
            assert!(
                speed
                    .iter()
                    .all(|s| s["ttft_ms"]["n"] == 2 && s["itl_ms"]["n"] == 6)
            );
            for s in speed {
                near_its_limit(s, engine == "candlepower");
            }
        }
    }
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        0,
        "bench leaves nothing behind"
    );
}

#[test]
fn bench_shows_what_each_part_of_the_engine_is_worth() {
    let folder = tempfile::tempdir().unwrap();
    let line = "bench --ablate --variants f32,int8 --batch 1 --prompt 8 --gen 4 --trials 1 --min-time 0 --warmup 0 \
                --device cpu --no-ceilings";
    let shown = run(folder.path(), &words(line)).expect(0).stdout;
    // candle runs the plain variant alone.
    assert_eq!(shown.matches("batch 1 · prompt 8").count(), 2, "{shown}");
    let starts = |name: &str| {
        let lines = shown.lines().map(str::trim_start);
        lines.filter(|line| line.starts_with(name)).count()
    };
    assert_eq!(starts("candle "), 1, "{shown}");
    assert_eq!(starts("candlepower "), 2, "{shown}");
}

/// Token ids of every prompt.
fn generated(args: &[&str]) -> Vec<Vec<u64>> {
    let rows = run(Path::new("."), args).expect(0).json();
    let ids = |row: &Value| {
        row["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap())
            .collect()
    };
    rows.as_array().unwrap().iter().map(ids).collect()
}

const PROMPTS: [&str; 10] = [
    "generate",
    "--device",
    "cpu",
    "--prompt",
    "The lamp",
    "--prompt",
    "A candle gives light to",
    "--json",
    "--gen",
    "24",
];

#[test]
fn text_is_the_same_every_time_and_drawn_from_a_seed() {
    let greedy = generated(&PROMPTS);
    assert_eq!(greedy, generated(&PROMPTS));
    assert_eq!(greedy.iter().map(Vec::len).collect::<Vec<_>>(), [24, 24]);
    let alone = generated(&[
        "generate", "--device", "cpu", "--prompt", "The lamp", "--json", "--gen", "24",
    ]);
    assert_eq!(
        alone[0], greedy[0],
        "a row alone equals its row of the batch"
    );
    let drawn = |seed: &str| {
        generated(
            &[
                &PROMPTS[..],
                &[
                    "--temperature",
                    "0.9",
                    "--top-p",
                    "0.95",
                    "--top-k",
                    "50",
                    "--seed",
                    seed,
                ],
            ]
            .concat(),
        )
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    assert_ne!(drawn("1"), greedy);
    let least = generated(&[&PROMPTS[..], &["--temperature", "0.9", "--top-k", "1"]].concat());
    assert_eq!(least, greedy, "the most likely of one");
}

#[test]
fn both_engines_write_the_same_text() {
    for name in FIXTURES {
        let model = fixture(name).display().to_string();
        let args = |engine| {
            [
                &PROMPTS[..],
                &[
                    "--model",
                    &model,
                    "--variant",
                    "f32",
                    "--ignore-eos",
                    "--engine",
                    engine,
                ],
            ]
            .concat()
        };
        let (own, candle) = (generated(&args("candlepower")), generated(&args("candle")));
        assert_eq!(own, candle, "{name}");
    }
}

#[test]
fn the_machine_is_described() {
    let info = run(
        Path::new("."),
        &words("info --json --no-ceilings --device cpu"),
    )
    .expect(0)
    .json();
    assert_eq!(info["environment"]["device"]["kind"], "cpu");
    assert!(info["environment"]["cpu"]["cores"].as_u64().unwrap() > 0);
    assert!(info["gpu"]["unavailable"].is_string());
    let presets = info["presets"].as_array().unwrap();
    for name in ["qwen3-0.6b", "llama-3.1-70b", "smollm2-135m"] {
        assert!(presets.iter().any(|p| p == name), "{name}");
    }
}

#[test]
fn every_command_shows_an_example() {
    for command in [
        "study", "bench", "ppl", "eval", "generate", "info", "report",
    ] {
        let help = run(Path::new("."), &[command, "--help"]).expect(0).stdout;
        assert!(
            help.contains("Example") && help.contains(&format!("candlepower {command}")),
            "{command}: {help}"
        );
    }
}

#[test]
fn every_command_names_variants_alike() {
    use candlepower::scheme::Variant;

    for command in [
        "study", "bench", "ppl", "eval", "generate", "logits", "info",
    ] {
        let help = run(Path::new("."), &[command, "--help"]).expect(0).stdout;
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(Variant::NOTATION), "{command}: {help}");
    }
}

#[test]
fn info_says_what_of_a_model_fits() {
    let line = "info --model llama-3.1-8b --variants bf16,w4a16 --memory 80GiB --dtype bf16 --context 2048,8192 \
                --batch 1,64 --device cpu";
    let found = run(Path::new("."), &words(&format!("{line} --json")))
        .expect(0)
        .json();
    let [bf16, w4a16] = found["variants"].as_array().unwrap().as_slice() else {
        panic!("{found:#}");
    };
    // 8.03 billion parameters of two bytes; 32 layers of 8 heads of 128 keys and as many values of two bytes.
    assert!((number(bf16, "/weight_bytes") / 16.06e9 - 1.0).abs() < 0.001);
    assert_eq!(number(bf16, "/kv_bytes_per_token"), 131_072.0);
    for (variant, place, context) in [(bf16, 0, 2048.0), (bf16, 1, 8192.0), (w4a16, 1, 8192.0)] {
        let batch = number(variant, &format!("/batches/{place}/batch"));
        let left = 80.0 * 2.0_f64.powi(30) - number(variant, "/weight_bytes");
        let most = left / (context * 131_072.0);
        // Scratch takes the rest.
        assert!(batch <= most && batch > 0.85 * most, "{batch} of {most}");
    }
    assert_eq!(number(bf16, "/contexts/0/context"), 131_072.0);
    let at_64 = number(w4a16, "/contexts/1/context");
    assert!(at_64 > number(bf16, "/contexts/1/context") && at_64 < 10_000.0);
    let shown = run(Path::new("."), &words(line)).expect(0).stdout;
    assert!(
        shown.contains("batch at") && shown.contains("80.0 GiB"),
        "{shown}"
    );
    assert!(
        shown.lines().all(|line| line.chars().count() <= 100),
        "{shown}"
    );
}

/// What cannot be written is no broken input and no fault of the program.
#[test]
fn an_output_that_has_no_place_has_an_exit_code_of_its_own() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("file"), "in the way").unwrap();
    let row = "{\"query\": \"A lamp gives\", \"choices\": [\"light\", \"salt\"], \"gold\": 0}\n";
    fs::write(folder.path().join("rows.jsonl"), row).unwrap();
    for line in [
        "bench --batch 1 --prompt 4 --gen 2 --trials 1 --min-time 0 --no-ceilings --out file/out",
        "bench --batch 1 --prompt 4 --gen 2 --trials 1 --min-time 0 --no-ceilings --out file",
        "quantize --scheme w4a16 --out file/out",
        "eval --tasks rows.jsonl --log-samples file/log.jsonl",
    ] {
        let failed = run(folder.path(), &words(&format!("{line} --device cpu"))).expect(74);
        assert!(failed.error().contains("file"), "{}", failed.error());
        assert_eq!(failed.stdout, "", "'{line}' prints a result");
    }
    let kept = fs::read_to_string(folder.path().join("file")).unwrap();
    assert_eq!(kept, "in the way");
}

/// A full disk at the other end of standard output is an error; a reader that has seen enough is none.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_printed_is_an_error() {
    use std::process::Stdio;

    use super::common::command;

    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        return;
    };
    for line in ["schema", "export . --format csv", "export . --format json"] {
        let folder = tempdir().unwrap();
        if line != "schema" {
            let measure = "bench --device cpu --variants bf16 --batch 1 --prompt 4 --gen 2 --trials 1 --min-time 0 \
                           --no-ceilings --out .";
            run(folder.path(), &words(measure)).expect(0);
        }
        let output = command(folder.path(), &words(line))
            .stdout(full.try_clone().unwrap())
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(74), "{line}: {told}");
        assert!(
            told.contains("standard output: cannot write"),
            "{line}: {told}"
        );
        let mut child = command(folder.path(), &words(line))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{line}");
    }
}
