//! The thread that reads a GPU's sensors beside a timed loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::gpu::GpuState;
use super::nvml::{GpuSelector, NvmlGpu, PowerReading};
use super::tape::{Sample, Tape};
use super::unavailable::Unavailable;
use crate::units::{Clock, Seconds};

/// Time between two readings unless told otherwise: a fifth of the energy counter's usual tick, so that a tick is
/// placed to within a tenth of its period, and well above the few milliseconds that a query may take.
pub const DEFAULT_PERIOD: Seconds = Seconds(0.02);

/// Every so many readings, clocks, heat, throttling and memory are read too: about as often as they change.
const STATE_EVERY: usize = 5;

/// Where readings come from.
#[derive(Debug)]
pub enum PowerSource {
    /// The driver, asked by a thread.
    Nvml(Arc<NvmlGpu>),
    /// A recording, handed back as it is.
    Tape(Vec<Sample>),
    /// Nowhere.
    None(Unavailable),
}

impl PowerSource {
    /// The sensors of a GPU, or the reason why they cannot be used.
    pub fn of_gpu(selector: &GpuSelector) -> Self {
        match NvmlGpu::open(selector) {
            Ok(gpu) if gpu.facts().mig == Some(true) => Self::None(Unavailable::because(format!(
                "{selector} is split into MIG instances, and power is counted for the whole board"
            ))),
            Ok(gpu) => Self::Nvml(Arc::new(gpu)),
            Err(unavailable) => Self::None(unavailable),
        }
    }

    /// Nowhere, because of `reason`.
    pub fn none(reason: impl Into<String>) -> Self {
        Self::None(Unavailable::because(reason))
    }
}

/// Readings under way. [`Sampler::stop`] gives the tape; dropping ends the thread and loses the tape.
#[derive(Debug)]
pub struct Sampler {
    thread: Option<Thread>,
    /// What is handed back where no thread runs.
    ready: Tape,
}

#[derive(Debug)]
struct Thread {
    stop: Arc<AtomicBool>,
    handle: JoinHandle<Tape>,
}

impl Sampler {
    /// Starts reading `source` every `period`, with time stamps of `clock`. Never fails: what is in the way ends up on
    /// the tape.
    pub fn start(source: &PowerSource, period: Seconds, clock: Arc<dyn Clock>) -> Self {
        let ready = match source {
            PowerSource::Tape(samples) => Tape::of(samples.clone()),
            PowerSource::None(unavailable) => Tape::missing(unavailable.clone()),
            PowerSource::Nvml(gpu) => match Thread::spawn(Arc::clone(gpu), period, clock) {
                Ok(thread) => {
                    return Self {
                        thread: Some(thread),
                        ready: Tape::default(),
                    };
                }
                Err(error) => Tape::missing(Unavailable::because(format!(
                    "no thread for the power sampler: {error}"
                ))),
            },
        };
        Self {
            thread: None,
            ready,
        }
    }

