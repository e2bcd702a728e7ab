//! A study on a GPU: what is checked before timing, and the account of its memory.

use candlepower::measure::Interrupt;
use candlepower::measure::trial::{StopRule, WarmUp};
use candlepower::model::{ModelSpec, WeightsChoice};
use candlepower::quality::TextFormat;
use candlepower::results::record::{Body, Cell, Record};
use candlepower::results::{Environment, Store};
use candlepower::scheme::KvFormat;
use candlepower::study::{
    self, EnergyPlan, EngineKind, Isolation, Plan, Quantising, Stage, Switches, Watcher,
};
use candlepower::units::Seconds;

use super::some_gpus;

struct Silent;

impl Watcher for Silent {
    fn text(&mut self, _: &str, _: TextFormat, _: u64) {}
    fn progress(&mut self, _: &str, _: &Stage, _: f64, _: f64) {}
    fn note(&mut self, _: &str, _: &str) {}
    fn point(&mut self, _: &Record, _: bool) {}
}

fn plan() -> Plan {
    let cell = |prompt| Cell {
        batch: 1,
        prompt,
        generate: 2,
        depth: 0,
    };
    Plan {
        models: vec![ModelSpec {
            source: "tiny".into(),
            revision: None,
            weights: WeightsChoice::AsStored,
            tokenizer: None,
        }],
        variants: vec!["w4a16".parse().unwrap()],
        // The larger first: nothing of it may be counted for the other.
        cells: vec![cell(24), cell(3)],
        quality: None,
        tasks: None,
        quantising: Quantising {
            calibration: None,
            cache: None,
        },
        act: None,
        kv: vec![KvFormat::Auto],
        engine: EngineKind::Candlepower,
        switches: Switches::default(),
        chunk: None,
        turns: 1,
        rule: StopRule::exactly(1),
        warm_up: WarmUp {
            min_trials: 0,
            min_time: Seconds(0.0),
        },
        // What a board draws is another test's.
        energy: EnergyPlan {
            window: Seconds(0.0),
            pre_roll: Seconds(0.0),
            idle: Seconds(0.0),
        },
        seed: 1,
        force: false,
    }
}

#[test]
fn a_study_on_a_gpu_checks_every_way_to_launch_and_accounts_for_its_memory() {
    for (device, persistent) in some_gpus(&[1])
        .into_iter()
        .flat_map(|device| [(device.clone(), None), (device, Some(true))])
    {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let (environment, interrupt) = (Environment::default(), Interrupt::new());
        let mut plan = plan();
        plan.switches.persistent = persistent;
        let outcome = study::run(
            &plan,
            device.clone(),
            &environment,
            &Isolation::Here,
            &mut store,
            &interrupt,
            &mut Silent,
        )
        .unwrap();
        assert_eq!((outcome.records.len(), outcome.failed), (2, 0));
        let checks = &outcome.records[0]
            .loaded
            .as_ref()
            .unwrap()
            .verification
            .checks;
        let one = "one launch and many give the same tokens";
        let how = checks.iter().find(|check| check.name == one);
        let how = how.map_or("", |check| &check.detail);
        assert_eq!(
            how.contains("one launch: step_"),
            persistent.is_some(),
            "{how}"
        );
        for name in [
            "graphs and launch by launch give the same tokens",
            "fused and op by op give the same tokens",
            "with and without overlap come the same tokens",
        ]
        .into_iter()
        .chain(persistent.map(|_| one))
        {
            let check = checks.iter().find(|check| check.name == name);
            assert!(
                check.is_some_and(|check| check.passed),
                "{name}: {checks:?}"
            );
        }
        let memory = outcome.records.iter().map(|record| match &record.body {
            Body::Speed { outcome, .. } => outcome.as_ref().unwrap().memory,
            Body::Quality { .. } | Body::Task { .. } => panic!("nothing was scored"),
        });
        let memory: Vec<_> = memory.collect();
        // A driver's pool takes memory in steps of megabytes.
        let most: i64 = if device.kind() == "cuda" { 64 << 20 } else { 0 };
        for memory in &memory {
            assert!(memory.total.measured.is_some() && memory.other.measured.is_some());
            // Libraries may keep memory of their own.
            assert!(memory.activations.error().unwrap() >= 0, "{memory:?}");
            assert_eq!(memory.kv.error(), Some(0), "{memory:?}");
            assert!(
                (0..=most).contains(&memory.residual().unwrap()),
                "{memory:?}"
            );
        }
        assert!(memory[1].activations.measured < memory[0].activations.measured);
        let [first, second] = [0, 1].map(|i| memory[i].total.measured.unwrap().0);
        assert!(second <= first + most as u64, "{second} after {first}");
    }
}
