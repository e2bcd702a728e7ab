//! One cell of a sweep: warm up, repeat, keep every sample.
//!
//! Inside the timer: handing the prompts over, the forward pass, picking the next token, and its way to the host. On a GPU
//! all steps are asked for ahead and each token is stamped as it arrives; the device's own clock is read beside the host's.
//! Outside: making prompts, allocating, filling the cache to the wanted depth.

use std::sync::Arc;

use super::plan::{Plan, positions};
use super::prompts::random_tokens;
use super::target::Target;
use super::work;
use crate::engine::{Arrivals, Limits};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::energy::energy_in;
use crate::measure::interrupt::Interrupt;
use crate::measure::memory::HostMemory;
use crate::measure::sampler::{DEFAULT_PERIOD, PowerSource, Sampler};
use crate::measure::trial;
use crate::measure::window::Window;
use crate::results::environment::Ceilings;
use crate::results::record::{
    Amount, Cell, DeviceTime, Energy, EnergyUse, Memory, Speed, Trial, Work,
};
use crate::scheme::KvFormat;
use crate::units::{Bytes, Clock};

/// Chunks of a prompt that the CPU and a GPU take by default: large enough to be limited by arithmetic.
const CPU_CHUNK: usize = 512;
const GPU_CHUNK: usize = 8192;

/// Prompts of this trial number fill the cache before the first one.
const DEPTH_TRIAL: u64 = u32::MAX as u64;

/// What timing needs beside the model.
pub(super) struct Bench<'a> {
    pub(super) plan: &'a Plan,
    pub(super) device: &'a Device,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) interrupt: &'a Interrupt,
    pub(super) power: &'a PowerSource,
    pub(super) vocab: usize,
    pub(super) kv: KvFormat,
    pub(super) ceilings: Option<&'a Ceilings>,
}

/// The engine's limits for a cell.
pub(super) fn limits(plan: &Plan, device: &Device, cell: &Cell, kv: KvFormat) -> Limits {
    let chunk = chunk_for(plan.chunk, device);
    Limits::new(cell.batch, positions(cell), chunk).with_kv(kv)
}

/// Tokens of a step: what was asked for, or the device's default.
pub(super) fn chunk_for(wish: Option<usize>, device: &Device) -> usize {
    wish.unwrap_or(match device {
        Device::Cpu => CPU_CHUNK,
        Device::Gpu(_) => GPU_CHUNK,
    })
}

/// What the stamps of a batch say.
fn trial_of(arrivals: &Arrivals) -> Result<Trial> {
    let (Some(&first), Some(&last)) = (arrivals.at.first(), arrivals.at.last()) else {
        return Err(Error::Internal("a trial without tokens".into()));
    };
    let gaps = arrivals.at.windows(2).map(|pair| pair[1] - pair[0]);
    let ttft = first - arrivals.start;
    Ok(Trial {
        ttft,
        prefill: ttft,
        decode: last - first,
        e2e: last - arrivals.start,
        itl: gaps.collect(),
        device: arrivals.device.map(|time| DeviceTime {
            prefill: time.prefill,
            decode: time.decode,
        }),
    })
}

/// What a stop rule watches of a trial: its TTFT, and its mean ITL if it decoded.
fn watched(trial: &Trial) -> Vec<f64> {
    let steps = trial.itl.len();
    let gap = (steps > 0).then(|| trial.decode.0 / steps as f64);
    [trial.ttft.0].into_iter().chain(gap).collect()
}

