//! Trials that heat or the power supply slowed: each is kept, and made again once the device has cooled.

use crate::error::Result;
use crate::measure::throttle::{Cooling, ThrottleWatch};
use crate::measure::trial::Made;
use crate::measure::{Board, Interrupt};
use crate::results::record::{Block, ThrottledTrial, Throttling, Trial};
use crate::units::Clock;

/// Makes trials on one board and remembers which were slowed.
pub(super) struct Unslowed<'a> {
    pub(super) board: Option<&'a dyn Board>,
    pub(super) clock: &'a dyn Clock,
    pub(super) interrupt: &'a Interrupt,
    pub(super) cooling: Cooling,
    pub(super) found: Throttling,
}

/// A trial with what slowed it, if anything did; it stands if nothing did.
pub(super) type Watched = Made<(Trial, Vec<String>)>;

impl Unslowed<'_> {
    /// A trial that nothing slowed; once too many have been made again, one that is slowed after all. Neither those that
    /// are made again nor the waits before them are in the time that it took.
    ///
    /// # Errors
    /// What the trial fails with, or [`Interrupted`](crate::error::Error::Interrupted) while the device cools.
    pub(super) fn trial(&mut self, one: &mut dyn FnMut() -> Result<Trial>) -> Result<Watched> {
        loop {
            let watch = ThrottleWatch::start(self.board);
            let begin = self.clock.now();
            let trial = one()?;
            let took = self.clock.now() - begin;
            let reasons: Vec<String> = watch.reasons().into_iter().map(str::to_owned).collect();
            let may_wait = self.found.left_out.len() < self.cooling.retries;
            let board = match self.board {
                Some(board) if !reasons.is_empty() && may_wait => board,
                _ => {
                    return Ok(Made {
                        stands: reasons.is_empty(),
                        value: (trial, reasons),
                        took,
                    });
                }
            };
            self.found.left_out.push(ThrottledTrial { reasons, trial });
            let cooled = self.cooling.wait(board, self.clock, self.interrupt)?;
            self.found.cooled = self.found.cooled + cooled;
        }
    }
}

/// The trials of a cell as they are put on record.
pub(super) struct Settled {
    /// Those that count: those that nothing slowed, or if there is none, all.
    pub(super) trials: Vec<Trial>,
    /// The blocks that they came in.
    pub(super) blocks: Vec<Block>,
    /// What was slowed.
    pub(super) throttling: Throttling,
}

