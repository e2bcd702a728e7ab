//! One cell of a sweep: warm up, repeat, keep every sample.
//!
//! Inside the timer: handing the prompts over, the forward pass, picking the next token, and its way to the host. On a GPU
//! all steps are asked for ahead and each token is stamped as it arrives; the device's own clock is read beside the host's.
//! Outside: making prompts, allocating, filling the cache to the wanted depth.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::energy::{Meter, Rounds};
use super::ledger;
use super::plan::{Plan, positions};
use super::prompts::random_tokens;
use super::target::Target;
use super::throttled::{self, Unslowed, Watched};
use super::work;
use crate::engine::{Arrivals, Footprint, Limits};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::interrupt::Interrupt;
use crate::measure::throttle::Cooling;
use crate::measure::trial::{self, Earlier, StopReason, WarmUp};
use crate::results::environment::Ceilings;
use crate::results::record::{Block, Cell, DeviceTime, Energy, Speed, Throttling, Trial, Work};
use crate::scheme::KvFormat;
use crate::units::{Clock, Seconds};

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
    pub(super) meter: &'a Meter,
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

/// A cell while its trials are made, in one go or in blocks between those of other variants.
pub(super) struct Timing {
    pub(super) cell: Cell,
    predicted: Option<Footprint>,
    trials: Vec<Watched>,
    blocks: Vec<Block>,
    throttling: Throttling,
    warmup_trials: usize,
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
        runner: &mut dyn Target,
        cell: Cell,
        predicted: Option<Footprint>,
    ) -> Result<Timing> {
        runner.prepare(limits(self.plan, self.device, &cell, self.kv))?;
        ledger::begin(self.device)?;
        self.meter.rest(self.interrupt)?;
        if cell.depth > 0 {
            runner.prefill(&self.prompts(&cell, DEPTH_TRIAL, cell.depth), 0)?;
        }
        Ok(Timing {
            cell,
            predicted,
            trials: Vec::new(),
            blocks: Vec::new(),
            throttling: Throttling::default(),
            warmup_trials: 0,
            made: 0,
            stopped: None,
        })
    }

    /// Makes the trials of a turn, or all where there are no turns; `progress` is told the share of all that is done. Gives
    /// whether the rule is met.
    pub(super) fn trials(
        &self,
        runner: &mut dyn Target,
        timing: &mut Timing,
        turn: Option<Turn>,
        mut progress: impl FnMut(f64),
    ) -> Result<bool> {
        let (whole, clock) = (&self.plan.rule, &*self.clock);
        let figures = |(trial, _): &(Trial, Vec<String>)| watched(trial);
        let earlier = Earlier::of(&timing.trials, figures);
        if timing.stopped.is_none() {
            timing.stopped = whole.met(&earlier.figures, earlier.elapsed);
        }
        if timing.stopped.is_some() {
            return Ok(true);
        }
        // Those that count.
        let before = earlier.figures.len();
        // Blocks before the last meet their share of the minima; what is to be known is known of all.
        let rest = match turn.filter(|turn| turn.number < turn.of) {
            None => None,
            Some(turn) => {
                let share = turn.number as f64 / turn.of as f64;
                match whole.rest_of(share, before, earlier.elapsed) {
                    Some(rest) => Some(rest),
                    None => return Ok(false),
                }
            }
        };
        let warm_up = match timing.trials.len() {
            0 => self.plan.warm_up,
            // Another variant ran since: what it left behind falls on one trial that does not count.
            _ => WarmUp {
                min_trials: self.plan.warm_up.min_trials.min(1),
                min_time: Seconds(0.0),
            },
        };
        let cell = timing.cell;
        let made = &mut timing.made;
        let mut one = |runner: &mut dyn Target| {
            *made += 1;
            self.trial(runner, &cell, *made)
        };
        timing.warmup_trials += warm_up.run(clock, self.interrupt, |_| one(runner).map(|_| ()))?;
        let mut unslowed = Unslowed {
            board: self.meter.board(),
            clock,
            interrupt: self.interrupt,
            cooling: Cooling::default(),
            found: std::mem::take(&mut timing.throttling),
        };
        let (mut number, mut elapsed) = (before, earlier.elapsed);
        let trial = |_: usize| {
            let made = unslowed.trial(&mut || one(runner))?;
            (number, elapsed) = (number + 1, elapsed + made.took);
            let counted = number as f64 / whole.min_trials.max(1) as f64;
            let timed = elapsed.0 / whole.min_time.0.max(1e-9);
            progress(counted.min(timed).min(1.0));
            Ok(made)
        };
        let block = match &rest {
            Some(rest) => {
                let earlier = earlier.of_next_block();
                trial::run_on(rest, &earlier, self.interrupt, trial, figures)?
            }
            None => trial::run_on(whole, &earlier, self.interrupt, trial, figures)?,
        };
        timing.throttling = unslowed.found;
        timing.blocks.extend(turn.map(|turn| Block {
            begin: Seconds(turn.begin),
            trials: block.values.len(),
        }));
        timing.trials.extend(block.values);
        timing.stopped = match (rest, block.stopped) {
            (Some(_), StopReason::Throttled) | (None, _) => Some(block.stopped),
            (Some(_), _) => {
                let all = Earlier::of(&timing.trials, figures);
                whole.met(&all.figures, all.elapsed)
            }
        };
        Ok(timing.stopped.is_some())
    }

    /// Measures what comes after the trials, and gives all that there is of the cell; `tell` is told the share of that.
    pub(super) fn finish(
        &self,
        runner: &mut dyn Target,
        timing: Timing,
        tell: &mut dyn FnMut(f64),
    ) -> Result<Speed> {
        let shared = !timing.blocks.is_empty();
        let memory = ledger::account(self.device, runner, timing.predicted, shared);
        let energy = self.energy(runner, &timing.cell, tell)?;
        let work = self.work(runner, &timing.cell);
        let settled = throttled::settle(timing.trials, timing.blocks, timing.throttling);
        Ok(Speed {
            trials: settled.trials,
            blocks: settled.blocks,
            warmup_trials: timing.warmup_trials,
            stop_reason: timing.stopped.map(|reason| reason.name().to_owned()),
            memory,
            energy,
            work,
            throttling: settled.throttling,
            configuration: Some(runner.configuration()),
        })
    }

    /// Times a cell in one go.
    #[cfg(test)]
    pub(super) fn cell(
        &self,
        runner: &mut dyn Target,
        cell: &Cell,
        predicted: Option<Footprint>,
        progress: impl FnMut(f64),
    ) -> Result<Speed> {
        let mut timing = self.begin(runner, *cell, predicted)?;
        self.trials(runner, &mut timing, None, progress)?;
        self.finish(runner, timing, &mut |_| ())
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
        // What is reported of a trial is what it produced, or nothing is.
        let (steps, tokens) = (arrivals.at.len(), arrivals.tokens.len());
        if (steps, tokens) != (cell.generate, cell.generate * cell.batch) {
            return Err(Error::Internal(format!(
                "a trial of {} sequences and {} tokens each gave {tokens} tokens in {steps} steps",
                cell.batch, cell.generate
            )));
        }
        trial_of(&arrivals)
    }

    /// The energy of the cell's work. candle's cache cannot be wound back, so that its decode has no depth of its own to be
    /// repeated at.
    fn energy(
        &self,
        runner: &mut dyn Target,
        cell: &Cell,
        tell: &mut dyn FnMut(f64),
    ) -> Result<Energy> {
        if runner.starts_anew() {
            return Ok(Energy::Unavailable {
                reason: "candle's cache cannot be wound back to repeat a decode".into(),
            });
        }
        let mut rounds = CellRounds {
            runner,
            cell,
            prompts: self.prompts(cell, 0, cell.prompt),
            last: Vec::new(),
            clock: &*self.clock,
        };
        self.meter.cell(&mut rounds, self.interrupt, tell)
    }
}

/// The work of a cell, to be repeated.
struct CellRounds<'a> {
    runner: &'a mut dyn Target,
    cell: &'a Cell,
    prompts: Vec<Vec<u32>>,
    /// What each prompt goes on with.
    last: Vec<Vec<u32>>,
    clock: &'a dyn Clock,
}

impl Rounds for CellRounds<'_> {
    fn prefill(&mut self) -> Result<u64> {
        let next = self.runner.prefill(&self.prompts, self.cell.depth)?;
        self.last = next.into_iter().map(|token| vec![token]).collect();
        Ok((self.cell.batch * self.cell.prompt) as u64)
    }

    /// Each token goes on as a prompt of one, and with it come as many steps as fit behind the prompt.
    fn decode(&mut self) -> Result<u64> {
        let steps = (self.cell.generate - 1).max(1);
        let at = self.cell.depth + self.cell.prompt;
        self.runner.generate(&self.last, at, steps, self.clock)?;
        Ok((steps * self.cell.batch) as u64)
    }
}

#[cfg(test)]
mod tests;
