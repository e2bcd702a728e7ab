//! A decoding step in one launch against the same in many: what it leaves behind is the same to the bit.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candlepower::engine::{DeviceWeights, Engine, Limits, Prompt};
use candlepower::kernels::attention::{AppendAttend, Attention, LayerCache, Places, Queries};
use candlepower::kernels::embed::Gather;
use candlepower::kernels::gpu::OneLaunch;
use candlepower::kernels::linear::{FusedLinear, LinearWeight, Normed, Then};
use candlepower::kernels::rope::RopeTable;
use candlepower::kernels::{BufType, Device};
use candlepower::measure::clock::SystemClock;
use candlepower::model::{Model, ModelSpec, WeightsChoice};
use candlepower::scheme::{DType, KvFormat};

use super::build::{Mutation, kernels, mutated};
use super::engine::tiny;
use super::{bits, kernel_device, one_gpu, put_ids, some_gpus};

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

/// Numbers of a hidden state, and of the rows of the weights, in [`gathered`].
const HIDDEN: usize = 128;
const QKV: usize = 256;
const VOCABULARY: usize = 48;

/// The ops that a step has at least, gathered, on buffers that nothing else knows of; and then one more product, if asked
/// for.
fn gathered(device: &Device, one_more: bool) -> Result<OneLaunch, String> {
    let Device::Gpu(gpu) = device else {
        panic!("the CPU launches nothing");
    };
    let act = DType::BF16;
    let numbers = |count| device.alloc(BufType::Float(act), count).unwrap();
    let weight = |n| LinearWeight::plain(device, [n, HIDDEN], act).unwrap();
    let attention = AppendAttend(Attention {
        tokens: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
        capacity: 64,
        kv: KvFormat::Auto,
        scale: 0.125,
        queries: Queries::Single,
    });
    let gather = Gather {
        count: 1,
        rows: VOCABULARY,
        width: HIDDEN,
    };
    let (table, norm) = (numbers(VOCABULARY * HIDDEN), numbers(HIDDEN));
    let (qkv_weight, head) = (weight(QKV), weight(VOCABULARY));
    let (mut x, mut qkv, mut attended) = (numbers(HIDDEN), numbers(QKV), numbers(HIDDEN));
    let mut picked = put_ids(device, &[7]);
    let mut cache = LayerCache::plain(numbers(64 * 64), numbers(64 * 64));
    let frequencies: Vec<f32> = (0..32).map(|i| 0.5_f32.powi(i)).collect();
    let rope = RopeTable::new(device, &frequencies, 64).unwrap();
    let (ids, slots, positions) = (
        put_ids(device, &[3]),
        put_ids(device, &[0]),
        put_ids(device, &[5]),
    );
    let mut step = || {
        let places = Places {
            slots: &slots,
            positions: &positions,
        };
        gather.run(device, &ids, &table, &mut x)?;
        let input = Normed::all(&x, &norm, 1e-6);
        let product = FusedLinear::new(1, Then::Store);
        product.run(device, input, &qkv_weight, None, &mut qkv)?;
        attention.run(
            device,
            &mut qkv,
            None,
            &rope,
            places,
            &mut cache,
            &mut attended,
        )?;
        FusedLinear::new(1, Then::Pick).run(device, input, &head, None, &mut picked)?;
        if one_more {
            product.run(device, input, &qkv_weight, None, &mut qkv)?;
        }
        Ok(())
    };
    // Kernels are chosen and the workspace grows here.
    step().unwrap();
    gpu.gather(step).unwrap()
}

#[test]
fn a_product_after_the_choice_of_a_token_is_refused() {
    let device = one_gpu(0);
    assert!(gathered(&device, false).is_ok());
    let why = gathered(&device, true).err().expect("refused");
    assert_eq!(why, "a product follows the choice of a token");
}

#[test]
fn a_graph_keeps_what_the_ops_of_one_launch_use() {
    let device = kernel_device(&kernels(), 0);
    let Device::Gpu(gpu) = &device else {
        panic!("the emulator is a GPU");
    };
    let one = gathered(&device, false).expect("one launch");
    let graph = gpu.capture(|| one.launch(gpu)).unwrap();
    drop(one);
    graph.launch().unwrap();
    device.synchronize().unwrap();
    let (held, _) = device.memory().unwrap();
    drop(graph);
    let (free, _) = device.memory().unwrap();
    // The weights among others.
    let least = (QKV * HIDDEN * 2) as u64;
    assert!(free - held > least, "{} bytes", free - held);
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
