//! Whether a series had settled when it was measured.
//!
//! After Barrett et al., "Virtual Machine Warmup Blows Hot and Cold" (OOPSLA 2017): outliers are set aside, change points
//! cut the series into segments of one mean and variance, and the segments' means say what kind of series it is. Here a
//! difference counts from one percent of the last segment's mean on, since a series may be of microseconds or of minutes.

use super::summary::{interpolated, mean, median, variance};

/// Samples below which nothing can be said.
const FEWEST: usize = 10;
/// The shortest segment: two values would have a variance by chance alone.
const SHORTEST: usize = 3;
/// The penalty of a change point is this many times `ln n`.
const PENALTY: f64 = 15.0;
/// Outliers are judged among so many neighbours.
const NEIGHBOURS: usize = 200;
/// A difference of means counts from this share on.
const TOLERANCE: f64 = 0.01;
/// A spread below this share of the median is taken to be this much: steps of a clock are no change.
const FINEST: f64 = 1e-3;
/// A series that still changes in this part of it, counted from the end, has no steady state.
const LAST_PART: f64 = 0.25;

/// What kind of series it is. A high sample is a slow one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The same from beginning to end.
    Flat,
    /// It became faster and stayed so.
    WarmUp,
    /// It became slower and stayed so.
    Slowdown,
    /// It changed until the end.
    NoSteadyState,
}

/// A series, classified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steadiness {
    /// What kind it is.
    pub kind: Kind,
    /// From which sample on it is like its end.
    pub from: usize,
}

/// Classifies a series in the order in which it was measured; `None` of fewer than ten samples, or of samples that are
/// not finite and positive.
pub fn classify(series: &[f64]) -> Option<Steadiness> {
    if series.len() < FEWEST || !series.iter().all(|x| x.is_finite() && *x > 0.0) {
        return None;
    }
    let kept = without_outliers(series);
    let values: Vec<f64> = kept.iter().map(|&place| series[place]).collect();
    let starts = change_points(&values);
    let ends = starts.iter().skip(1).copied().chain([values.len()]);
    let segments: Vec<&[f64]> = starts
        .iter()
        .zip(ends)
        .map(|(&a, b)| &values[a..b])
        .collect();
    let last = segments.last()?;
    let level = mean(last)?;
    let near = (TOLERANCE * level).max(variance(last).unwrap_or(0.0).sqrt());
    let differs = |segment: &&[f64]| mean(segment).is_some_and(|m| (m - level).abs() > near);
    let Some(other) = segments.iter().rposition(differs) else {
        return Some(Steadiness {
            kind: Kind::Flat,
            from: 0,
        });
    };
    let from = kept[starts[other + 1]];
    let faster = |segment: &&[f64]| differs(segment) && mean(segment).is_some_and(|m| m < level);
    let settled = from as f64 <= (1.0 - LAST_PART) * series.len() as f64;
    let kind = if !settled {
        Kind::NoSteadyState
    } else if segments.iter().any(faster) {
        Kind::Slowdown
    } else {
        Kind::WarmUp
    };
    Some(Steadiness { kind, from })
}

/// The places of samples that are within three times the distance of the tenth from the ninetieth percentile of the
/// median, among their neighbours.
fn without_outliers(series: &[f64]) -> Vec<usize> {
    let parts = series.len().div_ceil(NEIGHBOURS);
    let length = series.len().div_ceil(parts);
    let mut kept = Vec::with_capacity(series.len());
    for (part, samples) in series.chunks(length).enumerate() {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |p| interpolated(&sorted, p);
        let (middle, reach) = (at(0.5), 3.0 * (at(0.9) - at(0.1)));
        let places = samples.iter().enumerate();
        let near = places.filter(|(_, x)| (*x - middle).abs() <= reach.max(FINEST * middle));
        kept.extend(near.map(|(place, _)| part * length + place));
    }
    kept
}

