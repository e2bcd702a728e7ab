//! Checkpoints that other tools quantised: their codes, zero points and weights exactly, and their logits as they are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candlepower::engine::{DeviceWeights, Engine, Footprint, Limits, WeightSource};
use candlepower::kernels::Device;
use candlepower::model::{HostSliceMut, Model, ModelSpec, WeightsChoice};
use candlepower::scheme::{CodeFormat, DType, Levels, PackedForm, PackedWeight, Variant};
use safetensors::SafeTensors;

use super::{MODELS, Truth, differences, fixture, prompts};

/// Every kind of checkpoint that each model has.
const WEIGHT_ONLY: [&str; 9] = [
    "ct-w4a16-g32-sym",
    "ct-w4a16-g32-asym",
    "ct-w8a16-channel-int",
    "ct-w8a16-channel-pack",
    "gptq-g32-sym",
    "gptq-g32-sym-descact",
    "gptqv2-g32-asym",
    "gptqv2-g32-sym-descact",
    "awq-g32-gemm",
];

/// And those whose inputs are rounded, too.
const ROUNDED_INPUTS: [&str; 2] = ["ct-w8a8-dyn-int", "ct-fp8-dyn-float"];

/// What names end in that stand for the first rows of a matrix alone.
const FIRST_ROWS: &str = ".rows0_16";

fn folder(model: &str, kind: &str) -> PathBuf {
    fixture(model).with_file_name(kind)
}

fn open(model: &str, kind: &str) -> Model {
    let spec = ModelSpec {
        source: folder(model, kind).display().to_string(),
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    };
    Model::open(&spec).unwrap()
}

fn load(model: &Model, variant: &str) -> DeviceWeights {
    let variant = variant.parse().unwrap();
    let progress = &mut |_, _| Ok(());
    DeviceWeights::load(model, &variant, DType::F32, &Device::Cpu, progress).unwrap()
}

/// The difference of `variant`'s logits of two prompts to those called `logits`: the largest and the mean one.
fn off(model: &Model, variant: &str, truth: &Truth, ids: &str, logits: &str) -> (f32, f32) {
    let rows = truth.ids(ids);
    let weights = load(model, variant);
    let mut engine = Engine::new(Device::Cpu, weights, Limits::new(rows.len(), 64, 64)).unwrap();
    let got = engine.logits(&prompts(&rows)).unwrap().concat();
    differences(&got, &truth.floats(logits))
}

#[test]
fn every_weight_only_checkpoint_gives_the_logits_of_its_own_arithmetic() {
    for name in MODELS {
        for kind in WEIGHT_ONLY {
            let (model, truth) = (open(name, kind), Truth::of_compressed(name, kind));
            for (ids, logits) in [("input_ids", "logits"), ("input_ids_c", "logits_c")] {
                let (worst, _) = off(&model, "as-is", &truth, ids, logits);
                assert!(worst <= 1e-4, "{name} {kind} {logits}: off by {worst}");
            }
        }
    }
}

#[test]
fn rounded_inputs_stay_as_near_as_ties_allow() {
    for name in MODELS {
        for kind in ROUNDED_INPUTS {
            let (model, truth) = (open(name, kind), Truth::of_compressed(name, kind));
            for suffix in ["", "_c"] {
                let (ids, logits) = (format!("input_ids{suffix}"), format!("logits_actq{suffix}"));
                let (worst, mean) = off(&model, "as-is", &truth, &ids, &logits);
                // A tie in rounding one input moves every logit after it a little.
                assert!(
                    worst < 0.07 && mean < 0.015,
                    "{name} {kind} {logits}: off by {worst}, in the mean {mean}"
                );
            }
        }
    }
}

