//! How often something is repeated before its samples are believed.

use std::fmt;

use super::interrupt::Interrupt;
use super::window::Window;
use crate::error::Result;
use crate::units::{Clock, Seconds};

/// When enough trials have been made: both minima are met, or one of the limits is reached.
///
/// The default is that of hyperfine: at least 10 trials and at least 3 s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StopRule {
    /// Fewest trials that count as enough.
    pub min_trials: usize,
    /// Shortest time that counts as enough.
    pub min_time: Seconds,
    /// Trials after which to stop although the minima are not met.
    pub max_trials: Option<usize>,
    /// Time after which to stop although the minima are not met. The trial under way is never cut short, and one trial
    /// is always made.
    pub max_time: Option<Seconds>,
}

impl Default for StopRule {
    fn default() -> Self {
        Self {
            min_trials: 10,
            min_time: Seconds(3.0),
            max_trials: None,
            max_time: None,
        }
    }
}

/// Which part of a [`StopRule`] ended the trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// Both minima are met.
    Enough,
    /// The limit on trials came first.
    TrialLimit,
    /// The limit on time came first.
    TimeLimit,
}

impl StopReason {
    /// The name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enough => "enough",
            Self::TrialLimit => "trial_limit",
            Self::TimeLimit => "time_limit",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether to make another trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Make another.
    Continue,
    /// Stop, and say why.
    Stop(StopReason),
}

impl StopRule {
    /// Exactly `trials` trials (at least one), however long they take: what a comparison that was planned beforehand
    /// uses, because stopping on the data makes intervals too narrow.
    pub const fn exactly(trials: usize) -> Self {
        Self {
            min_trials: trials,
            min_time: Seconds(0.0),
            max_trials: Some(trials),
            max_time: None,
        }
    }

    /// What is still to be done of a share of the work, after `trials` trials that took `elapsed` together; `None` if
    /// nothing is. Trials that are made in blocks meet the whole rule with the last of them.
    pub fn rest_of(&self, share: f64, trials: usize, elapsed: Seconds) -> Option<Self> {
        let count = |of: usize| ((of as f64 * share).ceil() as usize).saturating_sub(trials);
        let time = |of: Seconds| Seconds((of.0 * share - elapsed.0).max(0.0));
        let rest = Self {
            min_trials: count(self.min_trials),
            min_time: time(self.min_time),
            max_trials: self.max_trials.map(count),
            max_time: self.max_time.map(time),
        };
        let is_done = rest.min_trials == 0 && rest.min_time.0 <= 0.0
            || rest.max_trials == Some(0)
            || rest.max_time.is_some_and(|left| left.0 <= 0.0);
        (trials == 0 || !is_done).then_some(rest)
    }

    /// What to do after `trials` trials that took `elapsed` together.
    pub fn decide(&self, trials: usize, elapsed: Seconds) -> Decision {
        if trials == 0 {
            return Decision::Continue;
        }
        if trials >= self.min_trials && elapsed >= self.min_time {
            return Decision::Stop(StopReason::Enough);
        }
        if self.max_trials.is_some_and(|max| trials >= max) {
            return Decision::Stop(StopReason::TrialLimit);
        }
        if self.max_time.is_some_and(|max| elapsed >= max) {
            return Decision::Stop(StopReason::TimeLimit);
        }
        Decision::Continue
    }
}

/// What is run and thrown away before the first trial that counts: lazy module loading, cuBLAS's choice of kernel, pool
/// growth and the ramp of the clocks all fall on the first runs of a shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WarmUp {
    /// At least this many runs.
    pub min_trials: usize,
    /// And at least for this long. Power filtered over a second (see [`super::energy`]) wants three seconds.
    pub min_time: Seconds,
}

impl Default for WarmUp {
    fn default() -> Self {
        Self {
            min_trials: 2,
            min_time: Seconds(0.0),
        }
    }
}

impl WarmUp {
    /// Runs `trial` until warm; returns how many runs that took.
    ///
    /// # Errors
    /// What `trial` fails with, or [`Interrupted`](crate::Error::Interrupted).
    pub fn run(
        &self,
        clock: &dyn Clock,
        interrupt: &Interrupt,
        mut trial: impl FnMut(usize) -> Result<()>,
    ) -> Result<usize> {
        let begin = clock.now();
        let mut done = 0;
        while done < self.min_trials || clock.now() - begin < self.min_time {
            interrupt.check()?;
            trial(done)?;
            done += 1;
        }
        Ok(done)
    }
}

/// The trials that were made.
#[derive(Debug, Clone, PartialEq)]
pub struct Trials<T> {
    /// What each returned, in order.
    pub values: Vec<T>,
    /// Why there are not more.
    pub stopped: StopReason,
    /// From before the first to after the last.
    pub window: Window,
}

