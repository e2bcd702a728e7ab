//! The energy of a cell: prefill alone, then decode alone, each repeated over a window of its own while a thread reads the
//! board's sensors.
//!
//! Before each window runs the same work, for power is averaged over a second and clocks need time to settle. A window is
//! long beside the counter's ticks, and its energy is taken between the first and the last of them
//! ([`measure::energy`](crate::measure::energy)). Nothing is attributed to spans below a second.

use std::cell::RefCell;
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::measure::energy::{EnergyReading, REJECTED_ABOVE, energy_in};
use crate::measure::gpu::others;
use crate::measure::sampler::{DEFAULT_PERIOD, PowerSource, Sampler};
use crate::measure::{Board, Interrupt, Tape, Unavailable, Window};
use crate::results::record::{Energy, EnergyCheck, EnergyUse, Sampling};
use crate::units::{Clock, Seconds, Watts};

/// How long energy is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EnergyPlan {
    /// Length of each of the two windows; none are measured if it is zero.
    pub window: Seconds,
    /// How long the same work runs before each.
    pub pre_roll: Seconds,
    /// How long the loaded board is watched doing nothing; not at all if it is zero.
    pub idle: Seconds,
}

impl Default for EnergyPlan {
    fn default() -> Self {
        Self {
            window: Seconds(10.0),
            pre_roll: Seconds(3.0),
            idle: Seconds(5.0),
        }
    }
}

/// How long the board is watched right after work, while its clocks are still up.
const AFTER_WORK: Seconds = Seconds(2.0);

/// The usual time between two ticks of a sensor.
const TICK: Seconds = Seconds(0.1);

/// A round is in step with the sensor if it is as near as this to a multiple of the tick, as a share of the tick.
const IN_STEP: f64 = 0.1;

/// Time between two pauses that break the step.
const BETWEEN_PAUSES: Seconds = Seconds(1.0);

/// The work of a cell in rounds.
pub(super) trait Rounds {
    /// Runs the prompts of a batch; gives how many tokens they have.
    fn prefill(&mut self) -> Result<u64>;

    /// Decodes behind the last prompts, from the same depth each time; gives how many tokens it made.
    fn decode(&mut self) -> Result<u64>;
}

/// Measures energy on one board.
pub(super) struct Meter {
    source: PowerSource,
    clock: Arc<dyn Clock>,
    plan: EnergyPlan,
    seed: u64,
    /// The draw before anything was opened on the board.
    bare_idle: Result<Watts, Unavailable>,
    /// The processes of the run that have a context on the board, this one among them; empty if it is the only one.
    peers: RefCell<Vec<u32>>,
    /// The draw of the board as it is loaded now, when nothing runs. Variants that take turns are all loaded, so the
    /// contexts of the others are part of it.
    idle: RefCell<Option<Result<Watts, Unavailable>>>,
}

/// A window in which work was repeated.
#[derive(Debug, Clone, Copy)]
struct Repeated {
    window: Window,
    rounds: u64,
    tokens: u64,
    pauses: Seconds,
}

impl Meter {
    /// Reads `source`; `seed` chooses the lengths of pauses.
    pub(super) fn new(
        source: PowerSource,
        clock: Arc<dyn Clock>,
        plan: EnergyPlan,
        seed: u64,
    ) -> Self {
        Self {
            source,
            clock,
            plan,
            seed,
            bare_idle: opened_before(),
            peers: RefCell::new(Vec::new()),
            idle: RefCell::new(None),
        }
    }

    /// With what the board drew before anything was opened on it.
    pub(super) fn with_bare_idle(self, bare_idle: Result<Watts, Unavailable>) -> Self {
        Self { bare_idle, ..self }
    }

    /// The board itself, where there is one.
    pub(super) fn board(&self) -> Option<&dyn Board> {
        self.source.board()
    }

    /// These are the processes of the run that have a context on the board now, this one among them.
    pub(super) fn meet(&self, peers: Vec<u32>) {
        *self.peers.borrow_mut() = peers;
    }

    /// Something else is loaded from now on.
    pub(super) fn forget(&self) {
        *self.idle.borrow_mut() = None;
    }

    /// Why nothing can be measured.
    fn obstacle(&self) -> Option<Unavailable> {
        if let PowerSource::None(why) = &self.source {
            return Some(why.clone());
        }
        if self.plan.window <= Seconds(0.0) {
            return Some(Unavailable::because("switched off: --energy-window 0"));
        }
        // Ours are this one, the one that has started it, and those of the variants that it takes turns with. These are
        // idle now: a run asks one worker at a time and waits for its answer, by when its work on the device is done.
        let mut ours = self.peers.borrow().clone();
        let contexts = ours.len().max(1);
        ours.push(std::process::id());
        #[cfg(unix)]
        ours.push(std::os::unix::process::parent_id());
        let processes = self.source.processes();
        match processes.map(|list| others(&list, &ours, contexts)) {
            Some(others @ 1..) => {
                let them = if others == 1 {
                    "process has"
                } else {
                    "processes have"
                };
                Some(Unavailable::because(format!(
                    "the GPU is shared: {others} other {them} a context on it, and energy is counted for the whole board"
                )))
            }
            _ => None,
        }
    }

