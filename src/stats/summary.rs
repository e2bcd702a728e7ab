//! What is said about a set of samples: location, spread, and quantiles where there are enough samples for them.
//!
//! Quantiles after Hyndman and Fan, "Sample Quantiles in Statistical Packages" (The American Statistician 50, 1996),
//! type 7.

use super::bootstrap::location_intervals;
use super::interval::Interval;

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
    /// Sums up samples in the order in which they were measured; `None` if there are none or one is not finite.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let units: Vec<&[f64]> = samples.chunks(1).collect();
        Self::of_units(samples.to_vec(), &units)
    }

    /// Sums up samples that come in trials, as the steps of a generation do.
    ///
    /// Steps of one trial resemble each other (the context grows, the clock drifts), so the intervals draw whole trials:
    /// steps drawn one by one would make them too narrow. So do trials that follow each other, which are drawn in blocks
    /// as long as they remember each other. With a single trial there is nothing else to draw, and the
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
        let intervals = location_intervals(units);
        Some(Self {
            mean: mean(&samples)?,
            p50: quantile(&samples, 0.5)?,
            p90: quantile(&samples, 0.9),
            p95: quantile(&samples, 0.95),
            p99: quantile(&samples, 0.99),
            min: samples[0],
            max: samples[samples.len() - 1],
            n: samples.len(),
            mean_interval: intervals.map(|(mean, _)| mean),
            median_interval: intervals.map(|(_, median)| median),
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
pub(super) fn interpolated(sorted: &[f64], p: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * p;
    let below = place.floor() as usize;
    let above = place.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// The arithmetic mean; `None` of nothing.
pub fn mean(samples: &[f64]) -> Option<f64> {
    (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / samples.len() as f64)
}

/// The median, in any order; `None` of nothing.
pub fn median(samples: &[f64]) -> Option<f64> {
    (!samples.is_empty()).then(|| median_of(&mut samples.to_vec()))
}

/// The median in linear time; reorders `samples`, which is not empty.
pub(super) fn median_of(samples: &mut [f64]) -> f64 {
    let middle = samples.len() / 2;
    let odd = samples.len() % 2 == 1;
    let (lower, &mut upper, _) = samples.select_nth_unstable_by(middle, f64::total_cmp);
    if odd {
        return upper;
    }
    let below = lower.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    f64::midpoint(below, upper)
}

/// The variance over `n − 1`; `None` below two samples.
pub(super) fn variance(samples: &[f64]) -> Option<f64> {
    let centre = mean(samples)?;
    let squares: f64 = samples.iter().map(|x| (x - centre).powi(2)).sum();
    (samples.len() >= 2).then(|| squares / (samples.len() - 1) as f64)
}

/// The standard error of the mean, `s / √n` with `s` over `n − 1`; `None` below two samples.
pub fn standard_error(samples: &[f64]) -> Option<f64> {
    Some((variance(samples)? / samples.len() as f64).sqrt())
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

#[cfg(test)]
mod tests {
    use super::super::blocks::block_length;
    use super::super::{FEW_UNITS, close};
    use super::*;
    use proptest::prelude::*;

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
    fn groups_taken_together_pool_the_variance_within_them() {
        let (a, b) = ([1.0, 0.0, 1.0, 1.0], [5.0, 5.0, 8.0]);
        let pooled = |groups: &[&[f64]]| {
            let parts: Vec<(usize, f64)> = groups
                .iter()
                .map(|group| (group.len(), standard_error(group).unwrap()))
                .collect();
            pooled_standard_error(&parts).unwrap()
        };
        // Squares about their own means: 0.75 and 6; five degrees of freedom, seven samples.
        assert!(close(pooled(&[&a, &b]), (6.75_f64 / 5.0 / 7.0).sqrt()));
        assert!(close(pooled(&[&a]), standard_error(&a).unwrap()));
        assert_eq!(pooled_standard_error(&[(1, 0.0)]), None);
        assert_eq!(pooled_standard_error(&[]), None);
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
        assert!(width(&by_trial) > width(&by_step));
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
                prop_assert!(ends.low <= ends.high);
                // Few samples have Student's interval, which their range does not bound.
                let independent = s.n as f64 / block_length(&samples);
                prop_assert!(independent < FEW_UNITS as f64 || (s.min <= ends.low && ends.high <= s.max));
            }
        }
    }
}
