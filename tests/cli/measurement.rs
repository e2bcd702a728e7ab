//! What a study says of how it measured: checks before timing, memory, and energy where there is none.

use std::path::Path;

use super::common::{fits_a_terminal, keeps_to_schema, number, run, words};

#[test]
fn a_study_names_its_checks_its_memory_and_why_there_is_no_energy() {
    let folder = tempfile::tempdir().unwrap();
    let line = "study --variants bf16,int8,w4a16:asym:g64 --batch 2 --prompt 12 --gen 4 --trials 2 --min-time 0 --ppl-segments 2 --no-kl \
                --no-load-check --no-ceilings --out out --json";
    let ran = run(folder.path(), &words(line)).expect(0);
    let study = ran.json();
    for variant in study["variants"].as_array().unwrap() {
        let checks = variant["verification"]["checks"].as_array().unwrap();
        let names: Vec<&str> = checks.iter().filter_map(|c| c["name"].as_str()).collect();
        for name in [
            "finite logits",
            "as many tokens as are reported",
            "a generation equals its steps one by one",
            "the same tokens run to run",
            "nothing is remembered from run to run",
            "what is timed is what is scored",
        ] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        assert!(
            checks.iter().all(|check| check["passed"] == true),
            "{checks:?}"
        );
        // The reference adds up in one order.
        let repeated = checks
            .iter()
            .find(|c| c["name"] == "the same tokens run to run");
        let detail = repeated.unwrap()["detail"].as_str().unwrap();
        assert!(detail.contains("the same to the bit, blake3 "), "{detail}");
        let speed = &variant["speed"][0];
        for part in ["weights", "kv", "activations"] {
            let amount = |kind: &str| number(speed, &format!("/memory/{part}/{kind}_bytes"));
            assert_eq!(amount("predicted"), amount("measured"), "{part}");
        }
        // What this process has resident is not told apart.
        assert!(speed["memory"].get("residual_bytes").is_none(), "{speed:#}");
        let reason = speed["energy"]["reason"].as_str().unwrap();
        assert!(reason.contains("NVIDIA GPUs only"), "{reason}");
        assert!(speed.get("throttling").is_none());
    }
    let table = run(folder.path(), &words(&line.replace(" --json", "")))
        .expect(0)
        .stdout;
    assert_eq!(table.matches("no energy: ").count(), 1, "{table}");
    let csv = std::fs::read_to_string(folder.path().join("out/study.csv")).unwrap();
    let head = csv.lines().next().unwrap();
    for column in [
        "memory_residual_bytes",
        "generated_tokens_per_joule",
        "energy_rejected",
    ] {
        assert!(head.split(',').any(|name| name == column), "{column}");
    }
}

#[test]
fn the_power_sensors_of_a_cpu_are_no_device() {
    let ran = run(Path::new("."), &words("info --power --device cpu")).expect(69);
    assert!(
        ran.error().contains("no power sensors to test"),
        "{}",
        ran.error()
    );
}

#[test]
fn what_is_told_of_a_machine_keeps_to_its_schema_and_fits_a_terminal() {
    let model = "info --device cpu --model llama-3.1-8b --variants bf16,w4a16 --memory 80GiB";
    for (line, schema) in [
        ("info --device cpu --no-ceilings", "candlepower.info/1"),
        (model, "candlepower.capacity/1"),
    ] {
        let found = run(Path::new("."), &words(&format!("{line} --json"))).expect(0);
        keeps_to_schema(&found.json(), schema);
        let shown = run(Path::new("."), &words(line)).expect(0).stdout;
        fits_a_terminal(&shown);
    }
    let shown = run(Path::new("."), &words("info --device cpu --no-ceilings")).expect(0);
    let presets = shown.stdout.find("\npresets ").expect("no presets");
    let presets = &shown.stdout[presets + 1..];
    assert!(presets.lines().count() > 1, "{presets}");
    for line in presets.lines().skip(1) {
        assert!(line.starts_with(&" ".repeat(15)), "{presets}");
    }
}