/// Makes trials until `rule` says stop; `trial` is told its number, from zero.
///
/// # Errors
/// What `trial` fails with, or [`Interrupted`](crate::Error::Interrupted); the values so far are dropped.
pub fn run<T>(
    rule: &StopRule,
    clock: &dyn Clock,
    interrupt: &Interrupt,
    mut trial: impl FnMut(usize) -> Result<T>,
) -> Result<Trials<T>> {
    let mut values = Vec::new();
    let begin = clock.now();
    loop {
        interrupt.check()?;
        values.push(trial(values.len())?);
        let end = clock.now();
        if let Decision::Stop(stopped) = rule.decide(values.len(), end - begin) {
            return Ok(Trials {
                values,
                stopped,
                window: Window::new(begin, end),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::measure::clock::VirtualClock;

    fn trials_of(each: f64, rule: &StopRule) -> (usize, StopReason, Seconds) {
        let clock = VirtualClock::new();
        clock.set(Seconds(100.0));
        let trials = run(rule, &clock, &Interrupt::new(), |i| {
            clock.advance(Seconds(each));
            Ok(i)
        })
        .unwrap();
        assert!(trials.values.iter().copied().eq(0..trials.values.len()));
        (
            trials.values.len(),
            trials.stopped,
            trials.window.duration(),
        )
    }

    #[test]
    fn the_later_of_the_two_minima_decides() {
        let rule = StopRule::default();
        assert_eq!(
            trials_of(0.25, &rule),
            (12, StopReason::Enough, Seconds(3.0))
        );
        assert_eq!(
            trials_of(2.0, &rule),
            (10, StopReason::Enough, Seconds(20.0))
        );
    }

    #[test]
    fn a_limit_stops_before_the_minima_and_is_named() {
        let few = StopRule {
            max_trials: Some(4),
            ..StopRule::default()
        };
        assert_eq!(
            trials_of(0.25, &few),
            (4, StopReason::TrialLimit, Seconds(1.0))
        );
        let brief = StopRule {
            max_time: Some(Seconds(5.0)),
            ..StopRule::default()
        };
        assert_eq!(
            trials_of(2.0, &brief),
            (3, StopReason::TimeLimit, Seconds(6.0))
        );
    }

    #[test]
    fn a_fixed_number_of_trials_is_enough_and_one_is_always_made() {
        assert_eq!(
            trials_of(9.0, &StopRule::exactly(7)),
            (7, StopReason::Enough, Seconds(63.0))
        );
        assert_eq!(
            trials_of(9.0, &StopRule::exactly(0)),
            (1, StopReason::Enough, Seconds(9.0))
        );
    }

    #[test]
    fn blocks_of_trials_come_to_what_the_rule_wants_of_all() {
        let clock = VirtualClock::new();
        let blocks_of = |rule: StopRule, each: f64| -> (Vec<usize>, Decision) {
            let (mut made, mut elapsed, mut blocks) = (0, Seconds(0.0), Vec::new());
            for part in 1..=4 {
                let Some(rest) = rule.rest_of(f64::from(part) / 4.0, made, elapsed) else {
                    blocks.push(0);
                    continue;
                };
                let block = run(&rest, &clock, &Interrupt::new(), |_| {
                    clock.advance(Seconds(each));
                    Ok(())
                })
                .unwrap();
                made += block.values.len();
                elapsed = elapsed + block.window.duration();
                blocks.push(block.values.len());
            }
            (blocks, rule.decide(made, elapsed))
        };
        let enough = Decision::Stop(StopReason::Enough);
        assert_eq!(
            blocks_of(StopRule::default(), 1.0),
            (vec![3, 2, 3, 2], enough)
        );
        assert_eq!(
            blocks_of(StopRule::default(), 0.125),
            (vec![6, 6, 6, 6], enough)
        );
        assert_eq!(
            blocks_of(StopRule::exactly(1), 9.0),
            (vec![1, 0, 0, 0], enough)
        );
        let brief = StopRule {
            max_time: Some(Seconds(4.0)),
            ..StopRule::default()
        };
        assert_eq!(
            blocks_of(brief, 3.0),
            (vec![1, 0, 0, 1], Decision::Stop(StopReason::TimeLimit))
        );
    }

    #[test]
    fn an_interrupt_ends_the_trials_between_two_of_them() {
        let (clock, interrupt) = (VirtualClock::new(), Interrupt::new());
        let mut made = 0;
        let outcome = run(&StopRule::default(), &clock, &interrupt, |i| {
            made += 1;
            if i == 2 {
                interrupt.request();
            }
            Ok(())
        });
        assert!(matches!(outcome, Err(Error::Interrupted)));
        assert_eq!(made, 3);
    }

    #[test]
    fn a_failed_trial_ends_the_trials_with_its_own_error() {
        let clock = VirtualClock::new();
        let outcome = run(&StopRule::default(), &clock, &Interrupt::new(), |i| {
            if i < 3 {
                return Ok(());
            }
            Err(Error::Device("out of memory".to_owned()))
        });
        assert!(matches!(outcome, Err(Error::Device(what)) if what == "out of memory"));
    }

    #[test]
    fn warming_up_takes_both_its_runs_and_its_time() {
        let clock = VirtualClock::new();
        let runs = |warm_up: WarmUp| {
            warm_up.run(&clock, &Interrupt::new(), |_| {
                clock.advance(Seconds(0.5));
                Ok(())
            })
        };
        assert_eq!(runs(WarmUp::default()).unwrap(), 2);
        let long = WarmUp {
            min_time: Seconds(3.0),
            ..WarmUp::default()
        };
        assert_eq!(runs(long).unwrap(), 6);
        let none = WarmUp {
            min_trials: 0,
            ..WarmUp::default()
        };
        assert_eq!(runs(none).unwrap(), 0);
    }
}
