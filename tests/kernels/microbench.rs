//! The microbenchmark and the ceilings on GPUs: recorded, replayed and timed by events, each cell verified before.

use candlepower::kernels::Device;
use candlepower::measure::Interrupt;
use candlepower::measure::trial::{StopRule, WarmUp};
use candlepower::model::{ModelSpec, WeightsChoice};
use candlepower::results::microbench::Record;
use candlepower::results::microbench::record::{Measured, Outcome, Peer, Store, Subject};
use candlepower::scheme::{DType, KvFormat};
use candlepower::study::microbench::{MicrobenchPlan, MicrobenchWatcher, OPS, run};
use candlepower::study::{Effort, ceilings, environment};

use super::build::{Mutation, mutated};
use super::{kernel_device, some_gpus};

/// Nobody watches.
struct Nobody;

impl MicrobenchWatcher for Nobody {
    fn progress(&mut self, _: &Subject, _: f64) {}
    fn cell(&mut self, _: &Record, _: bool, _: f64) {}
}

fn plan(ops: &[&str], variants: &[&str], tokens: &[usize]) -> MicrobenchPlan {
    MicrobenchPlan {
        ops: OPS.iter().filter(|op| ops.contains(&op.name)).collect(),
        models: Vec::new(),
        shapes: Vec::new(),
        tokens: tokens.to_vec(),
        variants: variants.iter().map(|name| name.parse().unwrap()).collect(),
        act: None,
        contexts: Vec::new(),
        kv: vec![KvFormat::Auto],
        verify_only: false,
        rule: StopRule::exactly(2),
        warm_up: WarmUp {
            min_trials: 0,
            ..WarmUp::default()
        },
        seed: 5,
        force: false,
    }
}

fn records(plan: &MicrobenchPlan, device: &Device) -> Vec<Record> {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let environment = environment(device);
    let interrupt = Interrupt::new();
    run(
        plan,
        device,
        &environment,
        &mut store,
        &interrupt,
        &mut Nobody,
    )
    .unwrap()
    .records
}

fn measured(record: &Record) -> &Measured {
    match &record.outcome {
        Outcome::Ok { result } => result,
        other => panic!("{:?}: {other:?}", record.subject),
    }
}

/// Two orders of blocks are enough: ops are tested in more.
fn two_orders() -> Vec<Device> {
    some_gpus(&[0, 77])
}

#[test]
fn products_of_every_variant_are_verified_and_timed_by_events() {
    let variants = ["bf16", "f16", "int8", "w8a8", "w4a16", "w4a16:g32"];
    for device in two_orders() {
        let plan = MicrobenchPlan {
            shapes: vec![[80, 256]],
            ..plan(&["linear"], &variants, &[1, 5, 20])
        };
        let found = records(&plan, &device);
        assert_eq!(found.len(), 18);
        for record in &found {
            let cell = measured(record);
            assert_eq!(cell.timer, "events over graph replays");
            assert!(!cell.cpu_reference && !cell.plan.is_empty() && cell.verification.elements > 0);
            for timing in [&cell.cold, &cell.warm, &cell.read_floor] {
                assert_eq!(timing.samples_s.len(), 2);
                assert!(timing.samples_s.iter().all(|&s| s > 0.0));
            }
            assert!(cell.cold.copies > 1 && cell.warm.copies == 1);
            let subject = &record.subject;
            let act = if subject.variant == "f16" {
                "f16"
            } else {
                "bf16"
            };
            assert_eq!(subject.activation_dtype, act);
            match (&cell.peer, subject.variant.as_str()) {
                (Peer::Measured { name, timing }, "bf16" | "f16" | "w8a8") => {
                    assert!(name.starts_with("cuBLASLt") && timing.copies == cell.cold.copies);
                }
                (Peer::Unavailable { reason }, "int8" | "w4a16" | "w4a16:g32") => {
                    assert!(reason.contains("cuBLASLt"), "{reason}");
                }
                (peer, variant) => panic!("{variant}: {peer:?}"),
            }
        }
        if let Device::Gpu(gpu) = &device {
            // The library has given its place back.
            let plans: Vec<&str> = found
                .iter()
                .map(|record| measured(record).plan.as_str())
                .collect();
            assert!(
                plans.iter().any(|plan| *plan != "library"),
                "{plans:?} on {}",
                gpu.kind()
            );
        }
    }
}

#[test]
fn every_op_is_verified_on_a_gpu() {
    let ops = [
        "quantize",
        "norm",
        "silu_mul",
        "argmax",
        "rope",
        "attention",
        "append_attend",
        "attention_prefill",
    ];
    for device in two_orders() {
        let plan = MicrobenchPlan {
            models: vec![ModelSpec {
                source: "tiny".into(),
                revision: None,
                weights: WeightsChoice::Dummy { seed: 0 },
                tokenizer: None,
            }],
            contexts: vec![40, 150],
            kv: KvFormat::ALL.to_vec(),
            act: Some(DType::F16),
            ..plan(&ops, &["f16"], &[3])
        };
        let found = records(&plan, &device);
        for op in ops {
            let of_op: Vec<_> = found.iter().filter(|r| r.subject.op == op).collect();
            assert!(!of_op.is_empty(), "{op}");
            assert!(
                of_op
                    .iter()
                    .all(|record| measured(record).verification.elements > 0)
            );
        }
    }
}

#[test]
fn a_kernel_that_is_wrong_gets_no_time() {
    let change = Mutation {
        file: "norm.cu",
        from: "store_chunk(to, first, width, values);",
        to: "store_chunk(to, first, width - 1, values);",
    };
    let folder = mutated(&["norm", "fill", "stream"], &[change]);
    let plan = MicrobenchPlan {
        models: vec![ModelSpec {
            source: "tiny".into(),
            revision: None,
            weights: WeightsChoice::Dummy { seed: 0 },
            tokenizer: None,
        }],
        ..plan(&["norm"], &["bf16"], &[2])
    };
    for record in records(&plan, &kernel_device(&folder, 0)) {
        let reason = record.failure().expect("the last element is not written");
        assert!(
            reason.contains("not timed") && reason.contains("NaN"),
            "{reason}"
        );
    }
}

#[test]
fn a_gpu_has_every_ceiling_or_a_reason() {
    for device in two_orders() {
        let found = ceilings(&device, Effort::Full, &Interrupt::new()).unwrap();
        let rows = |name: &str| found.measured.iter().filter(|row| row.name == name).count();
        // Eight ways to read at the size that counts.
        assert_eq!((rows("read"), rows("copy")), (8, 1));
        for name in [
            "matmul bf16",
            "matmul f16",
            "matmul int8",
            "launch gap",
            "launch gap, dependent",
        ] {
            assert_eq!(rows(name), 1, "{name}");
        }
        assert!(
            found
                .measured
                .iter()
                .all(|row| row.best > 0.0 && row.median > 0.0)
        );
        assert!(found.read_gb_per_s.is_some() && found.copy_gb_per_s.is_some());
        assert_eq!(found.left_out[0].name, "matmul fp8");
    }
}