    /// Finds what the loaded board draws when nothing runs, unless that is known already.
    ///
    /// # Errors
    /// [`Interrupted`](crate::error::Error::Interrupted).
    pub(super) fn rest(&self, interrupt: &Interrupt) -> Result<()> {
        if self.idle.borrow().is_some() {
            return Ok(());
        }
        *self.idle.borrow_mut() = Some(self.draw_of_nothing(interrupt)?);
        Ok(())
    }

    /// The draw as long as nothing is asked of the device, or why it is not known.
    ///
    /// # Errors
    /// [`Interrupted`](crate::error::Error::Interrupted).
    pub(super) fn draw_of_nothing(
        &self,
        interrupt: &Interrupt,
    ) -> Result<Result<Watts, Unavailable>> {
        if let Some(why) = self.obstacle() {
            return Ok(Err(why));
        }
        if self.plan.idle <= Seconds(0.0) {
            return Ok(Err(Unavailable::because("switched off: --idle-window 0")));
        }
        interrupt.wait(self.plan.pre_roll, &*self.clock)?;
        let sampler = self.sampler();
        let window = self.nothing(self.plan.idle, interrupt)?;
        Ok(power_in(&sampler.stop(), window))
    }

    /// The energy of a cell; `tell` is told the share of the time it takes that has passed.
    ///
    /// # Errors
    /// What the work fails with, or [`Interrupted`](crate::error::Error::Interrupted).
    pub(super) fn cell(
        &self,
        rounds: &mut dyn Rounds,
        interrupt: &Interrupt,
        tell: &mut dyn FnMut(f64),
    ) -> Result<Energy> {
        if let Some(why) = self.obstacle() {
            return Ok(Energy::Unavailable { reason: why.reason });
        }
        let begin = self.clock.now();
        let whole = 2.0 * (self.plan.pre_roll.0 + self.plan.window.0) + AFTER_WORK.0;
        let mut told = |clock: &dyn Clock| tell(((clock.now() - begin).0 / whole).min(1.0));
        let sampler = self.sampler();
        let prefill = self.repeat(
            &mut || {
                told(&*self.clock);
                rounds.prefill()
            },
            interrupt,
        )?;
        let decode = self.repeat(
            &mut || {
                told(&*self.clock);
                rounds.decode()
            },
            interrupt,
        )?;
        let after = self.nothing(AFTER_WORK, interrupt)?;
        let tape = sampler.stop();
        Ok(self.energy(&tape, prefill, decode, after))
    }

    fn sampler(&self) -> Sampler {
        Sampler::start(&self.source, DEFAULT_PERIOD, Arc::clone(&self.clock))
    }

    /// A window in which nothing is asked of the device.
    fn nothing(&self, length: Seconds, interrupt: &Interrupt) -> Result<Window> {
        let begin = self.clock.now();
        interrupt.wait(length, &*self.clock)?;
        Ok(Window::new(begin, self.clock.now()))
    }

    /// Repeats `round` for the pre-roll, then for a window.
    fn repeat(
        &self,
        round: &mut dyn FnMut() -> Result<u64>,
        interrupt: &Interrupt,
    ) -> Result<Repeated> {
        let clock = &*self.clock;
        let begin = clock.now();
        let mut rounds = 0_u32;
        let period = loop {
            interrupt.check()?;
            round()?;
            rounds += 1;
            let time = clock.now() - begin;
            if time >= self.plan.pre_roll {
                break Seconds(time.0 / f64::from(rounds));
            }
        };
        let mut done = Repeated {
            window: Window::new(clock.now(), clock.now()),
            rounds: 0,
            tokens: 0,
            pauses: Seconds(0.0),
        };
        let mut pacing = in_step(period).then(|| ChaCha8Rng::seed_from_u64(self.seed));
        let mut paused = done.window.begin;
        loop {
            interrupt.check()?;
            done.tokens += round()?;
            done.rounds += 1;
            let end = clock.now();
            done.window.end = end;
            if done.window.duration() >= self.plan.window {
                return Ok(done);
            }
            if let Some(rng) = pacing.as_mut().filter(|_| end - paused >= BETWEEN_PAUSES) {
                interrupt.wait(Seconds(rng.random_range(0.0..TICK.0)), clock)?;
                paused = clock.now();
                done.pauses = done.pauses + (paused - end);
            }
        }
    }

