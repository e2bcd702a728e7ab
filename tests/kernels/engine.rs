//! A whole model on a GPU against the same model on the CPU: every op in the order and shapes of real steps, with prompts
//! in chunks, sequences of different lengths, and weights in every form.

use std::path::Path;

use candlepower::engine::{DeviceWeights, Engine, Footprint, Limits, Prompt, WeightSource};
use candlepower::kernels::Device;
use candlepower::model::{Model, ModelSpec, WeightsChoice};
use candlepower::scheme::{DType, KvFormat};

use super::{emulated, some_gpus};

pub(crate) fn tiny() -> Model {
    Model::open(&ModelSpec {
        source: "tiny".into(),
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    })
    .unwrap()
}

/// The logits after two prompts of 11 and 5 tokens, in chunks, and one more step of both.
fn logits(model: &Model, variant: &str, act: DType, kv: KvFormat, device: &Device) -> Vec<f32> {
    let variant = variant.parse().unwrap();
    let weights = DeviceWeights::load(model, &variant, act, device, &mut |_, _| Ok(())).unwrap();
    let limits = Limits::new(2, 16, 12).with_kv(kv);
    let mut engine = Engine::new(device.clone(), weights, limits).unwrap();
    let config = &model.config;
    let vector = match kv {
        KvFormat::Auto => config.head_dim * act.size(),
        KvFormat::Int8 | KvFormat::Fp8 => config.head_dim + 4,
    };
    let held = engine.footprint().kv.0 as usize;
    assert_eq!(held, 2 * config.layers * config.kv_heads * 2 * 16 * vector);
    let tokens: Vec<u32> = (0..13).map(|i| (i * 389 + 17) % 2048).collect();
    let prompt = |slot, start, tokens| Prompt {
        slot,
        start,
        tokens,
    };
    let steps = [
        [prompt(0, 0, &tokens[..11]), prompt(1, 0, &tokens[6..11])],
        [prompt(0, 11, &tokens[11..12]), prompt(1, 5, &tokens[12..])],
    ];
    steps
        .iter()
        .flat_map(|step| engine.logits(step).unwrap().concat())
        .collect()
}

/// A checkpoint that another tool quantised.
fn stored(model: &str, kind: &str) -> Model {
    let folder = format!(
        "{}/tests/fixtures/{model}/{kind}",
        env!("CARGO_MANIFEST_DIR")
    );
    Model::open(&ModelSpec {
        source: folder,
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    })
    .unwrap()
}

/// The logits after a prompt, and the bytes of the linear layers.
fn logits_of_stored(model: &Model, act: DType, device: &Device) -> (Vec<f32>, u64) {
    let variant = "as-is".parse().unwrap();
    let weights = DeviceWeights::load(model, &variant, act, device, &mut |_, _| Ok(())).unwrap();
    let bytes = weights.linear_bytes().0;
    let mut engine = Engine::new(device.clone(), weights, Limits::new(1, 32, 24)).unwrap();
    let tokens: Vec<u32> = (0..9).map(|i| (i * 37 + 11) % 280).collect();
    let prompt = Prompt {
        slot: 0,
        start: 0,
        tokens: &tokens,
    };
    (engine.logits(&[prompt]).unwrap().concat(), bytes)
}

#[test]
fn a_quantised_checkpoint_on_a_gpu_gives_the_logits_of_the_cpu() {
    for device in some_gpus(&[1]) {
        for (name, kind, act, limit) in [
            ("tiny-qwen3", "ct-w4a16-g32-asym", DType::BF16, 2e-2),
            ("tiny-llama", "gptq-g32-sym-descact", DType::F16, 3e-3),
            ("tiny-qwen2", "awq-g32-gemm", DType::F16, 3e-3),
            // Where inputs are rounded, a sum in another order may round one to the next code.
            ("tiny-llama", "ct-w8a8-dyn-int", DType::BF16, 6e-2),
            ("tiny-llama", "ct-fp8-dyn-float", DType::BF16, 6e-2),
        ] {
            let model = stored(name, kind);
            let (truth, on_cpu) = logits_of_stored(&model, DType::F32, &Device::Cpu);
            let (got, on_gpu) = logits_of_stored(&model, act, &device);
            let off = distance(&got, &truth);
            // Not less, so that NaN fails.
            assert!(
                off <= limit,
                "{name} {kind} in {act} on {}: off by {off:e}",
                device.kind()
            );
            // Nothing keeps a second copy; rows whose K is no whole number of steps, as some here, are padded.
            let ratio = on_gpu as f64 / on_cpu as f64;
            assert!((0.98..=1.3).contains(&ratio), "{name} {kind}: {ratio}");
        }
    }
}

