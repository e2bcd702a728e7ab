//! Quantised checkpoints of every format: layers of a plain one put into each, and what must be refused about them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candlepower::model::HostSliceMut;
use candlepower::scheme::{DType, InputRounding, Levels, PackedWeight};
use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::{assert_fails, copy_of, open, read_all, set_config};

/// The layer that is put into each format: `[160, 128]`.
const LAYER: &str = "model.layers.1.mlp.up_proj";
pub(crate) const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";
pub(crate) const N: usize = 160;
pub(crate) const K: usize = 128;

/// A tensor in the making.
pub(crate) struct New(Dtype, Vec<usize>, Vec<u8>);

pub(crate) fn words(shape: &[usize], words: &[u32]) -> New {
    New(
        Dtype::I32,
        shape.to_vec(),
        bytemuck::cast_slice(words).to_vec(),
    )
}

pub(crate) fn bytes(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> New {
    New(dtype, shape.to_vec(), bytes.to_vec())
}

pub(crate) fn floats(shape: &[usize], numbers: &[f32]) -> New {
    New(
        Dtype::F32,
        shape.to_vec(),
        bytemuck::cast_slice(numbers).to_vec(),
    )
}

/// The plain fixture with `parts` in the place of one layer's weight, and these settings.
fn checkpoint(key: &str, settings: Value, parts: Vec<(&str, New)>) -> TempDir {
    let folder = replace(LAYER, parts);
    if !settings.is_null() {
        set_config(&folder, key, settings);
    }
    folder
}

/// The plain fixture with `parts` in the place of the weight of `layer`.
pub(crate) fn replace(layer: &str, parts: Vec<(&str, New)>) -> TempDir {
    let replaced = format!("{layer}.weight");
    let folder = copy_of("tiny-llama");
    let path = folder.path().join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let old = SafeTensors::deserialize(&file).unwrap();
    let mut tensors: BTreeMap<String, New> = old
        .tensors()
        .into_iter()
        .filter(|(name, _)| *name != replaced)
        .map(|(name, view)| {
            (
                name,
                New(view.dtype(), view.shape().to_vec(), view.data().to_vec()),
            )
        })
        .collect();
    for (part, new) in parts {
        tensors.insert(format!("{layer}.{part}"), new);
    }
    let views = tensors.iter().map(|(name, New(dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(&path, serialize(views, None).unwrap()).unwrap();
    folder
}

pub(crate) fn with(settings: Value, parts: Vec<(&str, New)>) -> TempDir {
    checkpoint("quantization_config", settings, parts)
}

/// The layer's weight as it is read, and its rows.
pub(crate) fn read(folder: impl AsRef<Path>) -> (PackedWeight, Vec<f32>) {
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
pub(crate) fn noise(count: usize, below: u32) -> Vec<u32> {
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
pub(crate) struct Layer {
    bits: u32,
    group: usize,
    codes: Vec<u32>,
    zeros: Vec<u32>,
    pub(crate) scales: Vec<f32>,
}

impl Layer {
    pub(crate) fn new(bits: u32, group: usize) -> Self {
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

    pub(crate) fn symmetric(self) -> Self {
        let middle = 1 << (self.bits - 1);
        let zeros = vec![middle; self.zeros.len()];
        Self { zeros, ..self }
    }

    /// The weights, if `group_of` says where each column's scale is.
    pub(crate) fn weights(&self, group_of: impl Fn(usize) -> usize) -> Vec<f32> {
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
    pub(crate) fn gptq(&self, one: u32, index: Option<&[u32]>) -> Vec<(&'static str, New)> {
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
    pub(crate) fn compressed(&self) -> Vec<(&'static str, New)> {
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

pub(crate) fn gptq(extra: Value) -> Value {
    let mut settings = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false});
    merge(&mut settings, extra);
    settings
}

pub(crate) fn merge(settings: &mut Value, extra: Value) {
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
    // The order counts as one whatever `desc_act` says of it.
    for extra in [
        json!({"desc_act": true}),
        json!({"desc_act": false}),
        json!({}),
    ] {
        let folder = with(gptq(extra), layer.gptq(1, Some(&index)));
        let (weight, rows) = read(&folder);
        assert_eq!(rows, layer.weights(|k| 7 * k % 4));
        assert!(weight.order.is_some());
        let stored = open(&folder).unwrap().weights.stored_linear(WEIGHT);
        assert!(stored.unwrap().form.ordered);
    }
    let plain: Vec<u32> = (0..K as u32).map(|k| k / 32).collect();
    let folder = with(gptq(json!({})), layer.gptq(1, Some(&plain)));
    let stored = open(&folder).unwrap().weights.stored_linear(WEIGHT);
    assert!(!stored.unwrap().form.ordered);
    // Without the tensor nothing says what the groups are, unless there is one group only.
    let folder = with(settings.clone(), layer.gptq(1, None));
    assert_fails(
        open(&folder),
        65,
        "up_proj.g_idx': missing, though desc_act",
    );
    let whole = Layer::new(4, K);
    let one = gptq(json!({"desc_act": true, "group_size": K}));
    assert_eq!(read(with(one, whole.gptq(1, None))).1, whole.weights(|_| 0));
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
    let mut without = settings.clone();
    without["zero_point"] = json!(false);
    let (weight, rows) = read(with(without, parts(&symmetric, false)));
    assert_eq!(rows, symmetric.weights(|k| k / 32));
    assert_eq!(weight.levels, Levels::Symmetric);
    let missing = with(settings.clone(), parts(&layer, false));
    assert_fails(
        open(missing),
        65,
        "up_proj.qzeros': missing, though zero_point",
    );
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

pub(crate) fn compressed(weights: Value, inputs: Value, format: &str) -> Value {
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
    // An order that the settings do not mention is one all the same.
    let mut silent = settings.clone();
    silent["config_groups"]["group_0"]["weights"]["actorder"] = Value::Null;
    let mut parts = layer.compressed();
    parts.push(("weight_g_idx", words(&[K], &index)));
    let stored = open(with(silent, parts))
        .unwrap()
        .weights
        .stored_linear(WEIGHT);
    assert!(stored.unwrap().form.ordered);
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
