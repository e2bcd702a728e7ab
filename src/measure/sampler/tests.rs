//! Boards that are scripted, and one that costs what a real one does.

use std::hint::black_box;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::measure::clock::{SystemClock, VirtualClock};
use crate::measure::gpu::{GpuState, ThrottleTime};
use crate::units::{Joules, Watts};

/// A board whose answers are told by the number of the poll.
struct Scripted<P, S> {
    polls: AtomicU32,
    power: P,
    state: S,
}

impl<P, S> fmt::Debug for Scripted<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scripted board")
    }
}

impl<P, S> Board for Scripted<P, S>
where
    P: Fn(u32) -> Result<PowerReading, Unavailable> + Send + Sync,
    S: Fn() + Send + Sync,
{
    fn facts(&self) -> GpuFacts {
        GpuFacts::default()
    }

    fn power(&self) -> Result<PowerReading, Unavailable> {
        (self.power)(self.polls.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn state(&self) -> GpuState {
        (self.state)();
        GpuState::default()
    }

    fn throttle_time(&self) -> ThrottleTime {
        ThrottleTime::default()
    }

    fn processes(&self) -> Option<Vec<GpuProcess>> {
        None
    }
}

fn board<P, S>(power: P, state: S) -> Scripted<P, S>
where
    P: Fn(u32) -> Result<PowerReading, Unavailable> + Send + Sync,
    S: Fn() + Send + Sync,
{
    Scripted {
        polls: AtomicU32::new(0),
        power,
        state,
    }
}

fn reading(energy: f64) -> PowerReading {
    PowerReading {
        energy: Some(Joules(energy)),
        instant: Some(Watts(100.0)),
        average: None,
    }
}

#[test]
fn samples_are_stamped_half_way_through_their_query_and_carry_its_cost() {
    let (clock, stop) = (VirtualClock::new(), AtomicBool::new(false));
    let board = board(
        |poll| {
            stop.store(poll == 6, Ordering::Relaxed);
            clock.advance(Seconds(0.004));
            Ok(reading(f64::from(poll)))
        },
        || clock.advance(Seconds(0.010)),
    );
    // A period below the cost of a query: the sampler never waits, and never falls behind.
    let tape = record(&board, Seconds(0.001), &clock, &stop);
    let at: Vec<f64> = tape.samples.iter().map(|s| s.at.millis().round()).collect();
    assert_eq!(at, [2.0, 16.0, 20.0, 24.0, 28.0, 32.0, 46.0]);
    let with_state: Vec<usize> = (0..tape.samples.len())
        .filter(|&i| tape.samples[i].state.is_some())
        .collect();
    assert_eq!(with_state, [0, 5, 6]);
    assert!((tape.samples[0].cost.0 - 0.014).abs() < 1e-9);
    assert!((tape.samples[1].cost.0 - 0.004).abs() < 1e-9);
    assert_eq!(tape.fault, None);
}

#[test]
fn a_query_that_fails_leaves_a_hole_and_its_first_word() {
    let (clock, stop) = (VirtualClock::new(), AtomicBool::new(false));
    let board = board(
        |poll| {
            stop.store(poll == 3, Ordering::Relaxed);
            clock.advance(Seconds(0.001));
            match poll {
                2 | 3 => Err(Unavailable::because(format!("failure {poll}"))),
                _ => Ok(reading(1.0)),
            }
        },
        || {},
    );
    let tape = record(&board, Seconds(0.0), &clock, &stop);
    let known: Vec<bool> = tape.samples.iter().map(|s| s.power.is_some()).collect();
    assert_eq!(known, [true, false, false, true]);
    assert_eq!(tape.fault, Some(Unavailable::because("failure 2")));
}

#[test]
fn a_stop_does_not_wait_for_the_period_to_end() {
    let clock = SystemClock::new();
    let (stop, first) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let board = board(
                |_| {
                    first.store(true, Ordering::Relaxed);
                    Ok(reading(1.0))
                },
                || {},
            );
            record(&board, Seconds(3600.0), &clock, &stop)
        });
        while !first.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        sampler.thread().unpark();
        assert_eq!(sampler.join().unwrap().samples.len(), 2);
    });
}

#[test]
fn a_recording_replays_at_the_pace_of_the_clock() {
    let at = |seconds: u32| Sample {
        at: Seconds(f64::from(seconds)),
        power: Some(Watts(f64::from(seconds))),
        ..Sample::default()
    };
    let recording = PowerSource::Tape(Box::new(Recording {
        tape: Tape::of((0..100).map(at).collect()),
        ..Recording::default()
    }));
    let clock = Arc::new(VirtualClock::new());
    clock.set(Seconds(9.5));
    let sampler = Sampler::start(&recording, DEFAULT_PERIOD, clock.clone());
    clock.advance(Seconds(3.0));
    assert_eq!(sampler.stop().samples, [at(10), at(11), at(12)]);
}

#[test]
fn nothing_stays_nothing_with_its_reason() {
    let nowhere = PowerSource::none("switched off");
    let tape = Sampler::start(&nowhere, DEFAULT_PERIOD, Arc::new(VirtualClock::new())).stop();
    assert_eq!(tape, Tape::missing(Unavailable::because("switched off")));
}

#[test]
fn a_gpu_that_is_not_there_is_a_source_with_a_reason() {
    let source = PowerSource::of_gpu(&GpuSelector::from_cuda_uuid([0; 16]));
    assert!(matches!(source, PowerSource::None(_)), "{source:?}");
}

/// Arithmetic that nothing shortens.
fn arithmetic(rounds: u32) -> u64 {
    (0..rounds).fold(1, |x: u64, i| {
        black_box(x.wrapping_mul(6_364_136_223_846_793_005) ^ u64::from(i))
    })
}

#[test]
fn a_timed_loop_loses_less_than_half_a_percent_to_the_sampler() {
    // A query that keeps a core busy for some 200 µs, every 20 ms, on a thread beside steps of about 100 µs.
    let source = PowerSource::Board(Arc::new(board(
        |_| {
            black_box(arithmetic(200_000));
            Ok(reading(1.0))
        },
        || {},
    )));
    let clock: Arc<SystemClock> = Arc::new(SystemClock::new());
    let block = |sampled: bool| {
        let sampler = sampled.then(|| Sampler::start(&source, DEFAULT_PERIOD, clock.clone()));
        let begin = clock.now();
        for _ in 0..300 {
            black_box(arithmetic(100_000));
        }
        let took = (clock.now() - begin).0;
        if let Some(sampler) = sampler {
            assert!(sampler.stop().samples.len() >= 2);
        }
        took
    };
    // The best of blocks that take turns, since other programs only ever make one longer; more of them where those do.
    let (mut off, mut on) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..200 {
        for sampled in [false, true, true, false] {
            let best = if sampled { &mut on } else { &mut off };
            *best = best.min(block(sampled));
        }
        if on <= 1.005 * off {
            return;
        }
    }
    panic!("{on} s with the sampler, {off} s without");
}
