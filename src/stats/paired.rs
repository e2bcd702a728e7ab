//! Differences over the same items: means, tests, and no need to know what the items share.

use super::bootstrap::{Draws, bootstrap};
use super::interval::Interval;
use super::summary::{mean, standard_error};

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
    let n = differences.len();
    let interval = (n >= 2).then(|| {
        bootstrap(n, |drawn| {
            drawn.iter().map(|&i| differences[i]).sum::<f64>() / n as f64
        })
    });
    Some(Paired {
        mean: mean(&differences)?,
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
    let mut draws = Draws::seeded();
    let as_extreme = (0..RANDOM_FLIPS)
        .filter(|_| extreme(&mut |_| draws.coin()))
        .count();
    Some((1 + as_extreme) as f64 / (1 + RANDOM_FLIPS) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
