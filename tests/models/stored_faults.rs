//! What must be refused about quantised checkpoints, and what the refusal says.

use std::fs;

use candlepower::error::Result;
use candlepower::model::Model;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::{assert_fails, copy_of, open, set_config};
use super::stored::{
    K, Layer, N, New, WEIGHT, bytes, compressed, floats, gptq, replace, with, words,
};

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let layer = Layer::new(4, 32);
    let weights = json!({"num_bits": 4, "symmetric": false, "group_size": 32, "strategy": "group"});
    let base = || compressed(weights.clone(), Value::Null, "pack-quantized");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut settings = base();
        change(&mut settings);
        open(with(settings, layer.compressed()))
    };
    assert_fails(
        changed(&|s| s["format"] = json!("marlin-24")),
        64,
        "'marlin-24'",
    );
    assert_fails(
        changed(&|s| s["format"] = json!("nvfp4-pack-quantized")),
        64,
        "nvfp4",
    );
    assert_fails(
        changed(&|s| s["sparsity_config"] = json!({"format": "sparse-24-bitmask"})),
        64,
        "sparse-24-bitmask",
    );
    assert_fails(
        changed(&|s| s["transform_config"] = json!({"config_groups": {}})),
        64,
        "transform",
    );
    let group = |s: &mut Value, key: &str, value: Value| s["config_groups"]["group_0"][key] = value;
    assert_fails(
        changed(&|s| {
            group(
                s,
                "input_activations",
                json!({"num_bits": 4, "strategy": "token", "dynamic": true}),
            )
        }),
        64,
        "4 bits",
    );
    assert_fails(
        changed(&|s| s["config_groups"]["group_0"]["weights"]["num_bits"] = json!(3)),
        64,
        "3 bits",
    );
    assert_fails(
        changed(&|s| s["config_groups"]["group_0"]["weights"]["new_key"] = json!(3)),
        64,
        "'new_key'",
    );
    assert_fails(
        changed(&|s| group(s, "targets", json!(["re:("]))),
        64,
        "re:(",
    );
    assert_fails(
        changed(&|s| group(s, "targets", json!(["lm_head"]))),
        64,
        "no group",
    );
    assert_fails(
        changed(&|s| s["config_groups"] = json!(3)),
        65,
        "quantization_config",
    );
    assert_fails(changed(&|s| s["quant_method"] = json!("hqq")), 64, "'hqq'");
    for (key, value, word) in [
        ("checkpoint_format", json!("marlin"), "'marlin'"),
        ("bits", json!(3), "3 bits"),
        ("bits", json!("4"), "whole number"),
        ("group_size", json!(0), "group_size of 0"),
    ] {
        let result = open(with(gptq(json!({key: value})), layer.gptq(1, None)));
        let code = if word == "whole number" { 65 } else { 64 };
        assert_fails(result, code, word);
    }
    let narrow = Layer::new(4, 16);
    let result = open(with(gptq(json!({"group_size": 16})), narrow.gptq(1, None)));
    assert_fails(result, 64, "groups of 16 columns");
    // Saved before it was compressed: plain weights with scales beside them.
    let plain = vec![0_u8; N * K * 2];
    let frozen = vec![
        ("weight", bytes(Dtype::BF16, &[N, K], &plain)),
        ("weight_scale", floats(&[N, 4], &[1.0; N * 4])),
    ];
    assert_fails(
        open(with(base(), frozen)),
        64,
        "before they were compressed",
    );
}

