//! How often something is repeated before its samples are believed.

mod stop;

use super::interrupt::Interrupt;
use super::window::Window;
use crate::error::Result;
use crate::units::{Clock, Seconds};
use stop::Watch;

pub use stop::{StopReason, StopRule, Until};

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

/// Makes trials until `rule` says stop; `trial` is told its number, from zero. `figures` are what the rule watches of a
/// trial, the same ones of each.
///
/// # Errors
/// What `trial` fails with, or [`Interrupted`](crate::Error::Interrupted); the values so far are dropped.
pub fn run<T>(
    rule: &StopRule,
    clock: &dyn Clock,
    interrupt: &Interrupt,
    trial: impl FnMut(usize) -> Result<T>,
    figures: impl Fn(&T) -> Vec<f64>,
) -> Result<Trials<T>> {
    run_on(rule, &Earlier::default(), clock, interrupt, trial, figures)
}

/// Trials that were made before, in other blocks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Earlier {
    /// What the rule watches of each.
    pub figures: Vec<Vec<f64>>,
    /// Time that they took together.
    pub elapsed: Seconds,
}

/// Makes trials after `earlier` ones until `rule` says stop of all; only the new ones are handed back. One is always made.
///
/// # Errors
/// As [`run`].
pub fn run_on<T>(
    rule: &StopRule,
    earlier: &Earlier,
    clock: &dyn Clock,
    interrupt: &Interrupt,
    mut trial: impl FnMut(usize) -> Result<T>,
    figures: impl Fn(&T) -> Vec<f64>,
) -> Result<Trials<T>> {
    let mut values = Vec::new();
    let mut watch = Watch::after_trials(rule, &earlier.figures);
    let begin = clock.now();
    loop {
        interrupt.check()?;
        let value = trial(values.len())?;
        let end = clock.now();
        let stopped = watch.after(&figures(&value), earlier.elapsed + (end - begin));
        values.push(value);
        if let Some(stopped) = stopped {
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
        let trials = run(
            rule,
            &clock,
            &Interrupt::new(),
            |i| {
                clock.advance(Seconds(each));
                Ok(i)
            },
            |_| vec![each],
        )
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
    fn what_is_to_be_known_is_known_of_all_blocks() {
        let clock = VirtualClock::new();
        let rule = StopRule {
            min_time: Seconds(0.0),
            until: Until {
                precision: Some(0.2),
                stable: false,
            },
            ..StopRule::default()
        };
        let spread = |i: usize| vec![1.0 + 0.1 * (i % 3) as f64];
        let trial = |i| {
            clock.advance(Seconds(1.0));
            Ok(i)
        };
        let earlier = Earlier {
            figures: (0..9).map(spread).collect(),
            elapsed: Seconds(9.0),
        };
        assert_eq!(rule.met(&earlier.figures, earlier.elapsed), None);
        let last = run_on(&rule, &earlier, &clock, &Interrupt::new(), trial, |&i| {
            spread(i)
        });
        let last = last.unwrap();
        assert_eq!((last.values.len(), last.stopped), (1, StopReason::Precise));
    }

    #[test]
    fn blocks_of_trials_come_to_what_the_rule_wants_of_all() {
        let clock = VirtualClock::new();
        let blocks_of = |rule: StopRule, each: f64| -> (Vec<usize>, Option<StopReason>) {
            let (mut made, mut elapsed, mut blocks) = (0, Seconds(0.0), Vec::new());
            for part in 1..=4 {
                let Some(rest) = rule.rest_of(f64::from(part) / 4.0, made, elapsed) else {
                    blocks.push(0);
                    continue;
                };
                let trial = |_| {
                    clock.advance(Seconds(each));
                    Ok(())
                };
                let block = run(&rest, &clock, &Interrupt::new(), trial, |()| vec![]).unwrap();
                made += block.values.len();
                elapsed = elapsed + block.window.duration();
                blocks.push(block.values.len());
            }
            (blocks, rule.met(&vec![vec![]; made], elapsed))
        };
        let enough = Some(StopReason::Enough);
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
            (vec![1, 0, 0, 1], Some(StopReason::TimeLimit))
        );
    }

    #[test]
    fn an_interrupt_ends_the_trials_between_two_of_them() {
        let (clock, interrupt) = (VirtualClock::new(), Interrupt::new());
        let mut made = 0;
        let outcome = run(
            &StopRule::default(),
            &clock,
            &interrupt,
            |i| {
                made += 1;
                if i == 2 {
                    interrupt.request();
                }
                Ok(())
            },
            |()| vec![],
        );
        assert!(matches!(outcome, Err(Error::Interrupted)));
        assert_eq!(made, 3);
    }

    #[test]
    fn a_failed_trial_ends_the_trials_with_its_own_error() {
        let clock = VirtualClock::new();
        let outcome = run(
            &StopRule::default(),
            &clock,
            &Interrupt::new(),
            |i| {
                if i < 3 {
                    return Ok(());
                }
                Err(Error::Device("out of memory".to_owned()))
            },
            |()| vec![],
        );
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
