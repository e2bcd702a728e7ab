//! What the power sensors of a board are worth: how often they renew themselves, over how long they average, what a query
//! costs, and whether the energy counter and the integral of power agree. Found from one tape, on which the board is first
//! idle, then loaded, then loaded half of the time.

use super::energy::{EnergyReading, energy_in};
use super::tape::{Sample, SamplingCost, Tape};
use super::unavailable::Unavailable;
use super::window::Window;
use crate::stats;
use crate::units::{Seconds, Watts};

/// Time between two readings of the test: short beside any renewal that is known.
pub const POLL: Seconds = Seconds(0.002);

/// A load must raise the power at least by this share for its step to be looked at.
const LEAST_STEP: f64 = 0.1;

/// What was done to the board, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Nothing ran.
    pub idle: Window,
    /// Work ran without a pause; nothing had run before, and it began at once.
    pub load: Window,
    /// Work and pauses in turns.
    pub square: Window,
}

/// The findings.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfTest {
    /// Time between two changes of the energy counter under load, in the median.
    pub counter_tick: Result<Seconds, Unavailable>,
    /// Time between two changes of the power reading under load, in the median.
    pub power_renewal: Result<Seconds, Unavailable>,
    /// Over how long the power reading averages, by how it follows the step from idle to loaded.
    pub power_window: Result<Seconds, Unavailable>,
    /// Over how long the averaged power averages.
    pub average_window: Result<Seconds, Unavailable>,
    /// What a query costs.
    pub query: Option<SamplingCost>,
    /// Energy of the idle board.
    pub idle: EnergyReading,
    /// Energy under load.
    pub load: EnergyReading,
    /// Energy under load half of the time.
    pub square: EnergyReading,
}

/// Whether the two sources of energy agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Within five percent in every part.
    Agree,
    /// Beyond that in some part, but for no part beyond fifteen.
    Suspect,
    /// Beyond fifteen percent in some part.
    Disagree,
    /// One of the sources is missing.
    Unknown,
}

impl Verdict {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agree => "counter and integral agree",
            Self::Suspect => "counter and integral differ by more than 5 %",
            Self::Disagree => "counter and integral differ by more than 15 %",
            Self::Unknown => "counter and integral cannot be compared",
        }
    }
}

impl SelfTest {
    /// Reads the findings off `tape`, which covers `schedule`.
    pub fn of(tape: &Tape, schedule: &Schedule) -> Self {
        let loaded = tape.during(schedule.load);
        Self {
            counter_tick: renewal(&loaded, "energy counter", |s| Some(s.energy?.0)),
            power_renewal: renewal(&loaded, "power reading", |s| Some(s.power?.0)),
            power_window: averaging(tape, schedule, "power reading", |s| s.power),
            average_window: averaging(tape, schedule, "averaged power", |s| s.average),
            query: tape.cost(),
            idle: energy_in(tape, schedule.idle),
            load: energy_in(tape, schedule.load),
            square: energy_in(tape, schedule.square),
        }
    }

