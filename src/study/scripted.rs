//! A target whose times are known: what it takes is written in a script, with seeded noise of every kind that a device
//! has, and passes on a virtual clock. It goes through the loop, the stop rules, the records and the comparison that every
//! model goes through, so what they say can be held against the truth.

use std::sync::Arc;

use super::bench::Bench;
use super::energy::{EnergyPlan, Meter};
use super::plan::{EngineKind, Plan, Switches};
use super::quantise::Quantising;
use super::target::Target;
use crate::engine::{Arrivals, DeviceWeights, Footprint, Limits, StepPlan};
use crate::error::Result;
use crate::kernels::Device;
use crate::measure::{Interrupt, PowerSource, StopRule, VirtualClock, WarmUp};
use crate::results::Record;
use crate::results::compare::document::{Metric, Verdict};
use crate::results::compare::{Comparison, Rules, Run, Side, compare};
use crate::results::record::{Body, Cell, Model, Scheme, Subject};
use crate::results::study::{SeriesKind, Stats};
use crate::results::{Environment, Study};
use crate::scheme::KvFormat;
use crate::stats::Draws;
use crate::units::{Bytes, Clock, Seconds};

/// What a prefill and a step take, and everything that makes them take something else. Noise is in shares (standard
/// deviations).
#[derive(Debug, Clone, Copy)]
struct Script {
    ttft: Seconds,
    itl: Seconds,
    /// All of a run is slower or faster by this.
    of_run: f64,
    /// All of a trial.
    of_trial: f64,
    /// Each step, which keeps a part of what the step before was off by.
    of_step: f64,
    memory: f64,
    /// How probable it is that a step takes three times as long.
    outliers: f64,
    /// The last trial of a hundred is slower than the first by this.
    drift: f64,
    /// From the hundredth trial on, a neighbour makes it slower by this.
    neighbour: f64,
}

/// A quiet GPU.
const QUIET: Script = Script {
    ttft: Seconds(0.05),
    itl: Seconds(0.01),
    of_run: 0.001,
    of_trial: 0.003,
    of_step: 0.01,
    memory: 0.5,
    outliers: 0.0005,
    drift: 0.0005,
    neighbour: 0.0,
};

const CELL: Cell = Cell {
    batch: 2,
    prompt: 4,
    generate: 24,
    depth: 0,
};

struct Scripted {
    script: Script,
    clock: Arc<VirtualClock>,
    draws: Draws,
    /// What the whole run is off by.
    off: f64,
    trials: usize,
}

impl Scripted {
    fn new(script: Script, seed: u64, clock: Arc<VirtualClock>) -> Self {
        let mut draws = Draws::of_seed(seed);
        let off = 1.0 + script.of_run * draws.normal();
        Self {
            script,
            clock,
            draws,
            off,
            trials: 0,
        }
    }
}

impl Target for Scripted {
    fn prepare(&mut self, _limits: Limits) -> Result<()> {
        Ok(())
    }

    fn prefill(&mut self, prompts: &[Vec<u32>], _start: usize) -> Result<Vec<u32>> {
        Ok(vec![0; prompts.len()])
    }

    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        _start: usize,
        steps: usize,
        clock: &dyn Clock,
    ) -> Result<Arrivals> {
        let (script, draws) = (self.script, &mut self.draws);
        let drift = 1.0 + script.drift * self.trials as f64 / 100.0;
        let neighbour = 1.0
            + if self.trials > 100 {
                script.neighbour
            } else {
                0.0
            };
        let luck = 1.0 + script.of_trial * draws.normal();
        let level = self.off * drift * neighbour * luck;
        self.trials += 1;
        let start = clock.now();
        self.clock.advance(Seconds(script.ttft.0 * level));
        let mut at = vec![clock.now()];
        let (keep, fresh) = (script.memory, (1.0 - script.memory.powi(2)).sqrt());
        let mut off = draws.normal();
        for _ in 1..steps {
            off = keep * off + fresh * draws.normal();
            let hiccup = if draws.unit() < script.outliers {
                3.0
            } else {
                1.0
            };
            let step = script.itl.0 * level * (1.0 + script.of_step * off) * hiccup;
            self.clock.advance(Seconds(step));
            at.push(clock.now());
        }
        Ok(Arrivals {
            start,
            at,
            tokens: vec![0; steps * prompts.len()],
            device: None,
        })
    }

    fn starts_anew(&self) -> bool {
        false
    }

    fn weight_bytes(&self) -> Bytes {
        Bytes(0)
    }

    fn footprint(&self) -> Option<Footprint> {
        None
    }

    fn configuration(&self) -> String {
        "scripted".into()
    }

    fn known_work(&self) -> Option<(&DeviceWeights, StepPlan)> {
        None
    }
}

