//! Quantised checkpoints of every format: layers of a plain one put into each, and what must be refused about them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candlepower::error::Result;
use candlepower::model::{HostSliceMut, Model};
use candlepower::scheme::{
    CodeFormat, DType, InputNumber, InputRounding, InputScale, Levels, PackedWeight, Scales,
};
use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::{assert_fails, copy_of, open, read_all, set_config};
use super::gguf::model as gguf;
use super::gguf_writer::plain;

/// The layer that is put into each format: `[160, 128]`.
const LAYER: &str = "model.layers.1.mlp.up_proj";
const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";
const N: usize = 160;
const K: usize = 128;

/// A tensor in the making.
struct New(Dtype, Vec<usize>, Vec<u8>);

fn words(shape: &[usize], words: &[u32]) -> New {
    New(
        Dtype::I32,
        shape.to_vec(),
        bytemuck::cast_slice(words).to_vec(),
    )
}

fn bytes(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> New {
    New(dtype, shape.to_vec(), bytes.to_vec())
}

fn floats(shape: &[usize], numbers: &[f32]) -> New {
    New(
        Dtype::F32,
        shape.to_vec(),
        bytemuck::cast_slice(numbers).to_vec(),
    )
}

/// The plain fixture with `parts` in the place of one layer's weight, and these settings.
fn checkpoint(key: &str, settings: Value, parts: Vec<(&str, New)>) -> TempDir {
    let folder = copy_of("tiny-llama");
    let path = folder.path().join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let old = SafeTensors::deserialize(&file).unwrap();
    let mut tensors: BTreeMap<String, New> = old
        .tensors()
        .into_iter()
        .filter(|(name, _)| name != WEIGHT)
        .map(|(name, view)| {
            (
                name,
                New(view.dtype(), view.shape().to_vec(), view.data().to_vec()),
            )
        })
        .collect();
    for (part, new) in parts {
        tensors.insert(format!("{LAYER}.{part}"), new);
    }
    let views = tensors.iter().map(|(name, New(dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(&path, serialize(views, None).unwrap()).unwrap();
    if !settings.is_null() {
        set_config(&folder, key, settings);
    }
    folder
}

fn with(settings: Value, parts: Vec<(&str, New)>) -> TempDir {
    checkpoint("quantization_config", settings, parts)
}

/// The layer's weight as it is read, and its rows.
fn read(folder: impl AsRef<Path>) -> (PackedWeight, Vec<f32>) {
    let model = open(folder).unwrap();
    let weight = model.weights.read_packed(WEIGHT).unwrap();
    let form = model.weights.stored_linear(WEIGHT).unwrap().form;
    assert_eq!(
        (form.n, form.k, form.format),
        (weight.n, weight.k, weight.format)
    );
    let rows = read_all(&model, WEIGHT);
    (weight, rows)
}

/// Numbers that look random, `0 .. below`.
fn noise(count: usize, below: u32) -> Vec<u32> {
    (0..count as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) ^ (i << 7)) >> 9)
        .map(|x| x % below)
        .collect()
}

/// Codes of `bits`, low ones first, as words.
fn packed(codes: &[u32], bits: u32) -> Vec<u32> {
    let word = |codes: &[u32]| {
        let place = |(i, code): (usize, &u32)| code << (bits * i as u32);
        codes
            .iter()
            .enumerate()
            .map(place)
            .fold(0, |all, code| all | code)
    };
    codes.chunks((32 / bits) as usize).map(word).collect()
}

/// Codes `[N, K]`, `w = s (u - z)` with a scale and a zero point per row and group.
struct Layer {
    bits: u32,
    group: usize,
    codes: Vec<u32>,
    zeros: Vec<u32>,
    scales: Vec<f32>,
}

impl Layer {
    fn new(bits: u32, group: usize) -> Self {
        let groups = K / group;
        Self {
            bits,
            group,
            codes: noise(N * K, 1 << bits),
            zeros: noise(N * groups, 1 << bits),
            scales: noise(N * groups, 100)
                .iter()
                .map(|&x| (x + 1) as f32 / 128.0)
                .collect(),
        }
    }

    fn symmetric(self) -> Self {
        let middle = 1 << (self.bits - 1);
        let zeros = vec![middle; self.zeros.len()];
        Self { zeros, ..self }
    }

    /// The weights, if `group_of` says where each column's scale is.
    fn weights(&self, group_of: impl Fn(usize) -> usize) -> Vec<f32> {
        let groups = K / self.group;
        let one = |i: usize| {
            let at = i / K * groups + group_of(i % K);
            (self.codes[i] as f32 - self.zeros[at] as f32) * self.scales[at]
        };
        (0..N * K).map(one).collect()
    }

    /// Scales `[groups, N]`.
    fn by_group<T: Copy>(&self, of_rows: &[T]) -> Vec<T> {
        let groups = K / self.group;
        (0..groups * N)
            .map(|i| of_rows[i % N * groups + i / N])
            .collect()
    }

    /// GPTQ's tensors; zero points less `one`.
    fn gptq(&self, one: u32, index: Option<&[u32]>) -> Vec<(&'static str, New)> {
        let each = (32 / self.bits) as usize;
        let mask = (1 << self.bits) - 1;
        let groups = K / self.group;
        let columns: Vec<u32> = (0..N * K / each)
            .map(|i| {
                let (r, n) = (i / N, i % N);
                packed(&self.codes[n * K + r * each..][..each], self.bits)[0]
            })
            .collect();
        let zeros: Vec<u32> = self
            .zeros
            .iter()
            .map(|zero| zero.wrapping_sub(one) & mask)
            .collect();
        let mut parts = vec![
            ("qweight", words(&[K / each, N], &columns)),
            (
                "qzeros",
                words(
                    &[groups, N / each],
                    &packed(&self.by_group(&zeros), self.bits),
                ),
            ),
            ("scales", floats(&[groups, N], &self.by_group(&self.scales))),
        ];
        if let Some(index) = index {
            parts.push(("g_idx", words(&[K], index)));
        }
        parts
    }

    /// compressed-tensors' packed tensors.
    fn compressed(&self) -> Vec<(&'static str, New)> {
        let each = (32 / self.bits) as usize;
        let groups = K / self.group;
        let zeros: Vec<u32> = (0..N * groups / each)
            .flat_map(|i| {
                let (line, group) = (i / groups, i % groups);
                let of_word: Vec<u32> = (0..each)
                    .map(|j| self.zeros[(line * each + j) * groups + group])
                    .collect();
                packed(&of_word, self.bits)
            })
            .collect();
        vec![
            (
                "weight_packed",
                words(&[N, K / each], &packed(&self.codes, self.bits)),
            ),
            ("weight_scale", floats(&[N, groups], &self.scales)),
            ("weight_zero_point", words(&[N / each, groups], &zeros)),
            (
                "weight_shape",
                bytes(
                    Dtype::I64,
                    &[2],
                    bytemuck::cast_slice(&[N as i64, K as i64]),
                ),
            ),
        ]
    }
}

fn gptq(extra: Value) -> Value {
    let mut settings = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false});
    merge(&mut settings, extra);
    settings
}

