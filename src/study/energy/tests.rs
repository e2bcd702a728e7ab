//! Windows over recorded tapes, on a clock that moves with the work.

use super::*;
use crate::error::Error;
use crate::measure::gpu::{GpuFacts, GpuProcess, GpuState, PowerReading, ThrottleTime};
use crate::measure::sampler::Recording;
use crate::measure::tape::recorded::{SCRIPTS, script};
use crate::measure::{Sample, VirtualClock};
use crate::units::{Joules, Watts};

/// Takes its time by the clock that the tape is replayed by, and counts 100 tokens a prefill, 16 a decode.
struct Scripted {
    clock: Arc<VirtualClock>,
    prefill: Seconds,
    decode: Seconds,
}

impl Rounds for Scripted {
    fn prefill(&mut self) -> Result<u64> {
        self.clock.advance(self.prefill);
        Ok(100)
    }

    fn decode(&mut self) -> Result<u64> {
        self.clock.advance(self.decode);
        Ok(16)
    }
}

const PLAN: EnergyPlan = EnergyPlan {
    window: Seconds(2.0),
    pre_roll: Seconds(0.5),
    idle: Seconds(1.0),
};

/// The energy of work whose rounds take so long, on this recording.
fn energy_of(recording: Recording, plan: EnergyPlan, [prefill, decode]: [f64; 2]) -> Energy {
    let clock = Arc::new(VirtualClock::new());
    let source = PowerSource::Tape(Box::new(recording));
    let meter = Meter::new(source, clock.clone(), plan, 7);
    let interrupt = Interrupt::new();
    meter.rest(&interrupt).unwrap();
    let mut rounds = Scripted {
        clock,
        prefill: Seconds(prefill),
        decode: Seconds(decode),
    };
    let mut told = vec![0.0];
    let energy = meter
        .cell(&mut rounds, &interrupt, &mut |share| told.push(share))
        .unwrap();
    assert!(told.is_sorted() && told.iter().all(|share| (0.0..=1.0).contains(share)));
    energy
}

#[track_caller]
fn measured(energy: Energy) -> EnergyUse {
    match energy {
        Energy::Measured(used) => *used,
        Energy::Unavailable { reason } => panic!("{reason}"),
    }
}

#[track_caller]
fn missing(energy: Energy) -> String {
    match energy {
        Energy::Unavailable { reason } => reason,
        Energy::Measured(used) => panic!("{used:?}"),
    }
}

#[track_caller]
fn assert_near(found: f64, expected: f64, share: f64) {
    let off = (found - expected).abs();
    assert!(off <= share * expected, "{found} is not {expected}");
}

#[test]
fn constant_load_gives_watts_over_tokens_gross_and_net() {
    let used = measured(energy_of(
        script("constant-load").recording(),
        PLAN,
        [0.04, 0.05],
    ));
    // Two seconds of rounds of 100 tokens in 40 ms, and of 16 in 50 ms.
    assert!((5000..=5100).contains(&used.prompt_tokens));
    assert!((640..=656).contains(&used.generated_tokens));
    assert_near(used.prefill.0, 400.0 * used.prefill_time.0, 1e-6);
    assert_near(used.per_prompt_token().unwrap(), 0.16, 1e-6);
    assert_near(used.per_generated_token().unwrap(), 1.25, 1e-6);
    assert_near(used.idle_power.unwrap().0, 400.0, 1e-6);
    assert_near(used.after_work_power.unwrap().0, 400.0, 1e-6);
    assert!(used.net_per_generated_token().unwrap().abs() < 1e-6);
    assert_eq!(used.power_limit, Some(Watts(500.0)));
    assert_eq!(used.sm_clock_mhz, Some(1980.0));
    assert_eq!(
        used.decode_check.as_ref().unwrap().sm_clock_mhz,
        Some(1980.0)
    );
    let check = used.decode_check.as_ref().unwrap();
    assert_eq!(check.source, "counter");
    assert_eq!(16 * check.rounds, used.generated_tokens);
    assert!(check.ticks.unwrap() >= 19 && !check.suspect);
    assert_eq!((used.rejected.as_ref(), used.is_suspect()), (None, false));
    let sampling = used.sampling.unwrap();
    assert!(sampling.reads > 300, "{sampling:?}");
    assert_near(sampling.p99.unwrap().0, 0.0004, 1e-6);
    assert_near(sampling.share, 0.02, 0.02);
    let context = "idle power without a context: the device had been opened before";
    assert_eq!(used.missing, [context]);
}

#[test]
fn a_square_wave_gives_its_mean() {
    let long = EnergyPlan {
        window: Seconds(3.6),
        ..PLAN
    };
    let used = measured(energy_of(
        script("square-wave").recording(),
        long,
        [0.04, 0.06],
    ));
    assert_near(used.prefill.0, 200.0 * used.prefill_time.0, 0.03);
    assert_near(used.decode.0, 200.0 * used.decode_time.0, 0.03);
    assert_eq!(used.rejected, None);
}

