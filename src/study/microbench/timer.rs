//! Timing calls: warm-up, samples until a stop rule is met, and enough calls in a sample for the clock to tell.

use crate::error::Result;
use crate::kernels::Device;
use crate::measure::Interrupt;
use crate::measure::trial::{self, StopRule, WarmUp};
use crate::results::microbench::record::Timing;
use crate::units::{Clock, Seconds};

/// Times calls on one device.
pub(in super::super) struct Timer<'a> {
    pub(in super::super) device: &'a Device,
    pub(in super::super) clock: &'a dyn Clock,
    pub(in super::super) interrupt: &'a Interrupt,
    pub(in super::super) rule: StopRule,
    pub(in super::super) warm_up: WarmUp,
}

/// What the caches hold when a call begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Heat {
    /// Nothing of its buffers: calls take turns on all copies.
    Cold,
    /// Whatever the call before left there: all calls work on the first copy.
    Warm,
}

/// A call on the copy of this number; it may still be under way afterwards.
pub(in super::super) type Call<'c> = dyn FnMut(usize) -> Result<()> + Send + 'c;

/// A sample lasts at least this long, so that reading the clock and waking threads is nothing beside it.
const SAMPLE: Seconds = Seconds(2e-3);

/// The most calls in a sample.
const MOST_CALLS: f64 = 65_536.0;

impl Timer<'_> {
    /// What tells the time.
    pub(in super::super) fn name(&self) -> &'static str {
        "host clock"
    }

    /// Times calls on `copies` sets of buffers of `bytes` in all.
    ///
    /// # Errors
    /// If a call fails or the user interrupts.
    pub(in super::super) fn time(
        &self,
        call: &mut Call<'_>,
        copies: usize,
        bytes: u64,
        heat: Heat,
    ) -> Result<Timing> {
        // The turn goes on from sample to sample, so that a sample may be shorter than a round.
        let mut turn = 0;
        let mut sample = |calls: usize| -> Result<Seconds> {
            self.host_sample(calls, &mut |_| {
                let copy = match heat {
                    Heat::Cold => turn % copies,
                    Heat::Warm => 0,
                };
                turn += 1;
                call(copy)
            })
        };
        let mut warmup_samples = 0;
        let mut calls = 1;
        // Calls are doubled until a sample is long enough; the first call alone may be slow for reasons of its own.
        loop {
            let time = sample(calls)?;
            warmup_samples += 1;
            self.interrupt.check()?;
            if time >= SAMPLE || calls as f64 >= MOST_CALLS {
                break;
            }
            let needed = calls as f64 * SAMPLE.0 / time.0.max(1e-9);
            calls = (1.2 * needed)
                .clamp(2.0 * calls as f64, 16.0 * calls as f64)
                .min(MOST_CALLS) as usize;
        }
        let rest = WarmUp {
            min_trials: self.warm_up.min_trials.saturating_sub(warmup_samples),
            ..self.warm_up
        };
        warmup_samples += rest.run(self.clock, self.interrupt, |_| sample(calls).map(drop))?;
        let trials = trial::run(&self.rule, self.clock, self.interrupt, |_| {
            Ok(sample(calls)?.0 / calls as f64)
        })?;
        Ok(Timing {
            samples_s: trials.values,
            calls,
            copies,
            rotated_bytes: bytes,
            warmup_samples,
            stop_reason: trials.stopped.name().to_owned(),
        })
    }

    /// The time of so many calls by the host's clock, from asking for the first to the end of the last.
    fn host_sample(
        &self,
        calls: usize,
        call: &mut (dyn FnMut(usize) -> Result<()> + Send),
    ) -> Result<Seconds> {
        let (device, clock) = (self.device, self.clock);
        device.synchronize()?;
        device.enter(|| {
            let begin = clock.now();
            for i in 0..calls {
                call(i)?;
            }
            device.synchronize()?;
            Ok(clock.now() - begin)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::measure::VirtualClock;

    fn timed(each: f64, copies: usize, heat: Heat) -> (Timing, Vec<usize>) {
        let clock = VirtualClock::new();
        let interrupt = Interrupt::new();
        let timer = Timer {
            device: &Device::Cpu,
            clock: &clock,
            interrupt: &interrupt,
            rule: StopRule {
                min_trials: 3,
                min_time: Seconds(0.02),
                max_trials: None,
                max_time: None,
            },
            warm_up: WarmUp::default(),
        };
        let mut turns = Vec::new();
        let timing = timer
            .time(
                &mut |copy| {
                    clock.advance(Seconds(each));
                    turns.push(copy);
                    Ok(())
                },
                copies,
                1000,
                heat,
            )
            .unwrap();
        (timing, turns)
    }

    #[test]
    fn short_calls_share_a_sample_and_long_ones_do_not() {
        let (short, _) = timed(1e-5, 4, Heat::Cold);
        assert!((200..=400).contains(&short.calls), "{short:?}");
        assert!(short.samples_s.iter().all(|s| (s - 1e-5).abs() < 1e-9));
        assert!(short.samples_s.len() >= 3 && short.stop_reason == "enough");
        let (long, _) = timed(0.5, 4, Heat::Cold);
        assert_eq!((long.calls, long.samples_s.len()), (1, 3));
        assert_eq!(long.warmup_samples, 2);
    }

    #[test]
    fn cold_calls_take_turns_and_warm_ones_stay() {
        let (_, turns) = timed(0.5, 4, Heat::Cold);
        assert_eq!(turns, [0, 1, 2, 3, 0]);
        let (_, turns) = timed(0.5, 4, Heat::Warm);
        assert_eq!(turns, [0; 5]);
    }

    #[test]
    fn a_failing_call_and_an_interrupt_end_it() {
        let (clock, interrupt) = (VirtualClock::new(), Interrupt::new());
        let timer = Timer {
            device: &Device::Cpu,
            clock: &clock,
            interrupt: &interrupt,
            rule: StopRule::exactly(3),
            warm_up: WarmUp::default(),
        };
        let failed = timer.time(
            &mut |_| Err(Error::Device("gone".into())),
            1,
            1,
            Heat::Cold,
        );
        assert!(matches!(failed, Err(Error::Device(_))));
        interrupt.request();
        let stopped = timer.time(
            &mut |_| {
                clock.advance(Seconds(1.0));
                Ok(())
            },
            1,
            1,
            Heat::Cold,
        );
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }
}
