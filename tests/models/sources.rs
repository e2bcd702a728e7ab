//! What a source may be called, and models without a file.

use std::fs;

use candlepower::model::{
    DummyFill, Family, HostSliceMut, Model, OriginKind, WeightsChoice, presets, tiny_text, uniform,
};

use super::common::{assert_fails, fixture, open, open_dummy, read_all, spec};

#[test]
fn the_embedded_model_is_complete() {
    let model = open("tiny").unwrap();
    assert_eq!(
        (model.name.as_str(), model.origin.kind),
        ("tiny", OriginKind::Embedded)
    );
    let ids = model
        .tokenizer
        .as_ref()
        .unwrap()
        .encode(tiny_text(), false)
        .unwrap();
    let expected = fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/models/tiny/expected.json"
    ))
    .unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    assert_eq!(serde_json::json!(ids[..16]), expected["first_16_token_ids"]);
    assert_eq!(serde_json::json!(ids.len()), expected["token_count"]);
    assert_eq!(
        model.tokenizer.as_ref().unwrap().decode(&ids).unwrap(),
        tiny_text()
    );
    assert!(
        read_all(&model, "model.norm.weight")
            .iter()
            .all(|x| x.is_finite())
    );
}

#[test]
fn a_preset_needs_dummy_weights() {
    assert_fails(open("Qwen3-8B"), 2, "--weights dummy");
    assert_fails(open("qwen3-8b"), 2, "Qwen/Qwen3-8B");
    for preset in presets().unwrap() {
        let model = open_dummy(&preset.name, 1).unwrap();
        assert_eq!(model.config, preset.config);
        assert_eq!(
            (model.origin.kind, model.origin.file_bytes),
            (OriginKind::Preset, 0)
        );
        assert!(model.tokenizer.is_none());
    }
}

#[test]
fn a_revision_is_of_a_hub_model_alone() {
    for source in ["tiny", "qwen3-0.6b"] {
        let mut spec = spec(source, WeightsChoice::Dummy { seed: 0 });
        spec.revision = Some("main".to_owned());
        assert_fails(Model::open(&spec), 2, "--revision main");
    }
}

#[test]
fn candle_reads_what_it_is_told() {
    use candle_transformers::models::{llama, qwen2, qwen3};
    for preset in presets().unwrap() {
        let (config, told) = (preset.config.clone(), preset.config.to_json().unwrap());
        let read = match config.family {
            Family::Llama => serde_json::from_value::<llama::LlamaConfig>(told)
                .map(|c| (c.num_hidden_layers, c.num_key_value_heads(), c.vocab_size)),
            Family::Qwen2 => serde_json::from_value::<qwen2::Config>(told)
                .map(|c| (c.num_hidden_layers, c.num_key_value_heads, c.vocab_size)),
            Family::Qwen3 => serde_json::from_value::<qwen3::Config>(told)
                .map(|c| (c.num_hidden_layers, c.num_key_value_heads, c.vocab_size)),
        };
        let expected = (config.layers, config.kv_heads, config.vocab);
        assert_eq!(read.unwrap(), expected, "{}", preset.name);
    }
}

#[test]
fn dummy_weights_are_a_function_of_seed_name_and_index() {
    let (one, two) = (
        open_dummy("qwen2.5-0.5b", 1).unwrap(),
        open_dummy("qwen2.5-0.5b", 2).unwrap(),
    );
    let name = "model.layers.3.mlp.down_proj.weight";
    let dummy = one.weights.dummy().unwrap();
    let width = one.config.intermediate;
    let DummyFill::Uniform { amplitude } = dummy.scale(name, &one.weights.shape(name).unwrap())
    else {
        panic!("a matrix is uniform");
    };
    let mut rows = vec![0.0; 2 * width];
    one.weights
        .read_rows(name, 5..7, HostSliceMut::F32(&mut rows))
        .unwrap();
    for (i, &x) in rows.iter().enumerate() {
        let index = (5 * width + i) as u64;
        assert_eq!(x, amplitude * uniform(dummy.stream(name), index));
    }
    let mut others = vec![0.0; 2 * width];
    two.weights
        .read_rows(name, 5..7, HostSliceMut::F32(&mut others))
        .unwrap();
    assert_ne!(rows, others);
    assert!(
        read_all(&one, "model.norm.weight")
            .iter()
            .all(|&x| x == 1.0)
    );
    assert!(
        read_all(&one, "model.layers.0.self_attn.q_proj.bias")
            .iter()
            .all(|x| x.abs() <= 0.01)
    );
}

#[test]
fn dummies_take_the_shape_of_a_folder_or_a_config_file() {
    let folder = fixture("tiny-qwen2");
    let stored = open(&folder).unwrap();
    let dummy = open_dummy(&folder, 3).unwrap();
    assert_eq!(dummy.config, stored.config);
    assert!(dummy.tokenizer.is_some());
    assert_eq!(dummy.origin.dummy_seed, Some(3));
    let config = folder.join("config.json");
    assert_eq!(
        open_dummy(&config, 3).unwrap().origin.kind,
        OriginKind::ConfigFile
    );
    assert_fails(open(&config), 2, "--weights dummy");
    assert_fails(open(folder.join("model.safetensors")), 2, "give its folder");
}

#[test]
fn a_tokenizer_can_be_named() {
    let mut spec = spec("qwen3-0.6b", WeightsChoice::Dummy { seed: 0 });
    spec.tokenizer = Some(fixture("tiny-qwen3").join("tokenizer.json"));
    assert_eq!(
        Model::open(&spec).unwrap().tokenizer.unwrap().vocab_size(),
        280
    );
}

#[test]
fn names_of_nothing_say_what_would_be_something() {
    assert_fails(open("qwen3-9b"), 2, "qwen3-8b");
    assert_fails(open("no/such/folder"), 65, "no such file");
    assert_fails(open("missing.gguf"), 65, "no such file");
    assert_fails(
        open(env!("CARGO_MANIFEST_DIR").to_owned() + "/Cargo.toml"),
        2,
        "is no model",
    );
}
