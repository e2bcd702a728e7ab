//! What goes wrong: one clear line, the right exit code, no panic, nothing left that looks like a result.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::common::{copy_model, run, words, write_text};

/// A folder with a model and a text in it.
fn model_folder() -> TempDir {
    let folder = tempdir().unwrap();
    copy_model(folder.path());
    write_text(folder.path());
    folder
}

const STUDY: &str = "study --model model --text text.txt --ppl-context 64 --ppl-segments 2 --batch 1 --prompt 8 --gen 4 --trials 1 \
                     --min-time 0 --warmup 0 --device cpu --out out";
const PPL: &str = "ppl --model model --text text.txt --context 64 --segments 2 --device cpu";

/// Runs `line` in `folder`: it must end with `code`, say every one of `said` in its error, and leave no result.
fn fails(folder: &Path, line: &str, code: i32, said: &[&str]) {
    let run = run(folder, &words(line)).expect(code);
    let error = run.error();
    for said in said {
        assert!(
            error.contains(said),
            "'{line}' does not say '{said}': {error}"
        );
    }
    assert_eq!(run.stdout, "", "'{line}' prints a result");
    for name in ["study.json", "study.csv", "report.html"] {
        assert!(
            !folder.join("out").join(name).exists(),
            "'{line}' leaves {name}"
        );
    }
    let records = fs::read_to_string(folder.join("out/records.jsonl")).unwrap_or_default();
    assert_eq!(records, "", "'{line}' leaves records");
}

fn fails_everywhere(folder: &Path, code: i32, said: &[&str]) {
    fails(folder, STUDY, code, said);
    fails(folder, PPL, code, said);
}