#[test]
fn four_bits_of_rows_that_do_not_divide_into_blocks_are_refused() {
    // 128 outputs of 144 inputs each, which are four blocks of 32 and half a one.
    const ROWS: usize = 128;
    const COLUMNS: usize = 144;
    let ints = |shape: [usize; 2]| words(&shape, &vec![0; shape[0] * shape[1]]);
    let ones = |shape: [usize; 2]| floats(&shape, &vec![1.0; shape[0] * shape[1]]);
    let refused = |settings: Value, parts: Vec<(&str, New)>| {
        let folder = replace("model.layers.1.mlp.down_proj", parts);
        set_config(&folder, "intermediate_size", json!(COLUMNS));
        set_config(&folder, "quantization_config", settings);
        let word = "'model.layers.1.mlp.down_proj': K = 144 of 4-bit codes is not a multiple of 32";
        assert_fails(open(&folder), 64, word);
    };
    for (size, groups) in [(-1, 1), (32, 5)] {
        let parts = vec![
            ("qweight", ints([COLUMNS / 8, ROWS])),
            ("qzeros", ints([groups, ROWS / 8])),
            ("scales", ones([groups, ROWS])),
        ];
        refused(gptq(json!({"group_size": size})), parts);
    }
    let parts = vec![
        ("qweight", ints([COLUMNS, ROWS / 8])),
        ("qzeros", ints([1, ROWS / 8])),
        ("scales", ones([1, ROWS])),
    ];
    refused(
        json!({"quant_method": "awq", "bits": 4, "group_size": -1}),
        parts,
    );
    let weights = json!({"num_bits": 4, "strategy": "channel"});
    let packed = ints([ROWS, COLUMNS / 8]);
    let single = bytes(Dtype::I8, &[ROWS, COLUMNS], &[0; ROWS * COLUMNS]);
    for (format, name, codes) in [
        ("pack-quantized", "weight_packed", packed),
        ("int-quantized", "weight", single),
    ] {
        let parts = vec![(name, codes), ("weight_scale", ones([ROWS, 1]))];
        refused(compressed(weights.clone(), Value::Null, format), parts);
    }
    let state = json!({"blocksize": 16, "shape": [ROWS, COLUMNS]}).to_string();
    let pairs = [0; ROWS * COLUMNS / 2];
    let parts = vec![
        ("weight", bytes(Dtype::U8, &[pairs.len(), 1], &pairs)),
        ("weight.quant_map", ones([1, 16])),
        ("weight.absmax", ones([1, ROWS * COLUMNS / 16])),
        (
            "weight.quant_state.bitsandbytes__fp4",
            bytes(Dtype::U8, &[state.len()], state.as_bytes()),
        ),
    ];
    refused(
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
        parts,
    );
}

/// Opens a checkpoint and reads the layer.
fn use_all(folder: &TempDir) -> Result<Model> {
    let model = open(folder)?;
    model.weights.read_packed(WEIGHT)?;
    Ok(model)
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let layer = Layer::new(4, 32);
    let weights = json!({"num_bits": 4, "symmetric": false, "group_size": 32, "strategy": "group"});
    let settings = compressed(weights, Value::Null, "pack-quantized");
    let changed = |part: &'static str, new: Option<New>| {
        let mut parts = layer.compressed();
        parts.retain(|(name, _)| *name != part);
        if let Some(new) = new {
            parts.push((part, new));
        }
        use_all(&with(settings.clone(), parts))
    };
    let half = vec![0_u32; N * K / 16];
    assert_fails(
        changed("weight_packed", Some(words(&[N / 2, K / 8], &half))),
        65,
        "weight_packed",
    );
    assert_fails(
        changed(
            "weight_packed",
            Some(bytes(Dtype::U8, &[N, K / 8], &[0; N * K / 8])),
        ),
        65,
        "stored as U8",
    );
    let shape = bytes(
        Dtype::I64,
        &[2],
        bytemuck::cast_slice(&[N as i64, 2 * K as i64]),
    );
    assert_fails(changed("weight_shape", Some(shape)), 65, "weight_shape");
    assert_fails(changed("weight_scale", None), 65, "weight_scale");
    assert_fails(changed("weight_zero_point", None), 65, "weight_zero_point");
    let mut scales = layer.scales.clone();
    scales[4 * 7 + 2] = f32::NAN;
    let broken = changed("weight_scale", Some(floats(&[N, 4], &scales)));
    assert_fails(broken, 65, "the scale of row 7, group 2 is NaN");
    let wide = floats(&[N, 8], &[1.0; N * 8]);
    assert_fails(
        changed("weight_scale", Some(wide)),
        65,
        "[160, 4] is needed",
    );
    let zeros = bytes(Dtype::I8, &[N / 8, 4], &[0; N / 2]);
    assert_fails(
        changed("weight_zero_point", Some(zeros)),
        65,
        "stored as I8",
    );
}

#[test]
fn a_repeated_key_of_the_configuration_is_an_error() {
    let folder = copy_of("tiny-llama");
    let path = folder.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen('{', "{\"hidden_size\": 128, ", 1)).unwrap();
    assert_fails(open(&folder), 65, "'hidden_size' comes twice");
}
