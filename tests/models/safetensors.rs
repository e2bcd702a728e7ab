//! Checkpoint folders: one file, shards, what must be refused.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use candlepower::model::{HostSliceMut, ModelConfig};
use candlepower::scheme::DType;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::{FIXTURES, assert_fails, copy_of, fixture, open, read_all, set_config};

#[test]
fn every_fixture_opens_and_reads_as_stored() {
    for name in FIXTURES {
        let model = open(fixture(name)).unwrap();
        let bytes = fs::read(fixture(name).join("model.safetensors")).unwrap();
        let reference = SafeTensors::deserialize(&bytes).unwrap();
        for wanted in model.config.tensors() {
            let stored = reference.tensor(&wanted.name).unwrap();
            let values: Vec<f32> = stored
                .data()
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect();
            assert_eq!(
                read_all(&model, &wanted.name),
                values,
                "{name}: {}",
                wanted.name
            );
            assert_eq!(model.weights.stored(&wanted.name).unwrap(), "BF16");
            assert_eq!(model.weights.precision(&wanted.name).unwrap(), DType::BF16);
        }
        assert_eq!(model.origin.file_bytes, bytes.len() as u64);
        let tokenizer = model.tokenizer.unwrap();
        let ids = tokenizer.encode("Hello, world", true).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), "Hello, world");
    }
}

#[test]
fn both_generations_of_config_json_say_the_same() {
    for name in FIXTURES {
        let read = |file: &str| {
            let path = fixture(name).join(file);
            let value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            ModelConfig::from_json(path, &value).unwrap()
        };
        assert_eq!(
            read("config.json"),
            read("config.transformers5.json"),
            "{name}"
        );
    }
}

#[test]
fn any_range_of_rows_reads_in_any_precision() {
    let model = open(fixture("tiny-llama")).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    let (all, width) = (read_all(&model, name), model.config.intermediate);
    for rows in [0..1, 3..7, 127..128, 5..5] {
        let part = &all[rows.start * width..rows.end * width];
        let mut halves = vec![f16::NAN; part.len()];
        let mut brains = vec![bf16::NAN; part.len()];
        model
            .weights
            .read_rows(name, rows.clone(), HostSliceMut::F16(&mut halves))
            .unwrap();
        model
            .weights
            .read_rows(name, rows, HostSliceMut::BF16(&mut brains))
            .unwrap();
        for ((&x, h), b) in part.iter().zip(halves).zip(brains) {
            assert_eq!((h, b), (f16::from_f32(x), bf16::from_f32(x)));
        }
    }
    let mut short = [0.0; 3];
    let wrong = model
        .weights
        .read_rows(name, 0..1, HostSliceMut::F32(&mut short));
    assert_fails(wrong, 70, name);
    let outside = model
        .weights
        .read_rows(name, 128..129, HostSliceMut::F32(&mut [0.0; 160]));
    assert_fails(outside, 70, name);
}

#[test]
fn threads_read_at_the_same_time() {
    let model = open(fixture("tiny-llama")).unwrap();
    let (model, name) = (&model, "model.embed_tokens.weight");
    let whole = read_all(model, name);
    std::thread::scope(|scope| {
        for row in whole.chunks_exact(128).enumerate().step_by(16) {
            scope.spawn(move || {
                let mut out = [0.0; 128];
                let read =
                    model
                        .weights
                        .read_rows(name, row.0..row.0 + 1, HostSliceMut::F32(&mut out));
                read.unwrap();
                assert_eq!(out, row.1);
            });
        }
    });
}

