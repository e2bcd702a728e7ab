//! Energies of scripted tapes, where the true answer is known.

use super::*;
use crate::measure::tape::recorded::SCRIPTS;

/// Milliseconds between two polls and between two ticks of the counter.
const POLL: u32 = 20;
const TICK: u32 = 100;

/// A board that draws `power(ms)` through each millisecond, polled for `length` milliseconds. The counter starts high,
/// as after weeks of uptime, and shows the energy at its last tick.
fn tape(length: u32, power: impl Fn(u32) -> f64) -> Tape {
    let mut drawn = 5e9;
    let mut shown = drawn;
    let mut samples = Vec::new();
    for ms in 0..=length {
        if ms % TICK == 0 {
            shown = drawn;
        }
        if ms % POLL == 0 {
            samples.push(Sample {
                at: seconds(ms),
                energy: Some(Joules(shown / 1e3)),
                power: Some(Watts(power(ms))),
                ..Sample::default()
            });
        }
        drawn += power(ms);
    }
    Tape::of(samples)
}

fn seconds(ms: u32) -> Seconds {
    Seconds(f64::from(ms) / 1e3)
}

fn window(begin: u32, end: u32) -> Window {
    Window::new(seconds(begin), seconds(end))
}

/// 100 W and 300 W in turns, half a period each.
fn square(period: u32) -> impl Fn(u32) -> f64 {
    move |ms| {
        if ms % period < period / 2 {
            100.0
        } else {
            300.0
        }
    }
}

#[track_caller]
fn assert_near(found: Joules, expected: f64, share: f64) {
    let off = (found.0 - expected).abs();
    assert!(off <= share * expected, "{found:?} is not {expected} J");
}

#[track_caller]
fn assert_missing<T: std::fmt::Debug>(found: &Result<T, Unavailable>, word: &str) {
    let reason = &found.as_ref().unwrap_err().reason;
    assert!(reason.contains(word), "'{word}' is not in: {reason}");
}

#[test]
fn constant_load_is_exact_by_both_wherever_the_window_lies() {
    let tape = tape(10_000, |_| 250.0);
    for (begin, end) in [(1000, 9000), (1037, 2951), (0, 10_000), (2005, 2905)] {
        let reading = energy_in(&tape, window(begin, end));
        let expected = 0.25 * f64::from(end - begin);
        let counter = reading.counter.as_ref().unwrap();
        assert_near(counter.energy, expected, 1e-9);
        assert_near(*reading.integrated.as_ref().unwrap(), expected, 1e-9);
        assert!(!reading.is_suspect());
        assert!((reading.power().unwrap().0 - 250.0).abs() < 1e-6);
        assert_eq!(reading.gross().unwrap().1, EnergySource::Counter);
    }
}

#[test]
fn the_snapped_part_of_a_square_wave_is_exact() {
    let tape = tape(10_000, square(1000));
    let reading = energy_in(&tape, window(950, 9050));
    let counter = reading.counter.as_ref().unwrap();
    assert_eq!(counter.ticks, 81);
    // Ticks at 1.0 s and 9.0 s, each placed between the polls around it.
    assert!((counter.snapped.begin.0 - 0.99).abs() < 1e-9);
    assert!((counter.snapped.end.0 - 8.99).abs() < 1e-9);
    assert_near(counter.snapped_energy, 1600.0, 1e-9);
    assert_near(counter.energy, 1620.0, 1e-9);
    assert!((counter.edge_error - 0.02 / 8.0).abs() < 1e-9);
    assert_near(*reading.integrated.as_ref().unwrap(), 1620.0, 0.01);
    assert!(!reading.is_suspect());
}

#[test]
fn idle_power_beside_the_window_does_not_leak_in() {
    let load = |ms| {
        if (3000..5000).contains(&ms) {
            700.0
        } else {
            70.0
        }
    };
    let reading = energy_in(&tape(8000, load), window(3000, 5000));
    assert_near(reading.counter.as_ref().unwrap().energy, 1400.0, 1e-9);
    // The reading on the window's very end is idle already: one trapezoid of 20 ms.
    assert_near(*reading.integrated.as_ref().unwrap(), 1400.0, 0.006);
    let net = reading.net(Watts(70.0)).unwrap();
    assert_near(net, 1260.0, 1e-9);
}

#[test]
fn a_disagreement_above_five_percent_is_suspect() {
    let bent = |factor: f64| {
        let mut tape = tape(5000, |_| 200.0);
        for sample in &mut tape.samples {
            sample.power = Some(Watts(200.0 * factor));
        }
        energy_in(&tape, window(1000, 4000))
    };
    assert!(!bent(1.04).is_suspect());
    assert!(bent(1.06).is_suspect());
    assert!(bent(0.90).is_suspect());
    assert!((bent(0.90).disagreement().unwrap() - 0.1).abs() < 1e-9);
    assert!(!bent(0.90).is_rejected() && bent(0.84).is_rejected() && bent(1.16).is_rejected());
    assert!(bent(f64::NAN).is_suspect() && bent(f64::NAN).is_rejected());
}

