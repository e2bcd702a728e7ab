//! Differences over the same items: means, tests, and no need to know what the items share.

use super::bootstrap::{Draws, bootstrap};
use super::interval::{FEW_UNITS, Interval, student_p_value, student_reach};
use super::rate::{Ratio, rate, rate_standard_error};
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
    /// Its 95 % interval as [`bootstrap`] finds it, pairs drawn whole; `None` for a single pair.
    pub interval: Option<Interval>,
}

/// The mean difference of paired samples; `None` if they are empty or do not pair up.
pub fn paired_difference(base: &[f64], other: &[f64]) -> Option<Paired> {
    if base.len() != other.len() {
        return None;
    }
    let differences: Vec<f64> = other.iter().zip(base).map(|(o, b)| o - b).collect();
    let n = differences.len();
    let (mean, stderr) = (mean(&differences)?, standard_error(&differences));
    let interval = bootstrap(&differences, mean, stderr, |drawn| {
        drawn.iter().map(|&i| differences[i]).sum::<f64>() / n as f64
    });
    Some(Paired {
        mean,
        stderr,
        interval,
    })
}

/// How often an interval that a limit lies in is halved: to the last bit.
const HALVINGS: usize = 60;

/// The 95 % score interval of the difference of two proportions over the same `n` pairs, of which `won` are right on
/// the other side alone and `lost` on the base's (Tango, "Equivalence Test and Confidence Interval for the Difference
/// in Proportions for the Paired-Sample Design", Statistics in Medicine 17, 1998). It holds every difference `δ` with
/// `|won − lost − n δ| ≤ z √(n (2 q + δ (1 − δ)))`, where `q` is the likeliest share of `lost` if `δ` is the truth. The
/// spread is that under `δ`, not the one found: without a pair that differs the limits are `± z² / (n + z²)`, not zero.
/// `None` below two pairs.
pub fn paired_proportions(won: usize, lost: usize, n: usize) -> Option<Interval> {
    if n < 2 {
        return None;
    }
    let z = student_reach(f64::INFINITY);
    let (b, c, n) = (won as f64, lost as f64, n as f64);
    let found = (b - c) / n;
    // Whether the truth may be this: it is within z standard errors, as they would be if it were.
    let may_be = |delta: f64| {
        let linear = (2.0 * n - b + c) * delta - b - c;
        let rest = -c * delta * (1.0 - delta);
        let root = (linear * linear - 8.0 * n * rest).max(0.0).sqrt();
        let share = (root - linear) / (4.0 * n);
        let variance = n * (2.0 * share + delta * (1.0 - delta));
        (b - c - n * delta).powi(2) <= z * z * variance.max(0.0)
    };
    let limit = |end: f64| {
        let (mut inside, mut outside) = (found, end);
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(inside, outside);
            if may_be(middle) {
                inside = middle;
            } else {
                outside = middle;
            }
        }
        inside
    };
    Some(Interval {
        low: limit(-1.0),
        high: limit(1.0),
    })
}

/// How probable a rate of paired differences so far from zero is if there is no difference, two-sided: by the sign-flip
/// test of the differences, or of fewer than [`FEW_UNITS`] by Student's paired test of the rate with its error by
/// linearisation. Of five pairs signs can be flipped in 32 ways, of which two at least are as extreme: no difference
/// could ever be told from chance. `None` below two pairs.
pub fn paired_test(differences: &[Ratio]) -> Option<f64> {
    let n = differences.len();
    if n >= FEW_UNITS {
        let parts: Vec<f64> = differences.iter().map(|pair| pair.part).collect();
        return sign_flip_test(&parts);
    }
    let (found, stderr) = (rate(differences)?, rate_standard_error(differences)?);
    student_p_value(found, stderr, (n - 1) as f64).filter(|_| found.is_finite())
}

