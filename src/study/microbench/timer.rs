//! Timing calls: warm-up, samples until a stop rule is met, and enough calls in a sample for the clock to tell.
//!
//! On the CPU a sample is a loop of calls between two readings of the host's clock. On a GPU the calls of a sample are
//! recorded into a graph once, and each sample is a replay between two events: the host takes no part in it.

use std::cell::RefCell;

use crate::error::Result;
use crate::kernels::fill::Filling;
use crate::kernels::gpu::{Event, Gpu, Graph};
use crate::kernels::stream::ReadAll;
use crate::kernels::{Buf, BufType, Device};
use crate::measure::Interrupt;
use crate::measure::trial::{self, StopRule, WarmUp};
use crate::results::microbench::record::Timing;
use crate::scheme::DType;
use crate::units::{Clock, Seconds};

/// Times calls on one device.
pub(in super::super) struct Timer<'a> {
    pub(in super::super) device: &'a Device,
    clock: &'a dyn Clock,
    interrupt: &'a Interrupt,
    rule: StopRule,
    warm_up: WarmUp,
    /// What is read before every cold sample on a GPU; made when it is first needed.
    flush: RefCell<Option<Flush>>,
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

/// A sample by the host's clock lasts at least this long, so that reading it and waking threads is nothing beside it.
const HOST_SAMPLE: Seconds = Seconds(2e-3);
/// And one between two events, which come with a microsecond or two of their own.
const GRAPH_SAMPLE: Seconds = Seconds(1e-3);

/// The most calls in a sample.
const MOST_CALLS: usize = 65_536;
/// And in a graph.
const MOST_NODES: usize = 1024;

impl<'a> Timer<'a> {
    pub(in super::super) fn new(
        device: &'a Device,
        clock: &'a dyn Clock,
        interrupt: &'a Interrupt,
        rule: StopRule,
        warm_up: WarmUp,
    ) -> Self {
        Self {
            device,
            clock,
            interrupt,
            rule,
            warm_up,
            flush: RefCell::new(None),
        }
    }