#[test]
fn a_counter_that_restarts_gives_no_energy_but_power_still_does() {
    let mut tape = tape(5000, |_| 200.0);
    for sample in &mut tape.samples {
        if sample.at >= Seconds(2.5) {
            sample.energy = sample.energy.map(|energy| energy - Joules(5e6));
        }
    }
    let across = energy_in(&tape, window(1000, 4000));
    assert_missing(&across.counter, "driver was reloaded");
    assert_eq!(across.gross().unwrap().1, EnergySource::Integral);
    assert_near(across.gross().unwrap().0, 600.0, 1e-9);
    assert_eq!((across.disagreement(), across.is_suspect()), (None, false));
    let after = energy_in(&tape, window(3000, 4500));
    assert_near(after.counter.unwrap().energy, 300.0, 1e-9);
}

#[test]
fn a_missing_counter_is_named_with_the_driver_s_word() {
    let mut tape = tape(3000, |_| 200.0);
    for sample in &mut tape.samples {
        sample.energy = None;
    }
    tape.fault = Some(Unavailable::because("NVML: not supported"));
    let reading = energy_in(&tape, window(1000, 2000));
    assert_missing(&reading.counter, "no energy counter (NVML: not supported)");
    assert_near(reading.integrated.unwrap(), 200.0, 1e-9);
}

#[test]
fn a_window_of_a_few_ticks_has_no_energy() {
    let tape = tape(3000, |_| 200.0);
    let blink = energy_in(&tape, window(1000, 1300));
    assert_missing(&blink.counter, "too short");
    assert_missing(&blink.integrated, "too short");
    assert_eq!((blink.power(), blink.net(Watts(1.0))), (None, None));
    let brief = energy_in(&tape, window(1005, 1555));
    assert_missing(&brief.counter, "moved 5 times");
    assert!(brief.integrated.is_ok());
}

#[test]
fn a_window_that_nobody_watched_has_no_energy() {
    let reading = energy_in(&tape(3000, |_| 200.0), window(1000, 9000));
    assert_missing(&reading.counter, "over only");
    assert_missing(&reading.integrated, "not read for");
    let empty = Tape::missing(Unavailable::because("NVML is not installed"));
    let reading = energy_in(&empty, window(0, 1000));
    assert_eq!(reading.gross().unwrap_err().reason, "NVML is not installed");
}

#[test]
fn lost_readings_cost_certainty_and_not_energy() {
    let mut tape = tape(5000, square(200));
    tape.samples
        .retain(|sample| !(2.0..2.2).contains(&sample.at.0));
    let reading = energy_in(&tape, window(1000, 4000));
    assert_near(reading.counter.unwrap().energy, 600.0, 0.02);
    assert!(reading.integrated.is_ok());
    tape.samples
        .retain(|sample| !(2.0..2.4).contains(&sample.at.0));
    let reading = energy_in(&tape, window(1000, 4000));
    assert_missing(&reading.integrated, "not read for");
    assert_near(reading.counter.unwrap().energy, 600.0, 0.02);
}

#[test]
fn polling_that_is_too_slow_for_the_window_is_refused() {
    let mut tape = tape(5000, |_| 200.0);
    let mut i = 0;
    tape.samples.retain(|_| {
        i += 1;
        i % 5 == 1
    });
    let reading = energy_in(&tape, window(1000, 1900));
    assert_missing(&reading.counter, "polled too seldom");
    assert!(energy_in(&tape, window(1000, 4500)).counter.is_ok());
}

#[test]
fn recorded_tapes_give_the_energy_that_their_boards_drew() {
    for script in &SCRIPTS {
        let tape = script.recording().tape;
        let reading = energy_in(&tape, window(1000, 11_000));
        let truth = script.joules(1000, 11_000);
        match script.name {
            "no-counter" => assert_missing(&reading.counter, "no energy counter"),
            "counter-reset" => assert_missing(&reading.counter, "driver was reloaded"),
            _ => {
                let counter = reading.counter.as_ref().unwrap();
                assert_near(counter.energy, truth, 0.012);
                // Ticks are half a poll away from where they were seen.
                let ms = |at: Seconds| ((at.0 * 1e3 / 100.0).round() * 100.0) as u32;
                let snapped = script.joules(ms(counter.snapped.begin), ms(counter.snapped.end));
                assert_near(counter.snapped_energy, snapped, 0.005);
            }
        }
        let rejected = script.name == "idle-disagreement";
        assert_eq!(reading.is_rejected(), rejected, "{}", script.name);
        assert_eq!(reading.is_suspect(), rejected, "{}", script.name);
        if !rejected {
            assert_near(*reading.integrated.as_ref().unwrap(), truth, 0.005);
        }
    }
}