/// Where segments of one mean and one variance begin, the first at zero: the cut with the least sum of `n ln σ²` and of
/// `15 ln n` for each, found by PELT (Killick, Fearnhead and Eckley, "Optimal Detection of Changepoints with a Linear
/// Computational Cost", JASA 107, 2012).
pub fn change_points(series: &[f64]) -> Vec<usize> {
    let n = series.len();
    let Some(middle) = median(series).filter(|_| n >= 2 * SHORTEST) else {
        return vec![0];
    };
    // Prefix sums of what is left above the median: the variance of large numbers would lose its digits.
    let mut sums = vec![(0.0, 0.0)];
    for x in series {
        let (sum, squares) = sums[sums.len() - 1];
        let x = x - middle;
        sums.push((sum + x, squares + x * x));
    }
    let finest = (FINEST * middle).powi(2).max(f64::MIN_POSITIVE);
    let cost = |from: usize, to: usize| {
        let length = (to - from) as f64;
        let sum = sums[to].0 - sums[from].0;
        let squares = sums[to].1 - sums[from].1;
        let variance = (squares / length - (sum / length).powi(2)).max(finest);
        length * variance.ln()
    };
    let penalty = PENALTY * (n as f64).ln();
    let mut best = vec![f64::INFINITY; n + 1];
    best[0] = -penalty;
    let mut start_of_last = vec![0; n + 1];
    let mut candidates: Vec<usize> = Vec::new();
    for to in SHORTEST..=n {
        candidates.push(to - SHORTEST);
        candidates.retain(|&from| best[from].is_finite());
        for &from in &candidates {
            let total = best[from] + cost(from, to) + penalty;
            if total < best[to] {
                (best[to], start_of_last[to]) = (total, from);
            }
        }
        candidates.retain(|&from| best[from] + cost(from, to) <= best[to]);
    }
    let mut starts = Vec::new();
    let mut at = n;
    while at > 0 {
        at = start_of_last[at];
        starts.push(at);
    }
    starts.reverse();
    starts
}

#[cfg(test)]
mod tests {
    use super::super::Draws;
    use super::*;

    /// Levels, each so many samples long, with a noise of half a percent.
    fn steps(seed: u64, parts: &[(usize, f64)]) -> Vec<f64> {
        let mut draws = Draws::of_seed(seed);
        let of = |&(length, level): &(usize, f64)| vec![level; length];
        let levels: Vec<f64> = parts.iter().flat_map(of).collect();
        let noisy = |level: f64| level * (1.0 + 0.005 * draws.normal());
        levels.into_iter().map(noisy).collect()
    }

    fn kind(series: &[f64]) -> (Kind, usize) {
        let found = classify(series).unwrap();
        (found.kind, found.from)
    }

    #[test]
    fn change_points_stand_where_levels_change() {
        let series = steps(1, &[(40, 10.0), (60, 10.4), (50, 10.1)]);
        let starts = change_points(&series);
        assert_eq!(starts.len(), 3, "{starts:?}");
        assert!(starts[1].abs_diff(40) <= 1 && starts[2].abs_diff(100) <= 1);
        assert_eq!(change_points(&[]), [0]);
        assert_eq!(change_points(&[5.0; 30]), [0]);
    }

    #[test]
    fn noise_alone_is_flat() {
        let flat = |seed| kind(&steps(seed, &[(80, 3.0)])) == (Kind::Flat, 0);
        assert!((0..200).filter(|&seed| flat(seed)).count() >= 198);
        // A trend below what counts is no change, nor is a clock that counts in steps.
        let drifting: Vec<f64> = (0..60).map(|i| 3.0 + 1e-4 * f64::from(i)).collect();
        assert_eq!(kind(&drifting).0, Kind::Flat);
        let coarse: Vec<f64> = (0..60)
            .map(|i| f64::from(1000 + i32::from(i > 30)))
            .collect();
        assert_eq!(kind(&coarse).0, Kind::Flat);
    }

    #[test]
    fn a_series_is_named_by_how_it_began_and_ended() {
        let (found, from) = kind(&steps(2, &[(12, 12.0), (60, 10.0)]));
        assert_eq!((found, from.abs_diff(12) <= 1), (Kind::WarmUp, true));
        assert_eq!(kind(&steps(3, &[(30, 10.0), (40, 10.5)])).0, Kind::Slowdown);
        assert_eq!(
            kind(&steps(4, &[(60, 10.0), (10, 11.0)])).0,
            Kind::NoSteadyState
        );
        // Ten trials, as few as there usually are.
        assert_eq!(kind(&steps(5, &[(3, 14.0), (7, 10.0)])).0, Kind::WarmUp);
        assert_eq!(classify(&[1.0; 9]), None);
        assert_eq!(classify(&[f64::NAN; 20]), None);
    }

    #[test]
    fn outliers_are_no_change() {
        let mut series = steps(6, &[(50, 10.0)]);
        series[0] = 25.0;
        series[31] = 40.0;
        assert_eq!(kind(&series), (Kind::Flat, 0));
    }
}
