//! Statistics of repeated measurements: quantiles that stay silent where the samples are too few, and bootstrap
//! intervals from a seeded, portable generator, so that the same samples always give the same numbers.
//!
//! Everything here is pure. Sources: quantiles after Hyndman & Fan, "Sample Quantiles in Statistical Packages" (1996),
//! type 7; percentile intervals after Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), §13.3; the standard
//! error of a ratio of sums after Cochran, "Sampling Techniques" (1977), §6.3.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How many times a bootstrap draws a sample anew.
pub const RESAMPLES: usize = 2000;

/// The coverage that every interval here aims at.
pub const CONFIDENCE: f64 = 0.95;

/// The seed of every bootstrap: fixed, because a report rendered twice must say the same.
const SEED: u64 = 0xCA9D_1E90;

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `x` lies inside or on an end.
    pub fn contains(self, x: f64) -> bool {
        self.low <= x && x <= self.high
    }

    /// The interval with both ends passed through an increasing function.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self {
            low: f(self.low),
            high: f(self.high),
        }
    }
}

/// What is said about a set of samples. All figures share the unit of the samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The arithmetic mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile; needs 10 samples.
    pub p90: Option<f64>,
    /// The 95th percentile; needs 20 samples.
    pub p95: Option<f64>,
    /// The 99th percentile; needs 100 samples.
    pub p99: Option<f64>,
    /// The smallest sample.
    pub min: f64,
    /// The largest sample.
    pub max: f64,
    /// How many samples there are.
    pub n: usize,
    /// Where the mean lies; `None` for a single sample.
    pub mean_interval: Option<Interval>,
    /// Where the median lies; `None` for a single sample.
    pub median_interval: Option<Interval>,
}

impl Summary {
    /// Sums up independent samples; `None` if there are none or one is not finite.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let units: Vec<&[f64]> = samples.chunks(1).collect();
        Self::of_units(samples.to_vec(), &units)
    }

    /// Sums up samples that come in trials, as the steps of a generation do.
    ///
    /// Steps of one trial resemble each other (the context grows, the clock drifts), so the intervals draw whole trials:
    /// steps drawn one by one would make them too narrow. With a single trial there is nothing else to draw, and the
    /// interval then says nothing about the spread between trials.
    pub fn of_trials(trials: &[Vec<f64>]) -> Option<Self> {
        let filled: Vec<&[f64]> = trials
            .iter()
            .map(Vec::as_slice)
            .filter(|trial| !trial.is_empty())
            .collect();
        match filled.as_slice() {
            [single] => Self::of(single),
            _ => Self::of_units(filled.concat(), &filled),
        }
    }

    fn of_units(mut samples: Vec<f64>, units: &[&[f64]]) -> Option<Self> {
        if samples.is_empty() || samples.iter().any(|x| !x.is_finite()) {
            return None;
        }
        samples.sort_unstable_by(f64::total_cmp);
        let (mean_interval, median_interval) = location_intervals(units);
        Some(Self {
            mean: mean(&samples)?,
            p50: quantile(&samples, 0.5)?,
            p90: quantile(&samples, 0.9),
            p95: quantile(&samples, 0.95),
            p99: quantile(&samples, 0.99),
            min: samples[0],
            max: samples[samples.len() - 1],
            n: samples.len(),
            mean_interval,
            median_interval,
        })
    }

    /// The same summary in another unit; `factor` must be positive.
    pub fn scaled(self, factor: f64) -> Self {
        let times = |x: f64| x * factor;
        Self {
            mean: times(self.mean),
            p50: times(self.p50),
            p90: self.p90.map(times),
            p95: self.p95.map(times),
            p99: self.p99.map(times),
            min: times(self.min),
            max: times(self.max),
            n: self.n,
            mean_interval: self.mean_interval.map(|ends| ends.map(times)),
            median_interval: self.median_interval.map(|ends| ends.map(times)),
        }
    }
}