fn merge(settings: &mut Value, extra: Value) {
    for (key, value) in extra.as_object().unwrap() {
        settings[key] = value.clone();
    }
}

#[test]
fn gptq_of_four_and_eight_bits_in_both_versions() {
    for (bits, group) in [(4, 32), (8, 32), (4, 128), (8, 64)] {
        let layer = Layer::new(bits, group);
        for (format, one) in [("gptq", 1), ("gptq_v2", 0)] {
            let settings =
                gptq(json!({"bits": bits, "group_size": group, "checkpoint_format": format}));
            let (weight, rows) = read(with(settings, layer.gptq(one, None)));
            assert_eq!(
                rows,
                layer.weights(|k| k / group),
                "{bits} {group} {format}"
            );
            assert!(matches!(weight.levels, Levels::Zeros(_)) && weight.order.is_none());
        }
    }
    // Whole rows, and settings in a file of their own.
    let layer = Layer::new(4, K).symmetric();
    let folder = with(Value::Null, layer.gptq(1, None));
    let settings = json!({"bits": 4, "group_size": -1, "desc_act": false});
    fs::write(
        folder.path().join("quantize_config.json"),
        settings.to_string(),
    )
    .unwrap();
    let (weight, rows) = read(&folder);
    assert_eq!(rows, layer.weights(|_| 0));
    assert_eq!((weight.levels, weight.group), (Levels::Symmetric, K));
}

#[test]
fn gptq_with_activation_order_gathers_columns_of_a_group() {
    let layer = Layer::new(4, 32);
    // Column k is of group (7 k) % 4: 32 columns each.
    let index: Vec<u32> = (0..K as u32).map(|k| 7 * k % 4).collect();
    let settings = gptq(json!({"desc_act": true}));
    let (weight, rows) = read(with(settings.clone(), layer.gptq(1, Some(&index))));
    assert_eq!(rows, layer.weights(|k| 7 * k % 4));
    assert!(weight.order.is_some());
    for (bad, word) in [
        (vec![4; K], "column 0 is of group 4"),
        (vec![u32::MAX - 1; K], "group -2"),
        (vec![0; K], "group 0 has 128 columns"),
    ] {
        let folder = with(settings.clone(), layer.gptq(1, Some(&bad)));
        let read = open(&folder).unwrap().weights.read_packed(WEIGHT);
        assert_fails(read, 65, word);
    }
}