/// Sets apart the trials that were slowed after all, as [`counted`](crate::measure::trial::counted) does; `blocks` say how
/// many of `trials` each block made.
pub(super) fn settle(
    trials: Vec<Watched>,
    mut blocks: Vec<Block>,
    mut found: Throttling,
) -> Settled {
    if !trials.iter().any(|made| made.stands) {
        let mut reasons: Vec<String> = trials.iter().flat_map(|t| t.value.1.clone()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        found.counted = reasons;
        return Settled {
            trials: trials.into_iter().map(|made| made.value.0).collect(),
            blocks,
            throttling: found,
        };
    }
    let mut first = 0;
    for block in &mut blocks {
        let last = (first + block.trials).min(trials.len());
        let good = trials[first..last].iter().filter(|made| made.stands);
        block.trials = good.count();
        first = last;
    }
    let mut good = Vec::with_capacity(trials.len());
    for made in trials {
        let (trial, reasons) = made.value;
        match made.stands {
            true => good.push(trial),
            false => found.left_out.push(ThrottledTrial { reasons, trial }),
        }
    }
    Settled {
        trials: good,
        blocks,
        throttling: found,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::measure::VirtualClock;
    use crate::measure::gpu::{GpuFacts, GpuProcess, GpuState, PowerReading, ThrottleTime};
    use crate::measure::unavailable::Unavailable;
    use crate::units::Seconds;

    /// Its counter of slow time moves while the virtual clock is within `hot`.
    #[derive(Debug)]
    struct Oven {
        clock: VirtualClock,
        hot: (f64, f64),
    }

    impl Board for Oven {
        fn facts(&self) -> GpuFacts {
            GpuFacts::default()
        }

        fn power(&self) -> std::result::Result<PowerReading, Unavailable> {
            Ok(PowerReading::default())
        }

        fn state(&self) -> GpuState {
            GpuState::default()
        }

        fn throttle_time(&self) -> ThrottleTime {
            let now = self.clock.now().0.clamp(self.hot.0, self.hot.1);
            ThrottleTime {
                hw_thermal: Some(Seconds(1.0 + now - self.hot.0)),
                ..ThrottleTime::default()
            }
        }

        fn processes(&self) -> Option<Vec<GpuProcess>> {
            None
        }
    }

    /// Five trials of a second each on a board that is too hot between two moments; each tells its number by its TTFT.
    fn five(hot: (f64, f64), retries: usize) -> (Vec<f64>, Throttling) {
        let oven = Oven {
            clock: VirtualClock::new(),
            hot,
        };
        let interrupt = Interrupt::new();
        let mut unslowed = Unslowed {
            board: Some(&oven),
            clock: &oven.clock,
            interrupt: &interrupt,
            cooling: Cooling {
                retries,
                ..Cooling::default()
            },
            found: Throttling::default(),
        };
        let number = Cell::new(0.0);
        let mut one = || {
            oven.clock.advance(Seconds(1.0));
            number.set(number.get() + 1.0);
            Ok(Trial {
                ttft: Seconds(number.get()),
                ..Trial::default()
            })
        };
        let trials: Vec<Watched> = (0..5).map(|_| unslowed.trial(&mut one).unwrap()).collect();
        // However long a wait and a trial that was made again took.
        assert!(trials.iter().all(|made| (made.took.0 - 1.0).abs() < 1e-9));
        let settled = settle(trials, Vec::new(), unslowed.found);
        let numbers = settled.trials.iter().map(|trial| trial.ttft.0);
        (numbers.collect(), settled.throttling)
    }

    #[test]
    fn a_slowed_trial_is_kept_and_made_again_after_cooling() {
        let (trials, found) = five((1.5, 2.9), 10);
        // The second trial is slowed; the wait of half a second and the first half of its repetition lie beyond.
        assert_eq!(trials, [1.0, 4.0, 5.0, 6.0, 7.0]);
        let left_out: Vec<f64> = found.left_out.iter().map(|t| t.trial.ttft.0).collect();
        assert_eq!(left_out, [2.0, 3.0]);
        assert_eq!(found.left_out[0].reasons, ["hw_thermal_slowdown"]);
        assert!(found.counted.is_empty());
        assert!((found.cooled.0 - 1.0).abs() < 1e-6, "{:?}", found.cooled);
    }

    #[test]
    fn slowed_trials_beyond_the_retries_are_left_out_without_another() {
        let (trials, found) = five((1.5, 100.0), 2);
        assert_eq!(trials, [1.0]);
        assert_eq!(found.left_out.len(), 6);
        assert!(found.counted.is_empty());
    }

    #[test]
    fn where_every_trial_is_slowed_they_count_and_it_is_said() {
        let (trials, found) = five((0.0, 100.0), 1);
        assert_eq!(trials.len(), 5);
        assert_eq!(found.counted, ["hw_thermal_slowdown"]);
        assert_eq!(found.left_out.len(), 1);
    }

    #[test]
    fn blocks_count_the_trials_that_count() {
        let trial = |slowed: bool| {
            let reasons = slowed.then(|| "hw_thermal_slowdown".to_owned());
            Made {
                value: (Trial::default(), reasons.into_iter().collect()),
                took: Seconds(1.0),
                stands: !slowed,
            }
        };
        let block = |trials| Block {
            begin: Seconds(0.0),
            trials,
        };
        let trials = vec![trial(false), trial(true), trial(false), trial(true)];
        let settled = settle(trials, vec![block(3), block(1)], Throttling::default());
        assert_eq!(settled.blocks, [block(2), block(0)]);
        assert_eq!(
            (settled.trials.len(), settled.throttling.left_out.len()),
            (2, 2)
        );
    }

    #[test]
    fn without_a_board_nothing_is_slowed() {
        let (clock, interrupt) = (VirtualClock::new(), Interrupt::new());
        let mut unslowed = Unslowed {
            board: None,
            clock: &clock,
            interrupt: &interrupt,
            cooling: Cooling::default(),
            found: Throttling::default(),
        };
        let watched = unslowed.trial(&mut || Ok(Trial::default())).unwrap();
        assert!(watched.stands && watched.value.1.is_empty());
        let settled = settle(vec![watched], Vec::new(), unslowed.found);
        assert_eq!(settled.throttling, Throttling::default());
    }
}
