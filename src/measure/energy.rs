//! Joules of a window, found twice: from the energy counter, and from the power readings as a check on it.
//!
//! **The counter** moves in ticks of some 100 ms, so its plain difference over a window errs by a tick at each edge.
//! Here the window is snapped to the first and the last tick that surely fall inside it; the mean power between the two
//! is taken to hold up to the edges. What is left of the edge error is the time between two polls, not between two
//! ticks, and nothing that ran before or after the window leaks in.
//!
//! **The integral** is the trapezoid over instant power, at the time stamps of the readings.
//!
//! The two are known to disagree grossly on some boards (187 J against 327 J over five idle seconds, zeus issue 181),
//! which is why neither is believed alone.

use super::tape::{Sample, Tape};
use super::unavailable::Unavailable;
use super::window::Window;
use crate::units::{Joules, Seconds, Watts};

/// Shortest window with an energy: five renewals of a sensor that renews its reading about every 100 ms.
pub const MIN_WINDOW: Seconds = Seconds(0.5);
/// Fewest ticks of the counter in a window.
pub const MIN_TICKS: usize = 6;
/// Largest error of the counter's energy from not knowing when between two polls a tick fell, as a share.
pub const MAX_EDGE_ERROR: f64 = 0.05;
/// Longest time without a power reading inside a window that is integrated.
pub const MAX_GAP: Seconds = Seconds(0.25);
/// Difference between counter and integral, as a share of the counter, above which a figure is to be doubted.
pub const SUSPECT_ABOVE: f64 = 0.05;
/// And above which it is no figure: whoever compares does without.
pub const REJECTED_ABOVE: f64 = 0.15;

/// The energy of a window by the counter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CounterEnergy {
    /// Of the whole window.
    pub energy: Joules,
    /// The part of the window between its first and last tick.
    pub snapped: Window,
    /// Of the snapped part, as the counter counted it.
    pub snapped_energy: Joules,
    /// Ticks in the window.
    pub ticks: usize,
    /// Bound on the error that polling leaves in the length of the snapped part, as a share.
    pub edge_error: f64,
}

/// The energy of a window from both sources. It is gross: what the whole board drew, idle power included.
#[derive(Debug, Clone, PartialEq)]
pub struct EnergyReading {
    /// The window that was asked for.
    pub window: Window,
    /// By the counter, or why not.
    pub counter: Result<CounterEnergy, Unavailable>,
    /// By integrating power, or why not.
    pub integrated: Result<Joules, Unavailable>,
}

/// Where an energy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EnergySource {
    /// The board's counter.
    Counter,
    /// Power readings over time.
    Integral,
}

impl EnergySource {
    /// The name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Integral => "integral",
        }
    }
}

impl EnergyReading {
    /// The counter's energy where there is one, else the integral.
    ///
    /// # Errors
    /// Why the counter gives none, where neither does.
    pub fn gross(&self) -> Result<(Joules, EnergySource), &Unavailable> {
        match (&self.counter, &self.integrated) {
            (Ok(counter), _) => Ok((counter.energy, EnergySource::Counter)),
            (Err(_), Ok(energy)) => Ok((*energy, EnergySource::Integral)),
            (Err(unavailable), Err(_)) => Err(unavailable),
        }
    }

    /// Gross energy less what the idle board would have drawn meanwhile. Never report it alone: it forgives a slow
    /// variant the idle power that its slowness costs.
    pub fn net(&self, idle: Watts) -> Option<Joules> {
        let (gross, _) = self.gross().ok()?;
        Some(gross - Joules(idle.0 * self.window.duration().0))
    }

    /// Mean gross power over the window.
    pub fn power(&self) -> Option<Watts> {
        let (gross, _) = self.gross().ok()?;
        Some(gross / self.window.duration())
    }

    /// How far the integral lies from the counter, as a share of the counter; `None` where one of them is missing.
    pub fn disagreement(&self) -> Option<f64> {
        let counter = self.counter.as_ref().ok()?.energy;
        let integrated = *self.integrated.as_ref().ok()?;
        Some(((integrated.0 - counter.0) / counter.0).abs())
    }

    /// Whether counter and integral differ by more than [`SUSPECT_ABOVE`].
    pub fn is_suspect(&self) -> bool {
        self.differs_by_more_than(SUSPECT_ABOVE)
    }

    /// Whether they differ by more than [`REJECTED_ABOVE`].
    pub fn is_rejected(&self) -> bool {
        self.differs_by_more_than(REJECTED_ABOVE)
    }

    fn differs_by_more_than(&self, most: f64) -> bool {
        // NaN is no agreement.
        self.disagreement()
            .is_some_and(|share| share.is_nan() || share > most)
    }
}

/// The energy that the board drew during `window`.
pub fn energy_in(tape: &Tape, window: Window) -> EnergyReading {
    EnergyReading {
        window,
        counter: check_window(tape, window).and_then(|()| by_counter(tape, window)),
        integrated: check_window(tape, window).and_then(|()| by_integral(tape, window)),
    }
}