#[test]
fn rules_of_gptqmodel_are_followed() {
    let layer = Layer::new(8, 64);
    let rules = json!({
        "-:model\\.layers\\.0\\.": {},
        "+:.*up_proj$": {"bits": 8, "group_size": 64},
        ".*": {"bits": 4},
    });
    let (_, rows) = read(with(gptq(json!({"dynamic": rules})), layer.gptq(1, None)));
    assert_eq!(rows, layer.weights(|k| k / 64));
    let denied = with(
        gptq(json!({"dynamic": {"-:.*up_proj": {}}})),
        layer.gptq(1, None),
    );
    assert_fails(open(&denied), 65, "denies");
    let broken = with(gptq(json!({"dynamic": {"(": {}}})), layer.gptq(1, None));
    assert_fails(open(&broken), 65, "the pattern '('");
}

#[test]
fn a_version_of_gptq_that_zero_points_deny_is_an_error() {
    let layer = Layer::new(4, 32).symmetric();
    for (format, one, other) in [("gptq", 0, "gptq_v2"), ("gptq_v2", 1, "must be gptq")] {
        let settings = gptq(json!({"sym": true, "checkpoint_format": format}));
        let folder = with(settings, layer.gptq(one, None));
        let read = open(&folder).unwrap().weights.read_packed(WEIGHT);
        assert_fails(read, 65, other);
    }
}

#[test]
fn awq_with_and_without_zero_points() {
    // Out of a word's nibbles, low ones first.
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let interleaved = |codes: &[u32]| -> Vec<u32> {
        let word = |eight: &[u32]| packed(&ORDER.map(|i| eight[i]), 4)[0];
        codes.chunks(8).map(word).collect()
    };
    let layer = Layer::new(4, 32);
    let settings = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM", "zero_point": true});
    let by_column: Vec<u32> = (0..K * N).map(|i| layer.codes[i % N * K + i / N]).collect();
    let parts = |layer: &Layer, zeros: bool| {
        let mut parts = vec![
            ("qweight", words(&[K, N / 8], &interleaved(&by_column))),
            ("scales", floats(&[4, N], &layer.by_group(&layer.scales))),
        ];
        if zeros {
            let zeros = interleaved(&layer.by_group(&layer.zeros));
            parts.push(("qzeros", words(&[4, N / 8], &zeros)));
        }
        parts
    };
    let (_, rows) = read(with(settings.clone(), parts(&layer, true)));
    assert_eq!(rows, layer.weights(|k| k / 32));
    let symmetric = Layer::new(4, 32).symmetric();
    let (weight, rows) = read(with(settings.clone(), parts(&symmetric, false)));
    assert_eq!(rows, symmetric.weights(|k| k / 32));
    assert_eq!(weight.levels, Levels::Symmetric);
    // The order of a word by the research vector: outputs 0 to 7 with the codes 0 to 7.
    assert_eq!(interleaved(&[0, 1, 2, 3, 4, 5, 6, 7]), [0x7531_6420]);
    for (key, value, word) in [
        ("version", json!("gemv"), "'gemv'"),
        ("bits", json!(8), "8 bits"),
        ("group_size", json!(48), "do not divide K"),
    ] {
        let mut changed = settings.clone();
        changed[key] = value;
        assert_fails(open(with(changed, parts(&layer, true))), 64, word);
    }
}

fn compressed(weights: Value, inputs: Value, format: &str) -> Value {
    json!({
        "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
    })
}

#[test]
fn compressed_tensors_packed_asymmetric_in_every_shape() {
    for (bits, group) in [(4, 32), (8, 32), (4, K), (8, K)] {
        let layer = Layer::new(bits, group);
        let size = if group == K {
            json!(null)
        } else {
            json!(group)
        };
        let strategy = if group == K { "channel" } else { "group" };
        let weights =
            json!({"num_bits": bits, "symmetric": false, "strategy": strategy, "group_size": size});
        for key in ["quantization_config", "compression_config"] {
            let settings = compressed(weights.clone(), Value::Null, "pack-quantized");
            let (_, rows) = read(checkpoint(key, settings, layer.compressed()));
            assert_eq!(rows, layer.weights(|k| k / group), "{bits} {group}");
        }
    }
}

#[test]
fn compressed_tensors_with_an_order_of_groups() {
    let layer = Layer::new(4, 32);
    let index: Vec<u32> = (0..K as u32).map(|k| k % 4).collect();
    let weights = json!({"num_bits": 4, "symmetric": false, "strategy": "group", "group_size": 32, "actorder": "group"});
    let settings = compressed(weights, Value::Null, "pack-quantized");
    let mut parts = layer.compressed();
    parts.push(("weight_g_idx", words(&[K], &index)));
    let (weight, rows) = read(with(settings.clone(), parts));
    assert_eq!(rows, layer.weights(|k| k % 4));
    assert!(weight.order.is_some());
    // All -1: never set, so the order is plain.
    let mut parts = layer.compressed();
    parts.push(("weight_g_idx", words(&[K], &[u32::MAX; K])));
    let (weight, rows) = read(with(settings, parts));
    assert_eq!(rows, layer.weights(|k| k / 32));
    assert!(weight.order.is_none());
}