    /// What tells the time.
    pub(in super::super) fn name(&self) -> &'static str {
        match self.device {
            Device::Cpu => "host clock",
            Device::Gpu(_) => "events over graph replays",
        }
    }

    /// Times calls on `copies` sets of buffers of `bytes` in all. The first call on a GPU is made outside of any graph.
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
        let copy_of = |turn: usize| match heat {
            Heat::Cold => turn % copies,
            Heat::Warm => 0,
        };
        let samples = match self.device {
            Device::Cpu => {
                // The turn goes on from sample to sample, so that a sample may be shorter than a round.
                let mut turn = 0;
                let mut next = || {
                    turn += 1;
                    call(copy_of(turn - 1))
                };
                let (calls, tried) = self.enough_calls(&mut next)?;
                self.samples(calls, tried, &mut || self.host_sample(calls, &mut next))?
            }
            Device::Gpu(gpu) => {
                let flush = heat == Heat::Cold;
                let events = [gpu.event()?, gpu.event()?];
                call(copy_of(0))?;
                let first = self.recorded(gpu, 1, &mut |i| call(copy_of(i)))?;
                let alone = self.graph_sample(gpu, &events, &first, flush)?;
                let calls = graph_calls(gpu, alone);
                let graph = self.recorded(gpu, calls, &mut |i| call(copy_of(i)))?;
                self.samples(calls, 1, &mut || {
                    self.graph_sample(gpu, &events, &graph, flush)
                })?
            }
        };
        let (calls, warmup_samples, trials) = samples;
        Ok(Timing {
            samples_s: trials.values,
            calls,
            copies,
            rotated_bytes: bytes,
            warmup_samples,
            stop_reason: trials.stopped.name().to_owned(),
        })
    }

    /// Samples of so many calls, `tried` of which have been made: what is left of the warm-up, then what counts.
    fn samples(
        &self,
        calls: usize,
        tried: usize,
        sample: &mut dyn FnMut() -> Result<Seconds>,
    ) -> Result<(usize, usize, trial::Trials<f64>)> {
        let rest = WarmUp {
            min_trials: self.warm_up.min_trials.saturating_sub(tried),
            ..self.warm_up
        };
        let more = rest.run(self.clock, self.interrupt, |_| sample().map(drop))?;
        let time = |_| Ok(sample()?.0 / calls as f64);
        let watched = |&time: &f64| vec![time];
        let trials = trial::run(&self.rule, self.clock, self.interrupt, time, watched)?;
        Ok((calls, tried + more, trials))
    }

    /// How many calls make a sample by the host's clock, and how many samples that took to find out. They are doubled
    /// until a sample is long enough: the first call alone may be slow for reasons of its own.
    fn enough_calls(
        &self,
        next: &mut (dyn FnMut() -> Result<()> + Send),
    ) -> Result<(usize, usize)> {
        let mut calls = 1;
        for tried in 1.. {
            let time = self.host_sample(calls, next)?;
            self.interrupt.check()?;
            if time >= HOST_SAMPLE || calls == MOST_CALLS {
                return Ok((calls, tried));
            }
            let needed = 1.2 * calls as f64 * HOST_SAMPLE.0 / time.0.max(1e-9);
            calls = (needed as usize)
                .clamp(2 * calls, 16 * calls)
                .min(MOST_CALLS);
        }
        unreachable!("calls grow until they are enough")
    }

    /// The time of so many calls by the host's clock.
    fn host_sample(
        &self,
        calls: usize,
        next: &mut (dyn FnMut() -> Result<()> + Send),
    ) -> Result<Seconds> {
        let clock = self.clock;
        self.device.enter(|| {
            let begin = clock.now();
            for _ in 0..calls {
                next()?;
            }
            Ok(clock.now() - begin)
        })
    }

    fn recorded(
        &self,
        gpu: &Gpu,
        calls: usize,
        call: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Graph> {
        self.interrupt.check()?;
        gpu.capture(|| (0..calls).try_for_each(call))
    }

    /// The time of one replay by the device's own clock.
    fn graph_sample(
        &self,
        gpu: &Gpu,
        [start, end]: &[Event; 2],
        graph: &Graph,
        flush: bool,
    ) -> Result<Seconds> {
        if flush {
            self.flush(gpu)?;
        }
        gpu.record(start)?;
        graph.launch()?;
        gpu.record(end)?;
        gpu.elapsed(start, end)
    }

    /// Fills the second-level cache with something else. It is read, not written: written lines would have to go back
    /// to memory while the sample runs.
    fn flush(&self, gpu: &Gpu) -> Result<()> {
        let mut held = self.flush.borrow_mut();
        let Flush { op, x, out } = match &mut *held {
            Some(flush) => flush,
            none => none.insert(Flush::new(self.device, gpu)?),
        };
        op.run(self.device, x, out)
    }
}

/// Calls for a graph of about [`GRAPH_SAMPLE`], one of which takes `alone`.
fn graph_calls(gpu: &Gpu, alone: Seconds) -> usize {
    // The emulator's clock counts launches; there is nothing to be gained by many.
    if gpu.kind() == "emulator" {
        return 2;
    }
    let needed = GRAPH_SAMPLE.0 / alone.0.max(1e-7);
    (needed.ceil() as usize).clamp(1, MOST_NODES)
}

/// More than the second-level cache holds.
struct Flush {
    op: ReadAll,
    x: Buf,
    out: Buf,
}

impl Flush {
    fn new(device: &Device, gpu: &Gpu) -> Result<Self> {
        let op = ReadAll::new(2 * gpu.facts().cache_bytes.max(4) / 4);
        let mut x = device.alloc(BufType::Float(DType::F32), op.count)?;
        Filling::Constant(1.0).run(device, &mut x, 0, op.count)?;
        let out = device.alloc(BufType::U32, op.results(device))?;
        Ok(Self { op, x, out })
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
        let rule = StopRule {
            min_trials: 3,
            min_time: Seconds(0.02),
            ..StopRule::default()
        };
        let timer = Timer::new(&Device::Cpu, &clock, &interrupt, rule, WarmUp::default());
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
        let rule = StopRule::exactly(3);
        let timer = Timer::new(&Device::Cpu, &clock, &interrupt, rule, WarmUp::default());
        let failed = timer.time(&mut |_| Err(Error::Device("gone".into())), 1, 1, Heat::Cold);
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
