//! The self-test of a GPU's power sensors: idle, loaded, loaded half of the time, and what reading them costs a timed loop.

use std::sync::Arc;

use super::facts::selector;
use crate::error::{Error, Result};
use crate::kernels::fill::Filling;
use crate::kernels::stream::ReadAll;
use crate::kernels::{Buf, BufType, Device};
use crate::measure::energy::EnergyReading;
use crate::measure::sampler::{DEFAULT_PERIOD, PowerSource, Sampler};
use crate::measure::self_test::{POLL, Schedule, SelfTest};
use crate::measure::{Interrupt, SystemClock, Tape, Unavailable, Window};
use crate::results::power::{Figure, PowerCard, PowerPart, QueryCost, Version};
use crate::scheme::DType;
use crate::units::{Clock, Seconds};

/// How long the board is left alone first.
const SETTLE: Seconds = Seconds(3.0);
/// Length of each part of the test.
const PART: Seconds = Seconds(5.0);
/// Half a period of load and pause.
const HALF_PERIOD: Seconds = Seconds(0.125);
/// Length of each of the stretches with and without the sampler, and their number.
const STRETCH: Seconds = Seconds(0.5);
const STRETCHES: usize = 8;

/// Bytes that a round of the load reads: less than a millisecond on any board, far beyond its cache.
const LOAD_BYTES: usize = 1 << 30;

/// Tests the power sensors of `device`; the tape is what was read of them.
///
/// # Errors
/// [`Error::NoDevice`] with the reason if there are none; what the load fails with; [`Error::Interrupted`].
pub fn power_self_test(device: &Device, interrupt: &Interrupt) -> Result<(PowerCard, Tape)> {
    let no_sensors = |why: String| Error::NoDevice(format!("no power sensors to test: {why}"));
    let Some(selector) = selector(device) else {
        return Err(no_sensors(format!(
            "they are those of an NVIDIA GPU, and the device is '{}'",
            device.kind()
        )));
    };
    let source = match PowerSource::of_gpu(&selector) {
        PowerSource::None(why) => return Err(no_sensors(why.reason)),
        source => source,
    };
    let name = source.facts().name.unwrap_or_else(|| selector.to_string());
    let mut load = Load::new(device)?;
    let bed = Bed {
        source: &source,
        clock: Arc::new(SystemClock::new()),
        interrupt,
    };
    let (tape, schedule) = bed.read(&mut || load.round())?;
    let cost = bed.sampler_cost(&mut || load.round())?;
    Ok((
        card(name, &SelfTest::of(&tape, &schedule), Some(cost)),
        tape,
    ))
}

/// Reading a large buffer, again and again.
struct Load<'a> {
    device: &'a Device,
    op: ReadAll,
    from: Buf,
    to: Buf,
}

impl<'a> Load<'a> {
    fn new(device: &'a Device) -> Result<Self> {
        let count = LOAD_BYTES / size_of::<f32>();
        let mut from = device.alloc(BufType::Float(DType::F32), count)?;
        let noise = Filling::Uniform {
            stream: 1,
            amplitude: 1.0,
        };
        noise.run(device, &mut from, 0, count)?;
        let op = ReadAll::new(count);
        let to = device.alloc(BufType::U32, op.results(device))?;
        device.synchronize()?;
        Ok(Self {
            device,
            op,
            from,
            to,
        })
    }

    fn round(&mut self) -> Result<()> {
        self.op.run(self.device, &self.from, &mut self.to)?;
        self.device.synchronize()
    }
}

/// Where sensors are tested.
struct Bed<'a> {
    source: &'a PowerSource,
    clock: Arc<dyn Clock>,
    interrupt: &'a Interrupt,
}

impl Bed<'_> {
    /// Reads the sensors while the parts of the test go by.
    fn read(&self, round: &mut dyn FnMut() -> Result<()>) -> Result<(Tape, Schedule)> {
        self.interrupt.wait(SETTLE, &*self.clock)?;
        let sampler = Sampler::start(self.source, POLL, Arc::clone(&self.clock));
        let idle = self.during(PART, &mut || self.interrupt.wait(HALF_PERIOD, &*self.clock))?;
        let load = self.during(PART, round)?;
        let square = self.during(PART, &mut || {
            self.during(HALF_PERIOD, round)?;
            self.interrupt.wait(HALF_PERIOD, &*self.clock)
        })?;
        let schedule = Schedule { idle, load, square };
        Ok((sampler.stop(), schedule))
    }

    /// Repeats `what` for a while.
    fn during(&self, length: Seconds, what: &mut dyn FnMut() -> Result<()>) -> Result<Window> {
        let begin = self.clock.now();
        loop {
            self.interrupt.check()?;
            what()?;
            let end = self.clock.now();
            if end - begin >= length {
                return Ok(Window::new(begin, end));
            }
        }
    }

    /// By how much a round is longer while the sensors are read at their usual pace, in percent: stretches with and without
    /// in the order off, on, on, off.
    fn sampler_cost(&self, round: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let mut sums = [(0.0, 0_u32); 2];
        for stretch in 0..STRETCHES {
            let sampled = matches!(stretch % 4, 1 | 2);
            let sampler = sampled
                .then(|| Sampler::start(self.source, DEFAULT_PERIOD, Arc::clone(&self.clock)));
            let mut rounds = 0;
            let window = self.during(STRETCH, &mut || {
                rounds += 1;
                round()
            })?;
            drop(sampler);
            let (time, count) = &mut sums[usize::from(sampled)];
            *time += window.duration().0;
            *count += rounds;
        }
        let [off, on] = sums.map(|(time, rounds)| time / f64::from(rounds));
        Ok(100.0 * (on / off - 1.0))
    }
}

