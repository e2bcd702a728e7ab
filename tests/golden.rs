//! The forward pass against logits that transformers computed in f32 from the same checkpoints.

#[path = "golden/stored.rs"]
mod stored;

use std::path::{Path, PathBuf};

use candlepower::engine::{DeviceWeights, Engine, Limits, Prompt};
use candlepower::kernels::Device;
use candlepower::model::{Model, ModelSpec, WeightsChoice};
use candlepower::scheme::DType;
use safetensors::SafeTensors;

#[path = "golden/tasks.rs"]
mod tasks;

const MODELS: [&str; 4] = ["tiny-llama", "tiny-llama-tied", "tiny-qwen2", "tiny-qwen3"];

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(model)
        .join("bf16")
}

/// An engine of the fixture in `variant`, f32 activations, for `slots` sequences in chunks of `chunk`.
fn engine(model: &str, variant: &str, slots: usize, chunk: usize) -> Engine {
    let spec = ModelSpec {
        source: fixture(model).display().to_string(),
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    };
    let model = Model::open(&spec).unwrap();
    let variant = variant.parse().unwrap();
    let weights = DeviceWeights::load(&model, &variant, DType::F32, &Device::Cpu, &mut |_, _| {
        Ok(())
    })
    .unwrap();
    Engine::new(Device::Cpu, weights, Limits::new(slots, 64, chunk)).unwrap()
}

struct Truth(Vec<u8>);

impl Truth {
    fn of(model: &str) -> Self {
        Self(std::fs::read(fixture(model).join("expected.safetensors")).unwrap())
    }

    /// Of the checkpoint that LLM Compressor wrote from the same weights (data-free round-to-nearest).
    fn of_compressed(model: &str, scheme: &str) -> Self {
        let folder = fixture(model).with_file_name(scheme);
        Self(std::fs::read(folder.join("expected.safetensors")).unwrap())
    }

    /// Rows of token ids.
    fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let ids: Vec<u32> = view
            .data()
            .chunks(8)
            .map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap())
            .collect();
        ids.chunks(view.shape()[1]).map(<[u32]>::to_vec).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name)
            .unwrap()
            .data()
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }
}

fn prompts(rows: &[Vec<u32>]) -> Vec<Prompt<'_>> {
    rows.iter()
        .enumerate()
        .map(|(slot, tokens)| Prompt {
            slot,
            start: 0,
            tokens,
        })
        .collect()
}

#[test]
fn logits_equal_those_of_transformers_to_rounding() {
    for model in MODELS {
        let truth = Truth::of(model);
        for suffix in ["", "_b", "_c", "_d"] {
            let rows = truth.ids(&format!("input_ids{suffix}"));
            let expected = truth.floats(&format!("logits{suffix}"));
            let got = engine(model, "f32", rows.len(), 64)
                .logits(&prompts(&rows))
                .unwrap()
                .concat();
            assert_eq!(got.len(), expected.len());
            let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let worst = got
                .iter()
                .zip(&expected)
                .fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(
                worst <= 1e-4 * largest,
                "{model} logits{suffix}: off by {worst} of {largest}"
            );
        }
    }
}

#[test]
fn greedy_tokens_equal_those_of_transformers() {
    for model in MODELS {
        let truth = Truth::of(model);
        let expected = &truth.ids("greedy_ids")[0];
        let mut engine = engine(model, "f32", 1, 64);
        let mut ids = expected[..5].to_vec();
        let mut next = engine
            .prefill(&[Prompt {
                slot: 0,
                start: 0,
                tokens: &ids,
            }])
            .unwrap();
        while ids.len() < expected.len() {
            ids.push(next[0]);
            next = engine.decode(&next, &[ids.len() - 1]).unwrap();
        }
        assert_eq!(&ids, expected, "{model}");
    }
}

/// Five prompts of lengths that share no chunk border.
fn ragged(vocab: u32) -> Vec<Vec<u32>> {
    [1, 17, 5, 33, 8]
        .iter()
        .map(|&n| (0..n).map(|i| (i * 37 + n * 11) % vocab).collect())
        .collect()
}