    /// Takes one last reading, so that the tape reaches past every window that has ended, and hands the tape over.
    pub fn stop(mut self) -> Tape {
        match self.thread.take() {
            Some(thread) => thread.join(),
            None => std::mem::take(&mut self.ready),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

impl Thread {
    fn spawn(gpu: Arc<NvmlGpu>, period: Seconds, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let handle = thread::Builder::new()
            .name("power-sampler".to_owned())
            .spawn(move || {
                let sensors = Sensors {
                    power: || gpu.power(),
                    state: || gpu.state(),
                };
                record(sensors, period, &*clock, &stopped)
            })?;
        Ok(Self { stop, handle })
    }

    fn join(self) -> Tape {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread from its wait between two readings.
        self.handle.thread().unpark();
        self.handle
            .join()
            .unwrap_or_else(|_| Tape::missing(Unavailable::because("the power sampler panicked")))
    }
}

/// What is read: the first at every step, the second now and then.
struct Sensors<P, S> {
    power: P,
    state: S,
}

impl<P, S> Sensors<P, S>
where
    P: FnMut() -> Result<PowerReading, Unavailable>,
    S: FnMut() -> GpuState,
{
    /// One sample, and the word of a failure.
    fn read(&mut self, with_state: bool, clock: &dyn Clock) -> (Sample, Option<Unavailable>) {
        let begin = clock.now();
        let (power, fault) = match (self.power)() {
            Ok(power) => (power, None),
            Err(fault) => (PowerReading::default(), Some(fault)),
        };
        let answered = clock.now();
        let state = with_state.then(|| (self.state)());
        let sample = Sample {
            at: Seconds((begin.0 + answered.0) / 2.0),
            cost: clock.now() - begin,
            energy: power.energy,
            power: power.instant,
            state,
        };
        (sample, fault)
    }
}

/// Reads until `stop` is set, and once more after.
fn record<P, S>(
    mut sensors: Sensors<P, S>,
    period: Seconds,
    clock: &dyn Clock,
    stop: &AtomicBool,
) -> Tape
where
    P: FnMut() -> Result<PowerReading, Unavailable>,
    S: FnMut() -> GpuState,
{
    let mut tape = Tape::default();
    let mut due = clock.now();
    loop {
        let last = stop.load(Ordering::Relaxed);
        let with_state = last || tape.samples.len().is_multiple_of(STATE_EVERY);
        let (sample, fault) = sensors.read(with_state, clock);
        tape.samples.push(sample);
        tape.fault = tape.fault.or(fault);
        if last {
            return tape;
        }
        // Readings that were missed are not made up for: a burst of them would disturb what is timed.
        due = Seconds((due.0 + period.0).max(clock.now().0));
        wait_until(due, clock, stop);
    }
}

/// Waits for `due`, or until `stop` is set.
fn wait_until(due: Seconds, clock: &dyn Clock, stop: &AtomicBool) {
    // In a loop, since a parked thread may wake for no reason.
    while !stop.load(Ordering::Relaxed) {
        let left = (due - clock.now()).0;
        if left <= 0.0 {
            return;
        }
        thread::park_timeout(Duration::from_secs_f64(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::clock::{SystemClock, VirtualClock};
    use crate::units::{Joules, Watts};

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
        let mut polls = 0;
        let sensors = Sensors {
            power: || {
                polls += 1;
                stop.store(polls == 6, Ordering::Relaxed);
                clock.advance(Seconds(0.004));
                Ok(reading(f64::from(polls)))
            },
            state: || {
                clock.advance(Seconds(0.010));
                GpuState::default()
            },
        };
        // A period below the cost of a query: the sampler never waits, and never falls behind.
        let tape = record(sensors, Seconds(0.001), &clock, &stop);
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
        let mut polls = 0;
        let sensors = Sensors {
            power: || {
                polls += 1;
                stop.store(polls == 3, Ordering::Relaxed);
                clock.advance(Seconds(0.001));
                match polls {
                    2 | 3 => Err(Unavailable::because(format!("failure {polls}"))),
                    _ => Ok(reading(1.0)),
                }
            },
            state: GpuState::default,
        };
        let tape = record(sensors, Seconds(0.0), &clock, &stop);
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
                let sensors = Sensors {
                    power: || {
                        first.store(true, Ordering::Relaxed);
                        Ok(reading(1.0))
                    },
                    state: GpuState::default,
                };
                record(sensors, Seconds(3600.0), &clock, &stop)
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
    fn a_recording_replays_and_nothing_stays_nothing_with_its_reason() {
        let clock = || Arc::new(VirtualClock::new());
        let samples = vec![Sample::default(); 3];
        let recording = PowerSource::Tape(samples.clone());
        let sampler = Sampler::start(&recording, DEFAULT_PERIOD, clock());
        assert_eq!(sampler.stop(), Tape::of(samples));
        let nowhere = PowerSource::none("switched off");
        let tape = Sampler::start(&nowhere, DEFAULT_PERIOD, clock()).stop();
        assert_eq!(tape, Tape::missing(Unavailable::because("switched off")));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_a_source_with_a_reason() {
        let source = PowerSource::of_gpu(&GpuSelector::from_cuda_uuid([0; 16]));
        assert!(matches!(source, PowerSource::None(_)), "{source:?}");
    }
}
