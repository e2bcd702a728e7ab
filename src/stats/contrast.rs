//! Two sets of runs against each other: the ratio of a figure, and how far it is to be believed.
//!
//! What makes naive intervals lie is that a run is one draw of what stays the same within it and differs from the next:
//! where memory came to lie, which kernel was chosen, how warm the device is, who else is on it. More trials of one run
//! do not average that out (Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013). So the spread has
//! two levels. Within a run it is bootstrapped. Between runs it is estimated where a side has several; where both have
//! one it cannot be, and what is allowed for it instead is the larger of what the caller states and what the runs
//! themselves wandered from one quarter to the next.

use super::blocks::block_length;
use super::bootstrap::{Draws, SortedUnits};
use super::interval::{Interval, student_p_value, student_reach};
use super::rate::{Ratio, rate};
use super::summary::{mean, median, variance};

/// Draws for a standard error: 200 are plenty (Efron and Tibshirani, 1993, §6.4).
const ERROR_DRAWS: usize = 400;
/// A run is cut into so many parts to see whether it wandered.
const PARTS: usize = 4;
/// Trials of each part, at least.
const TRIALS_OF_PART: usize = 2;

/// What one run says of one figure, in the order in which it was measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Series {
    /// Samples of each trial; the figure is the median of them all.
    Samples(Vec<Vec<f64>>),
    /// A part and a whole of each trial; the figure is their rate.
    Ratios(Vec<Ratio>),
}

/// What the bootstrap of one run says of the logarithm of its figure.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Within {
    variance: f64,
    degrees: f64,
}

impl Series {
    /// The figure; `None` if there is none above zero.
    pub fn figure(&self) -> Option<f64> {
        let figure = match self {
            Self::Samples(trials) => median(&trials.concat()),
            Self::Ratios(ratios) => rate(ratios),
        };
        figure.filter(|x| x.is_finite() && *x > 0.0)
    }

    fn trials(&self) -> usize {
        match self {
            Self::Samples(trials) => trials.len(),
            Self::Ratios(ratios) => ratios.len(),
        }
    }

    /// Trials of a part, in their order.
    fn part(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::Samples(trials) => Self::Samples(trials[range].to_vec()),
            Self::Ratios(ratios) => Self::Ratios(ratios[range].to_vec()),
        }
    }

    /// How far the logarithm of the figure is to be believed within its run; `None` where there is nothing to draw.
    ///
    /// Whole units of the highest level that has several are drawn, trials or else steps, never units within drawn units:
    /// that would count what lies within twice (Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
    /// §3.8). They are drawn in blocks as long as they remember each other.
    fn within(&self) -> Option<Within> {
        match self {
            Self::Samples(trials) => match trials.as_slice() {
                [steps] => of_samples(&steps.chunks(1).collect::<Vec<_>>()),
                _ => of_samples(&trials.iter().map(Vec::as_slice).collect::<Vec<_>>()),
            },
            Self::Ratios(ratios) => {
                let each: Vec<f64> = ratios.iter().map(|r| r.part / r.whole).collect();
                drawn(&each, |times| {
                    let pairs = ratios.iter().zip(times);
                    let (part, whole) = pairs.fold((0.0, 0.0), |(part, whole), (ratio, &n)| {
                        (part + ratio.part * n as f64, whole + ratio.whole * n as f64)
                    });
                    part / whole
                })
            }
        }
    }

    /// The variance of the logarithm of the figure from part to part of a run, beyond what `within` explains; `None` of a
    /// run with too few trials to cut.
    fn wandering(&self, within: Within) -> Option<f64> {
        let n = self.trials();
        if n < PARTS * TRIALS_OF_PART {
            return None;
        }
        let cut = |part: usize| part * n / PARTS;
        let logs: Option<Vec<f64>> = (0..PARTS)
            .map(|i| Some(self.part(cut(i)..cut(i + 1)).figure()?.ln()))
            .collect();
        Some(variance(&logs?)? - PARTS as f64 * within.variance)
    }
}

fn of_samples(units: &[&[f64]]) -> Option<Within> {
    let each: Option<Vec<f64>> = units.iter().map(|unit| median(unit)).collect();
    let sorted = SortedUnits::of(units);
    drawn(&each?, |times| sorted.median(times))
}

/// The spread of the logarithm of `figure` when units are drawn so many times each; `each` is what a unit says alone.
fn drawn(each: &[f64], figure: impl Fn(&[usize]) -> f64) -> Option<Within> {
    let n = each.len();
    if n < 2 {
        return None;
    }
    let length = block_length(each);
    let mut draws = Draws::seeded();
    let mut times = vec![0; n];
    let logs: Vec<f64> = (0..ERROR_DRAWS)
        .map(|_| {
            times.fill(0);
            draws.in_blocks(n, length, |i| times[i] += 1);
            figure(&times).ln()
        })
        .collect();
    // A bootstrap divides by the number of independent units where an unbiased variance divides by one less.
    let degrees = (n as f64 / length - 1.0).max(1.0);
    let variance = variance(&logs)? * (degrees + 1.0) / degrees;
    variance.is_finite().then_some(Within { variance, degrees })
}

