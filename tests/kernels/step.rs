//! A decoding step in one launch against the same in many: what it leaves behind is the same to the bit.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candlepower::engine::{DeviceWeights, Engine, Limits, Prompt};
use candlepower::kernels::Device;
use candlepower::measure::clock::SystemClock;
use candlepower::model::{Model, ModelSpec, WeightsChoice};
use candlepower::scheme::{DType, KvFormat};

use super::build::{Mutation, kernels, mutated};
use super::engine::tiny;
use super::{bits, kernel_device, one_gpu, some_gpus};

/// A model of two layers with heads of `head_dim` and biases, made-up weights.
fn wide(head_dim: usize, heads: usize, kv_heads: usize) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 192,
        "head_dim": head_dim,
        "intermediate_size": 320,
        "max_position_embeddings": 1024,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "vocab_size": 300,
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Model::open(&ModelSpec {
        source: folder.path().to_str().unwrap().into(),
        revision: None,
        weights: WeightsChoice::Dummy { seed: 3 },
        tokenizer: None,
    })
    .unwrap()
}

fn engine(
    model: &Model,
    variant: &str,
    act: DType,
    limits: Limits,
    device: &Device,
    persistent: bool,
) -> Engine {
    let Device::Gpu(gpu) = device else {
        panic!("the CPU launches nothing");
    };
    gpu.set_persistent(persistent);
    let variant = variant.parse().unwrap();
    let weights = DeviceWeights::load(model, &variant, act, device, &mut |_, _| Ok(())).unwrap();
    Engine::new(device.clone(), weights, limits).unwrap()
}

/// What a sequence goes on with, what its cache then makes of two more tokens, and how its steps were replayed.
struct Continued {
    tokens: Vec<u32>,
    logits: Vec<u32>,
    how: String,
}

fn continued(
    model: &Model,
    variant: &str,
    act: DType,
    (before, steps): (usize, usize),
    device: &Device,
    persistent: bool,
) -> Continued {
    let limits = Limits::new(1, before + steps + 2, 64);
    let mut engine = engine(model, variant, act, limits, device, persistent);
    let vocab = u32::try_from(engine.weights().config.vocab).unwrap();
    let text: Vec<u32> = (0..before as u32).map(|i| (i * 389 + 17) % vocab).collect();
    let prompt = |start, tokens| Prompt {
        slot: 0,
        start,
        tokens,
    };
    let clock = SystemClock::new();
    let tokens = engine
        .generate(&[prompt(0, &text)], steps, &clock, &mut |_| true)
        .unwrap()
        .tokens;
    let logits = engine
        .logits(&[prompt(before + steps - 1, &[5, 6])])
        .unwrap()
        .concat();
    Continued {
        tokens,
        logits: bits(&logits),
        how: engine.replay_of(1).unwrap(),
    }
}

fn assert_same(model: &Model, variant: &str, act: DType, length: (usize, usize), device: &Device) {
    let what = format!("{variant} in {act} after {} on {}", length.0, device.kind());
    let many = continued(model, variant, act, length, device, false);
    let one = continued(model, variant, act, length, device, true);
    assert_eq!(many.how, "a graph", "{what}");
    assert!(
        one.how.starts_with("one launch: step_"),
        "{what}: {}",
        one.how
    );
    assert_eq!(one.tokens, many.tokens, "{what}");
    assert!(
        one.logits == many.logits,
        "{what}: the cache holds something else"
    );
}

#[test]
fn a_step_in_one_launch_is_the_step_in_many() {
    let model = tiny();
    for device in some_gpus(&[0, 77]) {
        for variant in ["bf16", "int8", "w4a16", "w8a8"] {
            assert_same(&model, variant, DType::BF16, (3, 5), &device);
        }
    }
    // Several parts of the keys, by several blocks, and the last of them new after a few steps.
    for device in some_gpus(&[1]) {
        assert_same(&model, "w4a16", DType::BF16, (381, 6), &device);
    }
}

