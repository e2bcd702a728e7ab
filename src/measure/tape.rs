//! Readings in the order they were taken, and what they say of a window. A tape that was recorded on one machine
//! replays on any other.

#[cfg(test)]
pub(crate) mod recorded;
mod text;

use super::gpu::GpuState;
use super::unavailable::Unavailable;
use super::window::Window;
use crate::stats;
use crate::units::{Bytes, Joules, Seconds, Watts};

/// One reading of a GPU's sensors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    /// When it was taken: half-way through the query.
    pub at: Seconds,
    /// How long the query took on the host.
    pub cost: Seconds,
    /// Energy since the driver was loaded. It moves in ticks of some 100 ms, not with every sample.
    pub energy: Option<Joules>,
    /// Power now.
    pub power: Option<Watts>,
    /// Power over the last second.
    pub average: Option<Watts>,
    /// Clocks, heat, throttling and memory; not read every time.
    pub state: Option<GpuState>,
}

/// What was sampled, and why anything is missing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tape {
    /// The samples, oldest first.
    pub samples: Vec<Sample>,
    /// Why there are no samples, or the first failure among the queries.
    pub fault: Option<Unavailable>,
}

/// What sampling cost the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingCost {
    /// Queries.
    pub reads: usize,
    /// Mean time of a query.
    pub mean: Seconds,
    /// 99th percentile of it; `None` of fewer than a hundred.
    pub p99: Option<Seconds>,
    /// Longest time of a query.
    pub max: Seconds,
    /// Share of the tape's length that was spent in queries, on a thread of their own.
    pub share: f64,
}

/// How the GPU ran during a window. A figure is absent where no sample in the window has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conditions {
    /// Samples in the window that carry a state.
    pub samples: usize,
    /// Mean clock of the multiprocessors, in MHz.
    pub sm_clock_mhz: Option<f64>,
    /// Mean clock of the memory, in MHz.
    pub memory_clock_mhz: Option<f64>,
    /// Highest temperature of any sample, in degrees Celsius.
    pub temperature_max_celsius: Option<u32>,
    /// Highest power of a single reading.
    pub power_max: Option<Watts>,
    /// Most memory in use on the device. Peaks between two samples are missed.
    pub memory_used_max: Option<Bytes>,
    /// Each reason that held the clocks down, with the share of samples that showed it, above zero up to one.
    pub throttled: Vec<(&'static str, f64)>,
    /// Share of samples in which heat or the power supply slowed the device; zero means a valid window.
    pub fault_share: Option<f64>,
}

impl Tape {
    /// A tape of these samples.
    pub fn of(samples: Vec<Sample>) -> Self {
        Self {
            samples,
            fault: None,
        }
    }

    /// An empty tape that says why it is empty.
    pub fn missing(fault: Unavailable) -> Self {
        Self {
            samples: Vec::new(),
            fault: Some(fault),
        }
    }

    /// The part that was taken during `window`.
    #[must_use]
    pub fn during(&self, window: Window) -> Self {
        let inside = self.samples.iter().filter(|s| window.contains(s.at));
        Self {
            samples: inside.copied().collect(),
            fault: self.fault.clone(),
        }
    }

    /// What taking the samples cost; `None` for a tape without length.
    pub fn cost(&self) -> Option<SamplingCost> {
        let (first, last) = (self.samples.first()?, self.samples.last()?);
        let length = last.at - first.at;
        if length <= Seconds(0.0) {
            return None;
        }
        let mut costs: Vec<f64> = self.samples.iter().map(|sample| sample.cost.0).collect();
        costs.sort_unstable_by(f64::total_cmp);
        let total: f64 = costs.iter().sum();
        Some(SamplingCost {
            reads: costs.len(),
            mean: Seconds(total / costs.len() as f64),
            p99: stats::quantile(&costs, 0.99).map(Seconds),
            max: Seconds(*costs.last()?),
            share: total / length.0,
        })
    }

