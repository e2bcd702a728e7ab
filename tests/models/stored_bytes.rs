//! Quantised checkpoints whose codes are bytes or have a codebook, and GGUF files.

use candlepower::scheme::{
    CodeFormat, DType, InputNumber, InputRounding, InputScale, Levels, Scales,
};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::common::{assert_fails, open, read_all};
use super::gguf::model as gguf;
use super::gguf_writer::plain;
use super::stored::{K, N, WEIGHT, bytes, compressed, floats, merge, noise, read, with};

/// FP8 codes without NaN, and their numbers.
fn fp8_codes() -> (Vec<u8>, Vec<f32>) {
    let code = |&c: &u32| if c & 0x7f == 0x7f { 0x7e } else { c as u8 };
    let codes: Vec<u8> = noise(N * K, 256).iter().map(code).collect();
    let numbers = codes
        .iter()
        .map(|&code| CodeFormat::E4M3.value(code))
        .collect();
    (codes, numbers)
}

#[test]
fn fp8_in_blocks_rows_and_whole_by_both_names() {
    let (codes, numbers) = fp8_codes();
    let weight = || ("weight", bytes(Dtype::F8_E4M3, &[N, K], &codes));
    // Two blocks of rows, of 128 and 32.
    let blocks = [0.5_f32, 0.25];
    let truth: Vec<f32> = (0..N * K)
        .map(|i| numbers[i] * blocks[i / K / 128])
        .collect();
    let fine = json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]});
    let folder = with(
        fine,
        vec![weight(), ("weight_scale_inv", floats(&[2, 1], &blocks))],
    );
    let (packed, rows) = read(&folder);
    assert_eq!((rows, packed.codes.len()), (truth.clone(), N * K));
    let inputs = open(&folder)
        .unwrap()
        .weights
        .stored_linear(WEIGHT)
        .unwrap()
        .inputs;
    let rounding = |scale| {
        Some(InputRounding {
            number: InputNumber::E4M3,
            scale,
        })
    };
    assert_eq!(inputs, rounding(InputScale::Columns(128)));

    let float = |strategy: &str| json!({"num_bits": 8, "type": "float", "strategy": strategy, "block_structure": [128, 128]});
    let settings = compressed(float("block"), Value::Null, "float-quantized");
    let (_, rows) = read(with(
        settings,
        vec![weight(), ("weight_scale", floats(&[2, 1], &blocks))],
    ));
    assert_eq!(rows, truth);

    // Blocks of more rows than the layer: one of rows, two of columns.
    let mut wide = float("block");
    wide["block_structure"] = json!([256, 64]);
    let (packed, rows) = read(with(
        compressed(wide, Value::Null, "float-quantized"),
        vec![weight(), ("weight_scale", floats(&[1, 2], &blocks))],
    ));
    let of_columns = (0..N * K).map(|i| numbers[i] * blocks[i % K / 64]);
    assert_eq!(rows, of_columns.collect::<Vec<_>>());
    assert_eq!((packed.scale_rows, packed.group), (N, 64));

    let whole: Vec<f32> = numbers.iter().map(|x| x * 0.125).collect();
    let fixed = json!({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false});
    for format in ["float-quantized", "naive-quantized"] {
        let settings = compressed(float("tensor"), fixed.clone(), format);
        let parts = vec![
            weight(),
            ("weight_scale", floats(&[1], &[0.125])),
            ("input_scale", floats(&[1], &[0.75])),
        ];
        let folder = with(settings, parts);
        assert_eq!(read(&folder).1, whole);
        let inputs = open(&folder)
            .unwrap()
            .weights
            .stored_linear(WEIGHT)
            .unwrap()
            .inputs;
        assert_eq!(inputs, rounding(InputScale::Fixed(0.75)));
    }
    let settings = json!({"quant_method": "fp8", "activation_scheme": "static"});
    let parts = vec![
        weight(),
        ("weight_scale", floats(&[], &[0.125])),
        ("input_scale", floats(&[], &[0.75])),
    ];
    assert_eq!(read(with(settings, parts)).1, whole);
    // A code of NaN.
    let mut broken = codes.clone();
    broken[5 * K + 3] = 0xff;
    let parts = vec![
        ("weight", bytes(Dtype::F8_E4M3, &[N, K], &broken)),
        ("weight_scale", floats(&[1], &[0.125])),
    ];
    let settings = compressed(float("tensor"), Value::Null, "naive-quantized");
    let read = open(with(settings, parts))
        .unwrap()
        .weights
        .read_packed(WEIGHT);
    assert_fails(read, 65, "row 5, column 3");
}