#[test]
fn heads_of_128_with_biases_and_a_head_of_its_own_are_the_same_too() {
    let device = one_gpu(77);
    for (variant, act, before) in [
        ("bf16", DType::BF16, 250),
        ("w4a16:g32", DType::BF16, 4),
        ("f16", DType::F16, 4),
    ] {
        assert_same(&wide(128, 4, 2), variant, act, (before, 5), &device);
    }
}

/// What is said of a step that no kernel does in one launch.
fn refused(model: &Model, variant: &str, act: DType, kv: KvFormat, device: &Device) -> String {
    let mut engine = engine(
        model,
        variant,
        act,
        Limits::new(1, 16, 8).with_kv(kv),
        device,
        true,
    );
    engine.decode(&[17], &[0]).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_one_launch_is_refused_with_the_reason() {
    let device = one_gpu(0);
    let (own, coded) = (KvFormat::Auto, KvFormat::Int8);
    for (model, variant, act, kv, why) in [
        (
            &tiny(),
            "bf16",
            DType::BF16,
            coded,
            "attention of this shape or cache",
        ),
        (&tiny(), "int8", DType::F16, own, "is a launch of its own"),
        (
            &wide(96, 2, 1),
            "bf16",
            DType::BF16,
            own,
            "attention of this shape or cache",
        ),
        (
            &wide(64, 9, 1),
            "bf16",
            DType::BF16,
            own,
            "attention of this shape or cache",
        ),
    ] {
        let said = refused(model, variant, act, kv, &device);
        assert!(
            said.contains(why) && said.contains("--persistent"),
            "{variant}: {said}"
        );
    }
}

/// All kernels as they are, but a step that was changed, compiled for one storage alone.
fn changed_step(change: Mutation) -> tempfile::TempDir {
    let only = Mutation {
        file: "step.cu",
        from: "#include \"common/storages.cuh\"",
        to: "using int4_bf16 = NibbleTiles<bf16, bf16, false>;\nKERNEL_STEP(int4_bf16, 2, 64)",
    };
    let changed = mutated(&["step"], &[only, change]);
    let folder = tempfile::tempdir().unwrap();
    for library in fs::read_dir(kernels()).unwrap() {
        let library = library.unwrap().path();
        let name = library.file_name().unwrap();
        if library
            .extension()
            .is_some_and(|extension| extension == "so")
            && name != "step.so"
        {
            fs::copy(&library, folder.path().join(name)).unwrap();
        }
    }
    fs::copy(changed.join("step.so"), folder.path().join("step.so")).unwrap();
    folder
}

#[test]
fn a_wait_or_an_order_left_out_of_a_step_is_noticed() {
    let test = |folder: &tempfile::TempDir, order| {
        let device = kernel_device(folder.path(), order);
        assert_same(&tiny(), "w4a16", DType::BF16, (150, 4), &device);
    };
    let comment = "// All are past the wait before";
    let whole = changed_step(Mutation {
        file: "step.cu",
        from: comment,
        to: comment,
    });
    for order in [0, 1, 77] {
        test(&whole, order);
    }
    for (from, to) in [
        // Nobody waits for anybody.
        (
            "wait_for_count(args.arrived + i, gridDim.x);",
            "wait_for_count(args.arrived + i, 1);",
        ),
        // Attention takes the memory of weights that are on their way.
        (
            "if (op(i).kind == STEP_ATTEND && blockIdx.x < op(i).ranges_in_all()) return false;",
            "",
        ),
        // Counters are not left as the next launch wants them.
        ("if (blockIdx.x == 0 && i > 0) args.arrived[i - 1] = 0;", ""),
        ("if (args.count > 1) last[-1] = 0;", ""),
        // The next weights come while these are in use.
        (
            "__syncwarp(); // all lanes are done with the ring",
            "begin_copying(i + 1);",
        ),
        // An op is not here when it is looked at.
        ("bring(i + OPS - 1);", "bring(i + OPS - 2);"),
    ] {
        let file = "step.cu";
        let folder = changed_step(Mutation { file, from, to });
        let noticed = [0, 1, 77]
            .into_iter()
            .any(|order| catch_unwind(AssertUnwindSafe(|| test(&folder, order))).is_err());
        assert!(noticed, "nothing notices `{to}` in the place of `{from}`");
    }
}