/// The 95 % interval of one rate over another, both of the same pairs of parts, such as the turns that two variants took.
/// Pairs are drawn whole, so that what slowed both in one turn cancels; of fewer than [`FEW_UNITS`] it is Student's of the
/// logarithm, whose error is that of the differences within pairs by linearisation: with `r` a rate, a pair moves `ln r` by
/// `(p − r w) / Σp`. `None` below two pairs, where they do not pair up, or where a rate is not above zero.
pub fn paired_rates(base: &[Ratio], other: &[Ratio]) -> Option<Interval> {
    let n = base.len();
    if n < 2 || other.len() != n {
        return None;
    }
    let positive = |ratios: &[Ratio]| rate(ratios).filter(|rate| rate.is_finite() && *rate > 0.0);
    let (base_rate, other_rate) = (positive(base)?, positive(other)?);
    let moves = |ratios: &[Ratio], rate: f64| -> Vec<f64> {
        let all: f64 = ratios.iter().map(|pair| pair.part).sum();
        let each = ratios.iter();
        each.map(|pair| (pair.part - rate * pair.whole) / all)
            .collect()
    };
    let each: Vec<f64> = moves(other, other_rate)
        .into_iter()
        .zip(moves(base, base_rate))
        .map(|(other, base)| other - base)
        .collect();
    let squares: f64 = each.iter().map(|x| x.powi(2)).sum();
    let stderr = (squares * n as f64 / (n - 1) as f64).sqrt();
    let drawn_log = |ratios: &[Ratio], drawn: &[usize]| {
        let (part, whole) = drawn.iter().fold((0.0, 0.0), |(part, whole), &i| {
            (part + ratios[i].part, whole + ratios[i].whole)
        });
        (part / whole).ln()
    };
    let found = (other_rate / base_rate).ln();
    let logs = bootstrap(&each, found, Some(stderr), |drawn| {
        drawn_log(other, drawn) - drawn_log(base, drawn)
    });
    logs.map(|ends| ends.map(f64::exp))
}

/// How many ways to flip signs are tried one by one, rather than by chance: up to twelve differences.
const EXACT_FLIPS: u32 = 12;
/// Random flips where there are more.
const RANDOM_FLIPS: usize = 9_999;

