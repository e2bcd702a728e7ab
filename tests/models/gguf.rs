//! GGUF files of every architecture and tensor type.

use std::collections::HashMap;

use candlepower::model::{Family, HostSliceMut, Model, OriginKind, RopeScaling, uniform};
use candlepower::scheme::DType;
use half::bf16;

use super::common::{assert_fails, open, read_all};
use super::gguf_writer::{Writer, plain};

const HIDDEN: u64 = 256;
const HEAD: u64 = 64;
const VOCAB: u64 = 12;

/// Number and block (elements, bytes) of every supported type.
const TYPES: [(u32, u64, usize, &str); 13] = [
    (0, 1, 4, "F32"),
    (1, 1, 2, "F16"),
    (30, 1, 2, "BF16"),
    (2, 32, 18, "Q4_0"),
    (3, 32, 20, "Q4_1"),
    (6, 32, 22, "Q5_0"),
    (7, 32, 24, "Q5_1"),
    (8, 32, 34, "Q8_0"),
    (10, 256, 84, "Q2_K"),
    (11, 256, 110, "Q3_K"),
    (12, 256, 144, "Q4_K"),
    (13, 256, 176, "Q5_K"),
    (14, 256, 210, "Q6_K"),
];

/// The metadata of a one-layer model.
pub(crate) fn metadata(architecture: &str) -> Writer {
    let key = |key: &str| format!("{architecture}.{key}");
    Writer::new()
        .text("general.architecture", architecture)
        .u32(&key("block_count"), 1)
        .u32(&key("embedding_length"), HIDDEN as u32)
        .u32(&key("feed_forward_length"), 512)
        .u32(&key("context_length"), 64)
        .u32(&key("attention.head_count"), 4)
        .u32(&key("attention.head_count_kv"), 2)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&key("rope.freq_base"), 5e5)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.eot_token_id", 3)
}

/// Name and shape of a one-layer model's matrices and norms.
fn tensors() -> Vec<(&'static str, Vec<u64>)> {
    vec![
        ("token_embd.weight", vec![VOCAB, HIDDEN]),
        ("blk.0.attn_norm.weight", vec![HIDDEN]),
        ("blk.0.attn_q.weight", vec![4 * HEAD, HIDDEN]),
        ("blk.0.attn_k.weight", vec![2 * HEAD, HIDDEN]),
        ("blk.0.attn_v.weight", vec![2 * HEAD, HIDDEN]),
        ("blk.0.attn_output.weight", vec![HIDDEN, 4 * HEAD]),
        ("blk.0.ffn_norm.weight", vec![HIDDEN]),
        ("blk.0.ffn_gate.weight", vec![512, HIDDEN]),
        ("blk.0.ffn_up.weight", vec![512, HIDDEN]),
        ("blk.0.ffn_down.weight", vec![HIDDEN, 512]),
        ("output_norm.weight", vec![HIDDEN]),
        ("output.weight", vec![VOCAB, HIDDEN]),
    ]
}

/// A value that tells tensors, rows and columns apart and is exact in 16 bits of either kind.
fn value(tensor: usize, index: u64) -> f32 {
    (uniform(tensor as u64, index) * 128.0).round() / 128.0
}

fn stored(tensor: usize, shape: &[u64], kind: u32) -> Vec<u8> {
    let n: u64 = shape.iter().product();
    if let Some((_, block, bytes, _)) = TYPES.iter().find(|t| t.0 == kind && t.1 > 1) {
        let length = n / block * *bytes as u64;
        // Without these bits no scale is infinite.
        return (0..length)
            .map(|i| (uniform(tensor as u64, i) * 128.0) as i8 as u8 & 0b1011_1111)
            .collect();
    }
    plain(kind, &(0..n).map(|i| value(tensor, i)).collect::<Vec<_>>())
}

/// A one-layer model with matrices of type `kind`; norms and biases are F32.
pub(crate) fn model(architecture: &str, kind: u32) -> Writer {
    let tensors = tensors().into_iter().enumerate();
    let writer = tensors.fold(metadata(architecture), |writer, (i, (name, shape))| {
        let kind = if shape.len() == 1 { 0 } else { kind };
        let data = stored(i, &shape, kind);
        writer.tensor(name, &shape, kind, data)
    });
    match architecture {
        "qwen2" => with_biases(writer),
        "qwen3" => with_head_norms(writer),
        _ => writer,
    }
}