impl Bench<'_> {
    /// Times one cell; `progress` is told the share that is done.
    pub(super) fn cell(
        &self,
        runner: &mut dyn Target,
        cell: &Cell,
        predicted: Option<crate::engine::Footprint>,
        mut progress: impl FnMut(f64),
    ) -> Result<Speed> {
        runner.prepare(limits(self.plan, self.device, cell, self.kv))?;
        if cell.depth > 0 {
            runner.prefill(&self.prompts(cell, DEPTH_TRIAL, cell.depth), 0)?;
        }
        let clock = &*self.clock;
        let mut number = 0;
        let mut one = |runner: &mut dyn Target| {
            number += 1;
            self.trial(runner, cell, number)
        };
        let warmup_trials = self
            .plan
            .warm_up
            .run(clock, self.interrupt, |_| one(runner).map(|_| ()))?;
        let begin = clock.now();
        let trials = trial::run(
            &self.plan.rule,
            clock,
            self.interrupt,
            |i| {
                let result = one(runner);
                let rule = &self.plan.rule;
                let counted = (i + 1) as f64 / rule.min_trials.max(1) as f64;
                let timed = (clock.now() - begin).0 / rule.min_time.0.max(1e-9);
                progress(counted.min(timed).min(1.0));
                result
            },
            watched,
        )?;
        let memory = self.memory(runner, predicted);
        let energy = self.energy(runner, cell)?;
        let stop_reason = Some(trials.stopped.name().to_owned());
        let work = self.work(runner, cell);
        Ok(Speed {
            trials: trials.values,
            warmup_trials,
            stop_reason,
            memory,
            energy,
            work,
        })
    }

    /// What a trial must move and compute at least; unknown of candle's models.
    fn work(&self, runner: &dyn Target, cell: &Cell) -> Option<Box<Work>> {
        let (weights, plan) = runner.known_work()?;
        let chunk = limits(self.plan, self.device, cell, self.kv).chunk;
        let work = work::of_cell(
            (weights, plan),
            cell,
            chunk,
            self.kv,
            self.device,
            self.ceilings,
        );
        Some(Box::new(work))
    }

    fn prompts(&self, cell: &Cell, trial: u64, count: usize) -> Vec<Vec<u32>> {
        let row = |row| random_tokens(self.plan.seed, trial, row, count, self.vocab);
        (0..cell.batch as u64).map(row).collect()
    }

    /// A batch of prompts in, `generate` tokens of each out, every one stamped as it becomes visible here.
    fn trial(&self, runner: &mut dyn Target, cell: &Cell, number: u64) -> Result<Trial> {
        let mut prompts = self.prompts(cell, number, cell.prompt);
        if runner.starts_anew() && cell.depth > 0 {
            // candle's models start every sequence anew: the depth is part of the prompt, and of the time.
            let depth = self.prompts(cell, DEPTH_TRIAL, cell.depth);
            prompts = depth
                .into_iter()
                .zip(prompts)
                .map(|(d, p)| [d, p].concat())
                .collect();
        }
        let arrivals = runner.generate(&prompts, cell.depth, cell.generate, &*self.clock)?;
        trial_of(&arrivals)
    }

    fn memory(&self, runner: &dyn Target, predicted: Option<crate::engine::Footprint>) -> Memory {
        let held = runner.footprint();
        let amount = |pick: fn(&crate::engine::Footprint) -> Bytes| Amount {
            predicted: predicted.as_ref().map(pick),
            measured: held.as_ref().map(pick),
        };
        // On a GPU, what is used of it now; on the CPU, what this process has resident.
        let total = match self.device.memory() {
            Some((free, total)) => Some(Bytes(total - free)),
            None => HostMemory::now().resident,
        };
        Memory {
            weights: Amount {
                measured: Some(runner.weight_bytes()),
                ..amount(|f| f.weights)
            },
            kv: amount(|f| f.kv),
            activations: amount(|f| f.activations),
            total: Amount {
                measured: total,
                ..amount(crate::engine::Footprint::total)
            },
        }
    }

    /// Prefill alone, then decode alone, each repeated for long enough that the counter can tell.
    fn energy(&self, runner: &mut dyn Target, cell: &Cell) -> Result<Energy> {
        if let PowerSource::None(why) = self.power {
            return Ok(Energy::Unavailable {
                reason: why.reason.clone(),
            });
        }
        let sampler = Sampler::start(self.power, DEFAULT_PERIOD, Arc::clone(&self.clock));
        let prompts = self.prompts(cell, 0, cell.prompt);
        let mut tokens = Vec::new();
        let (prefill, passes) = self.repeat(|| {
            tokens = runner.prefill(&prompts, cell.depth)?;
            Ok(1)
        })?;
        // Each token goes on as a prompt of one, and with it come as many steps as fit behind the prompt.
        let steps_each = (cell.generate - 1).max(1);
        let (decode, steps) = self.repeat(|| {
            let last: Vec<Vec<u32>> = tokens.iter().map(|&token| vec![token]).collect();
            let at = cell.depth + cell.prompt;
            runner.generate(&last, at, steps_each, &*self.clock)?;
            Ok(steps_each)
        })?;
        let tape = sampler.stop();
        let (in_prefill, in_decode) = (energy_in(&tape, prefill), energy_in(&tape, decode));
        let (joules_prefill, joules_decode) = match (in_prefill.gross(), in_decode.gross()) {
            (Ok((a, _)), Ok((b, _))) => (a, b),
            (Err(why), _) | (_, Err(why)) => {
                return Ok(Energy::Unavailable {
                    reason: why.reason.clone(),
                });
            }
        };
        let conditions = tape.conditions(Window::new(prefill.begin, decode.end));
        Ok(Energy::Measured(EnergyUse {
            prefill: joules_prefill,
            decode: joules_decode,
            prefill_time: prefill.duration(),
            decode_time: decode.duration(),
            prompt_tokens: (passes * cell.batch * cell.prompt) as u64,
            generated_tokens: (steps * cell.batch) as u64,
            mean_power: in_decode.power(),
            idle_power: None,
            sm_clock_mhz: conditions.sm_clock_mhz,
            memory_clock_mhz: conditions.memory_clock_mhz,
            temperature_c: conditions
                .temperature_celsius
                .map(|(first, last)| f64::from(first.max(last))),
            throttle_reasons: conditions
                .throttled
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect(),
        }))
    }

    /// Calls `work` for the length of an energy window; gives the window and the sum of what it returned.
    fn repeat(&self, mut work: impl FnMut() -> Result<usize>) -> Result<(Window, usize)> {
        let begin = self.clock.now();
        let mut sum = 0;
        loop {
            self.interrupt.check()?;
            sum += work()?;
            let end = self.clock.now();
            if end - begin >= self.plan.energy_window {
                return Ok((Window::new(begin, end), sum));
            }
        }
    }
}