/// Whether `n` samples can say anything about quantile `p` in the upper half: `n ≥ 1 / (1 − p)`, that is, at least one
/// sample is expected beyond it. The median and what lies below it need one sample.
pub fn supports(p: f64, n: usize) -> bool {
    // The slack absorbs that 1 − 0.9 is a little below a tenth in binary.
    n >= 1 && (p <= 0.5 || n as f64 * (1.0 - p) >= 1.0 - 1e-9)
}

/// Quantile `p` of ascending samples, Hyndman–Fan type 7: linear between order statistics at `(n − 1) p`.
/// `None` where [`supports`] says that `n` is too small.
pub fn quantile(sorted: &[f64], p: f64) -> Option<f64> {
    supports(p, sorted.len()).then(|| interpolated(sorted, p))
}

/// Type 7 without the question of validity; `sorted` is not empty.
fn interpolated(sorted: &[f64], p: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * p;
    let below = place.floor() as usize;
    let above = place.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// The arithmetic mean; `None` of nothing.
pub fn mean(samples: &[f64]) -> Option<f64> {
    (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / samples.len() as f64)
}

/// The standard error of the mean, `s / √n` with `s` over `n − 1`; `None` below two samples.
pub fn standard_error(samples: &[f64]) -> Option<f64> {
    let n = samples.len() as f64;
    let centre = mean(samples)?;
    let squares: f64 = samples.iter().map(|x| (x - centre).powi(2)).sum();
    (samples.len() >= 2).then(|| (squares / (n - 1.0) / n).sqrt())
}

/// A numerator and its denominator that belong together: the tokens and the seconds of a trial, or the loss and the
/// tokens of a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// What is counted.
    pub part: f64,
    /// What it is counted per.
    pub whole: f64,
}

/// A rate over several parts: the sum over the sum, never the mean of rates. `None` if nothing stands below the line.
pub fn rate(ratios: &[Ratio]) -> Option<f64> {
    let (part, whole) = sums(ratios.iter());
    (whole > 0.0).then_some(part / whole)
}

/// The 95 % bootstrap interval of [`rate`], pairs drawn whole; `None` below two pairs.
pub fn rate_interval(ratios: &[Ratio]) -> Option<Interval> {
    if ratios.len() < 2 || rate(ratios).is_none() {
        return None;
    }
    Some(bootstrap(ratios.len(), |drawn| {
        let (part, whole) = sums(drawn.iter().map(|&i| &ratios[i]));
        part / whole
    }))
}

/// The standard error of [`rate`] by linearisation: with `r = Σp / Σw` and residuals `e = p − r w`,
/// `√(Σe² / (n (n − 1))) / w̄`. Over segments of one length it is the standard error of the mean of segment means.
pub fn rate_standard_error(ratios: &[Ratio]) -> Option<f64> {
    let r = rate(ratios)?;
    let n = ratios.len() as f64;
    let mean_whole = sums(ratios.iter()).1 / n;
    let squares: f64 = ratios
        .iter()
        .map(|pair| (pair.part - r * pair.whole).powi(2))
        .sum();
    (ratios.len() >= 2).then(|| (squares / (n * (n - 1.0))).sqrt() / mean_whole)
}

/// The standard error of the mean over several groups of samples taken together, from each group's size and its mean's
/// standard error: with the variance within groups pooled, `√(Σ (nᵢ − 1) sᵢ² / (N − k)) / √N`, as lm_eval has it for
/// groups of tasks. `None` without more samples than groups.
pub fn pooled_standard_error(groups: &[(usize, f64)]) -> Option<f64> {
    let n: usize = groups.iter().map(|(size, _)| size).sum();
    let free = n.saturating_sub(groups.len());
    // The variance of a sample is n times the squared error of the mean.
    let squares = groups
        .iter()
        .map(|&(size, error)| (size as f64 - 1.0) * error * error * size as f64);
    (free > 0).then(|| (squares.sum::<f64>() / free as f64 / n as f64).sqrt())
}