fn with_biases(writer: Writer) -> Writer {
    [("q", 4 * HEAD), ("k", 2 * HEAD), ("v", 2 * HEAD)]
        .into_iter()
        .fold(writer, |writer, (name, n)| {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            writer.tensor(
                &format!("blk.0.attn_{name}.bias"),
                &[n],
                0,
                plain(0, &values),
            )
        })
}

fn with_head_norms(writer: Writer) -> Writer {
    ["q", "k"].into_iter().fold(writer, |writer, name| {
        let name = format!("blk.0.attn_{name}_norm.weight");
        writer.tensor(&name, &[HEAD], 0, plain(0, &[1.0; HEAD as usize]))
    })
}

#[test]
fn every_type_opens_and_reads_the_same_whole_or_in_parts() {
    for (kind, block, _, name) in TYPES {
        let (_folder, path) = model("qwen2", kind).write();
        let model = open(&path).unwrap();
        let tensor = "model.layers.0.mlp.down_proj.weight";
        assert_eq!(model.weights.stored(tensor).unwrap(), name);
        assert_eq!(model.weights.shape(tensor).unwrap(), [256, 512]);
        let whole = read_all(&model, tensor);
        assert!(whole.iter().all(|x| x.is_finite()), "{name}");
        let mut part = vec![bf16::ZERO; 3 * 512];
        model
            .weights
            .read_rows(tensor, 200..203, HostSliceMut::BF16(&mut part))
            .unwrap();
        let expected: Vec<bf16> = whole[200 * 512..203 * 512]
            .iter()
            .map(|&x| bf16::from_f32(x))
            .collect();
        assert_eq!(part, expected, "{name}");
        if block == 1 {
            let expected: Vec<f32> = (0..whole.len() as u64).map(|i| value(9, i)).collect();
            assert_eq!(whole, expected, "{name}");
        } else {
            assert_eq!(model.weights.precision(tensor).unwrap(), DType::F32);
            assert_eq!(model.config.dtype, DType::BF16);
        }
    }
}

#[test]
fn llama_rows_return_to_halves_and_qwen_rows_stay() {
    let names = HashMap::from([("q_proj", 2), ("k_proj", 3), ("v_proj", 4)]);
    for (architecture, kind) in [("llama", 0), ("llama", 30), ("qwen2", 0)] {
        let (_folder, path) = match architecture {
            "llama" => with_biases(model(architecture, kind)).write(),
            _ => model(architecture, kind).write(),
        };
        let model = open(&path).unwrap();
        for (&name, &tensor) in &names {
            let matrix = read_all(&model, &format!("model.layers.0.self_attn.{name}.weight"));
            let bias = read_all(&model, &format!("model.layers.0.self_attn.{name}.bias"));
            for (row, &bias) in bias.iter().enumerate() {
                let (head, component) = (row / 64, row % 64);
                let interleaved = head * 64 + 2 * (component % 32) + component / 32;
                let rotated = architecture == "llama" && name != "v_proj";
                let place = if rotated { interleaved } else { row };
                assert_eq!(bias, place as f32, "{architecture} {name}");
                let expected = value(tensor, place as u64 * HIDDEN + 17);
                assert_eq!(
                    matrix[row * HIDDEN as usize + 17],
                    expected,
                    "{architecture} {name}"
                );
            }
        }
    }
}

#[test]
fn quantised_rows_are_reordered_like_plain_ones() {
    let read = |architecture: &str| {
        let (_folder, path) = model(architecture, 12).write();
        read_all(
            &open(&path).unwrap(),
            "model.layers.0.self_attn.k_proj.weight",
        )
    };
    let (llama, file) = (read("llama"), read("qwen2"));
    let row = |values: &[f32], i: usize| values[i * 256..(i + 1) * 256].to_vec();
    assert_eq!(row(&llama, 64 + 33), row(&file, 64 + 3));
    assert_eq!(row(&llama, 5), row(&file, 10));
}

fn config_of(writer: &Writer) -> Model {
    let (_folder, path) = writer.write();
    open(path).unwrap()
}