    /// How the GPU ran during `window`.
    pub fn conditions(&self, window: Window) -> Conditions {
        let inside = || {
            self.samples
                .iter()
                .filter(move |sample| window.contains(sample.at))
        };
        let states: Vec<GpuState> = inside().filter_map(|sample| sample.state).collect();
        let mut conditions = Conditions {
            samples: states.len(),
            sm_clock_mhz: mean(states.iter().filter_map(|state| state.sm_clock_mhz)),
            memory_clock_mhz: mean(states.iter().filter_map(|state| state.memory_clock_mhz)),
            temperature_max_celsius: states
                .iter()
                .filter_map(|state| state.temperature_celsius)
                .max(),
            power_max: inside()
                .filter_map(|sample| sample.power)
                .max_by(|a, b| a.0.total_cmp(&b.0)),
            memory_used_max: states.iter().filter_map(|state| state.memory_used).max(),
            ..Conditions::default()
        };
        conditions.count_throttling(&states);
        conditions
    }
}

impl Conditions {
    fn count_throttling(&mut self, states: &[GpuState]) {
        let masks: Vec<_> = states.iter().filter_map(|state| state.throttle).collect();
        if masks.is_empty() {
            return;
        }
        let share = 1.0 / masks.len() as f64;
        for name in masks.iter().flat_map(|mask| mask.names()) {
            match self.throttled.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1.0,
                None => self.throttled.push((name, 1.0)),
            }
        }
        for (_, count) in &mut self.throttled {
            *count *= share;
        }
        let faults = masks.iter().filter(|mask| mask.is_fault()).count();
        self.fault_share = Some(faults as f64 * share);
    }
}

fn mean(values: impl Iterator<Item = u32>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += f64::from(value);
        count += 1.0;
    }
    (count > 0.0).then(|| sum / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::gpu::Throttle;

    fn sample(at: f64, clock: u32, throttle: u64) -> Sample {
        Sample {
            at: Seconds(at),
            cost: Seconds(0.001 * (1.0 + at)),
            power: Some(Watts(100.0 + at)),
            state: Some(GpuState {
                sm_clock_mhz: Some(clock),
                temperature_celsius: Some(40 + at as u32),
                throttle: Some(Throttle::from_bits(throttle)),
                memory_used: Some(Bytes(1000 - at as u64)),
                ..GpuState::default()
            }),
            ..Sample::default()
        }
    }

    #[test]
    fn conditions_come_from_the_window_alone() {
        let tape = Tape::of(vec![
            sample(0.0, 300, 0x1),
            sample(1.0, 1900, 0x4),
            sample(2.0, 1800, 0x24),
            sample(3.0, 300, 0x1),
        ]);
        let conditions = tape.conditions(Window::new(Seconds(1.0), Seconds(2.0)));
        let expected = Conditions {
            samples: 2,
            sm_clock_mhz: Some(1850.0),
            memory_clock_mhz: None,
            temperature_max_celsius: Some(42),
            power_max: Some(Watts(102.0)),
            memory_used_max: Some(Bytes(999)),
            throttled: vec![("sw_power_cap", 1.0), ("sw_thermal_slowdown", 0.5)],
            fault_share: Some(0.5),
        };
        assert_eq!(conditions, expected);
    }

    #[test]
    fn the_highest_temperature_may_lie_inside_the_window() {
        let mut samples: Vec<Sample> = (0..3).map(|i| sample(f64::from(i), 0, 0)).collect();
        if let Some(state) = samples[1].state.as_mut() {
            state.temperature_celsius = Some(80);
        }
        let conditions = Tape::of(samples).conditions(Window::new(Seconds(0.0), Seconds(2.0)));
        assert_eq!(conditions.temperature_max_celsius, Some(80));
    }

    #[test]
    fn an_empty_window_has_no_conditions() {
        let window = Window::new(Seconds(1.0), Seconds(2.0));
        assert_eq!(Tape::default().conditions(window), Conditions::default());
    }

    #[test]
    fn the_cost_of_sampling_is_on_the_tape() {
        let tape = Tape::of((0..4).map(|i| sample(f64::from(i), 0, 0)).collect());
        let cost = tape.cost().unwrap();
        assert_eq!((cost.reads, cost.p99), (4, None));
        assert!((cost.mean.0 - 0.0025).abs() < 1e-12);
        assert!((cost.max.0 - 0.004).abs() < 1e-12);
        assert!((cost.share - 0.010 / 3.0).abs() < 1e-12);
        assert_eq!(Tape::default().cost(), None);
        let long = Tape::of((0..101).map(|i| sample(f64::from(i), 0, 0)).collect());
        let p99 = long.cost().unwrap().p99.unwrap();
        assert!((p99.0 - 0.100).abs() < 1e-9, "{p99:?}");
    }
}
