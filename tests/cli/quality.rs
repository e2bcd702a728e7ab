//! Perplexities by every protocol, comparison with a base, and what a study makes of both.

use std::fs;
use std::path::Path;

use candlepower::model::tiny_text;
use serde_json::{Value, json};
use tempfile::tempdir;

use super::common::{
    Run, copy_model, fits_a_terminal, fixture, keeps_to_schema, number, run, words, write_text,
};

fn ppl(folder: &Path, line: &str) -> Run {
    run(folder, &words(&format!("ppl --device cpu {line}")))
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The sums that tests/interop/protocols.py finds with transformers 5.24.0, of `lm_eval` with lm_eval 0.4.13, in float32
/// on the CPU.
#[test]
fn every_protocol_scores_what_transformers_scores() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("part.txt"), &tiny_text()[..3000]).unwrap();
    for (flags, nll, tokens) in [
        ("--protocol gptq", 1_975.331_880_235_427, 475),
        ("--protocol llama.cpp", 987.909_583_575_564, 235),
        ("--protocol sliding --stride 40", 1_122.316_199_890_895, 255),
        (
            "--protocol lm_eval --text part.txt",
            4_178.519_264_221_191,
            984,
        ),
    ] {
        let line = format!("--variant f32 --context 96 --segments 5 {flags} --json");
        let found = ppl(folder.path(), &line).expect(0).json();
        let off = (number(&found, "/nll_sum") - nll).abs() / nll;
        assert!(off < 1e-5, "{flags}: {} instead of {nll}", found["nll_sum"]);
        assert_eq!(found["tokens_scored"], tokens, "{flags}");
        let name = flags.split_whitespace().nth(1).unwrap();
        assert_eq!(found["protocol"], name);
        let near = |pointer: &str, truth: f64| {
            let value = number(&found, pointer);
            assert!(
                (value - truth).abs() < 1e-4 * truth,
                "{pointer}: {value}, {truth}"
            );
        };
        match name {
            "llama.cpp" => near("/stderr_over_tokens", 11.047_984_017_506_668),
            "sliding" => assert_eq!(found["stride"], 40),
            "lm_eval" => {
                near("/word_perplexity", 1_546.298_197_098_55);
                near("/byte_perplexity", 4.026_267_446_089_575);
                near("/bits_per_byte", 4.026_267_446_089_575_f64.log2());
            }
            _ => {}
        }
    }
}

/// As above, with a tokenizer that puts `<s>` before a text: it stays where it stands under `gptq`, begins every window
/// under `llama.cpp`, and is predicted, too, under `lm_eval`.
#[test]
fn the_token_that_begins_a_text_goes_where_each_protocol_has_it() {
    let folder = tempdir().unwrap();
    write_text(folder.path());
    let text = fs::read_to_string(folder.path().join("text.txt")).unwrap();
    fs::write(folder.path().join("part.txt"), &text[..900]).unwrap();
    let model = fixture("tiny-llama");
    let mut tokenizer = json_of(&model.join("tokenizer.json"));
    let (begin, own) = (
        json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } }),
        json!({ "Sequence": { "id": "A", "type_id": 0 } }),
    );
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [begin, own],
        "pair": [begin, own, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
    });
    let path = folder.path().join("tokenizer.json");
    fs::write(path, tokenizer.to_string()).unwrap();
    for (flags, nll, tokens) in [
        ("--protocol gptq --text text.txt", 1_587.619_546_798_65, 189),
        (
            "--protocol llama.cpp --text text.txt",
            785.184_326_138_331,
            93,
        ),
        (
            "--protocol lm_eval --text part.txt",
            5_969.346_208_700_674,
            715,
        ),
    ] {
        let line = format!(
            "--model {} --tokenizer tokenizer.json --variant f32 --context 64 --segments 3 {flags} --json",
            model.display()
        );
        let found = ppl(folder.path(), &line).expect(0).json();
        let off = (number(&found, "/nll_sum") - nll).abs() / nll;
        assert!(off < 1e-5, "{flags}: {} instead of {nll}", found["nll_sum"]);
        assert_eq!(found["tokens_scored"], tokens, "{flags}");
    }
}