#[test]
fn metadata_becomes_the_configuration() {
    let model = config_of(&model("llama", 1));
    let config = model.config;
    assert_eq!(
        (config.family, config.hidden, config.intermediate),
        (Family::Llama, 256, 512)
    );
    assert_eq!(
        (
            config.layers,
            config.heads,
            config.kv_heads,
            config.head_dim
        ),
        (1, 4, 2, 64)
    );
    assert_eq!(
        (config.vocab, config.max_positions, config.tied),
        (12, 64, false)
    );
    assert_eq!(
        (config.rope.theta, config.rope.scaling),
        (5e5, RopeScaling::None)
    );
    assert_eq!(
        (config.bos, config.eos.as_slice(), config.dtype),
        (Some(1), &[2, 3][..], DType::F16)
    );
    assert_eq!(model.origin.kind, OriginKind::Gguf);
    assert!(model.tokenizer.is_none());
}

#[test]
fn what_a_layer_has_follows_from_its_tensors() {
    let tied = config_of(&model("llama", 0).without("output.weight")).config;
    assert!(tied.tied && !tied.qkv_bias && !tied.qk_norm);
    let qwen2 = config_of(&model("qwen2", 0)).config;
    assert!(qwen2.qkv_bias && !qwen2.o_bias);
    let qwen3 = config_of(&model("qwen3", 0).u32("qwen3.attention.key_length", 64)).config;
    assert!(qwen3.qk_norm);
}

#[test]
fn rope_factors_and_linear_scaling_are_read() {
    let factors: Vec<f32> = (1..=32).map(|i| i as f32).collect();
    let with_factors = model("llama", 0).tensor("rope_freqs.weight", &[32], 0, plain(0, &factors));
    assert_eq!(
        config_of(&with_factors).config.rope.scaling,
        RopeScaling::Factors(factors.clone())
    );
    let both = with_factors.f32("llama.rope.scaling.factor", 2.0);
    assert_eq!(
        config_of(&both).config.rope.scaling,
        RopeScaling::Factors(factors.iter().map(|f| 2.0 * f).collect())
    );
    let (plain, key) = (|| model("llama", 0), "llama.rope.scaling.type");
    let linear = RopeScaling::Linear { factor: 4.0 };
    for (writer, wanted) in [
        (
            plain()
                .text(key, "linear")
                .f32("llama.rope.scaling.factor", 4.0),
            linear.clone(),
        ),
        // The older key, alone and beside the newer one, which wins.
        (plain().f32("llama.rope.scale_linear", 4.0), linear.clone()),
        (
            plain()
                .f32("llama.rope.scale_linear", 2.0)
                .f32("llama.rope.scaling.factor", 4.0),
            linear,
        ),
        (
            plain()
                .text(key, "none")
                .f32("llama.rope.scale_linear", 4.0),
            RopeScaling::None,
        ),
    ] {
        assert_eq!(config_of(&writer).config.rope.scaling, wanted);
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (writer, code, word) in [
        (metadata("mamba"), 64, "'mamba'"),
        (
            model("llama", 0).u32("llama.expert_count", 8),
            64,
            "mixture of experts",
        ),
        (
            model("llama", 0).text("llama.rope.scaling.type", "yarn"),
            64,
            "yarn",
        ),
        (
            model("llama", 0)
                .text("llama.rope.scaling.type", "yarn")
                .tensor("rope_freqs.weight", &[32], 0, plain(0, &[1.0; 32])),
            64,
            "yarn",
        ),
        (
            model("llama", 0).u32("llama.rope.dimension_count", 32),
            64,
            "dimension_count",
        ),
        (model("llama", 0).u32("split.count", 2), 64, "several parts"),
        (
            model("llama", 0).without("blk.0.ffn_up.weight"),
            65,
            "blk.0.ffn_up.weight",
        ),
        (
            model("qwen2", 0).without("blk.0.attn_q.bias"),
            65,
            "blk.0.attn_q.bias",
        ),
        (
            model("qwen3", 0).without("blk.0.attn_k_norm.weight"),
            65,
            "blk.0.attn_k_norm.weight",
        ),
        (
            model("llama", 0).tensor("x", &[32], 23, vec![0; 32]),
            65,
            "IQ4_XS",
        ),
        (model("llama", 0).version(4), 64, "version 4"),
        (model("llama", 0).version(1), 64, "version 1"),
    ] {
        let (_folder, path) = writer.write();
        assert_fails(open(path), code, word);
    }
    let wrong = model("llama", 0).without("output_norm.weight").tensor(
        "output_norm.weight",
        &[32],
        0,
        vec![0; 128],
    );
    let (_folder, path) = wrong.write();
    assert_fails(open(path), 65, "model.norm.weight");
}