#[test]
fn compressed_tensors_in_bytes_with_every_sharing_of_scales() {
    let codes: Vec<u8> = noise(N * K, 256).iter().map(|&c| c as u8).collect();
    let signed = |i: usize| f32::from(codes[i].cast_signed());
    let part = |shape: &[usize], scales: &[f32]| {
        vec![
            ("weight", bytes(Dtype::I8, &[N, K], &codes)),
            ("weight_scale", floats(shape, scales)),
        ]
    };
    let int8 = |strategy: &str| json!({"num_bits": 8, "strategy": strategy});
    let dynamic = json!({"num_bits": 8, "strategy": "token", "dynamic": true});
    let (weight, rows) = read(with(
        compressed(int8("tensor"), dynamic.clone(), "int-quantized"),
        part(&[1], &[0.5]),
    ));
    assert_eq!(
        rows,
        (0..N * K).map(|i| signed(i) * 0.5).collect::<Vec<_>>()
    );
    assert_eq!((weight.scale_rows, weight.scales.len()), (N, 1));
    let scales: Vec<f32> = (1..=N).map(|n| n as f32 / 64.0).collect();
    let folder = with(
        compressed(int8("channel"), dynamic, "int-quantized"),
        part(&[N, 1], &scales),
    );
    let (_, rows) = read(&folder);
    assert_eq!(
        rows,
        (0..N * K)
            .map(|i| signed(i) * scales[i / K])
            .collect::<Vec<_>>()
    );
    let inputs = open(&folder)
        .unwrap()
        .weights
        .stored_linear(WEIGHT)
        .unwrap()
        .inputs;
    assert_eq!(inputs, Some(InputRounding::INT8_PER_TOKEN));
    // Zero points in bytes.
    let mut parts = part(&[N, 1], &scales);
    let zeros: Vec<u8> = (0..N).map(|n| (n as i32 - 100) as u8).collect();
    parts.push(("weight_zero_point", bytes(Dtype::I8, &[N, 1], &zeros)));
    let mut weights = int8("channel");
    weights["symmetric"] = json!(false);
    let (_, rows) = read(with(
        compressed(weights, Value::Null, "int-quantized"),
        parts,
    ));
    let truth = (0..N * K).map(|i| (signed(i) - (i / K) as f32 + 100.0) * scales[i / K]);
    assert_eq!(rows, truth.collect::<Vec<_>>());
}

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

    let settings = json!({"quant_method": "bitsandbytes", "load_in_8bit": true});
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
fn groups_of_their_own_format_and_layers_that_are_left_alone() {
    let layer = Layer::new(4, 32);
    let settings = json!({
        "quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["re:.*layers\\.0\\..*", "lm_head"],
        "config_groups": {
            "group_0": {"targets": ["re:.*down_proj"], "format": "int-quantized", "weights": {"num_bits": 8, "strategy": "channel"}},
            "group_1": {"targets": ["Linear"], "format": "pack-quantized",
                        "weights": {"num_bits": 4, "symmetric": false, "group_size": 32, "strategy": "group"}},
        },
    });
    let folder = with(settings, layer.compressed());
    let (_, rows) = read(&folder);
    assert_eq!(rows, layer.weights(|k| k / 32));
    let model = open(&folder).unwrap();
    assert!(
        model
            .weights
            .stored_linear("model.layers.0.mlp.up_proj.weight")
            .is_none()
    );
    let scheme = model.weights.stored_scheme(&model.config).unwrap();
    assert_eq!((scheme.bits, scheme.symmetric), (16, None));
    assert!(
        scheme.method.contains("int-quantized and pack-quantized"),
        "{}",
        scheme.method
    );
    assert!(
        scheme
            .method
            .contains("in part 4 bits asymmetric in groups of 32"),
        "{}",
        scheme.method
    );
}

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

#[test]
fn rows_of_a_quantised_weight_are_rounded_once_to_what_is_asked_for() {
    let layer = Layer::new(4, 32);
    let model = open(with(gptq(json!({})), layer.gptq(1, None))).unwrap();
    assert_eq!(model.weights.precision(WEIGHT).unwrap(), DType::F32);
    let mut narrow = vec![bf16::ZERO; 3 * K];
    let out = HostSliceMut::BF16(&mut narrow);
    model.weights.read_rows(WEIGHT, 130..133, out).unwrap();
    let truth = &layer.weights(|k| k / 32)[130 * K..133 * K];
    assert_eq!(
        narrow,
        truth.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()
    );
}