#[test]
fn bitsandbytes_nf4_once_and_twice_and_int8() {
    let book: Vec<f32> = (0..16).map(|i| (i as f32 - 7.0) / 8.0).collect();
    let codes = noise(N * K, 16);
    let pairs: Vec<u8> = codes
        .chunks(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect();
    let blocks = N * K / 64;
    let state = |extra: Value| {
        let mut state =
            json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [N, K]});
        merge(&mut state, extra);
        let text = state.to_string();
        bytes(Dtype::U8, &[text.len()], text.as_bytes())
    };
    let settings =
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
    let scales: Vec<f32> = (0..blocks).map(|i| (i % 50 + 1) as f32 / 16.0).collect();
    let common = |state| {
        vec![
            ("weight", bytes(Dtype::U8, &[N * K / 2, 1], &pairs)),
            ("weight.quant_map", floats(&[16], &book)),
            ("weight.quant_state.bitsandbytes__nf4", state),
        ]
    };
    let mut parts = common(state(json!({})));
    parts.push(("weight.absmax", floats(&[blocks], &scales)));
    let truth = |scale: &dyn Fn(usize) -> f32| -> Vec<f32> {
        (0..N * K)
            .map(|i| book[codes[i] as usize] * scale(i / 64))
            .collect()
    };
    let (weight, rows) = read(with(settings.clone(), parts));
    assert_eq!(rows, truth(&|block| scales[block]));
    assert!(matches!(weight.levels, Levels::Codebook(_)) && weight.group == 64);

    let inner: Vec<u8> = noise(blocks, 256).iter().map(|&c| c as u8).collect();
    let map: Vec<f32> = (0..256).map(|i| i as f32 / 256.0).collect();
    let outer = [0.5_f32, 2.0];
    let mut parts = common(state(
        json!({"nested_blocksize": 256, "nested_offset": 0.25}),
    ));
    parts.push(("weight.absmax", bytes(Dtype::U8, &[blocks], &inner)));
    parts.push((
        "weight.nested_absmax",
        floats(&[blocks.div_ceil(256)], &outer),
    ));
    parts.push(("weight.nested_quant_map", floats(&[256], &map)));
    let (_, rows) = read(with(settings, parts));
    assert_eq!(
        rows,
        truth(&|block| map[usize::from(inner[block])] * outer[block / 256] + 0.25)
    );

    // As older files have it, without the name of the method.
    let settings = json!({"load_in_8bit": true});
    let codes: Vec<u8> = noise(N * K, 256).iter().map(|&c| c as u8).collect();
    let largest: Vec<f32> = (1..=N).map(|n| n as f32).collect();
    let parts = vec![
        ("weight", bytes(Dtype::I8, &[N, K], &codes)),
        ("SCB", floats(&[N], &largest)),
        ("weight_format", bytes(Dtype::U8, &[], &[0])),
    ];
    let (_, rows) = read(with(settings, parts));
    let truth = (0..N * K).map(|i| f32::from(codes[i].cast_signed()) * (largest[i / K] / 127.0));
    assert_eq!(rows, truth.collect::<Vec<_>>());
}

#[test]
fn blocks_of_a_gguf_file_stay_packed_and_others_become_bfloat16() {
    for (kind, name, kept) in [
        (2, "Q4_0", true),
        (3, "Q4_1", true),
        (8, "Q8_0", true),
        (12, "Q4_K", false),
        (1, "F16", false),
    ] {
        for architecture in ["llama", "qwen3"] {
            let (_folder, path) = gguf(architecture, kind).write();
            let model = open(&path).unwrap();
            for layer in ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"] {
                let tensor = format!("model.layers.0.{layer}.weight");
                let rows = read_all(&model, &tensor);
                let Some(stored) = model.weights.stored_linear(&tensor) else {
                    assert!(!kept, "{name} {tensor}");
                    continue;
                };
                assert!(kept && stored.inputs.is_none());
                let weight = model.weights.read_packed(&tensor).unwrap();
                let whole: Vec<f32> = (0..weight.n)
                    .flat_map(|row| weight.dequantise_row(row))
                    .collect();
                assert_eq!(whole, rows, "{name} {tensor}");
                assert!(matches!(weight.scales, Scales::F16(_)));
            }
            let scheme = model.weights.stored_scheme(&model.config).unwrap();
            let method = if kept || kind == 1 {
                format!("gguf {name}")
            } else {
                format!("gguf {name} as bf16")
            };
            assert_eq!(scheme.method, method);
            let plain_type = model
                .weights
                .kept_type("model.layers.0.mlp.up_proj.weight")
                .unwrap();
            let wanted = if kind == 1 { DType::F16 } else { DType::BF16 };
            assert_eq!(plain_type, wanted);
        }
    }
    // A scale that is no number.
    let mut blocks = plain(1, &[f32::NAN]);
    blocks.resize(18, 0);
    let writer = gguf("llama", 2).without("blk.0.ffn_down.weight").tensor(
        "blk.0.ffn_down.weight",
        &[256, 512],
        2,
        blocks.repeat(256 * 512 / 32),
    );
    let (_folder, path) = writer.write();
    let read = open(&path)
        .unwrap()
        .weights
        .read_packed("model.layers.0.mlp.down_proj.weight");
    assert_fails(read, 65, "row 0, group 0");
}