/// How far `got` is from `truth`, relative to the size of `truth`.
fn distance(got: &[f32], truth: &[f32]) -> f64 {
    assert_eq!(got.len(), truth.len());
    let square = |x: f64| x * x;
    let pairs = got.iter().zip(truth);
    let error: f64 = pairs
        .map(|(x, y)| square(f64::from(*x) - f64::from(*y)))
        .sum();
    let size: f64 = truth.iter().map(|x| square(f64::from(*x))).sum();
    (error / size).sqrt()
}

#[test]
fn a_model_on_a_gpu_gives_the_logits_of_the_cpu() {
    let model = tiny();
    // One order of blocks; ops are tested in more.
    for device in some_gpus(&[77]) {
        for (variant, act, limit) in [
            // Sums in another order, and nothing else.
            ("f32", DType::F32, 1e-5),
            ("int8", DType::F32, 1e-5),
            ("w4a16", DType::F32, 1e-5),
            // A sum that differs by a rounding error may round an input to the next code.
            ("w8a8", DType::F32, 1e-2),
            // Activations rounded to eight and eleven bits after every op.
            ("bf16", DType::BF16, 2e-2),
            ("w4a16", DType::BF16, 2e-2),
            ("f16", DType::F16, 3e-3),
        ] {
            let truth = logits(&model, variant, act, KvFormat::Auto, &Device::Cpu);
            let got = logits(&model, variant, act, KvFormat::Auto, &device);
            let off = distance(&got, &truth);
            // Not less, so that NaN fails.
            assert!(
                off <= limit,
                "{variant} in {act} on {}: off by {off:e}",
                device.kind()
            );
        }
    }
}

#[test]
fn a_cache_in_codes_gives_nearly_the_same_logits_on_both() {
    let model = tiny();
    for (kv, from_auto) in [(KvFormat::Int8, 1e-2), (KvFormat::Fp8, 4e-2)] {
        let plain = logits(&model, "f32", DType::F32, KvFormat::Auto, &Device::Cpu);
        let truth = logits(&model, "f32", DType::F32, kv, &Device::Cpu);
        let off = distance(&truth, &plain);
        assert!(off > 1e-5 && off <= from_auto, "{kv}: {off:e} from auto");
        for device in some_gpus(&[77]) {
            // A sum that differs by a rounding error may round a number to the next code.
            for (variant, act, limit) in [
                ("f32", DType::F32, 5e-3),
                ("bf16", DType::BF16, 2e-2),
                ("f16", DType::F16, 1e-2),
            ] {
                let truth = logits(&model, variant, act, kv, &Device::Cpu);
                let got = logits(&model, variant, act, kv, &device);
                let off = distance(&got, &truth);
                assert!(off <= limit, "{kv}, {variant}: off by {off:e}");
            }
        }
    }
}

#[test]
fn heads_that_no_kernel_is_for_are_refused_before_anything_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 320, "vocab_size": 64,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "torch_dtype": "bfloat16"
    }"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let model = Model::open(&ModelSpec {
        source: folder.path().display().to_string(),
        revision: None,
        weights: WeightsChoice::Dummy { seed: 0 },
        tokenizer: None,
    })
    .unwrap();
    let variant = "bf16".parse().unwrap();
    let load = |device: &Device| {
        DeviceWeights::load(&model, &variant, DType::BF16, device, &mut |_, _| Ok(()))
    };
    assert!(load(&Device::Cpu).is_ok());
    let device = emulated(0);
    let free = device.memory();
    let error = load(&device).err().expect("refused");
    assert_eq!(error.exit_code(), 64, "{error}");
    for word in ["320", "64, 96 and 128", "256", "--device cpu"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(device.memory(), free);
}

#[test]
fn candles_own_models_do_not_run_on_the_emulator() {
    let Device::Gpu(gpu) = emulated(0) else {
        unreachable!("it is a GPU")
    };
    let error = gpu.candle_device().unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.to_string().contains("emulator"), "{error}");
}

