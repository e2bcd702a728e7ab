//! The model inside the program: that it is what `models/tiny/expected.json` says, computed by transformers in f32, and
//! that it serves its purpose: small, mostly linears, and hurt by four bits beyond doubt.

use std::fs;
use std::path::Path;

use candlepower::engine::{DeviceWeights, Engine, Limits, Prompt};
use candlepower::kernels::Device;
use candlepower::model::{Model, ModelSpec, WeightsChoice, tiny_text};
use candlepower::quality::{Protocol, Rule, Segment, Text, perplexity};
use candlepower::scheme::DType;
use candlepower::stats::paired_difference;
use serde_json::Value;

fn expected() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/expected.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
        .collect()
}

fn tiny() -> Model {
    Model::open(&ModelSpec {
        source: "tiny".into(),
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    })
    .unwrap()
}

fn engine(model: &Model, variant: &str, limits: Limits) -> Engine {
    let variant = variant.parse().unwrap();
    let weights = DeviceWeights::load(
        model,
        &variant,
        DType::F32,
        &Device::Cpu,
        &mut |_, _| Ok(()),
    );
    Engine::new(Device::Cpu, weights.unwrap(), limits).unwrap()
}

/// The held-out text in segments of 256 tokens.
fn score(model: &Model, variant: &str) -> Vec<Segment> {
    let protocol = Protocol {
        rule: Rule::Gptq,
        context: 256,
        stride: None,
        segments: None,
    };
    let text = Text::new("held-out", tiny_text());
    let layout = protocol.lay_out(&text, model.tokenizer.as_ref().unwrap());
    let mut engine = engine(model, variant, Limits::new(8, 256, 2048));
    perplexity(&mut engine, &layout.unwrap(), None, |_, _| Ok(())).unwrap()
}

#[test]
fn its_text_becomes_the_tokens_that_transformers_makes() {
    let (expected, model) = (expected(), tiny());
    let got = model
        .tokenizer
        .as_ref()
        .unwrap()
        .encode(tiny_text(), true)
        .unwrap();
    assert_eq!(got.len() as u64, expected["token_count"].as_u64().unwrap());
    assert_eq!(got[..16], ids(&expected["first_16_token_ids"]));
}

#[test]
fn its_loss_is_that_of_transformers() {
    let (expected, model) = (expected(), tiny());
    let scored = score(&model, "f32");
    let sum: f64 = scored.iter().map(|s| s.nll).sum();
    let tokens: u64 = scored.iter().map(|s| s.tokens).sum();
    assert_eq!(scored.len() as u64, expected["segments"].as_u64().unwrap());
    assert_eq!(tokens, expected["scored_tokens"].as_u64().unwrap());
    for (got, key) in [(sum, "nll_sum"), (scored[0].nll, "first_segment_nll_sum")] {
        let truth = expected[key].as_f64().unwrap();
        assert!(
            (got - truth).abs() <= 1e-5 * truth,
            "{key}: {got} instead of {truth}"
        );
    }
}

#[test]
fn its_most_likely_tokens_are_those_of_transformers() {
    let (expected, model) = (expected(), tiny());
    let truth = ids(&expected["argmax_first_32"]);
    let tokens = model
        .tokenizer
        .as_ref()
        .unwrap()
        .encode(tiny_text(), true)
        .unwrap();
    let prompt = Prompt {
        slot: 0,
        start: 0,
        tokens: &tokens[..truth.len()],
    };
    let logits = engine(&model, "f32", Limits::new(1, 64, 64))
        .logits(&[prompt])
        .unwrap();
    let got: Vec<u32> = logits
        .concat()
        .chunks(model.config.vocab)
        .map(|row| {
            let best = row
                .iter()
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(b.1))
                .unwrap();
            u32::try_from(best.0).unwrap()
        })
        .collect();
    assert_eq!(got, truth);
}

#[test]
fn it_is_small_and_mostly_linears_that_groups_of_128_divide() {
    let config = tiny().config;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let embedded = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "held_out.txt",
    ];
    let bytes: u64 = embedded
        .iter()
        .map(|name| fs::metadata(folder.join(name)).unwrap().len())
        .sum();
    assert!(bytes <= 8_000_000, "{bytes} bytes are embedded");
    let share = config.linear_parameters() as f64 / config.parameters() as f64;
    assert!(share >= 0.7, "linears are {share} of the parameters");
    for tensor in config.tensors().iter().filter(|tensor| tensor.is_linear()) {
        assert!(
            tensor.shape[1].is_multiple_of(128),
            "{}: {:?}",
            tensor.name,
            tensor.shape
        );
    }
    let words = tiny_text().split_whitespace().count();
    assert!(words >= 8000, "{words} words are held out");
}

#[test]
fn four_bits_cost_quality_beyond_doubt() {
    let model = tiny();
    let losses = |variant: &str| -> Vec<f64> {
        score(&model, variant)
            .iter()
            .map(|s| s.nll / s.tokens as f64)
            .collect()
    };
    let found = paired_difference(&losses("bf16"), &losses("w4a16")).unwrap();
    assert!(
        found.interval.is_some_and(|interval| interval.low > 0.0),
        "{found:?}"
    );
}
