//! The kernel microbenchmark.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use super::common::{number, run, words};

/// As fast as it can be.
const QUICK: &str = "--trials 2 --min-time 0 --warmup 0 --device cpu";

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// All cells with their shapes.
fn cells(document: &Value) -> Vec<(&Value, &Value)> {
    let shapes = document["shapes"].as_array().unwrap();
    shapes
        .iter()
        .flat_map(|shape| {
            let cells = shape["cells"].as_array().unwrap();
            cells.iter().map(move |cell| (shape, cell))
        })
        .collect()
}

#[test]
fn every_cell_is_verified_timed_and_held_against_what_the_device_can_do() {
    let folder = tempdir().unwrap();
    let line = format!(
        "kernels --shape 96,128 --m 1,3 --variants bf16,f32,int8,w8a8,w4a16,w4a16:g64,w4a16:g32 --out out --csv out.csv \
         --json {QUICK}"
    );
    let run = run(folder.path(), &words(&line)).expect(0);
    let document = run.json();
    assert_eq!(document["schema"], "candlepower.kernels/1");
    let found = cells(&document);
    assert_eq!(found.len(), 14);
    for (shape, cell) in &found {
        assert_eq!(shape["sizes"]["n"], 96);
        let figures = &cell["figures"];
        assert_eq!(figures["cpu_reference"], true, "{cell:#}");
        assert!(number(figures, "/verified_elements") > 0.0);
        assert!(number(figures, "/verified_worst") <= 1.0);
        assert!(!figures["plan"].as_str().unwrap().is_empty());
        let cold = number(figures, "/cold/us/p50");
        for time in ["/warm/us/p50", "/read_floor/us/p50", "/predicted_us"] {
            assert!(number(figures, time) > 0.0, "{time} of {cell:#}");
        }
        let bytes = number(figures, "/cost/read_bytes") + number(figures, "/cost/written_bytes");
        let rate = number(figures, "/gb_per_s");
        assert!((rate - bytes / cold / 1e3).abs() < 1e-6 * rate);
        assert_eq!(number(figures, "/cold/us/n"), 2.0);
        let rotated = number(figures, "/cold/rotated_bytes");
        let cache = document.pointer("/environment/device/cache_bytes");
        let cache = cache.and_then(Value::as_f64).unwrap_or(0.0);
        assert!(rotated >= 2.0 * bytes && rotated >= 0.9 * cache.min(8000.0 * bytes));
        assert_eq!(figures["peer"]["status"], "unavailable");
    }
    // Twice the width of the codes, twice the bytes.
    let bytes = |name: &str| {
        let cell = found.iter().find(|(_, cell)| cell["variant"] == name);
        number(cell.unwrap().1, "/figures/cost/read_bytes")
    };
    assert!(bytes("f32") > 1.8 * bytes("bf16") && bytes("bf16") > 1.8 * bytes("int8"));

    let out = folder.path().join("out");
    let page = fs::read_to_string(out.join("kernels.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("CPU reference"));
    assert!(!page.contains("http://") && !page.contains("https://"));
    let table = fs::read_to_string(folder.path().join("out.csv")).unwrap();
    assert_eq!(table.lines().count(), 15);
    assert_eq!(fs::read_to_string(out.join("kernels.csv")).unwrap(), table);
    let results: Value =
        serde_json::from_slice(&fs::read(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results, document);
    holds_to_the_schema(
        folder.path(),
        "candlepower.kernels/1",
        std::slice::from_ref(&document),
    );
    let records = lines(&out.join("records.jsonl"));
    assert_eq!(records.len(), 14);
    holds_to_the_schema(folder.path(), "candlepower.kernel/1", &records);
}

fn holds_to_the_schema(folder: &Path, name: &str, documents: &[Value]) {
    let schemas = run(folder, &["schema"]).expect(0).json();
    let validator = jsonschema::validator_for(&schemas[name]).unwrap();
    for document in documents {
        validator
            .validate(document)
            .unwrap_or_else(|error| panic!("{error}\n{document:#}"));
    }
    assert!(!validator.is_valid(&serde_json::json!({"schema": name})));
}

#[test]
fn the_table_fits_a_hundred_columns_and_says_what_was_timed() {
    let folder = tempdir().unwrap();
    let line = format!("kernels --m 1,20 --variants bf16,int8,w8a8,w4a16 {QUICK}");
    let run = run(folder.path(), &words(&line)).expect(0);
    let widest = run.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(100), "{}", run.stdout);
    for said in [
        "tiny qkv",
        "tiny gate_up",
        "tiny head",
        "of floor",
        "of ceiling",
        "warm",
        "CPU reference",
        "fastest",
        "plan",
    ] {
        assert!(run.stdout.contains(said), "{said}: {}", run.stdout);
    }
    assert!(run.stderr.contains("of the read floor"), "{}", run.stderr);
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        0,
        "nothing is left behind"
    );
}

#[test]
fn the_same_command_goes_on_where_it_ended() {
    let folder = tempdir().unwrap();
    let line = |m: &str| {
        format!(
            "kernels --shape 64,64 --m {m} --variants bf16,w4a16 --no-ceilings --out out {QUICK}"
        )
    };
    let records = folder.path().join("out/records.jsonl");
    run(folder.path(), &words(&line("1,2"))).expect(0);
    let first = fs::read_to_string(&records).unwrap();
    let again = run(folder.path(), &words(&line("1,2,4"))).expect(0);
    let all = fs::read_to_string(&records).unwrap();
    assert!(all.starts_with(&first), "finished cells are timed anew");
    assert_eq!(all.lines().count(), 6);
    assert_eq!(
        again.stderr.matches("on record").count(),
        4,
        "{}",
        again.stderr
    );
    assert!(!again.stdout.contains("of ceiling"), "{}", again.stdout);
    let forced = format!("{} --force", line("1"));
    run(folder.path(), &words(&forced)).expect(0);
    assert_eq!(lines(&records).len(), 8);
}

#[test]
fn every_op_is_verified_at_the_sizes_of_a_model() {
    let folder = tempdir().unwrap();
    let line = format!(
        "kernels --op all --model tiny,qwen3-0.6b --m 2 --variants bf16 --context 70 --no-ceilings --json {QUICK}"
    );
    let document = run(folder.path(), &words(&line)).expect(0).json();
    for op in [
        "linear",
        "quantize",
        "norm",
        "silu_mul",
        "argmax",
        "rope",
        "attention",
        "append_attend",
        "attention_prefill",
    ] {
        let of_op = || {
            cells(&document)
                .into_iter()
                .filter(move |(shape, _)| shape["op"] == op)
        };
        assert!(of_op().count() >= 2, "{op}");
        for (shape, cell) in of_op() {
            assert!(
                number(cell, "/figures/verified_elements") > 0.0,
                "{shape:#}"
            );
        }
    }
    let roles: Vec<&str> = cells(&document)
        .iter()
        .flat_map(|(shape, _)| shape["roles"].as_array().unwrap())
        .filter_map(Value::as_str)
        .collect();
    for role in ["qkv", "o", "gate_up", "down", "head"] {
        assert!(
            roles.contains(&format!("qwen3-0.6b {role}").as_str()),
            "{role}"
        );
    }
}

#[test]
fn a_cell_that_cannot_run_fails_alone() {
    let folder = tempdir().unwrap();
    let line = format!(
        "kernels --shape 48,48 --m 1 --variants bf16,w4a16 --no-ceilings --out out --json {QUICK}"
    );
    let run = run(folder.path(), &words(&line)).expect(3);
    let document = run.json();
    let found = cells(&document);
    assert!(found[0].1["figures"].is_object());
    assert!(found[1].1["figures"].is_null());
    let reason = found[1].1["reason"].as_str().unwrap();
    assert!(
        reason.contains("w4a16") && reason.contains("48"),
        "{reason}"
    );
    assert!(run.stderr.contains("failed"), "{}", run.stderr);
    let records = lines(&folder.path().join("out/records.jsonl"));
    assert_eq!(records[1]["status"], "failed");
    let page = fs::read_to_string(folder.path().join("out/kernels.html")).unwrap();
    assert!(page.contains("What failed"));
}

#[test]
fn flags_that_make_no_sense() {
    let folder = tempdir().unwrap();
    for (line, said) in [
        ("kernels --m 0", "--m"),
        ("kernels --shape 0,5", "--shape 0,5"),
        ("kernels --shape 5", "input features"),
        ("kernels --shape 8,8 --model tiny", "--model"),
        ("kernels --op gemv", "attention"),
        ("kernels --op norm --shape 8,8", "--op norm"),
        ("kernels --context 5", "--context"),
        ("kernels --op attention --context 0", "--context"),
        ("kernels --kv-cache int8", "--kv-cache"),
        ("kernels --op rope --kv-cache fp8,fp8", "--kv-cache"),
        ("kernels --op rope --kv-cache bf16", "'bf16'"),
        ("kernels --variants bf16,bf16", "bf16"),
        ("kernels --model nowhere", "nowhere"),
        ("kernels --trials 0", "above 0"),
        ("info --dtype bf16", "required arguments"),
        ("info --trials 5", "--trials"),
    ] {
        let run = run(folder.path(), &words(&format!("{line} --device cpu"))).expect(2);
        assert!(run.error().contains(said), "{line}: {}", run.stderr);
        assert_eq!(run.stdout, "");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn ceilings_are_measured_at_several_sizes_or_left_out_with_a_reason() {
    let info = run(Path::new("."), &words("info --json --device cpu"))
        .expect(0)
        .json();
    let ceilings = info["ceilings"].as_array().unwrap();
    let named = |name: &str| {
        ceilings
            .iter()
            .filter(|c| c["name"].as_str().unwrap().starts_with(name))
            .count()
    };
    assert!(named("read") >= 3 && named("copy") >= 3, "{ceilings:#?}");
    for name in ["matmul f32", "matmul bf16", "matmul f16", "matmul int8"] {
        assert_eq!(named(name), 1, "{name}");
    }
    for ceiling in ceilings {
        assert!(
            number(ceiling, "/best") >= number(ceiling, "/median"),
            "{ceiling}"
        );
        assert!(!ceiling["how"].as_str().unwrap().is_empty());
    }
    let left_out = info["ceilings_left_out"].as_array().unwrap();
    assert!(left_out.iter().any(|gone| gone["name"] == "matmul fp8"));
    assert!(number(&info, "/environment/ceilings/read_gb_per_s") > 0.0);
    let shown = run(Path::new("."), &words("info --device cpu"))
        .expect(0)
        .stdout;
    for name in [
        "\nread ",
        "\ncopy ",
        "\nmatmul f32 ",
        "matmul fp8     left out: ",
    ] {
        assert!(shown.contains(name), "{name:?}: {shown}");
    }
}

#[test]
fn verifying_alone_times_nothing_and_what_was_timed_counts_as_verified() {
    let folder = tempdir().unwrap();
    let measure = |more: &str| {
        let line = format!(
            "kernels --shape 40,128 --m 1,5 --variants int8 --out out --json {more} {QUICK}"
        );
        run(folder.path(), &words(&line)).expect(0).json()
    };
    let verified = measure("--verify-only");
    for (_, cell) in cells(&verified) {
        assert!(
            cell["figures"].is_null() && cell["reason"].is_null(),
            "{cell:#}"
        );
        assert!(number(cell, "/verified/verification/elements") > 0.0);
        assert!(number(cell, "/verified/verification/worst") <= 1.0);
    }
    let table = fs::read_to_string(folder.path().join("out/kernels.csv")).unwrap();
    assert!(
        table.lines().skip(1).all(|row| row.contains(",false,")),
        "{table}"
    );
    // To be timed is more than to be verified, and serves for both.
    for more in ["", "--verify-only"] {
        let timed = measure(more);
        for (_, cell) in cells(&timed) {
            assert!(number(cell, "/figures/cold/us/p50") > 0.0, "{cell:#}");
        }
    }
    assert_eq!(lines(&folder.path().join("out/records.jsonl")).len(), 4);
}
