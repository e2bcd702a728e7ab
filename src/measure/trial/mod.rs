//! How often something is repeated before its samples are believed.

mod stop;

use super::interrupt::Interrupt;
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
    /// What `trial` fails with, or [`Interrupted`](crate::error::Error::Interrupted).
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

/// A trial that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Made<T> {
    /// What it returned.
    pub value: T,
    /// Time that it took; what came before it, such as a wait for the device to cool, is not in it.
    pub took: Seconds,
    /// Whether nothing disturbed it: one that heat slowed says nothing of what the device does otherwise.
    pub stands: bool,
}

/// The trials that count among these: those that stand, or where none does, all.
pub fn counted<T>(trials: &[Made<T>]) -> impl Iterator<Item = &Made<T>> {
    let any = trials.iter().any(|trial| trial.stands);
    trials.iter().filter(move |trial| trial.stands || !any)
}

/// The trials that were made.
#[derive(Debug, Clone, PartialEq)]
pub struct Trials<T> {
    /// What each returned, in order.
    pub values: Vec<T>,
    /// Why there are not more.
    pub stopped: StopReason,
}

/// Makes trials until `rule` says stop; `trial` is told its number, from zero. `figures` are what the rule watches of a
/// trial, the same ones of each.
///
/// # Errors
/// What `trial` fails with, or [`Interrupted`](crate::error::Error::Interrupted); the values so far are dropped.
pub fn run<T>(
    rule: &StopRule,
    clock: &dyn Clock,
    interrupt: &Interrupt,
    mut trial: impl FnMut(usize) -> Result<T>,
    figures: impl Fn(&T) -> Vec<f64>,
) -> Result<Trials<T>> {
    let one = |number: usize| {
        let begin = clock.now();
        let value = trial(number)?;
        Ok(Made {
            value,
            took: clock.now() - begin,
            stands: true,
        })
    };
    let trials = run_on(rule, &Earlier::default(), interrupt, one, figures)?;
    Ok(Trials {
        values: trials.values.into_iter().map(|made| made.value).collect(),
        stopped: trials.stopped,
    })
}

/// Trials that were made before, in other blocks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Earlier {
    /// What the rule watches of each that counts.
    pub figures: Vec<Vec<f64>>,
    /// Time that those took together.
    pub elapsed: Seconds,
    /// How many stand.
    pub standing: usize,
    /// How many do not.
    pub disturbed: usize,
}

impl Earlier {
    /// What is to be known of `trials` for more of them to be made; `figures` are what the rule watches of one.
    pub fn of<T>(trials: &[Made<T>], figures: impl Fn(&T) -> Vec<f64>) -> Self {
        let standing = trials.iter().filter(|trial| trial.stands).count();
        Self {
            figures: counted(trials).map(|trial| figures(&trial.value)).collect(),
            elapsed: counted(trials).fold(Seconds(0.0), |sum, trial| sum + trial.took),
            standing,
            disturbed: trials.len() - standing,
        }
    }

    /// The same, for a rule that is about the next block alone.
    pub fn of_next_block(&self) -> Self {
        Self {
            figures: Vec::new(),
            elapsed: Seconds(0.0),
            ..*self
        }
    }
}

/// Makes trials after `earlier` ones until `rule` says stop of all that count; only the new ones are handed back. One is
/// always made. Trials that do not stand count only as long as none does, for the rule as in [`counted`]; once more of
/// them than of the others were made, waiting for better ones ends.
///
/// # Errors
/// As [`run`].
pub fn run_on<T>(
    rule: &StopRule,
    earlier: &Earlier,
    interrupt: &Interrupt,
    mut trial: impl FnMut(usize) -> Result<Made<T>>,
    figures: impl Fn(&T) -> Vec<f64>,
) -> Result<Trials<Made<T>>> {
    let mut values = Vec::new();
    let mut tally = Tally {
        rule,
        watch: Watch::after_trials(rule, &earlier.figures),
        elapsed: earlier.elapsed,
        standing: earlier.standing,
        disturbed: earlier.disturbed,
    };
    loop {
        interrupt.check()?;
        let made = trial(values.len())?;
        let stopped = tally.after(&figures(&made.value), made.took, made.stands);
        values.push(made);
        if let Some(stopped) = stopped {
            return Ok(Trials { values, stopped });
        }
    }
}

/// The trials so far, those that stand told from those that do not.
struct Tally<'a> {
    rule: &'a StopRule,
    /// Of those that count.
    watch: Watch<'a>,
    elapsed: Seconds,
    standing: usize,
    disturbed: usize,
}

