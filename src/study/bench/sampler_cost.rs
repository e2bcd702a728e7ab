//! What the sampler's thread costs whoever decodes beside it: measured on and off, by turns.

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::engine::Limits;
use crate::kernels::Device;
use crate::measure::board::Board;
use crate::measure::gpu::{GpuFacts, GpuProcess, GpuState, PowerReading, ThrottleTime};
use crate::measure::sampler::{DEFAULT_PERIOD, PowerSource, Sampler};
use crate::measure::{SystemClock, Unavailable};
use crate::model::{Model, ModelSpec, WeightsChoice};
use crate::scheme::{DType, KvFormat};
use crate::stats::median;
use crate::study::plan::EngineKind;
use crate::study::runner::Runner;
use crate::study::turns::turns;
use crate::units::{Clock, Seconds};

/// How long a reading keeps a core busy: what a call into a driver may take.
const READING: Seconds = Seconds(50e-6);

/// A board that takes as long to answer as NVML does.
#[derive(Debug)]
struct Busy(SystemClock);

impl Busy {
    fn spin(&self) {
        let end = self.0.now() + READING;
        while self.0.now() < end {
            black_box(());
        }
    }
}

impl Board for Busy {
    fn facts(&self) -> GpuFacts {
        GpuFacts::default()
    }

    fn power(&self) -> Result<PowerReading, Unavailable> {
        self.spin();
        Ok(PowerReading::default())
    }

    fn state(&self) -> GpuState {
        self.spin();
        GpuState::default()
    }

    fn throttle_time(&self) -> ThrottleTime {
        ThrottleTime::default()
    }

    fn processes(&self) -> Option<Vec<GpuProcess>> {
        None
    }
}

#[test]
#[ignore = "needs a machine with nothing else on it: cargo test --release --lib -- --ignored --nocapture sampler_cost"]
fn the_sampler_costs_less_than_half_a_percent_of_itl() {
    const STEPS: usize = 200;
    const ROUNDS: usize = 400;
    let spec = ModelSpec {
        source: "tiny".into(),
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    };
    let model = Model::open(&spec).unwrap();
    let mut runner = Runner::load(
        EngineKind::Candlepower,
        &model,
        &"bf16".parse().unwrap(),
        DType::F32,
        KvFormat::Auto,
        &Device::Cpu,
        &Arc::new(AtomicBool::new(false)),
        &mut |_, _| Ok(()),
    )
    .unwrap();
    runner.prepare(Limits::new(1, STEPS + 16, 16)).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let board = PowerSource::Board(Arc::new(Busy(SystemClock::new())));
    let mut itl = [Vec::new(), Vec::new()];
    for round in 1..=ROUNDS {
        for on in turns(round, &[0, 1]) {
            let sampler = (on == 1).then(|| Sampler::start(&board, DEFAULT_PERIOD, clock.clone()));
            let prompt = vec![vec![1; 8]];
            let arrivals = runner.generate(&prompt, 0, STEPS, &*clock).unwrap();
            drop(sampler);
            let (first, last) = (arrivals.at[0], arrivals.at[STEPS - 1]);
            itl[on].push((last - first).0 / (STEPS - 1) as f64);
        }
    }
    // Rounds that a neighbour disturbed are apart from the rest; medians of pairs leave them out.
    let mut ratios: Vec<f64> = itl[1]
        .iter()
        .zip(&itl[0])
        .map(|(on, off)| on / off)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let (cost, quarter) = (median(&ratios).unwrap() - 1.0, ROUNDS / 4);
    let _ = writeln!(
        std::io::stderr(),
        "ITL {:.1} us without; with the sampler {:+.3} % (median of {ROUNDS} pairs; quartiles {:+.2} and {:+.2} %)",
        1e6 * median(&itl[0]).unwrap(),
        100.0 * cost,
        100.0 * (ratios[quarter] - 1.0),
        100.0 * (ratios[3 * quarter] - 1.0),
    );
    assert!(cost < 0.005, "{cost}");
}