/// The two-sided sign-flip test of paired differences (Fisher's randomisation test): the share of ways to give each
/// difference either sign that make a sum at least as far from zero as the one found. Exact for up to twelve; above
/// that over random ways and the one found, `(1 + as extreme) / (1 + tried)` (Phipson and Smyth, 2010). `None` below two.
fn sign_flip_test(differences: &[f64]) -> Option<f64> {
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
    use super::super::rate_interval;
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

    fn evenly(differences: &[f64]) -> Vec<Ratio> {
        let pair = |&part: &f64| Ratio { part, whole: 1.0 };
        differences.iter().map(pair).collect()
    }

    #[test]
    fn a_few_pairs_can_tell_a_difference() {
        // SciPy: ttest_1samp([1, 2, 3], 0).pvalue is 0.07418, of [1, 1.1, 0.9, 1, 1.2] it is 3.4122e-5.
        let p = |differences: &[f64]| paired_test(&evenly(differences)).unwrap();
        assert!((p(&[1.0, 2.0, 3.0]) - 0.074_180).abs() < 1e-6);
        assert!((p(&[1.0, 1.1, 0.9, 1.0, 1.2]) - 3.412_217e-5).abs() < 1e-9);
        assert_eq!((p(&[0.0; 3]), p(&[0.5; 3])), (1.0, 0.0));
        assert_eq!(paired_test(&evenly(&[1.0])), None);
        assert_eq!(paired_test(&evenly(&[1.0, f64::NAN])), None);
        // From eight on signs are flipped: two of 256 ways.
        assert_eq!(p(&[0.5; 8]), 2.0 / 256.0);
    }

    #[test]
    fn what_slows_both_sides_of_a_turn_cancels_in_the_ratio_of_rates() {
        let turns = |factor: f64, seconds: &[f64]| -> Vec<Ratio> {
            let turn = |&whole: &f64| Ratio {
                part: factor * 100.0,
                whole,
            };
            seconds.iter().map(turn).collect()
        };
        // Four turns, one of them at half the speed for both.
        let seconds = [1.0, 1.0, 2.0, 1.0];
        let ends = paired_rates(&turns(1.0, &seconds), &turns(1.5, &seconds)).unwrap();
        assert!((ends.low - 1.5).abs() < 1e-12 && (ends.high - 1.5).abs() < 1e-12);
        // Two turns, which move the logarithm by ±0.005: an error of √(2 · 2 · 0.005²), and Student's quantile of one
        // degree.
        let base = turns(1.0, &[1.0, 1.0]);
        let other = [
            Ratio {
                part: 101.0,
                whole: 1.0,
            },
            Ratio {
                part: 99.0,
                whole: 1.0,
            },
        ];
        let ends = paired_rates(&base, &other).unwrap();
        let reach = 12.706_2 * 0.01;
        assert!((ends.high.ln() - reach).abs() < 1e-5, "{ends:?}");
        assert!((ends.low.ln() + reach).abs() < 1e-5, "{ends:?}");
        assert_eq!(paired_rates(&base[..1], &other[..1]), None);
        assert_eq!(paired_rates(&base, &other[..1]), None);
        assert_eq!(paired_rates(&turns(0.0, &[1.0, 1.0]), &other), None);
    }

    #[test]
    fn intervals_of_paired_rates_cover_what_they_promise() {
        for n in [3_u64, 4, 12] {
            let mut draws = Draws::of_seed(n);
            let mut held = 0;
            for _ in 0..400 {
                let (mut base, mut other) = (Vec::new(), Vec::new());
                for _ in 0..n {
                    // What both have in common is ten times what they have not.
                    let common = 1.0 + 0.1 * draws.normal();
                    let mut turn = |part: f64| Ratio {
                        part,
                        whole: common * (1.0 + 0.01 * draws.normal()),
                    };
                    base.push(turn(100.0));
                    other.push(turn(130.0));
                }
                let ends = paired_rates(&base, &other).unwrap();
                held += i32::from(ends.contains(1.3));
                assert!(ends.high / ends.low < 1.5, "{n}: {ends:?}");
            }
            assert!((360..=398).contains(&held), "{n} turns: {held} of 400");
        }
    }

    #[test]
    fn chance_is_called_a_difference_as_often_as_promised() {
        for n in [2, 3, 5, 7] {
            let mut draws = Draws::of_seed(n);
            let mut called = 0;
            for _ in 0..2000 {
                let pair = |draws: &mut Draws| Ratio {
                    part: 0.1 * draws.normal(),
                    whole: 512.0 + 20.0 * draws.normal(),
                };
                let pairs: Vec<Ratio> = (0..n).map(|_| pair(&mut draws)).collect();
                let p = paired_test(&pairs).unwrap();
                // The interval and the test agree about zero.
                assert_eq!(p < 0.05, !rate_interval(&pairs).unwrap().contains(0.0));
                called += i32::from(p < 0.05);
            }
            assert!((60..=140).contains(&called), "{n} pairs: {called} of 2000");
        }
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
    fn proportions_of_the_same_pairs_have_a_score_interval_that_never_collapses() {
        let near = |(won, lost, n), low: f64, high: f64| {
            let ends = paired_proportions(won, lost, n).unwrap();
            let close = (ends.low - low).abs() < 5e-6 && (ends.high - high).abs() < 5e-6;
            assert!(close, "{won} : {lost} of {n}: {ends:?}");
        };
        // Fagerland, Lydersen and Laake, "Recommended Tests and Confidence Intervals for Paired Binomial Proportions",
        // Statistics in Medicine 33, 2014, have (-0.517, -0.026) for 1 and 7 of 21; more digits, and the other cases,
        // are from a script that solves Tango's equation with SciPy's quantile.
        near((1, 7, 21), -0.517_232, -0.026_003);
        near((7, 1, 21), 0.026_003, 0.517_232);
        near((6, 16, 161), -0.124_023, -0.005_433);
        near((3, 12, 100), -0.173_743, -0.015_977);
        // None that differs: z² / (n + z²) with z² = 3.84146.
        near((0, 0, 20), -0.161_125, 0.161_125);
        near((0, 0, 1000), -0.003_827, 0.003_827);
        // All that differ: no proportion is beyond one.
        near((0, 20, 20), -1.0, -0.677_750);
        assert_eq!(paired_proportions(0, 0, 1), None);
    }

    #[test]
    fn score_intervals_cover_what_they_promise() {
        // Right on both sides, on the other's alone, on the base's alone.
        for (n, won, lost) in [(20, 0.02, 0.02), (50, 0.05, 0.15), (300, 0.01, 0.03)] {
            let mut draws = Draws::of_seed(n);
            let mut held = 0;
            for _ in 0..2000 {
                let (mut found_won, mut found_lost) = (0, 0);
                for _ in 0..n {
                    let luck = draws.unit();
                    found_won += usize::from(luck < won);
                    found_lost += usize::from(luck >= won && luck < won + lost);
                }
                let ends = paired_proportions(found_won, found_lost, n as usize).unwrap();
                held += i32::from(ends.contains(won - lost));
            }
            assert!(held >= 1860, "{n}: {held} of 2000");
        }
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