/// The tied fixture with its tensors (type, shape, bytes) changed.
fn tied(change: impl FnOnce(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)) -> TempDir {
    let folder = copy_of("tiny-llama-tied");
    let path = folder.path().join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let old = SafeTensors::deserialize(&file).unwrap();
    let mut tensors = old
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            (name, tensor)
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(&path, serialize(views, None).unwrap()).unwrap();
    folder
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

#[test]
fn a_tied_model_uses_a_head_that_is_not_its_embedding() {
    let same = tied(|tensors| {
        let head = tensors[EMBEDDING].clone();
        tensors.insert(HEAD.to_owned(), head);
    });
    assert!(open(&same).unwrap().config.tied);
    // The last number alone is another.
    let other = tied(|tensors| {
        let mut head = tensors[EMBEDDING].clone();
        *head.2.last_mut().unwrap() ^= 0x80;
        tensors.insert(HEAD.to_owned(), head);
    });
    let model = open(&other).unwrap();
    assert!(!model.config.tied);
    let (mut wanted, head) = (read_all(&model, EMBEDDING), read_all(&model, HEAD));
    assert_ne!(head, wanted);
    let last = wanted.last_mut().unwrap();
    *last = -*last;
    assert_eq!(head, wanted);
    // Another type: what is stored is used.
    let wide = tied(|tensors| {
        let (_, shape, data) = tensors[EMBEDDING].clone();
        let head = vec![0; 2 * data.len()];
        tensors.insert(HEAD.to_owned(), (Dtype::F32, shape, head));
    });
    assert!(!open(&wide).unwrap().config.tied);
    let short = tied(|tensors| {
        let (dtype, shape, data) = tensors[EMBEDDING].clone();
        let rows = shape[0] / 2;
        let half = data[..data.len() / 2].to_vec();
        tensors.insert(HEAD.to_owned(), (dtype, vec![rows, shape[1]], half));
    });
    assert_fails(open(&short), 65, HEAD);
}

#[test]
fn a_tied_model_uses_a_quantised_head() {
    let folder = tied(|tensors| {
        let [n, k] = tensors[EMBEDDING].1[..] else {
            panic!("no matrix")
        };
        // Codes of 0, zero points of 8 (less one), scales of 1: every weight is -8.
        for (part, dtype, shape, word) in [
            ("qweight", Dtype::I32, [k / 8, n], 0),
            ("qzeros", Dtype::I32, [1, n / 8], 0x7777_7777),
            ("scales", Dtype::F32, [1, n], 1_f32.to_bits()),
        ] {
            let data = word.to_le_bytes().repeat(shape[0] * shape[1]);
            tensors.insert(format!("lm_head.{part}"), (dtype, shape.to_vec(), data));
        }
    });
    let settings = json!({"quant_method": "gptq", "bits": 4, "group_size": -1});
    set_config(&folder, "quantization_config", settings);
    let model = open(&folder).unwrap();
    assert!(!model.config.tied);
    assert!(model.weights.stored_linear(HEAD).is_some());
    assert!(read_all(&model, HEAD).iter().all(|&x| x == -8.0));
}

#[test]
fn a_head_without_an_embedding_is_both_if_the_model_is_tied() {
    let renamed = || {
        tied(|tensors| {
            let embedding = tensors.remove(EMBEDDING).unwrap();
            tensors.insert(HEAD.to_owned(), embedding);
        })
    };
    let model = open(renamed()).unwrap();
    assert!(model.config.tied);
    let plain = open(fixture("tiny-llama-tied")).unwrap();
    assert_eq!(read_all(&model, EMBEDDING), read_all(&plain, EMBEDDING));
    // Not if it is not, nor if it is no embedding by its shape.
    let folder = renamed();
    set_config(&folder, "tie_word_embeddings", json!(false));
    assert_fails(open(&folder), 65, EMBEDDING);
    let folder = renamed();
    set_config(&folder, "vocab_size", json!(300));
    assert_fails(open(&folder), 65, "embed_tokens.weight': missing");
}

/// Splits the fixture's weights over two files with an index.
fn shard(folder: &tempfile::TempDir) -> Value {
    let whole = folder.path().join("model.safetensors");
    let bytes = fs::read(&whole).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    for (i, file) in ["one.safetensors", "two.safetensors"]
        .into_iter()
        .enumerate()
    {
        let part: Vec<_> = tensors.tensors().into_iter().skip(i).step_by(2).collect();
        for (name, _) in &part {
            map.insert(name.clone(), json!(file));
        }
        fs::write(folder.path().join(file), serialize(part, None).unwrap()).unwrap();
    }
    fs::remove_file(whole).unwrap();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    write_index(folder, &index.to_string());
    index
}

fn write_index(folder: &tempfile::TempDir, text: &str) {
    fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
}

#[test]
fn shards_read_as_one_and_a_single_file_may_have_any_name() {
    let folder = copy_of("tiny-qwen3");
    shard(&folder);
    let (sharded, whole) = (open(&folder).unwrap(), open(fixture("tiny-qwen3")).unwrap());
    assert_eq!(sharded.origin.paths.len(), 2);
    for wanted in whole.config.tensors() {
        assert_eq!(
            read_all(&sharded, &wanted.name),
            read_all(&whole, &wanted.name)
        );
    }
    let folder = copy_of("tiny-qwen3");
    let named = folder.path().join("weights.safetensors");
    fs::rename(folder.path().join("model.safetensors"), &named).unwrap();
    assert_eq!(open(&folder).unwrap().origin.paths, [named]);
}

#[test]
fn an_index_cannot_name_files_outside_its_folder() {
    let folder = copy_of("tiny-qwen3");
    let index = shard(&folder);
    for file in [
        "../x.safetensors",
        "/etc/passwd",
        "sub/x",
        "..",
        ".",
        "",
        "a\\b",
        "C:x",
    ] {
        let mut index = index.clone();
        index["weight_map"]["model.norm.weight"] = json!(file);
        write_index(&folder, &index.to_string());
        assert_fails(open(&folder), 65, "leaves the folder");
    }
    let mut wrong = index.clone();
    wrong["weight_map"]["model.norm.weight"] = json!("three.safetensors");
    write_index(&folder, &wrong.to_string());
    assert_fails(open(&folder), 65, "three.safetensors: missing, though");
    write_index(
        &folder,
        r#"{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}"#,
    );
    assert_fails(open(&folder), 65, "'a' comes twice");
    let mut wrong = index;
    wrong["weight_map"]["extra"] = json!("one.safetensors");
    write_index(&folder, &wrong.to_string());
    assert_fails(open(&folder), 65, "'extra'");
}

/// Rewrites the fixture's weights through `change`.
pub(crate) fn rewrite(
    folder: &tempfile::TempDir,
    change: impl Fn(&mut HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>),
) {
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

#[test]
fn missing_misshapen_and_mistyped_tensors_are_named() {
    let folder = copy_of("tiny-llama");
    rewrite(&folder, |all| {
        drop(all.remove("model.layers.1.mlp.up_proj.weight"))
    });
    assert_fails(
        open(&folder),
        65,
        "'model.layers.1.mlp.up_proj.weight': missing",
    );

    let folder = copy_of("tiny-llama");
    rewrite(&folder, |all| {
        all.get_mut("lm_head.weight").unwrap().1.reverse()
    });
    assert_fails(
        open(&folder),
        65,
        "'lm_head.weight' has the shape [128, 280]",
    );

    let folder = copy_of("tiny-llama");
    rewrite(&folder, |all| {
        all.get_mut("model.norm.weight").unwrap().0 = Dtype::I16
    });
    assert_fails(open(&folder), 65, "'model.norm.weight': stored as I16");

    let folder = copy_of("tiny-llama");
    rewrite(&folder, |all| {
        drop(all.insert("unused".to_owned(), (Dtype::I64, vec![1], vec![0; 8])))
    });
    open(&folder).expect("what is not needed may have any type");
}

#[test]
fn an_output_head_is_needed_unless_tied() {
    let folder = copy_of("tiny-llama");
    rewrite(&folder, |all| drop(all.remove("lm_head.weight")));
    assert_fails(
        open(&folder),
        65,
        "'lm_head.weight': missing: if the model's output head is its embedding",
    );
    set_config(&folder, "tie_word_embeddings", json!(true));
    assert!(open(&folder).unwrap().config.tied);

    // Some tied checkpoints store the head nevertheless.
    let folder = copy_of("tiny-llama");
    rewrite(&folder, |all| {
        let head = all["model.embed_tokens.weight"].clone();
        all.insert("lm_head.weight".to_owned(), head);
    });
    set_config(&folder, "tie_word_embeddings", json!(true));
    let model = open(&folder).unwrap();
    assert!(
        model
            .config
            .tensors()
            .iter()
            .all(|t| t.name != "lm_head.weight")
    );
}

#[test]
fn a_silent_config_takes_the_precision_of_the_tensors() {
    let folder = copy_of("tiny-llama");
    for silent in [Value::Null, json!("auto")] {
        set_config(&folder, "torch_dtype", silent);
        assert_eq!(open(&folder).unwrap().config.dtype, DType::BF16);
    }
}

#[test]
fn end_tokens_of_the_generation_config_are_added() {
    let folder = copy_of("tiny-llama");
    fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id": [2, 7]}"#,
    )
    .unwrap();
    assert_eq!(open(&folder).unwrap().config.eos, [2, 7]);
    fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id": 280}"#,
    )
    .unwrap();
    assert_fails(open(&folder), 65, "280");
}