#[test]
fn a_row_of_a_ragged_batch_gives_the_same_bits_as_alone() {
    for model in MODELS {
        for variant in ["f32", "bf16", "int8", "w8a8", "w4a16:g32"] {
            let rows = ragged(200);
            let together = engine(model, variant, rows.len(), 64)
                .logits(&prompts(&rows))
                .unwrap();
            for (row, together) in rows.iter().zip(together) {
                let alone = engine(model, variant, 1, 64)
                    .logits(&prompts(std::slice::from_ref(row)))
                    .unwrap();
                assert_eq!(alone[0], together, "{model} {variant} {}", row.len());
            }
        }
    }
}

#[test]
fn greedy_decoding_of_a_ragged_batch_equals_single_runs() {
    for model in MODELS {
        let rows = ragged(200);
        let generate = |rows: &[Vec<u32>]| {
            let mut engine = engine(model, "bf16", rows.len(), 16);
            let mut next = engine.prefill(&prompts(rows)).unwrap();
            let mut out: Vec<Vec<u32>> = next.iter().map(|&t| vec![t]).collect();
            for step in 0..12 {
                let positions: Vec<usize> = rows.iter().map(|row| row.len() + step).collect();
                next = engine.decode(&next, &positions).unwrap();
                out.iter_mut().zip(&next).for_each(|(out, &t)| out.push(t));
            }
            out
        };
        let together = generate(&rows);
        for (row, together) in rows.iter().zip(together) {
            assert_eq!(generate(std::slice::from_ref(row))[0], together, "{model}");
        }
    }
}

#[test]
fn prefill_in_chunks_gives_the_same_bits_as_at_once() {
    for model in MODELS {
        let rows = ragged(200);
        let whole = engine(model, "f32", rows.len(), 64)
            .logits(&prompts(&rows))
            .unwrap();
        for chunk in [5, 7, 16] {
            let parts = engine(model, "f32", rows.len(), chunk)
                .logits(&prompts(&rows))
                .unwrap();
            assert_eq!(parts, whole, "{model} in chunks of {chunk}");
        }
    }
}

/// The largest difference between two sets of logits, and the mean one, as shares of the largest logit.
fn differences(got: &[f32], expected: &[f32]) -> (f32, f32) {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let each = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let worst = each.clone().fold(0.0_f32, f32::max);
    (
        worst / largest,
        each.sum::<f32>() / got.len() as f32 / largest,
    )
}

#[test]
fn quantising_here_gives_the_logits_of_checkpoints_that_llm_compressor_wrote() {
    for model in MODELS {
        for (scheme, variant) in [
            ("ct-w4a16-g32-sym", "w4a16:g32"),
            ("ct-w8a16-channel-pack", "int8"),
        ] {
            let truth = Truth::of_compressed(model, scheme);
            let rows = truth.ids("input_ids_c");
            let got = engine(model, variant, 1, 64)
                .logits(&prompts(&rows))
                .unwrap()
                .concat();
            let (worst, _) = differences(&got, &truth.floats("logits_c"));
            assert!(
                worst <= 1e-5,
                "{model} {variant}: off by {worst} of the largest logit"
            );
        }
    }
}

#[test]
fn int8_activations_stay_as_near_to_llm_compressor_as_ties_allow() {
    for model in MODELS {
        let truth = Truth::of_compressed(model, "ct-w8a8-dyn-int");
        let rows = truth.ids("input_ids_c");
        let got = engine(model, "w8a8", 1, 64)
            .logits(&prompts(&rows))
            .unwrap()
            .concat();
        let (worst, mean) = differences(&got, &truth.floats("logits_actq_c"));
        // A tie in rounding one activation moves every logit after it a little.
        assert!(
            worst <= 0.07 && mean <= 0.015,
            "{model}: off by {worst}, in the mean {mean}"
        );
    }
}