/// The findings in the form that is shown.
fn card(device: String, found: &SelfTest, sampler: Option<f64>) -> PowerCard {
    PowerCard {
        schema: Version::V1,
        device,
        verdict: found.verdict().name().to_owned(),
        parts: found.parts().map(|(name, part)| of_part(name, part)).into(),
        counter_tick_s: figure(&found.counter_tick),
        power_renewal_s: figure(&found.power_renewal),
        power_window_s: figure(&found.power_window),
        average_window_s: figure(&found.average_window),
        query: found.query.map(|cost| QueryCost {
            reads: cost.reads,
            mean_s: cost.mean.0,
            p99_s: cost.p99.map(|p99| p99.0),
            max_s: cost.max.0,
        }),
        sampler_percent_of_step: sampler,
    }
}

fn of_part(name: &str, part: &EnergyReading) -> PowerPart {
    let time = part.window.duration();
    let counter = part.counter.as_ref().map(|counter| counter.energy / time);
    let integrated = part.integrated.as_ref().map(|energy| *energy / time);
    PowerPart {
        name: name.to_owned(),
        counter_watts: known(counter.map(|power| power.0)),
        integrated_watts: known(integrated.map(|power| power.0)),
        disagreement_percent: part.disagreement().map(|share| 100.0 * share),
    }
}

fn figure(found: &std::result::Result<Seconds, Unavailable>) -> Figure {
    known(found.as_ref().map(|time| time.0))
}

fn known(found: std::result::Result<f64, &Unavailable>) -> Figure {
    match found {
        Ok(value) => Figure::Known(value),
        Err(why) => Figure::Unknown {
            unavailable: why.reason.clone(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::sampler::Recording;
    use crate::measure::{Sample, VirtualClock};
    use crate::units::{Joules, Watts};

    /// What a board would show that idles for the time of [`SETTLE`] and a part, is loaded for a part, and then in turns.
    fn recording() -> Recording {
        let busy = |at: f64| {
            let (loaded, turns) = (SETTLE.0 + PART.0, SETTLE.0 + 2.0 * PART.0);
            at >= loaded
                && (at < turns || (((at - turns) / HALF_PERIOD.0) as u32).is_multiple_of(2))
        };
        let (mut joules, mut shown) = (1e6, 1e6);
        let samples = (0..10_000_u32).map(|i| {
            let at = f64::from(i) * POLL.0;
            let watts = if busy(at) { 500.0 } else { 80.0 };
            if i.is_multiple_of(50) {
                shown = joules;
            }
            joules += watts * POLL.0;
            Sample {
                at: Seconds(at),
                cost: Seconds(0.0004),
                energy: Some(Joules(shown)),
                power: Some(Watts(watts)),
                ..Sample::default()
            }
        });
        Recording {
            tape: Tape::of(samples.collect()),
            ..Recording::default()
        }
    }

    #[test]
    fn the_parts_of_the_test_are_read_as_they_go_by() {
        let clock = Arc::new(VirtualClock::new());
        let source = PowerSource::Tape(Box::new(recording()));
        let interrupt = Interrupt::new();
        let bed = Bed {
            source: &source,
            clock: clock.clone(),
            interrupt: &interrupt,
        };
        let mut round = || {
            clock.advance(Seconds(0.01));
            Ok(())
        };
        let (tape, schedule) = bed.read(&mut round).unwrap();
        let card = card("a board".to_owned(), &SelfTest::of(&tape, &schedule), None);
        assert_eq!(card.verdict, "counter and integral agree", "{card:#?}");
        let watts = |figure: &Figure| match figure {
            Figure::Known(watts) => *watts,
            Figure::Unknown { unavailable } => panic!("{unavailable}"),
        };
        for (part, expected) in card.parts.iter().zip([80.0, 500.0, 290.0]) {
            for source in [&part.counter_watts, &part.integrated_watts] {
                assert!((watts(source) / expected - 1.0).abs() < 0.03, "{card:#?}");
            }
        }
        assert!((watts(&card.counter_tick_s) - 0.1).abs() < 0.003);
        assert!(
            matches!(&card.average_window_s, Figure::Unknown { unavailable } if unavailable.contains("no averaged"))
        );
        // The clock moves by rounds alone, so the sampler costs nothing.
        assert!(bed.sampler_cost(&mut round).unwrap().abs() < 1e-9);
    }

    #[test]
    fn a_device_without_sensors_is_no_device() {
        let error = power_self_test(&Device::Cpu, &Interrupt::new()).unwrap_err();
        assert!(matches!(error, Error::NoDevice(_)) && error.exit_code() == 69);
        assert!(error.to_string().contains("'cpu'"), "{error}");
    }
}
