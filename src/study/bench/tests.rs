//! A whole cell of the embedded model, with a recorded board beside it, up to the table.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::measure::VirtualClock;
use crate::measure::sampler::PowerSource;
use crate::measure::tape::recorded::script;
use crate::measure::trial::{StopRule, WarmUp};
use crate::model::{Model, ModelSpec, WeightsChoice};
use crate::results::record::{Body, Record};
use crate::results::{Environment, Store, Study, table};
use crate::scheme::DType;
use crate::study::energy::EnergyPlan;
use crate::study::facts;
use crate::study::plan::{EngineKind, Switches};
use crate::study::quantise::Quantising;
use crate::study::runner::Runner;
use crate::units::Seconds;

/// Every look at it takes ten milliseconds, so that a window of seconds passes in a few hundred looks.
struct Ticking(VirtualClock);

impl Clock for Ticking {
    fn now(&self) -> Seconds {
        self.0.advance(Seconds(0.01));
        self.0.now()
    }

    fn wait(&self, span: Seconds) {
        self.0.wait(span);
    }
}

const CELL: Cell = Cell {
    batch: 2,
    prompt: 8,
    generate: 4,
    depth: 0,
};

fn plan(spec: &ModelSpec) -> Plan {
    Plan {
        models: vec![spec.clone()],
        variants: vec!["int8".parse().unwrap()],
        cells: vec![CELL],
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
        rule: StopRule::exactly(2),
        warm_up: WarmUp::default(),
        energy: EnergyPlan {
            window: Seconds(2.0),
            pre_roll: Seconds(0.5),
            idle: Seconds(1.0),
        },
        seed: 1,
        force: false,
    }
}

/// The record of the cell, beside the board of this name.
fn record_beside(board: &str) -> Record {
    let spec = ModelSpec {
        source: "tiny".into(),
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    };
    let (model, plan) = (Model::open(&spec).unwrap(), plan(&spec));
    let variant = &plan.variants[0];
    let device = Device::Cpu;
    let stop = Arc::new(AtomicBool::new(false));
    let mut runner = Runner::load(
        EngineKind::Candlepower,
        &model,
        variant,
        DType::F32,
        KvFormat::Auto,
        &device,
        &stop,
        &mut |_, _| Ok(()),
    )
    .unwrap();
    let clock: Arc<dyn Clock> = Arc::new(Ticking(VirtualClock::new()));
    let source = PowerSource::Tape(Box::new(script(board).recording()));
    let meter = Meter::new(source, clock.clone(), plan.energy, plan.seed);
    let interrupt = Interrupt::new();
    let bench = Bench {
        plan: &plan,
        device: &device,
        clock,
        interrupt: &interrupt,
        meter: &meter,
        vocab: model.config.vocab,
        kv: KvFormat::Auto,
        ceilings: None,
    };
    let speed = bench.cell(&mut runner, &CELL, None, |_| {}).unwrap();
    let subject = facts::subject(&model, variant, None, DType::F32, &device).unwrap();
    let body = Body::Speed {
        cell: CELL,
        outcome: Ok(speed),
    };
    Record::new(subject, None, body)
}

/// The study of one record, by way of the disk.
fn study_of(record: &Record) -> Study {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    store.append(record.clone()).unwrap();
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    let read = store.get(&record.key).unwrap();
    assert_eq!(read, record);
    Study::from_records(
        Environment::default(),
        Vec::new(),
        std::slice::from_ref(read),
    )
}

#[test]
fn the_energy_of_a_cell_goes_from_the_board_to_the_table() {
    let study = study_of(&record_beside("constant-load"));
    let used = study.variants[0].speed[0].energy_use().unwrap();
    let watts = used.mean_watts.unwrap();
    assert!((watts - 400.0).abs() < 0.1, "{watts}");
    assert!((used.idle_watts.unwrap() - 400.0).abs() < 0.1);
    let percent = used.decode_percent_of_power_limit.unwrap();
    assert!((percent - 80.0).abs() < 0.1, "{percent}");
    let per_token = used.j_per_generated_token.unwrap();
    let expected = used.decode_joules / used.generated_tokens as f64;
    assert!((per_token - expected).abs() < 1e-9 && used.generated_tokens > 100);
    assert!((used.generated_tokens_per_joule.unwrap() * per_token - 1.0).abs() < 1e-9);
    assert!(used.sampling.unwrap().reads > 200 && !used.suspect);
    let shown = table::speed(&study, 200);
    assert!(shown.contains("J/token"), "{shown}");
}

#[test]
fn an_energy_that_is_not_to_be_believed_is_not_in_the_table() {
    let study = study_of(&record_beside("idle-disagreement"));
    let speed = &study.variants[0].speed[0];
    assert_eq!(speed.energy_use().unwrap().j_per_generated_token, None);
    assert!(speed.decode_tokens_per_second.is_some(), "timing is kept");
    let shown = table::speed(&study, 200);
    assert!(!shown.contains("J/token"), "{shown}");
    assert!(
        shown.contains("differ by 43.0 %, more than 15 %"),
        "{shown}"
    );
}