/// The tokens that two sequences of different lengths go on with, in three phases: both, one alone, both again.
fn decoded(model: &Model, variant: &str, act: DType, device: &Device, replays: bool) -> Vec<u32> {
    let variant = variant.parse().unwrap();
    let weights = DeviceWeights::load(model, &variant, act, device, &mut |_, _| Ok(())).unwrap();
    let mut engine = Engine::new(device.clone(), weights, Limits::new(2, 24, 12)).unwrap();
    engine.set_replays(replays);
    assert_eq!(
        engine.replays(),
        replays && matches!(device, Device::Gpu(_))
    );
    let tokens: Vec<u32> = (0..12).map(|i| (i * 389 + 17) % 2048).collect();
    let prompt = |slot, tokens| Prompt {
        slot,
        start: 0,
        tokens,
    };
    let prompts = [prompt(0, &tokens[..7]), prompt(1, &tokens[7..])];
    let mut next = engine.prefill(&prompts).unwrap();
    let mut positions = [7, 5];
    let mut all = next.clone();
    for rows in [2, 2, 2, 1, 1, 1, 2, 2] {
        let step = engine.decode(&next[..rows], &positions[..rows]).unwrap();
        for (row, token) in step.into_iter().enumerate() {
            next[row] = token;
            positions[row] += 1;
            all.push(token);
        }
    }
    all
}

#[test]
fn replayed_steps_give_the_tokens_of_launched_ones() {
    let model = tiny();
    for device in some_gpus(&[0]) {
        for (variant, act) in [
            ("w4a16", DType::BF16),
            ("w8a8", DType::F16),
            ("f32", DType::F32),
        ] {
            let launched = decoded(&model, variant, act, &device, false);
            let replayed = decoded(&model, variant, act, &device, true);
            assert_eq!(replayed, launched, "{variant} on {}", device.kind());
            if act == DType::F32 {
                assert_eq!(launched, decoded(&model, variant, act, &Device::Cpu, true));
            }
        }
    }
}

fn fixture(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    Model::open(&ModelSpec {
        source: folder.to_str().unwrap().into(),
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    })
    .unwrap()
}

/// An engine on a GPU that fuses launches, or does not.
fn engine(model: &Model, variant: &str, act: DType, device: &Device, fuses: bool) -> Engine {
    let Device::Gpu(gpu) = device else {
        panic!("the CPU launches nothing");
    };
    let variant = variant.parse().unwrap();
    let weights = DeviceWeights::load(model, &variant, act, device, &mut |_, _| Ok(())).unwrap();
    gpu.set_fused(fuses);
    let engine = Engine::new(device.clone(), weights, Limits::new(3, 24, 12)).unwrap();
    gpu.set_fused(true);
    engine
}

#[test]
fn fused_launches_give_the_logits_and_tokens_of_separate_ones_to_the_bit() {
    // With biases and without.
    let models = [fixture("tiny-qwen2/bf16"), tiny()];
    let all = [
        (0, "bf16", DType::BF16),
        (0, "int8", DType::F16),
        (0, "w4a16:g32", DType::BF16),
        (0, "w8a8", DType::BF16),
        (1, "w4a16", DType::BF16),
    ];
    for device in some_gpus(&[77]) {
        for (i, variant, act) in all {
            let model = &models[i];
            let run = |fuses| {
                let mut engine = engine(model, variant, act, &device, fuses);
                let vocab = engine.weights().config.vocab;
                let tokens: Vec<u32> = (0..10)
                    .map(|i| (i * 389 + 17) % u32::try_from(vocab).unwrap())
                    .collect();
                let prompt = |slot, start, tokens| Prompt {
                    slot,
                    start,
                    tokens,
                };
                // Five tokens of two sequences, then each by itself, then one of each, by the greedy path.
                let prompts = [prompt(0, 0, &tokens[..3]), prompt(1, 0, &tokens[3..5])];
                let mut logits = engine.logits(&prompts).unwrap().concat();
                logits.extend(
                    engine
                        .logits(&[prompt(0, 3, &tokens[5..6])])
                        .unwrap()
                        .concat(),
                );
                let greedy = engine.decode(&tokens[6..8], &[4, 2]).unwrap();
                (super::bits(&logits), greedy, engine.plan())
            };
            let (together, apart) = (run(true), run(false));
            let what = format!("model {i}, {variant} on {}", device.kind());
            assert!(together.0 == apart.0 && together.1 == apart.1, "{what}");
            assert_eq!(apart.2.to_string(), "op by op");
            let plan = together.2;
            // The head keeps the checkpoint's type, which the activations may not have.
            let same = act == model.config.dtype;
            assert_eq!(plan.head >= 2, same, "{what}: {plan}");
            assert_eq!(plan.codes, variant == "w8a8", "{what}: {plan}");
            assert!(plan.qkv >= 2 && plan.gate_up >= 2, "{what}: {plan}");
            let coded = plan.output >= 2 && plan.down >= 2;
            assert_eq!(coded, plan.codes, "{what}: {plan}");
        }
    }
}

