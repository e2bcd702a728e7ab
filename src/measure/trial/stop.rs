//! When enough trials have been made: parts that combine, and which of them it was.

use std::fmt;

use crate::stats::Summary;
use crate::units::Seconds;

/// Trials over which the noise must have stopped changing, at least.
const STABLE_WINDOW: usize = 32;
/// And by how much of itself it may still change over them.
const STABLE: f64 = 0.05;
/// Intervals are looked at again once there are a sixteenth more trials: often enough to stop in time, seldom enough that
/// looking takes no time to speak of.
const LOOK_AGAIN: usize = 16;

/// When enough trials have been made: the minima are met and what is to be known is known, or one of the limits is
/// reached.
///
/// The default is that of hyperfine: at least 10 trials and at least 3 s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StopRule {
    /// Fewest trials that count as enough.
    pub min_trials: usize,
    /// Shortest time that counts as enough.
    pub min_time: Seconds,
    /// What is to be known before they are.
    pub until: Until,
    /// Trials after which to stop although they are not enough.
    pub max_trials: Option<usize>,
    /// Time after which to stop although they are not enough. The trial under way is never cut short, and one trial is
    /// always made.
    pub max_time: Option<Seconds>,
}

/// What is to be known of every figure that is watched. Of two wishes one that holds suffices, so that noise which no
/// number of trials averages out ends the trials as well.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Until {
    /// Half of the 95 % interval of the median is at most this share of it.
    pub precision: Option<f64>,
    /// The relative standard deviation over all trials so far has changed by less than 5 % of itself over the last half of
    /// them, and over at least 32: more trials show nothing new. The idea is NVBench's.
    pub stable: bool,
}

impl Until {
    /// Nothing: the minima suffice.
    pub const NOTHING: Self = Self {
        precision: None,
        stable: false,
    };
}

impl Default for StopRule {
    fn default() -> Self {
        Self {
            min_trials: 10,
            min_time: Seconds(3.0),
            until: Until::NOTHING,
            max_trials: None,
            max_time: None,
        }
    }
}

/// Which part of a [`StopRule`] ended the trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// Both minima are met, and nothing else was asked for.
    Enough,
    /// The medians are known as precisely as was asked for.
    Precise,
    /// More trials no longer change the noise.
    Stable,
    /// The limit on trials came first.
    TrialLimit,
    /// The limit on time came first.
    TimeLimit,
    /// More trials were slowed by heat or the power supply than were not.
    Throttled,
}

impl StopReason {
    /// The name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enough => "enough",
            Self::Precise => "precise",
            Self::Stable => "noise_stable",
            Self::TrialLimit => "trial_limit",
            Self::TimeLimit => "time_limit",
            Self::Throttled => "throttled",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl StopRule {
    /// Exactly `trials` trials (at least one), however long they take: what a comparison that was planned beforehand
    /// uses, because stopping on the data makes intervals too narrow.
    pub const fn exactly(trials: usize) -> Self {
        Self {
            min_trials: trials,
            min_time: Seconds(0.0),
            until: Until::NOTHING,
            max_trials: Some(trials),
            max_time: None,
        }
    }

    /// What is still to be done of a share of the minima and limits, after `trials` trials that took `elapsed` together;
    /// `None` if nothing is. Trials that are made in blocks meet the whole rule with the last of them.
    pub fn rest_of(&self, share: f64, trials: usize, elapsed: Seconds) -> Option<Self> {
        let count = |of: usize| ((of as f64 * share).ceil() as usize).saturating_sub(trials);
        let time = |of: Seconds| Seconds((of.0 * share - elapsed.0).max(0.0));
        let rest = Self {
            min_trials: count(self.min_trials),
            min_time: time(self.min_time),
            until: Until::NOTHING,
            max_trials: self.max_trials.map(count),
            max_time: self.max_time.map(time),
        };
        let is_done = rest.min_trials == 0 && rest.min_time.0 <= 0.0
            || rest.max_trials == Some(0)
            || rest.max_time.is_some_and(|left| left.0 <= 0.0);
        (trials == 0 || !is_done).then_some(rest)
    }

    /// The reason to stop after trials with these figures, which took `elapsed` together, if there is one.
    pub fn met(&self, figures: &[Vec<f64>], elapsed: Seconds) -> Option<StopReason> {
        let (last, earlier) = figures.split_last()?;
        Watch::after_trials(self, earlier).after(last, elapsed)
    }
}

/// The trials so far, as a rule sees them.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    rule: &'a StopRule,
    trials: usize,
    figures: Vec<Figure>,
    /// From how many trials on intervals are looked at again.
    next_look: usize,
}

/// One figure, trial by trial.
#[derive(Debug, Default)]
struct Figure {
    samples: Vec<f64>,
    /// Its relative standard deviation after each trial.
    noise: Vec<f64>,
    mean: f64,
    squares: f64,
}

impl<'a> Watch<'a> {
    fn new(rule: &'a StopRule) -> Self {
        Self {
            rule,
            trials: 0,
            figures: Vec::new(),
            next_look: 0,
        }
    }

    /// That of trials which were made before, with these figures.
    pub(super) fn after_trials(rule: &'a StopRule, earlier: &[Vec<f64>]) -> Self {
        let mut watch = Self::new(rule);
        earlier.iter().for_each(|figures| watch.take(figures));
        watch
    }