    /// What the tape says of the windows.
    fn energy(&self, tape: &Tape, prefill: Repeated, decode: Repeated, after: Window) -> Energy {
        let read = |done: &Repeated| energy_in(tape, done.window);
        let (in_prefill, in_decode) = (read(&prefill), read(&decode));
        let ((prefill_joules, _), (decode_joules, _)) =
            match (in_prefill.gross(), in_decode.gross()) {
                (Ok(a), Ok(b)) => (a, b),
                (Err(why), _) | (_, Err(why)) => {
                    return Energy::Unavailable {
                        reason: why.reason.clone(),
                    };
                }
            };
        let phases = [("prefill", &in_prefill), ("decode", &in_decode)];
        let mut missing = Vec::new();
        let mut known = |what: &str, found: Result<Watts, Unavailable>| {
            found
                .map_err(|why| missing.push(format!("{what}: {why}")))
                .ok()
        };
        let bare = self.bare_idle.clone();
        let idle_power_without_context = known("idle power without a context", bare);
        let not_taken = || Err(Unavailable::because("not taken"));
        let idle = self.idle.borrow().clone().unwrap_or_else(not_taken);
        let idle_power = known("idle power", idle);
        let after_work_power = known("power right after work", power_in(tape, after));
        let facts = self.source.facts();
        let limit = facts
            .power_limit
            .ok_or_else(|| Unavailable::because("the driver does not tell"));
        let power_limit = known("power limit", limit);
        for (phase, reading) in phases {
            if let Err(why) = &reading.counter {
                missing.push(format!("energy counter in {phase}: {why}"));
            }
            if let Err(why) = &reading.integrated {
                missing.push(format!("integrated power in {phase}: {why}"));
            }
        }
        let conditions = tape.conditions(Window::new(prefill.window.begin, decode.window.end));
        let rejected = phases.iter().find(|(_, reading)| reading.is_rejected());
        Energy::Measured(Box::new(EnergyUse {
            prefill: prefill_joules,
            decode: decode_joules,
            prefill_time: prefill.window.duration(),
            decode_time: decode.window.duration(),
            prompt_tokens: prefill.tokens,
            generated_tokens: decode.tokens,
            mean_power: in_decode.power(),
            idle_power_without_context,
            idle_power,
            after_work_power,
            power_limit,
            sm_clock_mhz: conditions.sm_clock_mhz,
            memory_clock_mhz: conditions.memory_clock_mhz,
            temperature_c: conditions.temperature_max_celsius.map(f64::from),
            throttle_reasons: conditions
                .throttled
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect(),
            prefill_check: Some(check(tape, &in_prefill, &prefill)),
            decode_check: Some(check(tape, &in_decode, &decode)),
            rejected: rejected.map(|(phase, reading)| {
                format!(
                    "in {phase}, counter and integrated power differ by {:.1} %, more than {:.0} %",
                    100.0 * reading.disagreement().unwrap_or(f64::NAN),
                    100.0 * REJECTED_ABOVE
                )
            }),
            sampling: tape.cost().map(|cost| Sampling {
                reads: cost.reads,
                mean: cost.mean,
                p99: cost.p99,
                max: cost.max,
                share: cost.share,
            }),
            missing,
        }))
    }
}

/// The draw before anything is opened on a board that is open already.
pub(super) fn opened_before() -> Result<Watts, Unavailable> {
    Err(Unavailable::because("the device had been opened before"))
}

/// Mean power over a window.
fn power_in(tape: &Tape, window: Window) -> Result<Watts, Unavailable> {
    let reading = energy_in(tape, window);
    match reading.gross() {
        Ok((energy, _)) => Ok(energy / window.duration()),
        Err(why) => Err(why.clone()),
    }
}

/// Whether rounds of this length keep step with the sensor: it looks at a part of its tick only, and would see the same
/// part of every round.
fn in_step(period: Seconds) -> bool {
    let ticks = period.0 / TICK.0;
    ticks.round() >= 1.0 && (ticks - ticks.round()).abs() <= IN_STEP
}

/// How an energy was found.
fn check(tape: &Tape, reading: &EnergyReading, done: &Repeated) -> EnergyCheck {
    let counter = reading.counter.as_ref().ok();
    let source = reading.gross().map_or("", |(_, source)| source.name());
    EnergyCheck {
        source: source.to_owned(),
        ticks: counter.map(|counter| counter.ticks),
        edge_error: counter.map(|counter| counter.edge_error),
        integrated: reading.integrated.as_ref().ok().copied(),
        disagreement: reading.disagreement().filter(|share| share.is_finite()),
        suspect: reading.is_suspect(),
        rounds: done.rounds,
        pauses: done.pauses,
        sm_clock_mhz: tape.conditions(done.window).sm_clock_mhz,
    }
}

#[cfg(test)]
mod tests;