impl Tally<'_> {
    /// The reason to stop after a trial, if there is one.
    fn after(&mut self, figures: &[f64], took: Seconds, stands: bool) -> Option<StopReason> {
        match (stands, self.standing) {
            (true, 0) if self.disturbed > 0 => {
                // What counted for want of better counts no longer.
                self.watch = Watch::after_trials(self.rule, &[]);
                self.elapsed = Seconds(0.0);
                self.standing = 1;
            }
            (true, _) => self.standing += 1,
            (false, 0) => self.disturbed += 1,
            (false, standing) => {
                self.disturbed += 1;
                return (self.disturbed > standing).then_some(StopReason::Throttled);
            }
        }
        self.elapsed = self.elapsed + took;
        self.watch.after(figures, self.elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::measure::clock::VirtualClock;

    /// How many trials of `each` seconds a rule wants, why no more, and the time that they took.
    fn trials_of(each: f64, rule: &StopRule) -> (usize, StopReason, Seconds) {
        let clock = VirtualClock::new();
        let begin = clock.now();
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
        (trials.values.len(), trials.stopped, clock.now() - begin)
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
        let rule = StopRule {
            min_time: Seconds(0.0),
            until: Until {
                precision: Some(0.2),
                stable: false,
            },
            ..StopRule::default()
        };
        let spread = |i: usize| vec![1.0 + 0.1 * (i % 3) as f64];
        let trial = |i| Ok(made(i, true));
        let before: Vec<_> = (0..9).map(|i| made(i, true)).collect();
        let earlier = Earlier::of(&before, |&i| spread(i));
        assert_eq!(earlier.elapsed, Seconds(9.0));
        assert_eq!(rule.met(&earlier.figures, earlier.elapsed), None);
        let last = run_on(&rule, &earlier, &Interrupt::new(), trial, |&i| spread(i));
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
                elapsed = elapsed + Seconds(each * block.values.len() as f64);
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

    /// A trial of a second.
    fn made<T>(value: T, stands: bool) -> Made<T> {
        Made {
            value,
            took: Seconds(1.0),
            stands,
        }
    }

    /// How many trials are made after `before`, each of a second and standing where `script` has a one, over and over, and why
    /// no more; what counts of all; and the time that a later block takes them to have taken.
    fn disturbed(
        rule: &StopRule,
        before: &[Made<()>],
        script: &str,
    ) -> (usize, StopReason, usize, f64) {
        let stands: Vec<bool> = script.chars().map(|sign| sign == '1').collect();
        let trial = |i: usize| Ok(made((), stands[i % stands.len()]));
        let earlier = Earlier::of(before, |()| vec![1.0]);
        let trials = run_on(rule, &earlier, &Interrupt::new(), trial, |()| vec![1.0]).unwrap();
        let all = [before.to_vec(), trials.values.clone()].concat();
        let later = Earlier::of(&all, |()| vec![]);
        assert_eq!(later.figures.len(), counted(&all).count());
        (
            trials.values.len(),
            trials.stopped,
            later.figures.len(),
            later.elapsed.0,
        )
    }

    #[test]
    fn trials_that_do_not_stand_count_for_nothing_while_others_do() {
        let ten = StopRule::exactly(10);
        assert_eq!(
            disturbed(&ten, &[], "110"),
            (14, StopReason::Enough, 10, 10.0)
        );
        // Nor does their time.
        let long = StopRule {
            min_trials: 1,
            min_time: Seconds(6.0),
            ..StopRule::default()
        };
        assert_eq!(
            disturbed(&long, &[], "110"),
            (8, StopReason::Enough, 6, 6.0)
        );
        let brief = StopRule {
            max_time: Some(Seconds(4.0)),
            ..StopRule::default()
        };
        assert_eq!(
            disturbed(&brief, &[], "110"),
            (5, StopReason::TimeLimit, 4, 4.0)
        );
    }

    #[test]
    fn where_no_trial_stands_all_count_until_one_does() {
        let ten = StopRule::exactly(10);
        assert_eq!(
            disturbed(&ten, &[], "0"),
            (10, StopReason::Enough, 10, 10.0)
        );
        // Three for want of better, and ten that stand.
        assert_eq!(
            disturbed(&ten, &[], "0001111111111"),
            (13, StopReason::Enough, 10, 10.0)
        );
    }

    #[test]
    fn waiting_for_trials_that_stand_ends_once_more_were_made_that_do_not() {
        let ten = StopRule::exactly(10);
        assert_eq!(
            disturbed(&ten, &[], "111000000"),
            (7, StopReason::Throttled, 3, 3.0)
        );
        // Those of blocks before are not forgotten.
        let before = [made((), true), made((), false)];
        assert_eq!(
            disturbed(&ten, &before, "0"),
            (1, StopReason::Throttled, 1, 1.0)
        );
        let block = Earlier::of(&before, |()| vec![1.0]).of_next_block();
        assert_eq!((block.standing, block.disturbed), (1, 1));
        assert!(block.figures.is_empty() && block.elapsed == Seconds(0.0));
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