    fn take(&mut self, figures: &[f64]) {
        self.trials += 1;
        self.figures.resize_with(figures.len(), Figure::default);
        for (figure, &sample) in self.figures.iter_mut().zip(figures) {
            figure.push(sample);
        }
    }

    /// Takes in a trial with its figures, the same ones each time; gives the reason to stop after it, if there is one.
    pub(super) fn after(&mut self, figures: &[f64], elapsed: Seconds) -> Option<StopReason> {
        self.take(figures);
        let rule = self.rule;
        let minima = self.trials >= rule.min_trials && elapsed >= rule.min_time;
        if let Some(reason) = minima.then(|| self.known()).flatten() {
            return Some(reason);
        }
        if rule.max_trials.is_some_and(|max| self.trials >= max) {
            return Some(StopReason::TrialLimit);
        }
        let out_of_time = rule.max_time.is_some_and(|max| elapsed >= max);
        out_of_time.then_some(StopReason::TimeLimit)
    }

    /// Whether what is to be known is.
    fn known(&mut self) -> Option<StopReason> {
        let until = self.rule.until;
        if until == Until::NOTHING {
            return Some(StopReason::Enough);
        }
        if until.stable && self.figures.iter().all(Figure::is_stable) {
            return Some(StopReason::Stable);
        }
        let share = until.precision.filter(|_| self.trials >= self.next_look)?;
        self.next_look = self.trials + (self.trials / LOOK_AGAIN).max(1);
        let precise = |figure: &Figure| figure.half_width().is_some_and(|half| half <= share);
        self.figures
            .iter()
            .all(precise)
            .then_some(StopReason::Precise)
    }
}

impl Figure {
    /// Mean and squares by Welford's recurrence, which loses no digits.
    fn push(&mut self, sample: f64) {
        self.samples.push(sample);
        let n = self.samples.len() as f64;
        let off = sample - self.mean;
        self.mean += off / n;
        self.squares += off * (sample - self.mean);
        if n >= 2.0 {
            self.noise
                .push((self.squares / (n - 1.0)).sqrt() / self.mean.abs());
        }
    }

    fn is_stable(&self) -> bool {
        let window = STABLE_WINDOW.max(self.noise.len() / 2);
        let Some(first) = self.noise.len().checked_sub(window) else {
            return false;
        };
        Summary::of(&self.noise[first..])
            .is_some_and(|noise| noise.max - noise.min <= STABLE * noise.mean)
    }

    fn half_width(&self) -> Option<f64> {
        let summary = Summary::of(&self.samples)?;
        Some(summary.median_interval?.relative_half_width(summary.p50))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Draws;

    /// How many trials of 0.1 s a rule asks for, and why it stops; two figures with this much noise.
    fn stops(rule: &StopRule, noise: [f64; 2]) -> (usize, StopReason) {
        let mut draws = Draws::of_seed(5);
        let mut watch = Watch::new(rule);
        for trial in 1..10_000 {
            let figures = noise.map(|share| 20.0 * (1.0 + share * draws.normal()));
            if let Some(reason) = watch.after(&figures, Seconds(0.1 * f64::from(trial))) {
                return (trial as usize, reason);
            }
        }
        panic!("it never stops");
    }

    fn until(precision: Option<f64>, stable: bool) -> StopRule {
        StopRule {
            min_time: Seconds(0.0),
            until: Until { precision, stable },
            ..StopRule::default()
        }
    }

    #[test]
    fn the_noisiest_figure_decides_how_many_trials_a_precision_takes() {
        let rule = until(Some(0.005), false);
        assert_eq!(stops(&rule, [0.001, 0.001]), (10, StopReason::Precise));
        // The median of n normal samples has an error of 1.25 σ / √n: about 240 trials for 1.96 of it to be 0.5 %.
        let (trials, reason) = stops(&rule, [0.001, 0.03]);
        assert_eq!(reason, StopReason::Precise);
        assert!((100..500).contains(&trials), "{trials}");
    }

    #[test]
    fn noise_that_stays_ends_what_no_precision_would() {
        let (trials, reason) = stops(&until(Some(1e-5), true), [0.02, 0.05]);
        assert_eq!(reason, StopReason::Stable);
        assert!((40..1000).contains(&trials), "{trials}");
        assert_eq!(stops(&until(None, true), [0.0, 0.0]).1, StopReason::Stable);
        // Whatever holds first.
        assert_eq!(
            stops(&until(Some(0.1), true), [0.02, 0.05]).1,
            StopReason::Precise
        );
    }

    #[test]
    fn limits_hold_whatever_is_to_be_known() {
        let few = StopRule {
            max_trials: Some(20),
            ..until(Some(1e-6), false)
        };
        assert_eq!(stops(&few, [0.02, 0.02]), (20, StopReason::TrialLimit));
        let brief = StopRule {
            max_time: Some(Seconds(1.45)),
            ..until(Some(1e-6), false)
        };
        assert_eq!(stops(&brief, [0.02, 0.02]), (15, StopReason::TimeLimit));
        // A precision is no reason to stop before the minima.
        let slow = StopRule {
            min_time: Seconds(2.95),
            ..until(Some(0.5), false)
        };
        assert_eq!(stops(&slow, [0.01, 0.01]), (30, StopReason::Precise));
    }
}