/// The two-sided exact McNemar test: how probable it is that pairs that differ split at least as unevenly as these if
/// either way is as likely, `2 P(X ≤ min)` with X binomial of one half, at most 1 (McNemar, 1947).
pub fn mcnemar(won: usize, lost: usize) -> f64 {
    let n = won + lost;
    // Terms of the binomial distribution relative to the middle one would overflow; logarithms do not.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut below = 0.0;
    for k in 0..=won.min(lost) {
        below += log_term.exp();
        log_term += ((n - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * below).min(1.0)
}

/// What a comparison over the same items says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// The mean of `other − base`.
    pub mean: f64,
    /// Its standard error; `None` for a single pair.
    pub stderr: Option<f64>,
    /// Its 95 % bootstrap interval, pairs drawn whole; `None` for a single pair.
    pub interval: Option<Interval>,
}

/// The mean difference of paired samples; `None` if they are empty or do not pair up.
pub fn paired_difference(base: &[f64], other: &[f64]) -> Option<Paired> {
    if base.len() != other.len() {
        return None;
    }
    let differences: Vec<f64> = other.iter().zip(base).map(|(o, b)| o - b).collect();
    let summary_mean = mean(&differences)?;
    let interval = (differences.len() >= 2).then(|| {
        bootstrap(differences.len(), |drawn| {
            drawn.iter().map(|&i| differences[i]).sum::<f64>() / drawn.len() as f64
        })
    });
    Some(Paired {
        mean: summary_mean,
        stderr: standard_error(&differences),
        interval,
    })
}

/// How many ways to flip signs are tried one by one, rather than by chance: up to twelve differences.
const EXACT_FLIPS: u32 = 12;
/// Random flips where there are more.
const RANDOM_FLIPS: usize = 9_999;

/// The two-sided sign-flip test of paired differences (Fisher's randomisation test): the share of ways to give each
/// difference either sign that make a sum at least as far from zero as the one found. Exact for up to twelve; above
/// that over random ways and the one found, `(1 + as extreme) / (1 + tried)` (Phipson and Smyth, 2010). `None` below two.
pub fn sign_flip_test(differences: &[f64]) -> Option<f64> {
    let n = differences.len();
    if n < 2 || differences.iter().any(|d| !d.is_finite()) {
        return None;
    }
    let found = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in another order of signs may differ in their last bits.
    let enough = found - 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let extreme = |negative: &mut dyn FnMut(usize) -> bool| {
        let signed = differences.iter().enumerate();
        let sum: f64 = signed.map(|(i, d)| if negative(i) { -d } else { *d }).sum();
        sum.abs() >= enough
    };
    if n <= EXACT_FLIPS as usize {
        let ways = 1_u32 << n;
        let as_extreme = (0..ways)
            .filter(|way| extreme(&mut |i| way >> i & 1 == 1))
            .count();
        return Some(as_extreme as f64 / f64::from(ways));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let as_extreme = (0..RANDOM_FLIPS)
        .filter(|_| extreme(&mut |_| rng.next_u64() >> 63 == 1))
        .count();
    Some((1 + as_extreme) as f64 / (1 + RANDOM_FLIPS) as f64)
}

/// The 95 % percentile interval of `statistic` over [`RESAMPLES`] draws, with replacement, of `n` indices below `n`.
///
/// # Panics
/// If `n` is zero.
pub fn bootstrap(n: usize, mut statistic: impl FnMut(&[usize]) -> f64) -> Interval {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut drawn = vec![0; n];
    let values = (0..RESAMPLES)
        .map(|_| {
            draw(&mut rng, &mut drawn);
            statistic(&drawn)
        })
        .collect();
    percentile_interval(values)
}

/// Intervals of the mean and of the median from the same draws of whole units; `None` below two units.
fn location_intervals(units: &[&[f64]]) -> (Option<Interval>, Option<Interval>) {
    if units.len() < 2 {
        return (None, None);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut drawn = vec![0; units.len()];
    let mut resample = Vec::with_capacity(units.iter().map(|unit| unit.len()).sum());
    let (means, medians) = (0..RESAMPLES)
        .map(|_| {
            draw(&mut rng, &mut drawn);
            resample.clear();
            resample.extend(drawn.iter().flat_map(|&i| units[i]));
            let mean = resample.iter().sum::<f64>() / resample.len() as f64;
            (mean, median_of(&mut resample))
        })
        .unzip();
    (
        Some(percentile_interval(means)),
        Some(percentile_interval(medians)),
    )
}

/// The median in linear time; reorders `samples`, which is not empty.
fn median_of(samples: &mut [f64]) -> f64 {
    let middle = samples.len() / 2;
    let odd = samples.len() % 2 == 1;
    let (lower, &mut upper, _) = samples.select_nth_unstable_by(middle, f64::total_cmp);
    if odd {
        return upper;
    }
    let below = lower.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    f64::midpoint(below, upper)
}

/// Fills `drawn` with indices below its length. The multiplication maps 64 random bits onto the range without the
/// sampling code of `rand`, whose stream may change between its versions.
fn draw(rng: &mut ChaCha8Rng, drawn: &mut [usize]) {
    let n = drawn.len() as u128;
    for index in drawn {
        *index = ((u128::from(rng.next_u64()) * n) >> 64) as usize;
    }
}

fn percentile_interval(mut values: Vec<f64>) -> Interval {
    values.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Interval {
        low: interpolated(&values, tail),
        high: interpolated(&values, 1.0 - tail),
    }
}

fn sums<'a>(ratios: impl Iterator<Item = &'a Ratio>) -> (f64, f64) {
    ratios.fold((0.0, 0.0), |(part, whole), pair| {
        (part + pair.part, whole + pair.whole)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * b.abs().max(1.0)
    }

    #[test]
    fn quantiles_are_type_seven() {
        // R: quantile(c(1, 2, 3, 4, 10), c(.25, .5, .75), type = 7) gives 2 3 4; with c(1, 2, 3, 4): 1.75 2.5 3.25.
        let five = [1.0, 2.0, 3.0, 4.0, 10.0];
        assert_eq!(interpolated(&five, 0.25), 2.0);
        assert_eq!(quantile(&five, 0.5), Some(3.0));
        assert_eq!(interpolated(&five[..4], 0.75), 3.25);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!(close(quantile(&hundred, 0.99).unwrap(), 99.01));
        assert!(close(quantile(&hundred, 0.9).unwrap(), 90.1));
    }

    #[test]
    fn a_quantile_needs_its_samples() {
        for (p, least) in [(0.5, 1), (0.9, 10), (0.95, 20), (0.99, 100), (0.999, 1000)] {
            assert!(supports(p, least), "p{p} with {least}");
            assert!(!supports(p, least - 1), "p{p} with {}", least - 1);
        }
        let nineteen = Summary::of(&[1.0; 19]).unwrap();
        assert_eq!((nineteen.p90, nineteen.p95), (Some(1.0), None));
    }

    #[test]
    fn a_summary_of_few_or_bad_samples_says_less() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        let one = Summary::of(&[3.0]).unwrap();
        assert_eq!((one.mean, one.p50, one.n), (3.0, 3.0, 1));
        assert_eq!(one.mean_interval, None);
    }

    #[test]
    fn whole_trials_are_drawn_so_that_drift_between_them_counts() {
        let trials: Vec<Vec<f64>> = (0..10).map(|t| vec![10.0 + f64::from(t); 64]).collect();
        let by_trial = Summary::of_trials(&trials).unwrap();
        let by_step = Summary::of(&trials.concat()).unwrap();
        let width = |s: &Summary| s.mean_interval.map(|i| i.high - i.low).unwrap();
        assert_eq!(by_trial.n, 640);
        assert!(width(&by_trial) > 4.0 * width(&by_step));
        assert_eq!(
            Summary::of_trials(&trials[..1]),
            Summary::of(&trials[0]),
            "a single trial falls back to its steps"
        );
        assert_eq!(Summary::of_trials(&[vec![], vec![]]), None);
    }

    #[test]
    fn the_standard_error_of_one_to_five_is_known() {
        // s = sqrt(2.5), n = 5.
        let samples = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert!(close(standard_error(&samples).unwrap(), 0.5f64.sqrt()));
        assert_eq!(standard_error(&[1.0]), None);
    }

    #[test]
    fn rates_are_sums_over_sums() {
        let pair = |part, whole| Ratio { part, whole };
        let uneven = [pair(100.0, 1.0), pair(100.0, 3.0)];
        assert_eq!(rate(&uneven), Some(50.0));
        assert_eq!(rate(&[]), None);
        assert_eq!(rate(&[pair(1.0, 0.0)]), None);
        let even: Vec<Ratio> = (1..=5).map(|x| pair(f64::from(x) * 4.0, 4.0)).collect();
        assert!(close(
            rate_standard_error(&even).unwrap(),
            standard_error(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap()
        ));
        let ends = rate_interval(&even).unwrap();
        assert!(ends.low < 3.0 && 3.0 < ends.high);
    }

    #[test]
    fn a_constant_paired_shift_has_no_spread() {
        let base = [1.0, 5.0, 2.0, 8.0];
        let other = base.map(|x| x + 0.25);
        let paired = paired_difference(&base, &other).unwrap();
        assert_eq!(paired.mean, 0.25);
        assert_eq!(paired.stderr, Some(0.0));
        assert_eq!(
            paired.interval,
            Some(Interval {
                low: 0.25,
                high: 0.25
            })
        );
        assert_eq!(paired_difference(&base, &other[..3]), None);
    }

    #[test]
    fn flipping_signs_tells_chance_from_a_difference() {
        assert_eq!(sign_flip_test(&[0.3, 0.1, 0.2]), Some(0.25));
        assert_eq!(sign_flip_test(&[0.1, -0.1, 0.1, -0.1]), Some(1.0));
        assert_eq!(sign_flip_test(&[0.0; 20]), Some(1.0));
        assert_eq!(sign_flip_test(&[1.0]), None);
        assert_eq!(sign_flip_test(&[1.0, f64::NAN]), None);
        // Of twenty equal differences nothing but all flipped or none is as far from zero: two in a million ways.
        assert_eq!(sign_flip_test(&[1.0; 20]), Some(1e-4));
        // Sums of twenty signs have a standard deviation of 4.47; 6 or more in size has a probability of 0.263.
        let mut mixed = [1.0; 20];
        mixed[..7].fill(-1.0);
        let p = sign_flip_test(&mixed).unwrap();
        assert!((p - 0.263).abs() < 0.02, "{p}");
    }

    #[test]
    fn mcnemar_is_the_exact_binomial_test() {
        // Of 3 and 12: 2 (1 + 15 + 105 + 455) / 2^15.
        assert!((mcnemar(3, 12) - 1152.0 / 32768.0).abs() < 1e-12);
        assert_eq!(mcnemar(12, 3), mcnemar(3, 12));
        assert_eq!((mcnemar(0, 0), mcnemar(4, 4)), (1.0, 1.0));
        // Near the normal distribution: 60 below the middle of 5000 is 1.71 standard deviations.
        assert!(
            (mcnemar(2440, 2560) - 0.0924).abs() < 1e-3,
            "{}",
            mcnemar(2440, 2560)
        );
    }

    #[test]
    fn the_bootstrap_agrees_with_the_normal_interval_and_repeats() {
        // 0..400 has mean 199.5 and a standard error of 5.781; the 95 % interval is about ± 1.96 of it.
        let samples: Vec<f64> = (0..400).map(f64::from).collect();
        let ends = Summary::of(&samples).unwrap().mean_interval.unwrap();
        assert!((ends.low - 188.17).abs() < 0.8, "{ends:?}");
        assert!((ends.high - 210.83).abs() < 0.8, "{ends:?}");
        assert_eq!(Summary::of(&samples).unwrap().mean_interval, Some(ends));
    }

    proptest! {
        #[test]
        fn figures_of_a_summary_are_in_order(samples in prop::collection::vec(-1e6..1e6f64, 1..200)) {
            let s = Summary::of(&samples).unwrap();
            let rising: Vec<f64> = [Some(s.min), Some(s.p50), s.p90, s.p95, s.p99, Some(s.max)]
                .into_iter()
                .flatten()
                .collect();
            prop_assert!(rising.is_sorted());
            prop_assert!(s.min - 1e-6 <= s.mean && s.mean <= s.max + 1e-6);
            if let Some(ends) = s.median_interval {
                prop_assert!(ends.low <= ends.high && s.min <= ends.low && ends.high <= s.max);
            }
        }
    }
}
