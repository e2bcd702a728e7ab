//! The Pareto front: what nothing else beats in both quality and speed.

/// A variant in one cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Perplexity or bits per byte: less is better.
    pub loss: f64,
    /// Tokens per second: more is better.
    pub speed: f64,
}

impl Point {
    /// Whether `self` is at least as good as `other` in both and better in one.
    pub fn dominates(self, other: Self) -> bool {
        self.loss <= other.loss
            && self.speed >= other.speed
            && (self.loss < other.loss || self.speed > other.speed)
    }

    fn is_finite(self) -> bool {
        self.loss.is_finite() && self.speed.is_finite()
    }
}

/// Which points are on the front. Equal points do not dominate each other, so both are on it or neither; a point without
/// a finite figure is never on it and dominates nothing.
///
/// Quadratic, since a study has tens of variants.
pub fn front(points: &[Point]) -> Vec<bool> {
    points
        .iter()
        .map(|&point| {
            point.is_finite()
                && !points
                    .iter()
                    .any(|&other| other.is_finite() && other.dominates(point))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn points(pairs: &[(f64, f64)]) -> Vec<Point> {
        pairs
            .iter()
            .map(|&(loss, speed)| Point { loss, speed })
            .collect()
    }

    #[test]
    fn the_front_of_a_known_set() {
        let set = points(&[
            (10.0, 1.0),
            (10.1, 1.4),
            (10.2, 1.3),
            (12.0, 2.0),
            (10.0, 0.5),
        ]);
        assert_eq!(front(&set), [true, true, false, true, false]);
    }

    #[test]
    fn ties_share_the_front_and_nothing_is_nothing() {
        assert_eq!(front(&points(&[(1.0, 1.0), (1.0, 1.0)])), [true, true]);
        assert_eq!(front(&points(&[(1.0, 1.0), (1.0, 2.0)])), [false, true]);
        assert_eq!(
            front(&points(&[(f64::NAN, 9.0), (1.0, 1.0)])),
            [false, true]
        );
        assert!(front(&[]).is_empty());
    }

    proptest! {
        // Small whole numbers make ties common.
        #[test]
        fn the_front_is_what_it_says(pairs in prop::collection::vec((0..8u8, 0..8u8), 1..40)) {
            let set: Vec<Point> = pairs
                .iter()
                .map(|&(loss, speed)| Point { loss: f64::from(loss), speed: f64::from(speed) })
                .collect();
            let on_front = front(&set);
            prop_assert!(on_front.contains(&true));
            for (i, &point) in set.iter().enumerate() {
                let beaten_by_front = set
                    .iter()
                    .zip(&on_front)
                    .any(|(other, &on)| on && other.dominates(point));
                prop_assert_eq!(on_front[i], !beaten_by_front);
            }
        }
    }
}