/// Refuses what no source can answer.
fn check_window(tape: &Tape, window: Window) -> Result<(), Unavailable> {
    if tape.samples.is_empty() {
        return Err(because(tape, "no sensor was read"));
    }
    if window.duration() < MIN_WINDOW {
        return Err(Unavailable::because(format!(
            "a window of {} is too short for a sensor that renews itself about every 100 ms; {MIN_WINDOW} is the least",
            window.duration(),
        )));
    }
    Ok(())
}

/// A change of the counter. It fell in the `slack` before or after `at`, between the poll that saw the old value and
/// the poll that saw the new.
#[derive(Debug, Clone, Copy)]
struct Tick {
    at: Seconds,
    slack: Seconds,
    energy: Joules,
}

/// Ticks that surely fell inside `window`.
fn ticks_in(samples: &[Sample], window: Window) -> Vec<Tick> {
    let polls: Vec<(Seconds, Joules)> = samples
        .iter()
        .filter(|sample| window.contains(sample.at))
        .filter_map(|sample| Some((sample.at, sample.energy?)))
        .collect();
    polls
        .windows(2)
        .filter(|pair| pair[0].1 != pair[1].1)
        .map(|pair| Tick {
            at: Seconds((pair[0].0.0 + pair[1].0.0) / 2.0),
            slack: Seconds((pair[1].0.0 - pair[0].0.0) / 2.0),
            energy: pair[1].1,
        })
        .collect()
}

fn by_counter(tape: &Tape, window: Window) -> Result<CounterEnergy, Unavailable> {
    if tape.samples.iter().all(|sample| sample.energy.is_none()) {
        return Err(because(tape, "the board has no energy counter"));
    }
    let ticks = ticks_in(&tape.samples, window);
    let (Some(first), Some(last), MIN_TICKS..) = (ticks.first(), ticks.last(), ticks.len()) else {
        return Err(Unavailable::because(format!(
            "the energy counter moved {} times in a window of {}; {MIN_TICKS} times are the least",
            ticks.len(),
            window.duration(),
        )));
    };
    if ticks.is_sorted_by(|a, b| a.energy <= b.energy) {
        snap(window, first, last, ticks.len())
    } else {
        Err(Unavailable::because(
            "the energy counter went back inside the window: the driver was reloaded",
        ))
    }
}

/// Reads the counter between two ticks and carries the mean power to the window's edges.
fn snap(
    window: Window,
    first: &Tick,
    last: &Tick,
    ticks: usize,
) -> Result<CounterEnergy, Unavailable> {
    let snapped = Window::new(first.at, last.at);
    let snapped_energy = last.energy - first.energy;
    // A tick more than two periods from its edge means that nobody looked at the counter there.
    let reach = 2.0 * snapped.duration().0 / (ticks - 1) as f64;
    if (first.at - window.begin).0 > reach || (window.end - last.at).0 > reach {
        return Err(Unavailable::because(format!(
            "the energy counter was read over only {} of a window of {}",
            snapped.duration(),
            window.duration(),
        )));
    }
    let edge_error = (first.slack.0 + last.slack.0) / snapped.duration().0;
    if edge_error > MAX_EDGE_ERROR {
        return Err(Unavailable::because(format!(
            "the energy counter was polled too seldom for a window of {}: its edges are unsure by {:.0} %",
            window.duration(),
            edge_error * 100.0,
        )));
    }
    let power = snapped_energy / snapped.duration();
    Ok(CounterEnergy {
        energy: Joules(power.0 * window.duration().0),
        snapped,
        snapped_energy,
        ticks,
        edge_error,
    })
}

/// The trapezoid over the readings inside the window; the first and the last hold up to the edges.
fn by_integral(tape: &Tape, window: Window) -> Result<Joules, Unavailable> {
    if tape.samples.iter().all(|sample| sample.power.is_none()) {
        return Err(because(tape, "the board has no power reading"));
    }
    let mut readings = tape
        .samples
        .iter()
        .filter(|sample| window.contains(sample.at))
        .filter_map(|sample| Some((sample.at, sample.power?)))
        .peekable();
    let Some(&(_, first)) = readings.peek() else {
        return Err(Unavailable::because("no power was read inside the window"));
    };
    let mut energy = 0.0;
    let mut longest = 0.0_f64;
    let mut before = (window.begin, first);
    let mut step = |before: (Seconds, Watts), next: (Seconds, Watts)| {
        let gap = (next.0 - before.0).0;
        longest = longest.max(gap);
        energy += gap * (before.1.0 + next.1.0) / 2.0;
        next
    };
    for reading in readings {
        before = step(before, reading);
    }
    step(before, (window.end, before.1));
    if longest > MAX_GAP.0 {
        return Err(Unavailable::because(format!(
            "power was not read for {} inside the window; {MAX_GAP} is the most",
            Seconds(longest),
        )));
    }
    Ok(Joules(energy))
}

/// `what`, with the tape's own fault as its cause where it has one.
fn because(tape: &Tape, what: &str) -> Unavailable {
    match &tape.fault {
        Some(fault) if tape.samples.is_empty() => fault.clone(),
        Some(fault) => Unavailable::because(format!("{what} ({fault})")),
        None => Unavailable::because(what),
    }
}

#[cfg(test)]
mod tests;