#[test]
fn asked_for_plain_numbers_a_checkpoint_is_dequantised_as_its_own_tools_do() {
    for (kind, variant, logits) in [
        ("ct-w4a16-g32-asym", "bf16", "logits_bf16dq"),
        ("ct-w8a8-dyn-int", "bf16", "logits_bf16dq"),
        ("ct-w8a8-dyn-int", "f32", "logits"),
        ("ct-fp8-dyn-float", "bf16", "logits_bf16dq"),
        ("ct-fp8-dyn-float", "f32", "logits"),
        ("gptq-g32-sym-descact", "f16", "logits_f16dq"),
        ("gptqv2-g32-asym", "f16", "logits_f16dq"),
        ("awq-g32-gemm", "f16", "logits_f16dq"),
    ] {
        for name in MODELS {
            let (model, truth) = (open(name, kind), Truth::of_compressed(name, kind));
            let (worst, _) = off(&model, variant, &truth, "input_ids", logits);
            assert!(worst <= 1e-4, "{name} {kind} {variant}: off by {worst}");
        }
    }
}

#[test]
fn a_quantised_checkpoint_is_quantised_anew_when_asked_to() {
    for kind in ["gptq-g32-sym-descact", "awq-g32-gemm", "ct-w4a16-g32-asym"] {
        let (model, truth) = (
            open("tiny-qwen3", kind),
            Truth::of_compressed("tiny-qwen3", kind),
        );
        // Eight bits of weights that had four lose nearly nothing.
        let (worst, _) = off(&model, "int8", &truth, "input_ids", "logits");
        assert!(worst > 1e-6 && worst < 0.05, "{kind}: off by {worst}");
    }
}

/// Tensors of a fixture whose names begin so, with their shapes and bytes.
fn given(truth: &Truth, prefix: &str) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let file = SafeTensors::deserialize(&truth.0).unwrap();
    let of = |name: &str| {
        let view = file.tensor(name).unwrap();
        (view.shape().to_vec(), view.data().to_vec())
    };
    let names = file.names().into_iter().filter_map(|name| {
        let rest = name.strip_prefix(prefix)?;
        Some((rest.to_owned(), of(name)))
    });
    names.collect()
}

/// The code of every weight by its own row and column, as the file's tools have it.
fn codes(weight: &PackedWeight, signed: bool) -> Vec<u8> {
    let mut all = vec![0; weight.n * weight.k];
    for row in 0..weight.n {
        for (j, code) in weight.row_codes(row).into_iter().enumerate() {
            let column = weight.order.as_ref().map_or(j, |order| order[j] as usize);
            all[row * weight.k + column] = of_tool(weight, code, signed);
        }
    }
    all
}

fn of_tool(weight: &PackedWeight, code: u8, signed: bool) -> u8 {
    match (weight.format, signed) {
        (CodeFormat::U4, true) => code.wrapping_sub(8),
        (CodeFormat::I8, false) => code ^ 0x80,
        _ => code,
    }
}

#[test]
fn codes_zero_points_and_weights_are_exactly_those_of_the_tools() {
    let mut seen = [0; 3];
    for name in MODELS {
        for kind in WEIGHT_ONLY.into_iter().chain(ROUNDED_INPUTS) {
            let (model, truth) = (open(name, kind), Truth::of_compressed(name, kind));
            let signed = kind.starts_with("ct-");
            for (layer, (shape, data)) in given(&truth, "code.") {
                let layer = layer.trim_end_matches(FIRST_ROWS);
                let weight = model
                    .weights
                    .read_packed(&format!("{layer}.weight"))
                    .unwrap();
                assert_eq!(shape[1], weight.k);
                let found = &codes(&weight, signed)[..data.len()];
                assert_eq!(found, data, "{name} {kind} {layer}");
                seen[0] += 1;
            }
            for (layer, (_, data)) in given(&truth, "zero.") {
                let weight = model
                    .weights
                    .read_packed(&format!("{layer}.weight"))
                    .unwrap();
                let groups = weight.groups();
                let zeros = match &weight.levels {
                    Levels::Zeros(zeros) => zeros.clone(),
                    _ => vec![weight.format.middle(); weight.n * groups],
                };
                // compressed-tensors has them by rows, the others by groups.
                let at = |i: usize| match signed {
                    true => zeros[i],
                    false => zeros[i % weight.n * groups + i / weight.n],
                };
                let found: Vec<u8> = (0..zeros.len())
                    .map(|i| of_tool(&weight, at(i), signed))
                    .collect();
                assert_eq!(found, data, "{name} {kind} {layer}");
                seen[1] += 1;
            }
            for (tensor, (shape, data)) in given(&truth, "dq.") {
                let tensor = tensor.trim_end_matches(FIRST_ROWS);
                let mut rows = vec![0.0_f32; shape.iter().product()];
                let out = HostSliceMut::F32(&mut rows);
                model.weights.read_rows(tensor, 0..shape[0], out).unwrap();
                assert_eq!(
                    bytemuck::cast_slice::<f32, u8>(&rows),
                    data,
                    "{name} {kind} {tensor}"
                );
                seen[2] += 1;
            }
        }
    }
    assert!(seen.iter().all(|&count| count >= 30), "{seen:?}");
}