#[test]
fn what_a_board_lacks_or_lost_is_named_and_the_integral_steps_in() {
    for (name, word, in_decode) in [
        ("no-counter", "no energy counter", "integral"),
        ("counter-reset", "the driver was reloaded", "counter"),
    ] {
        let used = measured(energy_of(script(name).recording(), PLAN, [0.04, 0.05]));
        assert_near(used.prefill.0, 400.0 * used.prefill_time.0, 1e-6);
        assert_near(used.decode.0, 400.0 * used.decode_time.0, 1e-6);
        assert_eq!(used.prefill_check.as_ref().unwrap().source, "integral");
        assert_eq!(used.decode_check.as_ref().unwrap().source, in_decode);
        let said = used.missing.join("; ");
        assert!(
            said.contains("energy counter in prefill: ") && said.contains(word),
            "{said}"
        );
    }
}

#[test]
fn sources_that_are_far_apart_keep_their_figures_but_nothing_is_concluded() {
    let tape = script("idle-disagreement").recording();
    let used = measured(energy_of(tape, PLAN, [0.04, 0.05]));
    assert_near(used.decode.0, 70.0 * used.decode_time.0, 1e-6);
    assert_near(
        used.decode_check.as_ref().unwrap().disagreement.unwrap(),
        0.43,
        1e-6,
    );
    let why = used.rejected.as_ref().unwrap();
    assert!(why.contains("differ by 43.0 %, more than 15 %"), "{why}");
    assert_eq!(
        (used.per_generated_token(), used.per_prompt_token()),
        (None, None)
    );
}

#[test]
fn what_stands_in_the_way_is_a_reason_and_no_zero() {
    let usual = || script("constant-load").recording();
    let of = |plan, recording| missing(energy_of(recording, plan, [0.04, 0.05]));
    let off = EnergyPlan {
        window: Seconds(0.0),
        ..PLAN
    };
    assert_eq!(of(off, usual()), "switched off: --energy-window 0");
    let brief = EnergyPlan {
        window: Seconds(0.3),
        ..PLAN
    };
    assert!(of(brief, usual()).contains("too short"));
    let process = |pid| GpuProcess { pid, memory: None };
    let shared = Recording {
        processes: Some(vec![process(u32::MAX), process(std::process::id())]),
        ..usual()
    };
    assert!(of(PLAN, shared).starts_with("the GPU is shared: 1 other"));
    let clock = Arc::new(VirtualClock::new());
    let meter = Meter::new(PowerSource::none("no board"), clock.clone(), PLAN, 0);
    let mut rounds = Scripted {
        clock: clock.clone(),
        prefill: Seconds(1.0),
        decode: Seconds(1.0),
    };
    let interrupt = Interrupt::new();
    meter.rest(&interrupt).unwrap();
    assert_eq!(
        missing(meter.cell(&mut rounds, &interrupt, &mut |_| ()).unwrap()),
        "no board"
    );
    assert_eq!(clock.now(), Seconds(0.0), "no time is spent on nothing");
    interrupt.request();
    let meter = Meter::new(PowerSource::Tape(Box::new(usual())), clock, PLAN, 0);
    let ended = meter.cell(&mut rounds, &interrupt, &mut |_| ());
    assert!(matches!(ended, Err(Error::Interrupted)));
}

/// A board that tells who uses it, and nothing else.
#[derive(Debug)]
struct Used(Vec<u32>);

impl Board for Used {
    fn facts(&self) -> GpuFacts {
        GpuFacts::default()
    }

    fn power(&self) -> Result<PowerReading, Unavailable> {
        Ok(PowerReading::default())
    }

    fn state(&self) -> GpuState {
        GpuState::default()
    }

    fn throttle_time(&self) -> ThrottleTime {
        ThrottleTime::default()
    }

    fn processes(&self) -> Option<Vec<GpuProcess>> {
        let process = |&pid| GpuProcess { pid, memory: None };
        Some(self.0.iter().map(process).collect())
    }
}