fn set_config(folder: &Path, changes: &[(&str, Value)]) {
    let path = folder.join("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_model_that_is_not_there() {
    let folder = tempdir().unwrap();
    fails(
        folder.path(),
        "study --model ./nowhere --out out",
        65,
        &["nowhere"],
    );
    fails(
        folder.path(),
        "study --model nowhere --out out",
        2,
        &["nowhere", "tiny"],
    );
    fails(
        folder.path(),
        "ppl --model nowhere.gguf",
        65,
        &["nowhere.gguf"],
    );
}

#[test]
fn a_folder_without_weights_or_config() {
    let folder = model_folder();
    fs::remove_file(folder.path().join("model/model.safetensors")).unwrap();
    fails_everywhere(folder.path(), 65, &["model"]);
    let folder = model_folder();
    fs::remove_file(folder.path().join("model/config.json")).unwrap();
    fails_everywhere(folder.path(), 65, &["config.json"]);
}

#[test]
fn safetensors_that_are_cut_short() {
    let folder = model_folder();
    let path = folder.path().join("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 7, 100, 3000, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        fails_everywhere(folder.path(), 65, &["model.safetensors"]);
    }
}

#[test]
fn an_unknown_architecture() {
    let folder = model_folder();
    set_config(
        folder.path(),
        &[
            ("architectures", json!(["FooForCausalLM"])),
            ("model_type", json!("foo")),
        ],
    );
    fails_everywhere(
        folder.path(),
        64,
        &["config.json", "FooForCausalLM", "LlamaForCausalLM"],
    );
}

#[test]
fn an_unknown_element_type() {
    let folder = model_folder();
    let path = folder.path().join("model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|w| w == b"\"BF16\"").unwrap();
    bytes[at + 2] = b'Q';
    fs::write(&path, bytes).unwrap();
    fails_everywhere(folder.path(), 65, &["model.safetensors", "BQ16"]);
}

#[test]
fn a_tensor_of_another_shape_than_the_config_says() {
    let folder = model_folder();
    set_config(folder.path(), &[("intermediate_size", json!(192))]);
    fails_everywhere(folder.path(), 65, &["model.safetensors", "mlp"]);
}

#[test]
fn an_index_that_leads_out_of_its_folder() {
    let folder = model_folder();
    fs::remove_file(folder.path().join("model/model.safetensors")).unwrap();
    let index = json!({"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../x"}});
    fs::write(
        folder.path().join("model/model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    fails_everywhere(folder.path(), 65, &["index.json", "../x"]);
}

#[test]
fn a_broken_tokenizer() {
    let folder = model_folder();
    for broken in ["{\"broken", "{}", "[]", ""] {
        fs::write(folder.path().join("model/tokenizer.json"), broken).unwrap();
        fails_everywhere(folder.path(), 65, &["tokenizer.json"]);
    }
}

#[test]
fn a_gguf_file_that_is_none() {
    let folder = tempdir().unwrap();
    for bytes in [
        &b""[..],
        b"GGUF",
        b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"not a gguf file at all",
    ] {
        fs::write(folder.path().join("m.gguf"), bytes).unwrap();
        fails(
            folder.path(),
            "ppl --model m.gguf --device cpu",
            65,
            &["m.gguf"],
        );
        fails(
            folder.path(),
            "bench --model m.gguf --engine candle-gguf --device cpu",
            65,
            &["m.gguf"],
        );
    }
}

#[test]
fn texts_that_cannot_be_scored() {
    let folder = model_folder();
    let path = folder.path().join("text.txt");
    fs::write(&path, " \n\n").unwrap();
    fails_everywhere(folder.path(), 65, &["text.txt", "empty"]);
    fs::write(&path, [b'a', 0xff, 0xfe]).unwrap();
    fails_everywhere(folder.path(), 65, &["text.txt", "UTF-8"]);
    fs::write(&path, "short words").unwrap();
    fails_everywhere(folder.path(), 64, &["8 tokens", "context"]);
    fs::remove_file(&path).unwrap();
    fails_everywhere(folder.path(), 65, &["text.txt"]);
    fails(
        folder.path(),
        "ppl --model model --device cpu",
        2,
        &["--text"],
    );
}

#[test]
fn a_context_beyond_the_models() {
    let folder = model_folder();
    fails(
        folder.path(),
        "ppl --model model --text text.txt --context 512 --device cpu",
        64,
        &["context", "256"],
    );
    fails(
        folder.path(),
        "bench --model model --prompt 200 --gen 200 --device cpu",
        64,
        &["400", "256"],
    );
}

#[test]
fn a_group_that_fits_nothing() {
    let folder = model_folder();
    let shape = [
        ("hidden_size", 48),
        ("num_attention_heads", 3),
        ("num_key_value_heads", 3),
        ("head_dim", 16),
        ("intermediate_size", 48),
    ];
    set_config(folder.path(), &shape.map(|(key, n)| (key, json!(n))));
    let line = "study --model model --weights dummy --variants w4a16 --batch 1 --prompt 8 --gen 4 --device cpu --out out";
    fails(folder.path(), line, 64, &["w4a16", "q_proj", "48"]);
    fails(
        folder.path(),
        &line.replace("w4a16", "bf16,w4a16"),
        64,
        &["w4a16", "q_proj", "48"],
    );
}

#[test]
fn a_batch_that_cannot_fit() {
    let folder = tempdir().unwrap();
    fails(
        folder.path(),
        "bench --batch 100000000 --prompt 512 --gen 8 --device cpu",
        64,
        &["batch", "fit"],
    );
    fails(
        folder.path(),
        "study --batch 100000000 --prompt 512 --gen 8 --device cpu --out out",
        64,
        &["batch", "fit"],
    );
    let huge = "18446744073709551615";
    fails(
        folder.path(),
        &format!("bench --batch {huge} --prompt 512 --gen 8 --device cpu"),
        64,
        &["batch"],
    );
    fails(
        folder.path(),
        &format!("bench --batch 1 --prompt {huge} --gen {huge} --device cpu"),
        64,
        &["prompt"],
    );
}

/// A build without `cuda`, or one that runs where there is no GPU.
#[test]
fn a_gpu_that_is_not_there() {
    if candlepower::kernels::Device::cuda(0).is_ok() {
        return;
    }
    let folder = tempdir().unwrap();
    for line in [
        "study --device cuda --out out",
        "bench --device cuda",
        "ppl --device cuda:1",
        "info --device cuda",
    ] {
        fails(folder.path(), line, 69, &["--device cpu"]);
    }
}

#[test]
fn flags_that_make_no_sense() {
    let folder = model_folder();
    for (line, said) in [
        ("study --variants w9 --out out", "unknown variant 'w9'"),
        ("study --variants bf16:g64 --out out", "bf16:g64"),
        ("ppl --variant int3", "int3"),
        ("bench --batch 0", "--batch"),
        ("bench --gen 0", "--gen"),
        ("bench --graphs off --device cpu", "--graphs is for"),
        (
            "study --graphs on --device cpu --out out",
            "--graphs is for",
        ),
        ("bench --pdl off --device cpu", "--pdl is for"),
        (
            "bench --persistent on --batch 1 --device cpu",
            "--persistent is for",
        ),
        ("bench --persistent on --batch 1,2", "--batch 1"),
        ("bench --ablate --persistent on", "cannot be used with"),
        ("bench --graphs maybe", "maybe"),
        ("ppl --fuse off --device cpu", "--fuse is for"),
        ("logits --fuse on --ids 1 --device cpu", "--fuse is for"),
        (
            "generate --prompt a --engine candle --fuse off",
            "--fuse is for",
        ),
        ("bench --ablate --graphs off", "cannot be used with"),
        ("bench --kv-cache int4", "'int4'"),
        ("study --kv-cache auto,auto --out out", "--kv-cache names"),
        (
            "bench --engine candle --kv-cache auto,int8 --device cpu",
            "--kv-cache int8 is for candlepower's engine",
        ),
        (
            "generate --prompt x --engine candle --kv-cache fp8 --device cpu",
            "--engine candle keeps its cache",
        ),
        ("bench --batch 4-2", "4-2"),
        ("info --memory 80GiB", "required arguments"),
        ("info --model tiny --memory 80", "80GiB"),
        ("bench --min-time never", "seconds"),
        ("ppl --context 1", "--context"),
        ("ppl --segments 0", "--segments"),
        ("bench --device tpu", "tpu"),
        ("bench --engine candle --variants int8 --device cpu", "int8"),
        ("bench --engine candle-gguf --device cpu", "GGUF"),
        ("generate --prompt x --top-p 2", "--top-p"),
        (
            "generate --prompt x --engine candle --temperature 1 --device cpu",
            "greedy",
        ),
    ] {
        fails(folder.path(), line, 2, &[said]);
    }
    fails(
        folder.path(),
        "logits --model model --ids 1,2,999999 --device cpu",
        64,
        &["999999", "280"],
    );
    let empty = run(
        folder.path(),
        &["generate", "--prompt", "", "--device", "cpu"],
    )
    .expect(2);
    assert!(empty.error().contains("--prompt"));
    fails(folder.path(), "report nowhere", 64, &["nowhere"]);
}

#[test]
fn flags_that_would_be_in_vain() {
    let folder = model_folder();
    // clap's own word, which names what is missing on the lines below it.
    let incomplete = "required arguments";
    for (line, said) in [
        ("bench --weights-seed 3", "add --weights dummy"),
        ("ppl --revision main --device cpu", "--revision main is for"),
        ("ppl --model model --revision main --device cpu", "'model'"),
        (
            "info --revision main --device cpu",
            "--revision is for a model",
        ),
        (
            "info --weights dummy --device cpu",
            "--weights is for a model",
        ),
        ("bench --margin 2%", incomplete),
        ("bench --run-noise 1%", incomplete),
        ("bench --across-hardware", incomplete),
        ("bench --force", incomplete),
        ("kernels --force", incomplete),
        ("ppl --calibration-samples 8", incomplete),
        (
            "quantize --scheme w4a16 --sensitivity --keep-bits 16 --layers 1",
            incomplete,
        ),
        (
            "study --no-ppl --text text.txt --out out",
            "--text is for perplexity, and --no-ppl leaves that out",
        ),
        ("study --no-ppl --ppl-context 64 --out out", "--ppl-context"),
        ("study --no-ppl --base-top-k 8 --out out", "--base-top-k"),
        (
            "study --weights dummy --protocol llama.cpp --out out",
            "--weights dummy predicts nothing",
        ),
        (
            "study --engine candle --variants bf16 --ppl-segments 2 --out out",
            "--ppl-segments is for perplexity, and --engine candle",
        ),
        (
            "study --variants bf16 --base-top-k 8 --out out",
            "a single variant",
        ),
        ("generate --prompt x --top-k 3", "--top-k is for"),
        ("generate --prompt x --top-p 0.9", "--top-p is for"),
        (
            "generate --prompt x --temperature 0 --seed 1",
            "--seed is for",
        ),
        (
            "generate --prompt x --engine candle --chunk 8",
            "--chunk is for candlepower's engine",
        ),
        (
            "bench --engine candle --variants bf16 --chunk 8",
            "--chunk is for candlepower's engine",
        ),
        (
            "bench --isolate off --hang-limit 3",
            "--hang-limit is for child processes",
        ),
    ] {
        fails(folder.path(), line, 2, &[said]);
    }
}

#[test]
fn what_is_named_twice() {
    let folder = model_folder();
    for (line, said) in [
        ("study --variants bf16,bf16 --out out", "names 'bf16' twice"),
        (
            "bench --variants w4a16,w4a16:g128",
            "'w4a16' and 'w4a16:g128' are the same",
        ),
        (
            "bench --variants w4a16:g64:g32",
            "'g64' and 'g32' exclude each other",
        ),
        (
            "eval --variants int8,w8a16 --tasks arc_easy --device cpu",
            "'int8' and 'w8a16' are the same",
        ),
        (
            "info --model tiny --variants bf16,bf16 --device cpu",
            "names 'bf16' twice",
        ),
        (
            "kernels --variants int8,int8:rtn",
            "'int8' and 'int8:rtn' are the same",
        ),
        ("kernels --model tiny,tiny", "names 'tiny' twice"),
        (
            "kernels --shape 8,8 --shape 8,8",
            "--shape 8,8 is given twice",
        ),
        ("study --model tiny,tiny --out out", "names 'tiny' twice"),
        (
            "study --model model,./model --text text.txt --out out",
            "'model' and './model' are the same",
        ),
    ] {
        fails(folder.path(), line, 2, &[said]);
    }
    // A copy is the same model, too.
    for name in ["a", "b"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        copy_model(&folder.path().join(name));
    }
    let line = STUDY.replace("--model model", "--model a/model,b/model");
    fails(
        folder.path(),
        &line,
        2,
        &["a/model", "b/model", "same model"],
    );
}

#[test]
fn numbers_that_make_no_sense() {
    let folder = tempdir().unwrap();
    for (line, flag) in [
        ("bench --precision 0", "--precision"),
        ("bench --precision 100%", "--precision"),
        ("bench --max-time 0", "--max-time"),
        ("bench --min-time NaN", "--min-time"),
        ("bench --energy-window inf", "--energy-window"),
        ("bench --hang-limit 0", "--hang-limit"),
        ("bench --prompt 0,8", "--prompt"),
        ("kernels --max-time 0", "--max-time"),
        ("kernels --m 0-4", "--m"),
        ("compare a b --margin NaN", "--margin"),
        ("compare a b --fail-on 2%%", "--fail-on"),
        ("study --ppl-context 0", "--ppl-context"),
        ("study --at-recovery NaN", "--at-recovery"),
        ("info --model tiny --context 0", "--context"),
        ("info --model tiny --batch 0,1", "--batch"),
        ("generate --prompt x --temperature inf", "--temperature"),
        ("generate --prompt x --temperature 1 --top-p 0", "--top-p"),
        (
            "quantize --scheme w4a16 --out q --keep-bits 16 --layers worst:0",
            "worst:0",
        ),
    ] {
        fails(folder.path(), line, 2, &["invalid value", flag]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn records_that_were_tampered_with_are_not_believed() {
    let folder = model_folder();
    fs::create_dir(folder.path().join("out")).unwrap();
    let path = folder.path().join("out/records.jsonl");
    fs::write(&path, "{\"schema\":\"candlepower.record/9\"}\n").unwrap();
    let run = run(folder.path(), &words(STUDY));
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert_ne!(
        run.code, 0,
        "a record of an unknown version is passed over in silence"
    );
    assert!(
        fs::read_to_string(path).unwrap().contains("record/9"),
        "a foreign record is gone"
    );
}