#[test]
fn documents_are_scored_one_by_one_or_as_one_stream() {
    let folder = tempdir().unwrap();
    let halves = [&tiny_text()[..700], &tiny_text()[700..1500]];
    let line = |half: &str| json!({ "body": half }).to_string();
    fs::write(folder.path().join("two.jsonl"), halves.map(line).join("\n")).unwrap();
    fs::create_dir(folder.path().join("texts")).unwrap();
    for (name, half) in ["a.txt", "b.txt"].iter().zip(halves) {
        fs::write(folder.path().join("texts").join(name), half).unwrap();
    }
    for protocol in ["lm_eval", "gptq"] {
        let of = |text: &str| {
            let line = format!("--protocol {protocol} --context 64 --text {text} --json");
            ppl(folder.path(), &line).expect(0).json()
        };
        let (lines, files) = (of("two.jsonl --field body"), of("texts"));
        assert_eq!(lines["segment_nll"], files["segment_nll"]);
        assert_eq!(lines["text_digest"], files["text_digest"]);
        if protocol == "lm_eval" {
            assert_eq!(lines["segments"], 2);
            let single = of("texts/a.txt");
            assert_eq!(single["segment_nll"][0], lines["segment_nll"][0]);
        }
    }
}

#[test]
fn a_model_does_not_diverge_from_itself_and_fewer_bits_diverge_more() {
    let folder = tempdir().unwrap();
    let against = |base: &str, variant: &str, more: &str| {
        let line = format!(
            "--base {base} --variant {variant} --context 128 --segments 8 --base-logits kept {more} --json"
        );
        let run = ppl(folder.path(), &line).expect(0);
        (run.json(), run.stderr)
    };
    for more in ["", "--base-top-k all"] {
        let (same, said) = against("f32", "f32", more);
        assert!(number(&same, "/divergence/mean_kl").abs() < 1e-6, "{same}");
        assert_eq!(number(&same, "/divergence/top1_agreement"), 1.0);
        assert_eq!(number(&same, "/delta_vs_base/ln_ratio"), 0.0);
        assert!(
            said.contains("predictions kept") && said.contains("kept/"),
            "{said}"
        );
    }
    let (int8, _) = against("bf16", "int8", "");
    let (w4a16, said) = against("bf16", "w4a16", "");
    assert!(
        !said.contains("predictions kept"),
        "the base is scored once: {said}"
    );
    let (whole, _) = against("bf16", "w4a16", "--base-top-k all");
    let of = |found: &Value, what: &str| number(found, &format!("/divergence/{what}"));
    assert!(of(&int8, "mean_kl") > 0.0 && of(&int8, "mean_kl") < of(&w4a16, "mean_kl"));
    assert!(of(&int8, "top1_agreement") > of(&w4a16, "top1_agreement"));
    assert!(of(&w4a16, "top1_agreement") > 0.5);
    assert!(of(&int8, "rms_delta_p") < of(&w4a16, "rms_delta_p"));
    // Tokens that count as one hide little of a divergence, and add nothing to it.
    assert!(of(&w4a16, "mean_kl") <= of(&whole, "mean_kl") + 1e-7);
    assert!(
        of(&w4a16, "mean_kl") > 0.8 * of(&whole, "mean_kl"),
        "{w4a16} {whole}"
    );
    assert!(of(&whole, "outside_top_k") == 0.0 && whole["divergence"]["top_k"].is_null());
    let spread = ["median_kl", "p90_kl", "p99_kl", "max_kl"].map(|what| of(&w4a16, what));
    assert!(spread.is_sorted(), "{spread:?}");
    // The losses of the base come from what was kept, and pair with the variant's.
    let alone = ppl(
        folder.path(),
        "--variant bf16 --context 128 --segments 8 --json",
    );
    let alone = alone.expect(0).json();
    assert_eq!(alone["segment_nll"], int8["base_segment_nll"]);
    let delta = &int8["delta_vs_base"];
    assert!(
        10.0 * number(delta, "/ln_ratio_stderr") < number(delta, "/ln_ratio_stderr_unpaired"),
        "{delta}"
    );
    assert!(number(delta, "/p_value") > 0.0 && number(delta, "/p_value") <= 1.0);
    let ratio = number(&int8, "/value") / number(&int8, "/base_value");
    assert!((number(delta, "/ratio") - ratio).abs() < 1e-9);
}