#[test]
fn quantised_checkpoints_of_unknown_methods_are_refused() {
    for key in ["quantization_config", "compression_config"] {
        let folder = copy_of("tiny-llama");
        set_config(&folder, key, json!({"quant_method": "torchao"}));
        assert_fails(open(&folder), 64, "'torchao'");
        set_config(&folder, key, json!({"bits": 4}));
        assert_fails(open(&folder), 65, "have no key 'quant_method'");
    }
}

#[test]
fn folders_without_a_checkpoint_say_what_is_missing() {
    let folder = copy_of("tiny-llama");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_fails(open(&folder), 65, "no safetensors file");
    let write = |name: &str| fs::write(folder.path().join(name), "x").unwrap();
    // No weights.
    write("training_args.bin");
    let error = open(&folder).unwrap_err().to_string();
    assert!(error.ends_with("holds no safetensors file"), "{error}");
    write("pytorch_model-00001-of-00002.bin");
    assert_fails(open(&folder), 65, "save_pretrained");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_fails(open(&folder), 65, "holds no config.json, which says");
    write("model-q8.gguf");
    assert_fails(open(&folder), 65, "model-q8.gguf");
    write("adapter_config.json");
    assert_fails(open(&folder), 65, "adapter");
}

#[test]
fn pointers_of_git_lfs_are_called_by_their_name() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n";
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = copy_of("tiny-llama");
        fs::write(folder.path().join(name), pointer).unwrap();
        assert_fails(open(&folder), 65, &format!("{name}: a pointer of Git LFS"));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, pointer).unwrap();
    assert_fails(open(&path), 65, "git lfs pull");
}