/// Where the noise between runs is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Between {
    /// The runs themselves: a side has several.
    Runs,
    /// How a run wandered from one quarter to the next: both sides have one, and it is more than what is allowed for.
    Wandering,
    /// What the caller allows for: both sides have one.
    Allowed,
}

/// A figure of one side against that of another, as the logarithm of the other's over the base's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contrast {
    /// The logarithm of the ratio; with several runs of a side, of their geometric mean.
    pub ln_ratio: f64,
    /// How far it is to be believed; `None` where nothing is repeated.
    pub spread: Option<Spread>,
}

/// How far a logarithm of a ratio is to be believed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Its standard error.
    pub error: f64,
    /// The degrees of freedom of that.
    pub degrees: f64,
    /// The standard deviation of a logarithm from run to run that is in it.
    pub between: f64,
    /// Where that is from.
    pub source: Between,
}

impl Contrast {
    /// Sets `other` against `base`, each a figure from one run or from several; `allowed` is the standard deviation of its
    /// logarithm from run to run to allow for where both have one; where it is not known, one run of each has no spread.
    /// `None` if a run has no figure above zero.
    pub fn of(base: &[Series], other: &[Series], allowed: Option<f64>) -> Option<Self> {
        let logs = |runs: &[Series]| -> Option<Vec<f64>> {
            runs.iter().map(|run| Some(run.figure()?.ln())).collect()
        };
        let (base_logs, other_logs) = (logs(base)?, logs(other)?);
        let ln_ratio = mean(&other_logs)? - mean(&base_logs)?;
        let spread = match (base, other) {
            ([base], [other]) => allowed.and_then(|allowed| of_single_runs(base, other, allowed)),
            _ => of_several_runs([(base, &base_logs), (other, &other_logs)]),
        };
        Some(Self { ln_ratio, spread })
    }

    /// The 95 % interval of the logarithm.
    pub fn interval(&self) -> Option<Interval> {
        let spread = self.spread?;
        let reach = student_reach(spread.degrees) * spread.error;
        Some(Interval::around(self.ln_ratio, reach))
    }

    /// How probable a logarithm so far from zero is if there is no difference.
    pub fn p_value(&self) -> Option<f64> {
        let spread = self.spread?;
        student_p_value(self.ln_ratio, spread.error, spread.degrees)
    }
}

/// One run against one: the spread within both, and what is allowed for between them.
fn of_single_runs(base: &Series, other: &Series, allowed: f64) -> Option<Spread> {
    let within = [base.within()?, other.within()?];
    let wandered: Vec<f64> = [base, other]
        .iter()
        .zip(within)
        .filter_map(|(run, within)| run.wandering(within))
        .collect();
    let wandering = mean(&wandered).unwrap_or(0.0);
    let (between, source, degrees) = if wandering > allowed * allowed {
        let degrees = (wandered.len() * (PARTS - 1)) as f64;
        (wandering, Between::Wandering, degrees)
    } else {
        (allowed * allowed, Between::Allowed, f64::INFINITY)
    };
    let parts = [
        (within[0].variance, within[0].degrees),
        (within[1].variance, within[1].degrees),
        (2.0 * between, degrees),
    ];
    let whole: f64 = parts.iter().map(|part| part.0).sum();
    // Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin 2, 1946.
    let squares: f64 = parts.iter().map(|part| part.0.powi(2) / part.1).sum();
    Some(Spread {
        error: whole.sqrt(),
        degrees: if squares > 0.0 {
            whole * whole / squares
        } else {
            f64::INFINITY
        },
        between: between.sqrt(),
        source,
    })
}