/// Times a script as a model is timed.
fn run(script: Script, seed: u64, rule: StopRule) -> Record {
    let plan = Plan {
        models: vec![],
        variants: vec![],
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
        rule,
        warm_up: WarmUp::default(),
        energy: EnergyPlan {
            window: Seconds(0.0),
            pre_roll: Seconds(0.0),
            idle: Seconds(0.0),
        },
        seed,
        force: false,
    };
    let clock = Arc::new(VirtualClock::new());
    let interrupt = Interrupt::new();
    let meter = Meter::new(
        PowerSource::none("scripted"),
        clock.clone(),
        plan.energy,
        seed,
    );
    let bench = Bench {
        plan: &plan,
        device: &Device::Cpu,
        clock: clock.clone(),
        interrupt: &interrupt,
        meter: &meter,
        vocab: 100,
        kv: KvFormat::Auto,
        ceilings: None,
    };
    let mut target = Scripted::new(script, seed, clock);
    let speed = bench.cell(&mut target, &CELL, None, |_| {}).unwrap();
    let body = Body::Speed {
        cell: CELL,
        outcome: Ok(speed),
    };
    Record::new(subject(), None, body)
}

fn subject() -> Subject {
    Subject {
        model: Model {
            name: "scripted".to_owned(),
            revision: None,
            digest: "scripted".to_owned(),
            tokenizer_digest: "none".to_owned(),
            parameters: None,
        },
        variant: "scripted".to_owned(),
        scheme: Scheme {
            bits: 16,
            group_size: None,
            symmetric: None,
            activations: "float".to_owned(),
            method: "none".to_owned(),
            scale_dtype: None,
        },
        activation_dtype: "bf16".to_owned(),
        kv_cache: None,
        engine: "scripted".to_owned(),
        device: "scripted".to_owned(),
        tool_version: "0".to_owned(),
    }
}

fn minute() -> StopRule {
    StopRule {
        min_time: Seconds(60.0),
        ..StopRule::default()
    }
}

/// A run of each, compared as two runs of a GPU are.
fn compared(base: Script, other: Script, pair: u64) -> Comparison {
    let side = |script, seed| {
        Side::single(Run {
            label: "scripted".to_owned(),
            environment: None,
            records: vec![run(script, seed, minute())],
        })
    };
    let rules = Rules {
        run_noise: Some(0.002),
        ..Rules::default()
    };
    compare(&side(base, 2 * pair), &side(other, 2 * pair + 1), &rules).unwrap()
}

fn verdict(comparison: &Comparison, metric: Metric) -> Verdict {
    let mut points = comparison.points.iter();
    points.find(|point| point.metric == metric).unwrap().verdict
}

#[test]
fn what_was_scripted_is_what_is_measured() {
    let noiseless = Script {
        of_run: 0.0,
        of_trial: 0.0,
        of_step: 0.0,
        outliers: 0.0,
        drift: 0.0,
        ..QUIET
    };
    let noisy = Script {
        of_run: 0.0,
        ..QUIET
    };
    for (script, seed) in [(noiseless, 1), (noisy, 2), (noisy, 3)] {
        let record = run(script, seed, minute());
        let study = Study::from_records(Environment::default(), vec![], &[record]);
        let speed = &study.variants[0].speed[0];
        let (ttft, itl) = (speed.ttft_ms.unwrap(), speed.itl_ms.unwrap());
        let near = |found: f64, scripted: Seconds| (found - scripted.millis()).abs() < 0.05;
        assert!(
            near(ttft.p50, script.ttft) && near(itl.p50, script.itl),
            "{ttft:?} {itl:?}"
        );
        assert!(near(ttft.mean, script.ttft), "{ttft:?}");
        // 60 s of 50 ms and 23 × 10 ms each.
        assert!((205..=220).contains(&speed.trials), "{}", speed.trials);
        assert_eq!(itl.n, 23 * speed.trials);
    }
}