#[test]
fn a_damaged_base_is_named_and_an_interrupted_one_is_never_there() {
    let folder = tempdir().unwrap();
    let line = "--base f32 --variant f32 --context 64 --segments 2 --base-logits kept";
    let shown = ppl(folder.path(), line).expect(0).stdout;
    for what in [
        "against f32",
        "noise floor",
        "KL, nats per token",
        "same top token",
        "perplexity ratio",
    ] {
        assert!(shown.contains(what), "{what}: {shown}");
    }
    let files: Vec<_> = fs::read_dir(folder.path().join("kept")).unwrap().collect();
    assert_eq!(files.len(), 1);
    let path = files[0].as_ref().unwrap().path();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&path, &bytes).unwrap();
    let spoiled = ppl(folder.path(), line).expect(65);
    assert!(spoiled.error().contains("damaged"), "{}", spoiled.error());
    assert_eq!(spoiled.stdout, "");
    fs::write(&path, &bytes[..middle]).unwrap();
    assert!(
        ppl(folder.path(), line)
            .expect(65)
            .error()
            .contains(".base")
    );
}

const STUDY: &str = "study --device cpu --min-time 0 --trials 1 --warmup 0 --batch 1,3 --prompt 8 --gen 4 --no-ceilings \
                     --variants bf16,int8,w4a16 --ppl-context 128 --ppl-segments 6 --out out";

#[test]
fn a_study_holds_predictions_against_the_base_and_losses_against_themselves() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let first = run(folder.path(), &words(STUDY)).expect(0);
    assert!(
        first.stderr.contains("predictions kept"),
        "{}",
        first.stderr
    );
    assert!(first.stdout.contains("KL to base"), "{}", first.stdout);
    assert!(
        first.stdout.contains("noise floor: bf16"),
        "{}",
        first.stdout
    );
    let study = json_of(&out.join("study.json"));
    let variants = study["variants"].as_array().unwrap();
    let base = &variants[0]["perplexity"];
    assert!(base["divergence"].is_null());
    // On the CPU a row is the same in any batch.
    assert_eq!(number(base, "/noise_floor/mean_kl"), 0.0);
    assert_eq!(number(base, "/noise_floor/top1_agreement"), 1.0);
    let kl = |i: usize| number(&variants[i], "/perplexity/divergence/mean_kl");
    assert!(0.0 < kl(1) && kl(1) < kl(2));
    for variant in variants {
        let checks = variant["perplexity"]["under_load"].as_array().unwrap();
        let batches: Vec<_> = checks
            .iter()
            .map(|c| c["batch"].as_u64().unwrap())
            .collect();
        assert_eq!(batches, [3, 1]);
        assert!(
            checks.iter().all(|check| check["equal"] == true),
            "{checks:?}"
        );
    }
    // A new variant is compared with what was kept; without it, the base is scored again for that.
    let wider = STUDY.replace("w4a16", "w4a16,w4a16:g64");
    fs::remove_dir_all(out.join("base-logits")).unwrap();
    let second = run(folder.path(), &words(&wider)).expect(0);
    assert!(
        second.stderr.contains("predictions kept"),
        "{}",
        second.stderr
    );
    let study = json_of(&out.join("study.json"));
    assert!(number(&study, "/variants/3/perplexity/divergence/mean_kl") < kl(2));
    // And nothing is measured twice.
    let lines = fs::read_to_string(out.join("records.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 4 * 3);
    let by_kl = run(folder.path(), &words("report out --quality-axis kl")).expect(0);
    assert!(
        by_kl.stdout.contains("Pareto front of KL divergence"),
        "{}",
        by_kl.stdout
    );
    assert_eq!(
        json_of(&out.join("study.json"))["quality_axis"],
        "kl_divergence"
    );
    let card = run(folder.path(), &words("export out --format model-card"))
        .expect(0)
        .stdout;
    for what in [
        "| bf16 | int8 | w4a16 |",
        "| Recovery | 100.00 % |",
        "| Same most likely token | – |",
    ] {
        assert!(card.contains(what), "{what}:\n{card}");
    }
}

#[test]
fn flags_and_texts_that_make_no_sense() {
    let folder = tempdir().unwrap();
    fs::write(
        folder.path().join("bad.jsonl"),
        "{\"text\":\"a\"}\n{\"text\":1}\n",
    )
    .unwrap();
    fs::write(folder.path().join("plain.txt"), tiny_text()).unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    for (line, code, said) in [
        (
            "ppl --protocol papers",
            2,
            "no protocol; there are gptq, llama.cpp",
        ),
        ("ppl --stride 8", 2, "--stride is for --protocol sliding"),
        ("ppl --protocol sliding --stride 300", 2, "--stride 300"),
        ("ppl --protocol llama.cpp --context 3", 2, "--context"),
        (
            "ppl --text plain.txt --text-format plain --field body",
            2,
            "--field is for JSON lines",
        ),
        (
            "ppl --text bad.jsonl",
            65,
            "bad.jsonl:2: the field 'text' is no text",
        ),
        (
            "ppl --text bad.jsonl --field body",
            65,
            "bad.jsonl:1: no field 'body'",
        ),
        (
            "ppl --text plain.txt --text-format jsonl",
            65,
            "plain.txt:1: not JSON",
        ),
        ("ppl --text empty", 65, "holds no file"),
        ("ppl --field body", 2, "--field is for JSON lines"),
        ("ppl --base-top-k 8", 2, "by --base"),
        (
            "study --out out --no-kl --base-logits x",
            2,
            "leave --no-kl out",
        ),
        ("ppl --base bf15", 2, "bf15"),
        ("ppl --base bf16 --base-logits plain.txt", 2, "is a file"),
        ("ppl --base bf16 --base-top-k 0", 2, "above 0, or all"),
        (
            "study --out out --no-kl --quality-axis kl",
            2,
            "--quality-axis kl needs",
        ),
        (
            "study --out out --variants bf16 --quality-axis kl",
            2,
            "--quality-axis kl needs",
        ),
        ("study --out out --text bad.jsonl", 65, "bad.jsonl:2"),
        ("export nowhere --format csv", 65, "nowhere"),
    ] {
        let run = run(folder.path(), &words(line)).expect(code);
        let all = run.stderr.replace('\n', " ");
        assert!(all.contains(said), "'{line}' does not say '{said}': {all}");
        assert_eq!(run.stdout, "", "'{line}' prints a result");
    }
    let mut left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["bad.jsonl", "empty", "plain.txt"]);
}