#[test]
fn variants_that_take_turns_are_no_strangers_to_each_other() {
    let own = std::process::id();
    // Ids that no process has.
    let (left, right, stranger) = (u32::MAX, u32::MAX - 1, u32::MAX - 2);
    let obstacle = |users: &[u32], peers: &[u32]| {
        let source = PowerSource::Board(Arc::new(Used(users.to_vec())));
        let meter = Meter::new(source, Arc::new(VirtualClock::new()), PLAN, 0);
        meter.meet(peers.to_vec());
        meter.obstacle().map(|why| why.reason)
    };
    let peers = [left, own, right];
    assert_eq!(obstacle(&peers, &peers), None);
    let why = obstacle(&[left, own, right, stranger], &peers).unwrap();
    assert!(why.contains("1 other process has"), "{why}");
    // In the host's numbers, none of which is known here.
    let foreign: Vec<u32> = (1..=5).map(|i| u32::MAX - 10 * i).collect();
    assert_eq!(obstacle(&foreign[..3], &peers), None);
    let why = obstacle(&foreign[..4], &peers).unwrap();
    assert!(why.contains("1 other process has"), "{why}");
    let why = obstacle(&foreign, &peers).unwrap();
    assert!(why.contains("2 other processes have"), "{why}");
    // Without peers there is this process alone.
    assert_eq!(obstacle(&foreign[..1], &[]), None);
    assert!(obstacle(&foreign[..2], &[]).is_some());
}

#[test]
fn the_draw_of_an_idle_board_is_found_once_for_what_is_loaded() {
    let clock = Arc::new(VirtualClock::new());
    let source = PowerSource::Tape(Box::new(script("constant-load").recording()));
    let meter = Meter::new(source, clock.clone(), PLAN, 0);
    let interrupt = Interrupt::new();
    meter.rest(&interrupt).unwrap();
    assert!((clock.now().0 - 1.5).abs() < 1e-6);
    meter.rest(&interrupt).unwrap();
    assert!((clock.now().0 - 1.5).abs() < 1e-6);
    meter.forget();
    meter.rest(&interrupt).unwrap();
    assert!((clock.now().0 - 3.0).abs() < 1e-6);
    // And before anything is loaded, for whoever loads.
    let drawn = meter.draw_of_nothing(&interrupt).unwrap().unwrap();
    assert_near(drawn.0, 400.0, 1e-6);
    let meter = meter.with_bare_idle(Ok(drawn));
    let mut rounds = Scripted {
        clock,
        prefill: Seconds(0.04),
        decode: Seconds(0.05),
    };
    let used = measured(meter.cell(&mut rounds, &interrupt, &mut |_| ()).unwrap());
    assert_eq!(used.idle_power_without_context, Some(drawn));
    assert_eq!(used.missing, [] as [String; 0]);
    let none = Meter::new(
        PowerSource::none("no board"),
        Arc::new(VirtualClock::new()),
        PLAN,
        0,
    );
    let why = none.draw_of_nothing(&interrupt).unwrap().unwrap_err();
    assert_eq!(why.reason, "no board");
}

#[test]
fn rounds_in_step_with_the_sensor_are_told_apart() {
    let near = [0.1, 0.092, 0.109, 0.5, 1.001];
    assert!(near.iter().all(|&s| in_step(Seconds(s))));
    let far = [0.001, 0.02, 0.05, 0.088, 0.112, 0.15, 1.05];
    assert!(!far.iter().any(|&s| in_step(Seconds(s))));
}

#[test]
fn pauses_break_the_step_and_are_no_work() {
    let plan = EnergyPlan {
        window: Seconds(10.0),
        ..PLAN
    };
    let tape: Vec<Sample> = (0..2000_u32)
        .map(|i| Sample {
            at: Seconds(f64::from(i) * 0.02),
            energy: Some(Joules(f64::from(i / 5) * 30.0)),
            power: Some(Watts(300.0)),
            state: Some(GpuState::default()),
            ..Sample::default()
        })
        .collect();
    let recording = Recording {
        tape: Tape::of(tape),
        ..Recording::default()
    };
    let used = measured(energy_of(recording.clone(), plan, [0.1, 0.05]));
    let (prefill, decode) = (
        used.prefill_check.clone().unwrap(),
        used.decode_check.clone().unwrap(),
    );
    // Some nine pauses of 50 ms in the mean, and none where rounds are out of step.
    assert!(
        (0.15..0.9).contains(&prefill.pauses.0),
        "{:?}",
        prefill.pauses
    );
    assert_eq!(decode.pauses, Seconds(0.0));
    let worked = used.prefill_time - prefill.pauses;
    assert_near(
        used.per_prompt_token().unwrap(),
        300.0 * worked.0 / used.prompt_tokens as f64,
        1e-3,
    );
    assert!(
        used.missing
            .iter()
            .any(|what| what.starts_with("power limit: "))
    );
    let other = measured(energy_of(recording, plan, [0.1, 0.05]));
    assert_eq!(other, used, "pauses are those of the seed");
}

#[test]
fn every_recorded_tape_gives_a_record_or_a_reason() {
    for script in &SCRIPTS {
        let energy = energy_of(script.recording(), PLAN, [0.037, 0.011]);
        assert!(measured(energy).decode.0 > 0.0, "{}", script.name);
    }
}