/// Launches of a decode step of one sequence.
fn launches(model: &Model, variant: &str, fuses: bool) -> usize {
    let device = emulated(0);
    let Device::Gpu(gpu) = &device else {
        unreachable!("it is a GPU")
    };
    let mut engine = engine(model, variant, DType::BF16, &device, fuses);
    // Once as it comes, which is recorded then, and once as it was recorded.
    engine.decode(&[17], &[0]).unwrap();
    let (start, end) = (gpu.event().unwrap(), gpu.event().unwrap());
    gpu.record(&start).unwrap();
    engine.decode(&[18], &[1]).unwrap();
    gpu.record(&end).unwrap();
    // The emulator says that each takes a microsecond.
    (gpu.elapsed(&start, &end).unwrap().0 / 1e-6).round() as usize
}

#[test]
fn a_decode_step_of_one_sequence_takes_few_launches() {
    let model = tiny();
    let layers = model.config.layers;
    // Outside the layers: the embedding, the head with the choice, and what feeds the next step.
    for (variant, each) in [("bf16", 5), ("w4a16", 5), ("w8a8", 5)] {
        assert_eq!(
            launches(&model, variant, true),
            each * layers + 3,
            "{variant}"
        );
    }
    // Norms, rotation and activation by themselves; the final norm too, and the choice, and the rows that the head gets.
    assert_eq!(launches(&model, "bf16", false), 9 * layers + 6);
}

/// What a model needs is known before it is there, and no launch asks for more: recorded steps could not get it.
#[test]
fn memory_is_predicted_to_the_byte_launches_included() {
    let own = tiny();
    let foreign = stored("tiny-qwen3", "gptq-g32-sym-descact");
    let cases = [
        (&own, "bf16"),
        (&own, "int8"),
        (&own, "w8a8"),
        (&own, "w4a16"),
        (&foreign, "as-is"),
    ];
    for (model, variant) in cases {
        let device = emulated(0);
        let (act, limits) = (DType::BF16, Limits::new(5, 40, 30));
        let wished = variant.parse().unwrap();
        let source = WeightSource::of(model, &wished).unwrap();
        let predicted =
            Footprint::predict(&model.config, &wished, act, &source, limits, &device).unwrap();
        let weights =
            DeviceWeights::load(model, &wished, act, &device, &mut |_, _| Ok(())).unwrap();
        let mut engine = Engine::new(device.clone(), weights, limits).unwrap();
        let Footprint { workspace, .. } = engine.footprint();
        assert!(workspace.0 > 0, "{variant}");
        assert_eq!(
            engine.footprint().workspace,
            predicted.workspace,
            "{variant}"
        );
        assert_eq!(engine.footprint().kv, predicted.kv, "{variant}");
        assert_eq!(
            engine.footprint().activations,
            predicted.activations,
            "{variant}"
        );
        let vocab = model.config.vocab as u32;
        let tokens: Vec<u32> = (0..35).map(|i| (i * 389 + 17) % vocab).collect();
        for rows in [5, 1, 3] {
            let prompts: Vec<Prompt<'_>> = (0..rows)
                .map(|slot| Prompt {
                    slot,
                    start: 0,
                    tokens: &tokens[..35 - 6 * slot],
                })
                .collect();
            let next = engine.prefill(&prompts).unwrap();
            let positions: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
            engine.decode(&next, &positions).unwrap();
            engine.log_probs(&prompts).unwrap();
        }
        assert_eq!(engine.footprint().workspace, workspace, "{variant}");
    }
}
