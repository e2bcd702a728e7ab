//! What of a checkpoint is not used, or not kept as it is, and that this is said.

use std::fs;
use std::path::Path;

use candlepower::study::notice;
use safetensors::Dtype;
use serde_json::json;

use super::common::{FIXTURES, copy_of, fixture, open, open_dummy, set_config};
use super::gguf::model as gguf;
use super::gguf_writer::plain;
use super::safetensors::rewrite;

/// What is said when a model is opened, which is one thing.
fn remark(source: impl AsRef<Path>) -> String {
    let remarks = open(source).unwrap().remarks;
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    remarks[0].clone()
}

#[test]
fn of_checkpoints_whose_tensors_are_all_used_nothing_is_said() {
    for name in FIXTURES {
        let folder = fixture(name);
        for entry in fs::read_dir(folder.parent().unwrap()).unwrap() {
            let model = open(entry.unwrap().path()).unwrap();
            assert!(model.remarks.is_empty(), "{name}: {:?}", model.remarks);
        }
    }
    assert!(open("tiny").unwrap().remarks.is_empty());
}

#[test]
fn layers_beyond_the_configuration_are_told_of() {
    let folder = copy_of("tiny-llama");
    set_config(&folder, "num_hidden_layers", json!(1));
    let said = remark(&folder);
    assert!(
        said.ends_with(
            ": 9 tensors are not used: layer 1, where the configuration has 1 (counted from 0)"
        ),
        "{said}"
    );
    // Of weights that are made up, nothing is left over.
    assert!(open_dummy(&folder, 0).unwrap().remarks.is_empty());
}

#[test]
fn tensors_without_a_place_are_told_of_unless_they_add_nothing() {
    let with = |bias: u8| {
        let folder = copy_of("tiny-llama");
        rewrite(&folder, |all| {
            let mut insert = |name: &str, shape: &[usize], byte: u8| {
                let bytes = vec![byte; 2 * shape.iter().product::<usize>()];
                all.insert(name.to_owned(), (Dtype::BF16, shape.to_vec(), bytes));
            };
            insert("visual.patch.weight", &[2, 3], 1);
            insert("model.layers.0.mlp.up_proj.bias", &[160], bias);
            insert("model.layers.1.mlp.up_proj.bias", &[160], bias);
            insert("model.layers.0.self_attn.rotary_emb.inv_freq", &[16], 1);
        });
        remark(&folder)
    };
    let zeros = with(0);
    assert!(
        zeros.ends_with(": 1 tensor is not used: visual.patch.weight"),
        "{zeros}"
    );
    let others = with(1);
    assert!(
        others.ends_with(
            ": 3 tensors are not used: model.layers.*.mlp.up_proj.bias; visual.patch.weight"
        ),
        "{others}"
    );
}

#[test]
fn tensors_of_a_gguf_file_without_a_place_are_told_of() {
    let (_folder, path) = gguf("llama", 1).write();
    assert!(open(&path).unwrap().remarks.is_empty());
    let writer = gguf("llama", 1)
        .tensor("blk.3.attn_norm.weight", &[4], 0, plain(0, &[1.0; 4]))
        .tensor("blk.0.attn_q_norm.weight", &[4], 0, plain(0, &[1.0; 4]));
    let (_folder, path) = writer.write();
    let said = remark(&path);
    assert!(
        said.ends_with(
            ": 2 tensors are not used: layer 3, where the configuration has 1 (counted from 0); \
             blk.*.attn_q_norm.weight"
        ),
        "{said}"
    );
}

#[test]
fn what_becomes_of_the_blocks_of_a_gguf_file_is_said() {
    let said = |kind: u32, variant: &str| {
        let (_folder, path) = gguf("llama", kind).write();
        let model = open(&path).unwrap();
        let quantised = model.config.quantization.is_some();
        let notice = notice(&model, &variant.parse().unwrap()).unwrap();
        assert_eq!(notice.is_some(), quantised);
        notice.unwrap_or_default()
    };
    assert_eq!(said(1, "as-is"), "");
    let packed = said(8, "as-is");
    assert!(
        packed.ends_with("with model.embed_tokens.weight (Q8_0) rounded to bf16"),
        "{packed}"
    );
    let widened = said(12, "as-is");
    let tables = "with model.embed_tokens.weight (Q4_K) and lm_head.weight (Q4_K) rounded to bf16";
    assert!(
        widened.contains("gguf Q4_K as bf16") && widened.ends_with(tables),
        "{widened}"
    );
    let made = said(12, "int8");
    assert!(
        made.ends_with("is stored as gguf Q4_K: int8 is made of its dequantised weights"),
        "{made}"
    );
}
