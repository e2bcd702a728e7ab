//! Rates over several parts: sums over sums, never means of rates, and how far they are to be believed.

use super::bootstrap::bootstrap;
use super::interval::Interval;

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

/// The 95 % interval of [`rate`] as [`bootstrap`] finds it, pairs drawn whole; `None` below two.
pub fn rate_interval(ratios: &[Ratio]) -> Option<Interval> {
    let (whole, stderr) = (rate(ratios)?, rate_standard_error(ratios));
    let each: Vec<f64> = ratios.iter().map(|pair| pair.part / pair.whole).collect();
    bootstrap(&each, whole, stderr, |drawn| {
        let (part, whole) = sums(drawn.iter().map(|&i| &ratios[i]));
        part / whole
    })
}

/// The standard error of [`rate`] by linearisation (Cochran, "Sampling Techniques", 1977, §6.3): with `r = Σp / Σw` and
/// residuals `e = p − r w`, `√(Σe² / (n (n − 1))) / w̄`. Over segments of one length it is the standard error of the mean
/// of segment means.
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

fn sums<'a>(ratios: impl Iterator<Item = &'a Ratio>) -> (f64, f64) {
    ratios.fold((0.0, 0.0), |(part, whole), pair| {
        (part + pair.part, whole + pair.whole)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{close, standard_error};
    use super::*;

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
        // An error of sqrt(0.5) and Student's quantile of four degrees, 2.7764.
        let ends = rate_interval(&even).unwrap();
        assert!((ends.low - 1.0367).abs() < 1e-3, "{ends:?}");
        assert!((ends.high - 4.9633).abs() < 1e-3, "{ends:?}");
        assert_eq!(rate_interval(&even[..1]), None);
    }
}