#[test]
fn one_thing_measured_twice_is_called_the_same() {
    let hiccups = Script {
        outliers: 0.003,
        ..QUIET
    };
    let pairs = 200;
    let mut different = 0;
    let mut equivalent = 0;
    for pair in 0..pairs {
        let comparison = compared(hiccups, hiccups, pair);
        let called = |verdict| comparison.points.iter().any(|p| p.verdict == verdict);
        different += u64::from(called(Verdict::Slower) || called(Verdict::Faster));
        equivalent += u64::from(verdict(&comparison, Metric::ItlMs) == Verdict::Equivalent);
    }
    assert!(
        20 * different <= pairs,
        "{different} of {pairs} called different"
    );
    assert!(
        10 * equivalent >= 9 * pairs,
        "{equivalent} of {pairs} called equivalent"
    );
}

#[test]
fn one_percent_is_found_in_a_minute() {
    let slower = Script {
        ttft: Seconds(1.01 * QUIET.ttft.0),
        itl: Seconds(1.01 * QUIET.itl.0),
        ..QUIET
    };
    let pairs = 100;
    let metrics = [Metric::ItlMs, Metric::TtftMs, Metric::DecodeTokensPerSecond];
    let mut found = [0; 3];
    for pair in 0..pairs {
        let comparison = compared(QUIET, slower, 1000 + pair);
        for (count, metric) in found.iter_mut().zip(metrics) {
            *count += u64::from(verdict(&comparison, metric) == Verdict::Slower);
        }
    }
    let all = found.iter().all(|count| 100 * count >= 95 * pairs);
    assert!(all, "{metrics:?}: {found:?} of {pairs}");
}

#[test]
fn intervals_cover_the_truth_as_often_as_they_say() {
    let script = Script {
        of_run: 0.0,
        outliers: 0.0,
        drift: 0.0,
        ..QUIET
    };
    let runs = 1000;
    let mut covered = [0; 3];
    for seed in 0..runs {
        let record = run(script, seed, StopRule::exactly(20));
        let study = Study::from_records(Environment::default(), vec![], &[record]);
        let speed = &study.variants[0].speed[0];
        let median = |stats: Stats, truth: Seconds| {
            let ends = stats.ci95_low.zip(stats.ci95_high).unwrap();
            ends.0 <= truth.millis() && truth.millis() <= ends.1
        };
        let rate = speed.decode_tokens_per_second_ci95.unwrap();
        let truth = CELL.batch as f64 / script.itl.0;
        for (count, holds) in covered.iter_mut().zip([
            median(speed.ttft_ms.unwrap(), script.ttft),
            median(speed.itl_ms.unwrap(), script.itl),
            rate.low <= truth && truth <= rate.high,
        ]) {
            *count += u64::from(holds);
        }
    }
    let all = covered
        .iter()
        .all(|n| (93 * runs..=97 * runs).contains(&(100 * n)));
    assert!(all, "TTFT, ITL and rate in {covered:?} of {runs} runs");
}

#[test]
fn a_neighbour_is_not_taken_for_a_slower_program() {
    let disturbed = Script {
        neighbour: 0.05,
        ..QUIET
    };
    let comparison = compared(QUIET, disturbed, 7);
    let mut points = comparison.points.iter();
    let itl = points.find(|p| p.metric == Metric::ItlMs).unwrap();
    assert_eq!(itl.verdict, Verdict::Inconclusive, "{itl:?}");
    let record = run(disturbed, 9, minute());
    let study = Study::from_records(Environment::default(), vec![], &[record]);
    let found = study.variants[0].speed[0].itl_steadiness.unwrap();
    assert_eq!(found.kind, SeriesKind::Slowdown);
    assert!(found.from_trial.abs_diff(100) < 10, "{found:?}");
}