    /// The parts with their names.
    pub fn parts(&self) -> [(&'static str, &EnergyReading); 3] {
        [
            ("idle", &self.idle),
            ("load", &self.load),
            ("half load", &self.square),
        ]
    }

    /// Whether the two sources of energy agree in all parts.
    pub fn verdict(&self) -> Verdict {
        let parts = self.parts().map(|(_, part)| part);
        if parts.iter().any(|part| part.is_rejected()) {
            Verdict::Disagree
        } else if parts.iter().any(|part| part.is_suspect()) {
            Verdict::Suspect
        } else if parts.iter().any(|part| part.disagreement().is_none()) {
            Verdict::Unknown
        } else {
            Verdict::Agree
        }
    }
}

/// The median time between two changes of a reading.
fn renewal(
    tape: &Tape,
    what: &str,
    reading: impl Fn(&Sample) -> Option<f64>,
) -> Result<Seconds, Unavailable> {
    let read: Vec<(f64, f64)> = tape
        .samples
        .iter()
        .filter_map(|sample| Some((sample.at.0, reading(sample)?)))
        .collect();
    if read.is_empty() {
        return Err(Unavailable::because(format!("the board has no {what}")));
    }
    let changes: Vec<f64> = read
        .windows(2)
        .filter(|pair| pair[0].1 != pair[1].1)
        .map(|pair| f64::midpoint(pair[0].0, pair[1].0))
        .collect();
    let mut gaps: Vec<f64> = changes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable_by(f64::total_cmp);
    stats::quantile(&gaps, 0.5)
        .map(Seconds)
        .ok_or_else(|| Unavailable::because(format!("the {what} changed {} times", changes.len())))
}

/// Over how long a power reading averages. An average over a window rises in a straight line when the power steps, so it
/// takes 0.8 of its window from a tenth of the step to nine tenths.
fn averaging(
    tape: &Tape,
    schedule: &Schedule,
    what: &str,
    reading: impl Fn(&Sample) -> Option<Watts>,
) -> Result<Seconds, Unavailable> {
    let read = |window: Window| -> Vec<(f64, f64)> {
        let inside = tape.samples.iter().filter(|s| window.contains(s.at));
        inside
            .filter_map(|s| Some((s.at.0, reading(s)?.0)))
            .collect()
    };
    let level = |window: Window| {
        let values: Vec<f64> = read(window).into_iter().map(|(_, power)| power).collect();
        stats::mean(&values)
    };
    // The ends of both windows, when whatever came before has passed.
    let end_of = |window: Window| {
        let third = window.duration().0 / 3.0;
        Window::new(Seconds(window.end.0 - third), window.end)
    };
    let (Some(low), Some(high)) = (level(end_of(schedule.idle)), level(end_of(schedule.load)))
    else {
        return Err(Unavailable::because(format!("the board has no {what}")));
    };
    if high - low < LEAST_STEP * low {
        return Err(Unavailable::because(format!(
            "the load raised the {what} from {} to {} only",
            Watts(low),
            Watts(high)
        )));
    }
    let rise = read(schedule.load);
    let crossing = |share: f64| {
        let wanted = low + share * (high - low);
        let after = rise.iter().position(|&(_, power)| power >= wanted)?;
        let (at, power) = rise[after];
        let Some(&(at_before, before)) = after.checked_sub(1).and_then(|i| rise.get(i)) else {
            return Some(at);
        };
        Some(at_before + (at - at_before) * (wanted - before) / (power - before))
    };
    match (crossing(0.1), crossing(0.9)) {
        (Some(begin), Some(end)) => Ok(Seconds((end - begin) / 0.8)),
        _ => Err(Unavailable::because(format!(
            "the {what} did not follow the load"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Joules;

    /// What sensors make of a board's power.
    struct Sensors {
        /// Time between two ticks of the counter, in milliseconds.
        tick: u32,
        /// Time between two renewals of the power reading.
        renewal: u32,
        /// Time that the averaged power covers.
        window: u32,
        /// What the power reading shows of an idle board's.
        idle_factor: f64,
    }

    const USUAL: Sensors = Sensors {
        tick: 100,
        renewal: 20,
        window: 1000,
        idle_factor: 1.0,
    };

    /// Four seconds idle, four loaded, four of both in turns of 100 ms.
    fn power(ms: u32) -> f64 {
        match ms {
            ..4000 => 70.0,
            4000..8000 => 500.0 + f64::from(ms % 7),
            _ if (ms / 100).is_multiple_of(2) => 500.0,
            _ => 70.0,
        }
    }

    fn schedule() -> Schedule {
        let window = |begin, end| Window::new(Seconds(begin), Seconds(end));
        Schedule {
            idle: window(0.0, 3.99),
            load: window(4.0, 8.0),
            square: window(8.0, 12.0),
        }
    }

    fn tape(sensors: &Sensors) -> Tape {
        let (mut drawn, mut counted, mut shown) = (0.0, 0.0, 70.0);
        let mut samples = Vec::new();
        for ms in 0..=12_000_u32 {
            if ms.is_multiple_of(sensors.tick) {
                counted = drawn;
            }
            if ms.is_multiple_of(sensors.renewal) {
                shown = power(ms);
            }
            if ms.is_multiple_of(2) {
                let from = ms.saturating_sub(sensors.window - 1);
                let averaged: f64 = (from..=ms).map(power).sum();
                let factor = if shown < 100.0 {
                    sensors.idle_factor
                } else {
                    1.0
                };
                samples.push(Sample {
                    at: Seconds(f64::from(ms) / 1e3),
                    cost: Seconds(0.0005),
                    energy: Some(Joules(counted / 1e3)),
                    power: Some(Watts(shown * factor)),
                    average: Some(Watts(averaged / f64::from(ms - from + 1))),
                    state: None,
                });
            }
            drawn += power(ms);
        }
        Tape::of(samples)
    }

    #[test]
    fn periods_and_windows_of_the_sensors_are_found() {
        let found = SelfTest::of(&tape(&USUAL), &schedule());
        assert!((found.counter_tick.unwrap().0 - 0.100).abs() < 0.003);
        assert!((found.power_renewal.unwrap().0 - 0.020).abs() < 0.003);
        assert!((found.average_window.unwrap().0 - 1.0).abs() < 0.02);
        assert!(found.power_window.unwrap().0 < 0.025);
        assert!((found.query.unwrap().mean.0 - 0.0005).abs() < 1e-9);
        let quick = Sensors {
            tick: 20,
            window: 25,
            ..USUAL
        };
        let found = SelfTest::of(&tape(&quick), &schedule());
        assert!((found.counter_tick.unwrap().0 - 0.020).abs() < 0.003);
        assert!((found.average_window.unwrap().0 - 0.025).abs() < 0.005);
    }

    #[test]
    fn the_verdict_is_that_of_the_worst_part() {
        let verdict = |idle_factor| {
            let bent = Sensors {
                idle_factor,
                ..USUAL
            };
            SelfTest::of(&tape(&bent), &schedule()).verdict()
        };
        assert_eq!(verdict(1.0), Verdict::Agree);
        assert_eq!(verdict(1.1), Verdict::Suspect);
        assert_eq!(verdict(0.57), Verdict::Disagree);
    }

    #[test]
    fn what_a_board_does_not_have_is_named() {
        let mut tape = tape(&USUAL);
        for sample in &mut tape.samples {
            sample.energy = None;
            sample.average = None;
            sample.power = Some(Watts(70.0));
        }
        let found = SelfTest::of(&tape, &schedule());
        assert_eq!(found.verdict(), Verdict::Unknown);
        let reason = |found: Result<Seconds, Unavailable>| found.unwrap_err().reason;
        assert_eq!(
            reason(found.counter_tick),
            "the board has no energy counter"
        );
        assert_eq!(
            reason(found.average_window),
            "the board has no averaged power"
        );
        assert_eq!(
            reason(found.power_renewal),
            "the power reading changed 0 times"
        );
        assert!(reason(found.power_window).contains("from 70.0 W to 70.0 W only"));
    }
}
