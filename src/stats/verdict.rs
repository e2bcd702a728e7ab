//! What may be said of a difference, alone and among many.

use super::interval::{CONFIDENCE, Interval};

/// What a comparison came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The other is lower than the base, and not by chance.
    Lower,
    /// The other is higher than the base, and not by chance.
    Higher,
    /// Whatever the difference is, it is smaller than what counts.
    Equivalent,
    /// It may be either.
    Inconclusive,
}

impl Verdict {
    /// The verdict over a logarithm of a ratio, with its interval and its p-value, adjusted where there are several.
    ///
    /// Equivalence comes first: an interval within `±margin` says that no difference that counts is left, whether or not
    /// it excludes zero. As a test it is that of Schuirmann ("A Comparison of the Two One-Sided Tests Procedure", 1987)
    /// with one in forty to either side, since the interval has 95 %.
    pub fn of(interval: Interval, p_value: f64, margin: f64) -> Self {
        if -margin < interval.low && interval.high < margin {
            return Self::Equivalent;
        }
        // Each is asked whether it speaks for a difference, so that what is not a number decides nothing.
        let is_significant = p_value < 1.0 - CONFIDENCE;
        if is_significant && interval.high < 0.0 {
            Self::Lower
        } else if is_significant && interval.low > 0.0 {
            Self::Higher
        } else {
            Self::Inconclusive
        }
    }
}

/// P-values adjusted so that the chance of calling any of them that is none stays below the level, in their order (Holm, "A
/// Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979). What is not a
/// number is not among those that could be called: it stays what it is, and the others are adjusted for each other alone.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len())
        .filter(|&place| !p_values[place].is_nan())
        .collect();
    let n = order.len();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![f64::NAN; p_values.len()];
    let mut least: f64 = 0.0;
    for (rank, place) in order.into_iter().enumerate() {
        least = least.max((n - rank) as f64 * p_values[place]).min(1.0);
        adjusted[place] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holm_steps_down_and_never_back() {
        // R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives 0.03 0.06 0.06 0.02.
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - expected).abs() < 1e-12, "{adjusted:?}");
        }
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
        assert_eq!(holm(&[0.2]), [0.2]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn what_is_not_a_number_is_never_significant() {
        assert!(holm(&[f64::NAN])[0].is_nan());
        // As in R, the others are adjusted as if it were not there.
        for not_a_number in [f64::NAN, -f64::NAN] {
            let adjusted = holm(&[0.03, not_a_number, 0.01]);
            assert!(adjusted[1].is_nan(), "{adjusted:?}");
            assert_eq!([adjusted[0], adjusted[2]], [0.03, 0.02]);
        }
        let apart = Interval {
            low: 0.02,
            high: 0.03,
        };
        let unknown = Interval {
            low: f64::NAN,
            high: f64::NAN,
        };
        assert_eq!(Verdict::of(apart, f64::NAN, 0.01), Verdict::Inconclusive);
        assert_eq!(Verdict::of(unknown, 0.001, 0.01), Verdict::Inconclusive);
    }

    #[test]
    fn what_cannot_count_is_equivalent_and_what_may_be_chance_is_inconclusive() {
        let of = |low, high, p| Verdict::of(Interval { low, high }, p, 0.01);
        assert_eq!(of(-0.004, 0.006, 0.7), Verdict::Equivalent);
        assert_eq!(of(0.002, 0.006, 0.001), Verdict::Equivalent);
        assert_eq!(of(0.006, 0.014, 0.001), Verdict::Higher);
        assert_eq!(of(-0.03, -0.02, 0.001), Verdict::Lower);
        assert_eq!(of(-0.03, 0.02, 0.6), Verdict::Inconclusive);
        // One of many, and not sure enough among them.
        assert_eq!(of(0.006, 0.014, 0.2), Verdict::Inconclusive);
        assert_eq!(of(f64::NAN, f64::NAN, f64::NAN), Verdict::Inconclusive);
    }
}
