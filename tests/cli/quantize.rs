//! Quantised checkpoints: written whole or not at all, loaded as they are, better than rounding to nearest.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::tempdir;

use super::common::{FIXTURES, command, fixture, number, run, words, write_text};

/// Runs with a cache of its own, so that nothing is left and nothing is found.
fn run_cached(folder: &Path, line: &str) -> super::common::Run {
    let output = command(folder, &words(line))
        .env("CANDLEPOWER_CACHE", folder.join("cache"))
        .output()
        .unwrap();
    super::common::Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The text that comes with `tiny`, one half to calibrate on and one to score.
fn halves(folder: &Path) {
    let text = include_str!("../../models/tiny/held_out.txt");
    let middle = text.len() / 2;
    let middle = middle + text[middle..].find("\n\n").unwrap();
    fs::write(folder.join("calibration.txt"), &text[..middle]).unwrap();
    fs::write(folder.join("scored.txt"), &text[middle..]).unwrap();
}

const CALIBRATION: &str =
    "--calibrate calibration.txt --calibration-samples 24 --calibration-length 256";

#[test]
fn every_method_gives_every_family_a_checkpoint_that_reads_back_alike() {
    let folder = tempdir().unwrap();
    write_text(folder.path());
    let schemes = [
        "w4a16:gptq:g32",
        "w4a16:awq:asym:g32",
        "int8:gptq",
        "w8a8:smoothquant",
    ];
    for (name, scheme) in FIXTURES.iter().zip(schemes) {
        let model = fixture(name);
        let model = model.display();
        let calibration = "--calibrate text.txt --calibration-samples 4 --calibration-length 32";
        let out = folder.path().join(name);
        let written = run(
            folder.path(),
            &words(&format!(
                "quantize --device cpu --model {model} --scheme {scheme} {calibration} --out {name} --json"
            )),
        )
        .expect(0);
        let report = written.json();
        let modules = report["layers"][0]["modules"].as_array().unwrap();
        assert_eq!(modules.len(), 7, "{report:#}");
        for file in [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "quantisation.json",
        ] {
            assert!(out.join(file).is_file(), "{name}: {file}");
        }
        let again = run(
            folder.path(),
            &words(&format!(
                "quantize --device cpu --model {model} --scheme {scheme} {calibration} --out {name}"
            )),
        );
        assert!(again.expect(2).error().contains("--force"));
        // As it is, and made on the fly from the same text: the same checkpoint, so the same logits.
        let ids = "--device cpu --dtype f32 --ids 1,5,9,2,7";
        let read = run_cached(
            folder.path(),
            &format!("logits --model {name} --variant as-is {ids}"),
        )
        .expect(0);
        let line = format!("logits --model {model} --variant {scheme} {calibration} {ids}");
        let made = run_cached(folder.path(), &line).expect(0);
        assert_eq!(read.json(), made.json(), "{name} {scheme}");
        let kept = run_cached(folder.path(), &line).expect(0);
        assert_eq!(kept.json(), made.json(), "{name} {scheme}");
    }
    let kept = fs::read_dir(folder.path().join("cache/quantised")).unwrap();
    assert_eq!(kept.count(), FIXTURES.len());
}

/// Logarithms of what `tiny` predicts in `variant` after each of `ids`.
fn predictions(folder: &Path, variant: &str, ids: &str) -> Vec<Vec<f64>> {
    let calibrated = ["gptq", "awq", "smoothquant"];
    let read = match calibrated.iter().any(|method| variant.contains(method)) {
        true => CALIBRATION,
        false => "",
    };
    let line = format!("logits --device cpu --variant {variant} --ids {ids} {read}");
    let found = run_cached(folder, &line).expect(0).json();
    let rows = found["logits"].as_array().unwrap().iter().map(|row| {
        let row = row.as_array().unwrap().iter();
        let row: Vec<f64> = row.map(|x| x.as_f64().unwrap()).collect();
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        row.iter().map(|x| x - sum.ln()).collect()
    });
    rows.collect()
}

#[test]
fn calibrated_methods_lose_less_than_rounding_to_nearest() {
    let folder = tempdir().unwrap();
    halves(folder.path());
    let scored = fs::read_to_string(folder.path().join("scored.txt")).unwrap();
    let prompt = &scored[..scored.char_indices().nth(1200).unwrap().0];
    let generate = [
        "generate", "--device", "cpu", "--gen", "1", "--json", "--prompt", prompt,
    ];
    let generated = run(folder.path(), &generate).expect(0).json();
    let ids = generated[0]["prompt_ids"].as_array().unwrap().iter();
    let ids = ids.map(ToString::to_string).collect::<Vec<_>>().join(",");
    let base = predictions(folder.path(), "bf16", &ids);
    assert!(base.len() > 200);
    // The mean Kullback-Leibler divergence tells variants apart where perplexity on so short a text does not.
    let divergence = |variant: &str| {
        let found = predictions(folder.path(), variant, &ids);
        let terms = base.iter().zip(&found).flat_map(|(p, q)| p.iter().zip(q));
        terms.map(|(p, q)| p.exp() * (p - q)).sum::<f64>() / base.len() as f64
    };
    let nearest = divergence("w4a16:g64");
    assert!(nearest > 0.0);
    for (better, share) in [
        ("w4a16:gptq:g64", 0.6),
        ("w4a16:awq:g64", 0.95),
        ("w4a16:asym:g64", 1.0),
        ("w4a16:mse:g64", 1.0),
    ] {
        let found = divergence(better);
        assert!(
            found < share * nearest,
            "{better}: {found}, rounded to nearest {nearest}"
        );
    }
}

#[test]
fn layers_are_ranked_and_the_worst_kept() {
    let folder = tempdir().unwrap();
    halves(folder.path());
    let line = format!(
        "quantize --device cpu --scheme w4a16:rtn --sensitivity --keep-bits 16 --layers worst:2,3.o --out out --json {CALIBRATION}"
    );
    let found = run(folder.path(), &words(&line)).expect(0).json();
    let ranks = found["sensitivity"].as_array().unwrap();
    assert_eq!(ranks.len(), 4 * 4);
    let divergences: Vec<f64> = ranks
        .iter()
        .map(|r| number(r, "/divergence_nats"))
        .collect();
    assert!(divergences.is_sorted_by(|a, b| a >= b) && divergences[15] > 0.0);
    let config = fs::read_to_string(folder.path().join("out/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let ignored: Vec<&str> = config["quantization_config"]["ignore"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    assert!(ignored.contains(&"lm_head") && ignored.contains(&"model.layers.3.self_attn.o_proj"));
    let worst = ranks[0]["place"].as_str().unwrap();
    let (layer, part) = worst.split_once('.').unwrap();
    let first = match part {
        "qkv" => "self_attn.q_proj",
        "o" => "self_attn.o_proj",
        "gate_up" => "mlp.gate_proj",
        _ => "mlp.down_proj",
    };
    assert!(
        ignored.contains(&format!("model.layers.{layer}.{first}").as_str()),
        "{worst}: {ignored:?}"
    );
    run(
        folder.path(),
        &words("logits --device cpu --model out --variant as-is --ids 1,2"),
    )
    .expect(0);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let folder = tempdir().unwrap();
    halves(folder.path());
    let error = |line: &str, code: i32| {
        let found = run_cached(folder.path(), line).expect(code);
        found.error().to_owned()
    };
    let quantize = "quantize --device cpu --out out --scheme";
    assert!(error(&format!("{quantize} w4a16:gptq"), 2).contains("--calibrate"));
    assert!(error(&format!("{quantize} bf16"), 2).contains("no scheme to quantise to"));
    let long = "--calibrate calibration.txt --calibration-samples 1000";
    assert!(error(&format!("{quantize} w4a16:gptq {long}"), 64).contains("--calibration-samples"));
    let kept = "--keep-bits 16 --layers 9";
    assert!(error(&format!("{quantize} w4a16 {kept}"), 2).contains("layers 0 to 3"));
    let same = "--calibrate scored.txt --calibration-samples 8 --calibration-length 128";
    let line = format!("ppl --device cpu --text scored.txt --variant w4a16:gptq:g64 {same}");
    assert!(error(&line, 2).contains("text that is scored"));
    assert!(error("study --device cpu --variants bf16,w4a16:awq", 2).contains("--calibrate"));
    // Nor is a text taken that nobody reads.
    for line in [
        "quantize --device cpu --out out --scheme w4a16",
        "study --device cpu --variants bf16,w4a16",
        "ppl --device cpu --text scored.txt --variant int8",
        "logits --device cpu --ids 1 --variant w4a16",
    ] {
        let told = error(&format!("{line} {same}"), 2);
        assert!(told.contains("nothing of"), "{told}");
    }
    let dummy = "bench --device cpu --model smollm2-135m --weights dummy --variants w4a16:mse --batch 1 --no-ceilings";
    assert!(error(dummy, 2).contains("made up"));
    assert!(
        error(
            "kernels --device cpu --shape 64,64 --m 1 --variants w4a16:asym",
            2
        )
        .contains("leave all but")
    );
    for wrong in ["--layers 1", "--keep-bits 8", "--keep-bits 4 --layers 1"] {
        run(folder.path(), &words(&format!("{quantize} w4a16 {wrong}"))).expect(2);
    }
    assert!(!folder.path().join("out").exists());
}

#[test]
fn only_a_checkpoint_of_this_program_is_replaced() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let line = |out: &str| format!("quantize --device cpu --scheme w4a16:rtn --force --out {out}");
    fs::create_dir(at("thesis")).unwrap();
    fs::write(at("thesis/chapter.txt"), "text").unwrap();
    for out in ["thesis", "thesis/chapter.txt", ".", ".."] {
        let refused = run(folder.path(), &words(&line(out))).expect(2);
        let told = refused.error();
        assert!(
            told.contains(out) && told.contains("another --out"),
            "{told}"
        );
    }
    assert_eq!(
        fs::read_to_string(at("thesis/chapter.txt")).unwrap(),
        "text"
    );
    fs::create_dir(at("out")).unwrap();
    run(folder.path(), &words(&line("out"))).expect(0);
    fs::write(at("out/left-over.txt"), "").unwrap();
    run(folder.path(), &words(&line("out"))).expect(0);
    assert!(at("out/config.json").is_file() && !at("out/left-over.txt").exists());
    let names = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["out", "thesis"]);
}

#[test]
fn ctrl_c_leaves_no_checkpoint_that_looks_whole() {
    let folder = tempdir().unwrap();
    halves(folder.path());
    let line = format!("quantize --device cpu --scheme w4a16:awq:g32 --out out/deep {CALIBRATION}");
    let mut child = command(folder.path(), &words(&line))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = folder.path().join("out");
    let begin = Instant::now();
    // The unfinished folder is there from the first layer on.
    while fs::read_dir(&out).map_or(0, Iterator::count) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}
