//! One cell of a sweep: warm up, repeat, keep every sample.
//!
//! Inside the timer: handing the prompts over, the forward pass, picking the next token, and its way to the host. On a GPU
//! all steps are asked for ahead and each token is stamped as it arrives; the device's own clock is read beside the host's.
//! Outside: making prompts, allocating, filling the cache to the wanted depth.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::facts;
use super::plan::{Plan, positions};
use super::prompts::random_tokens;
use super::runner::Runner;
use super::work;
use crate::engine::{Arrivals, Footprint, Limits};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::energy::energy_in;
use crate::measure::gpu_memory_of_this_process as own_memory;
use crate::measure::interrupt::Interrupt;
use crate::measure::memory::HostMemory;
use crate::measure::sampler::{DEFAULT_PERIOD, PowerSource, Sampler};
use crate::measure::trial::{self, Decision, StopReason, WarmUp};
use crate::measure::window::Window;
use crate::results::environment::Ceilings;
use crate::results::record::{
    Amount, Block, Cell, DeviceTime, Energy, EnergyUse, Memory, Speed, Trial, Work,
};
use crate::scheme::KvFormat;
use crate::units::{Bytes, Clock, Seconds};

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

/// A cell while its trials are made, in one go or in blocks between those of other variants.
pub(super) struct Timing {
    pub(super) cell: Cell,
    predicted: Option<Footprint>,
    trials: Vec<Trial>,
    blocks: Vec<Block>,
    warmup_trials: usize,
    /// Time that the counted trials took.
    elapsed: Seconds,
    /// Trials so far, those that do not count among them: each has prompts of its own.
    made: u64,
    stopped: Option<StopReason>,
}

/// A variant's turn at a cell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Turn {
    /// Which turn it is, from one on.
    pub(super) number: usize,
    /// Turns that share the trials of the rule.
    pub(super) of: usize,
    /// When it begins, from the beginning of the run.
    pub(super) begin: f64,
}

impl Bench<'_> {
    /// Makes room for a cell and fills its cache to the wanted depth.
    pub(super) fn begin(
        &self,
        runner: &mut Runner,
        cell: Cell,
        predicted: Option<Footprint>,
    ) -> Result<Timing> {
        runner.prepare(limits(self.plan, self.device, &cell, self.kv))?;
        if cell.depth > 0 {
            runner.prefill(&self.prompts(&cell, DEPTH_TRIAL, cell.depth), 0)?;
        }
        Ok(Timing {
            cell,
            predicted,
            trials: Vec::new(),
            blocks: Vec::new(),
            warmup_trials: 0,
            elapsed: Seconds(0.0),
            made: 0,
            stopped: None,
        })
    }

    /// Makes the trials of a turn, or all where there are no turns; `progress` is told the share of all that is done. Gives
    /// whether the rule is met.
    pub(super) fn trials(
        &self,
        runner: &mut Runner,
        timing: &mut Timing,
        turn: Option<Turn>,
        mut progress: impl FnMut(f64),
    ) -> Result<bool> {
        let (rule, clock) = (&self.plan.rule, &*self.clock);
        let share = turn.map_or(1.0, |turn| turn.number as f64 / turn.of as f64);
        let (before, elapsed) = (timing.trials.len(), timing.elapsed);
        let Some(rest) = rule.rest_of(share, before, elapsed) else {
            return Ok(timing.stopped.is_some());
        };
        let warm_up = match before {
            0 => self.plan.warm_up,
            // Another variant ran since: what it left behind falls on one trial that does not count.
            _ => WarmUp {
                min_trials: self.plan.warm_up.min_trials.min(1),
                min_time: Seconds(0.0),
            },
        };
        let cell = timing.cell;
        let mut one = |runner: &mut Runner| {
            timing.made += 1;
            self.trial(runner, &cell, timing.made)
        };
        timing.warmup_trials += warm_up.run(clock, self.interrupt, |_| one(runner).map(|_| ()))?;
        let begin = clock.now();
        let block = trial::run(&rest, clock, self.interrupt, |i| {
            let result = one(runner);
            let counted = (before + i + 1) as f64 / rule.min_trials.max(1) as f64;
            let timed = (elapsed + (clock.now() - begin)).0 / rule.min_time.0.max(1e-9);
            progress(counted.min(timed).min(1.0));
            result
        })?;
        timing.blocks.extend(turn.map(|turn| Block {
            begin: Seconds(turn.begin),
            trials: block.values.len(),
        }));
        timing.elapsed = elapsed + block.window.duration();
        timing.trials.extend(block.values);
        timing.stopped = match rule.decide(timing.trials.len(), timing.elapsed) {
            Decision::Stop(reason) => Some(reason),
            Decision::Continue => None,
        };
        Ok(timing.stopped.is_some())
    }

    /// Measures what comes after the trials, and gives all that there is of the cell.
    pub(super) fn finish(&self, runner: &mut Runner, timing: Timing) -> Result<Speed> {
        let memory = self.memory(runner, &timing);
        let energy = self.energy(runner, &timing.cell)?;
        let work = self.work(runner, &timing.cell);
        Ok(Speed {
            trials: timing.trials,
            blocks: timing.blocks,
            warmup_trials: timing.warmup_trials,
            stop_reason: timing.stopped.map(|reason| reason.name().to_owned()),
            memory,
            energy,
            work,
        })
    }

    /// What a trial must move and compute at least; unknown of candle's models.
    fn work(&self, runner: &Runner, cell: &Cell) -> Option<Box<Work>> {
        let (weights, plan) = (runner.weights()?, runner.step_plan()?);
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
    fn trial(&self, runner: &mut Runner, cell: &Cell, number: u64) -> Result<Trial> {
        let mut prompts = self.prompts(cell, number, cell.prompt);
        if matches!(runner, Runner::Candle(_)) && cell.depth > 0 {
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

    fn memory(&self, runner: &Runner, timing: &Timing) -> Memory {
        let held = runner.footprint();
        let amount = |pick: fn(&Footprint) -> Bytes| Amount {
            predicted: timing.predicted.as_ref().map(pick),
            measured: held.as_ref().map(pick),
        };
        // On a GPU, what is used of it now, unless others that take turns hold some of that; on the CPU, what this process
        // has resident.
        let total = match (self.device.memory(), timing.blocks.is_empty()) {
            (Some((free, total)), true) => Some(Bytes(total - free)),
            (Some(_), false) => facts::selector(self.device).and_then(|gpu| own_memory(&gpu)),
            (None, _) => HostMemory::now().resident,
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
                ..amount(Footprint::total)
            },
        }
    }

    /// Prefill alone, then decode alone, each repeated for long enough that the counter can tell.
    fn energy(&self, runner: &mut Runner, cell: &Cell) -> Result<Energy> {
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