/// Several runs of a side: theirs is the spread of both, for one machine made them. It has what lies within them in it,
/// and by chance it may be less than that alone.
fn of_several_runs(sides: [(&[Series], &[f64]); 2]) -> Option<Spread> {
    let degrees: usize = sides.iter().map(|(runs, _)| runs.len() - 1).sum();
    let squares: f64 = sides
        .iter()
        .filter_map(|(_, logs)| Some(variance(logs)? * (logs.len() - 1) as f64))
        .sum();
    let runs = sides.iter().flat_map(|(runs, _)| runs.iter());
    let within: Vec<f64> = runs
        .filter_map(|run| Some(run.within()?.variance))
        .collect();
    let between = (squares / degrees as f64).max(mean(&within).unwrap_or(0.0));
    let shares: f64 = sides.iter().map(|(runs, _)| 1.0 / runs.len() as f64).sum();
    Some(Spread {
        error: (between * shares).sqrt(),
        degrees: degrees as f64,
        between: between.sqrt(),
        source: Between::Runs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of so many trials of 16 steps, which share the trial's luck and the run's.
    fn run(seed: u64, trials: usize, level: f64, of_run: f64, of_trial: f64) -> Series {
        let mut draws = Draws::of_seed(seed);
        let level = level * (1.0 + of_run * draws.normal());
        Series::Samples(
            (0..trials)
                .map(|_| {
                    let level = level * (1.0 + of_trial * draws.normal());
                    let step = |_| level * (1.0 + 0.02 * draws.normal());
                    (0..16).map(step).collect()
                })
                .collect(),
        )
    }

    /// The share of intervals that hold the truth, and their mean half length.
    fn coverage(trials: usize, runs: usize, of_run: f64, allowed: f64) -> (f64, f64) {
        let (mut held, mut reach) = (0.0, 0.0);
        let pairs = 300;
        for pair in 0..pairs {
            let side = |level: f64, side: u64| -> Vec<Series> {
                let seed = |i: usize| (pair * 2 + side) * 100 + i as u64;
                (0..runs)
                    .map(|i| run(seed(i), trials, level, of_run, 0.01))
                    .collect()
            };
            let found = Contrast::of(&side(10.0, 0), &side(10.3, 1), Some(allowed)).unwrap();
            let ends = found.interval().unwrap();
            held += f64::from(u8::from(ends.contains(1.03f64.ln())));
            reach += (ends.high - ends.low) / 2.0;
        }
        (held / pairs as f64, reach / pairs as f64)
    }

    #[test]
    fn intervals_cover_what_they_promise() {
        // Nothing between runs; as much as is allowed for; and measured by several runs, nothing allowed for.
        for (trials, runs, of_run, allowed) in [
            (10, 1, 0.0, 0.0),
            (40, 1, 0.0, 0.0),
            (20, 1, 0.01, 0.01),
            (10, 3, 0.02, 0.0),
        ] {
            let (held, reach) = coverage(trials, runs, of_run, allowed);
            let what = format!("{trials} trials, {runs} runs, {of_run}: {held} ± {reach}");
            assert!((0.92..=0.99).contains(&held), "{what}");
            assert!(reach < 0.06, "{what}");
        }
    }

    #[test]
    fn a_run_that_wanders_is_not_believed_as_one_that_does_not() {
        let quiet = run(1, 40, 10.0, 0.0, 0.002);
        let Series::Samples(trials) = &quiet else {
            unreachable!("as it was made");
        };
        let slow = |i: usize| 1.0 + 0.05 * f64::from(u8::from(i / 10 % 2 == 1));
        let wandering = trials.iter().enumerate();
        let wandering = Series::Samples(
            wandering
                .map(|(i, trial)| trial.iter().map(|x| x * slow(i)).collect())
                .collect(),
        );
        let error = |other: &Series| {
            let found = Contrast::of(
                std::slice::from_ref(&quiet),
                std::slice::from_ref(other),
                Some(0.001),
            );
            found.unwrap().spread.unwrap()
        };
        let (alike, apart) = (error(&quiet), error(&wandering));
        assert_eq!((alike.source, alike.between), (Between::Allowed, 0.001));
        assert_eq!(apart.source, Between::Wandering);
        assert!(apart.error > 5.0 * alike.error, "{alike:?} {apart:?}");
    }

    #[test]
    fn one_sample_has_a_ratio_and_no_interval() {
        let single = |x: f64| Series::Samples(vec![vec![x]]);
        let found = Contrast::of(&[single(2.0)], &[single(3.0)], Some(0.01)).unwrap();
        assert!((found.ln_ratio - 1.5f64.ln()).abs() < 1e-12);
        assert_eq!(
            (found.spread, found.interval(), found.p_value()),
            (None, None, None)
        );
        let steady = || [Series::Samples(vec![vec![1.0, 1.01, 0.99, 1.0]])];
        let unknown = Contrast::of(&steady(), &steady(), None).unwrap();
        assert_eq!((unknown.ln_ratio, unknown.spread), (0.0, None));
        assert_eq!(
            Contrast::of(&[single(0.0)], &[single(3.0)], Some(0.01)),
            None
        );
        assert_eq!(Contrast::of(&[single(2.0)], &[], Some(0.01)), None);
        // Two runs of one sample each tell how much runs differ.
        let found = Contrast::of(&[single(2.0), single(2.1)], &[single(2.05)], None).unwrap();
        assert_eq!(found.spread.unwrap().degrees, 1.0);
    }

    #[test]
    fn an_unknown_error_calls_nothing_a_difference() {
        let of = |error: f64| Contrast {
            ln_ratio: 0.1,
            spread: Some(Spread {
                error,
                degrees: 4.0,
                between: 0.0,
                source: Between::Allowed,
            }),
        };
        assert_eq!(of(f64::NAN).p_value(), None);
        assert_eq!(of(0.0).p_value(), Some(0.0));
    }

    #[test]
    fn rates_are_compared_as_sums_over_sums() {
        let pairs = |wholes: &[f64]| {
            let of = |&whole: &f64| Ratio { part: 100.0, whole };
            Series::Ratios(wholes.iter().map(of).collect())
        };
        let (base, other) = (pairs(&[1.0, 3.0, 2.0]), pairs(&[2.0, 6.0, 4.0]));
        let found = Contrast::of(&[base], &[other], Some(0.0)).unwrap();
        assert!((found.ln_ratio + std::f64::consts::LN_2).abs() < 1e-12);
        assert!(
            found.interval().unwrap().contains(0.0),
            "three trials, far apart"
        );
    }
}