#[test]
fn rows_read_alone_are_those_of_the_whole() {
    for kind in WEIGHT_ONLY.into_iter().chain(ROUNDED_INPUTS) {
        let model = open("tiny-llama", kind);
        let tensor = "model.layers.1.mlp.gate_proj.weight";
        let whole = model.weights.read_packed(tensor).unwrap();
        for rows in [0..1, 127..130, 129..160, 159..160] {
            let mut out = vec![0.0_f32; rows.len() * whole.k];
            let slice = HostSliceMut::F32(&mut out);
            model
                .weights
                .read_rows(tensor, rows.clone(), slice)
                .unwrap();
            let truth: Vec<f32> = rows
                .clone()
                .flat_map(|row| whole.dequantise_row(row))
                .collect();
            assert_eq!(out, truth, "{kind} {rows:?}");
        }
    }
}

/// What the linear layers take in their files' own terms: codes, scales, and zero points in the bits of codes.
fn packed_size(model: &Model) -> f64 {
    let linear = model.config.tensors().into_iter().filter(|t| t.is_linear());
    let bytes = linear.map(|tensor| {
        let PackedForm { n, k, format, .. } =
            model.weights.stored_linear(&tensor.name).unwrap().form;
        let weight = model.weights.read_packed(&tensor.name).unwrap();
        let zeros = match &weight.levels {
            Levels::Zeros(zeros) => zeros.len() * format.bits() / 8,
            _ => 0,
        };
        n * format.row_bytes(k) + weight.scales.bytes() + zeros
    });
    bytes.sum::<usize>() as f64
}

#[test]
fn weights_take_what_their_packed_size_says_and_what_was_predicted() {
    for name in MODELS {
        for kind in WEIGHT_ONLY.into_iter().chain(ROUNDED_INPUTS) {
            let model = open(name, kind);
            let weights = load(&model, "as-is");
            let ratio = weights.linear_bytes().0 as f64 / packed_size(&model);
            // Here groups are of 32 and matrices tiny: a byte for each zero point and four for each input of an order show
            // more than in groups of 128.
            let limit = if kind.contains("descact") { 1.15 } else { 1.03 };
            assert!((1.0..limit).contains(&ratio), "{name} {kind}: {ratio}");
            let limits = Limits::new(2, 32, 16);
            let variant = Variant::as_is();
            let source = WeightSource::of(&model, &variant).unwrap();
            let predicted = Footprint::predict(
                &model.config,
                &variant,
                DType::F32,
                &source,
                limits,
                &Device::Cpu,
            )
            .unwrap();
            let engine = Engine::new(Device::Cpu, weights, limits).unwrap();
            let found = engine.footprint();
            if kind.contains("descact") {
                // Whether layers that share an input share its order shows when they are read.
                assert!(predicted.linear > found.linear, "{name} {kind}");
                assert_eq!(predicted.activations, found.activations);
            } else {
                assert_eq!(predicted, found, "{name} {kind}");
            }
        }
    }
}