#[test]
fn a_scored_text_keeps_to_its_schema_and_fits_a_terminal() {
    let folder = tempdir().unwrap();
    let name = "a-text-of-which-the-name-alone-takes-half-a-line-of-a-terminal.txt";
    write_text(folder.path());
    fs::rename(folder.path().join("text.txt"), folder.path().join(name)).unwrap();
    let line = format!("--variant int8 --context 64 --segments 3 --text {name} --base-logits kept");
    for base in ["", "--base f32"] {
        let line = match base {
            "" => line.replace(" --base-logits kept", ""),
            base => format!("{line} {base}"),
        };
        let found = ppl(folder.path(), &format!("{line} --json")).expect(0);
        keeps_to_schema(&found.json(), "candlepower.perplexity/1");
        let shown = ppl(folder.path(), &line).expect(0).stdout;
        fits_a_terminal(&shown);
        assert!(
            shown.starts_with("perplexity ") && shown.contains(name) && shown.contains("\n  "),
            "{shown}"
        );
    }
}

/// Puts a NaN into a tensor of bfloat16, in a copy of `tiny-llama` in `folder`.
fn model_with_a_nan(folder: &Path, tensor: &str, element: usize) {
    let path = copy_model(folder).join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header[tensor]["dtype"], "BF16");
    let begin = header[tensor]["data_offsets"][0].as_u64().unwrap();
    let at = 8 + length + usize::try_from(begin).unwrap() + 2 * element;
    bytes[at..at + 2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_weight_that_is_no_number_is_the_checkpoints_fault_and_named() {
    let folder = tempdir().unwrap();
    // 160 columns.
    model_with_a_nan(folder.path(), "model.layers.1.mlp.down_proj.weight", 323);
    write_text(folder.path());
    let rows = "{\"query\": \"A lamp gives\", \"choices\": [\"light\", \"salt\"], \"gold\": 0}\n";
    fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
    let named = |told: &str| {
        for part in [
            "model.safetensors",
            "'model.layers.1.mlp.down_proj.weight' holds NaN at row 2, column 3",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("internal"), "{told}");
    };
    for line in [
        "ppl --model model --text text.txt --context 64 --segments 2 --variant f32",
        "ppl --model model --text text.txt --context 64 --segments 2 --variant int8",
        "eval --model model --tasks rows.jsonl --variant f32",
        "generate --model model --prompt lamp --gen 2 --variant f32",
        "quantize --model model --scheme w4a16:g32 --out out",
    ] {
        let failed = run(folder.path(), &words(&format!("{line} --device cpu"))).expect(65);
        named(failed.error());
    }
    // In a study it costs the points of its variants.
    let study = "study --model model --variants f32 --batch 1 --prompt 8 --gen 2 --trials 1 --min-time 0 --text text.txt \
                 --ppl-context 64 --ppl-segments 2 --no-ceilings --device cpu --out study";
    run(folder.path(), &words(study)).expect(3);
    let records = fs::read_to_string(folder.path().join("study/records.jsonl")).unwrap();
    for record in records.lines() {
        named(record);
    }
}
