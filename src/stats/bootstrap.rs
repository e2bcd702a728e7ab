//! Samples drawn anew, with replacement, from a fixed seed.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::blocks::block_length;
use super::interval::{FEW_UNITS, Interval, of_draws};
use super::rate::{Ratio, rate, rate_standard_error};
use super::summary::{mean, median, standard_error};

/// How many times a bootstrap draws a sample anew.
pub const RESAMPLES: usize = 2000;

/// The seed of every bootstrap: fixed, because a report rendered twice must say the same.
const SEED: u64 = 0xCA9D_1E90;

/// A source of random draws whose stream no version of a library changes.
#[derive(Debug, Clone)]
pub struct Draws {
    rng: ChaCha8Rng,
}

impl Draws {
    /// The source of every bootstrap.
    pub fn seeded() -> Self {
        Self::of_seed(SEED)
    }

    /// A source of its own, for whoever makes noise up.
    pub fn of_seed(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// A number below `n`, all as likely. The multiplication maps 64 random bits onto the range without the sampling code
    /// of `rand`, whose stream may change between its versions.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.rng.next_u64()) * n as u128) >> 64) as usize
    }

    /// A number from zero to below one.
    pub fn unit(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number of the standard normal distribution (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// One of two.
    pub fn coin(&mut self) -> bool {
        self.rng.next_u64() >> 63 == 1
    }
}

/// The 95 % interval of `statistic` over [`RESAMPLES`] draws, with replacement, of units in the order in which they were
/// measured; `each` is what a unit says alone. Units that remember each other are drawn in blocks as long as they do
/// ([`block_length`]). Of fewer than [`FEW_UNITS`] the interval is Student's about `value`, the statistic of all of
/// them, with its standard error by linearisation; `None` where that has none, as below two units.
pub fn bootstrap(
    each: &[f64],
    value: f64,
    stderr: Option<f64>,
    mut statistic: impl FnMut(&[usize]) -> f64,
) -> Option<Interval> {
    let n = each.len();
    if n < FEW_UNITS {
        return stderr.map(|stderr| Interval::student(value, stderr, n));
    }
    let length = block_length(each);
    let mut draws = Draws::seeded();
    let mut drawn = Vec::with_capacity(n);
    let values = (0..RESAMPLES).map(|_| {
        drawn.clear();
        draws.in_blocks(n, length, |i| drawn.push(i));
        statistic(&drawn)
    });
    Some(of_draws(values.collect(), value, n as f64 / length))
}

/// Intervals of the mean and of the median from the same draws of whole units, in blocks as long as units remember each
/// other, or Student's where units are few; `None` below two units.
pub(super) fn location_intervals(units: &[&[f64]]) -> Option<(Interval, Interval)> {
    let n = units.len();
    if n < FEW_UNITS {
        return few_locations(units);
    }
    let sums: Vec<f64> = units.iter().map(|unit| unit.iter().sum()).collect();
    let each: Vec<f64> = sums
        .iter()
        .zip(units)
        .map(|(sum, unit)| sum / unit.len() as f64)
        .collect();
    let length = block_length(&each);
    let mut draws = Draws::seeded();
    let sorted = SortedUnits::of(units);
    let locations = |times: &[usize]| {
        let sum: f64 = sums.iter().zip(times).map(|(s, &t)| s * t as f64).sum();
        (sum / sorted.count(times) as f64, sorted.median(times))
    };
    let (mean, median) = locations(&vec![1; n]);
    let mut times = vec![0; n];
    let (means, medians) = (0..RESAMPLES)
        .map(|_| {
            times.fill(0);
            draws.in_blocks(n, length, |i| times[i] += 1);
            locations(&times)
        })
        .unzip();
    let independent = n as f64 / length;
    Some((
        of_draws(means, mean, independent),
        of_draws(medians, median, independent),
    ))
}

/// Student's intervals of the mean and of the median of few units: the mean as a rate of sums over counts, the median
/// by the mean of what each unit has for one, because the median itself has no linearisation.
fn few_locations(units: &[&[f64]]) -> Option<(Interval, Interval)> {
    let n = units.len();
    let sums: Vec<Ratio> = units
        .iter()
        .map(|unit| Ratio {
            part: unit.iter().sum(),
            whole: unit.len() as f64,
        })
        .collect();
    let medians: Vec<f64> = units.iter().filter_map(|unit| median(unit)).collect();
    Some((
        Interval::student(rate(&sums)?, rate_standard_error(&sums)?, n),
        Interval::student(mean(&medians)?, standard_error(&medians)?, n),
    ))
}

/// Samples of all units in one order, so that the median of any draw of whole units is found without sorting again.
#[derive(Debug)]
pub(super) struct SortedUnits {
    /// Each sample with its unit, ascending.
    samples: Vec<(f64, u32)>,
    lengths: Vec<usize>,
}

impl SortedUnits {
    pub(super) fn of(units: &[&[f64]]) -> Self {
        let of_unit = |(place, unit): (usize, &&[f64])| {
            let place = place as u32;
            unit.iter().map(move |&x| (x, place)).collect::<Vec<_>>()
        };
        let mut samples: Vec<(f64, u32)> = units.iter().enumerate().flat_map(of_unit).collect();
        samples.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        Self {
            samples,
            lengths: units.iter().map(|unit| unit.len()).collect(),
        }
    }

    /// How many samples there are if each unit counts so many times.
    fn count(&self, times: &[usize]) -> usize {
        self.lengths.iter().zip(times).map(|(n, t)| n * t).sum()
    }

    /// Their median; not a number if there is none.
    pub(super) fn median(&self, times: &[usize]) -> f64 {
        let count = self.count(times);
        let (mut seen, mut lower) = (0, f64::NAN);
        for &(value, unit) in &self.samples {
            let before = seen;
            seen += times[unit as usize];
            if before < count.div_ceil(2) {
                lower = value;
            }
            if seen > count / 2 {
                return if count % 2 == 1 {
                    value
                } else {
                    f64::midpoint(lower, value)
                };
            }
        }
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Summary, coverage};
    use super::*;

    #[test]
    fn the_bootstrap_agrees_with_the_normal_interval_and_repeats() {
        // 0..400 has mean 199.5 and a standard error of 5.781; the 95 % interval is about ± 1.96 of it.
        // In an order that remembers nothing.
        let samples: Vec<f64> = (0..400)
            .map(|i| f64::from(i * i * i % 401 * 151 % 401))
            .collect();
        let ends = Summary::of(&samples).unwrap().mean_interval.unwrap();
        assert!((ends.low - 188.17).abs() < 0.8, "{ends:?}");
        assert!((ends.high - 210.83).abs() < 0.8, "{ends:?}");
        assert_eq!(Summary::of(&samples).unwrap().mean_interval, Some(ends));
    }

    #[test]
    fn intervals_of_few_units_cover_what_they_promise() {
        for n in [2, 3, 5, 7] {
            let mut draws = Draws::of_seed(n as u64);
            let held = coverage(2000, 10.0, |_| {
                let samples = (0..n).map(|_| 10.0 + draws.normal()).collect();
                // Parts per whole, which vary as well.
                let ratios = (0..n).map(|_| {
                    let whole = 10.0 + draws.normal();
                    let part = 10.0 * whole + draws.normal();
                    Ratio { part, whole }
                });
                (samples, ratios.collect())
            });
            let kept = held.iter().all(|share| (0.93..=0.97).contains(share));
            assert!(kept, "{n} units: {held:?}");
        }
    }

    #[test]
    fn intervals_of_few_units_are_students() {
        // 1, 2 and 6: a mean of 3, a standard error of sqrt(7 / 3), and 4.3027 of it for two degrees.
        let ends = Summary::of(&[1.0, 2.0, 6.0])
            .unwrap()
            .mean_interval
            .unwrap();
        assert!((ends.low + 3.5724).abs() < 1e-3, "{ends:?}");
        assert!((ends.high - 9.5724).abs() < 1e-3, "{ends:?}");
        // Trials with medians of 1, 2 and 6 have the same interval of the median, however many samples each has.
        let trials = [vec![1.0; 3], vec![0.0, 2.0, 9.0], vec![6.0]];
        let of_trials = Summary::of_trials(&trials).unwrap();
        assert_eq!(of_trials.median_interval, Some(ends));
    }

    #[test]
    fn the_median_of_units_is_that_of_their_samples() {
        let mut draws = Draws::of_seed(3);
        let units: Vec<Vec<f64>> = (0..6)
            .map(|i| {
                (0..i % 4 + 1)
                    .map(|_| (draws.unit() * 9.0).round())
                    .collect()
            })
            .collect();
        let refs: Vec<&[f64]> = units.iter().map(Vec::as_slice).collect();
        let sorted = SortedUnits::of(&refs);
        for _ in 0..200 {
            let times: Vec<usize> = units.iter().map(|_| draws.below(3)).collect();
            let repeated = units.iter().zip(&times);
            let all: Vec<f64> = repeated.flat_map(|(unit, &t)| unit.repeat(t)).collect();
            match median(&all) {
                Some(expected) => assert_eq!(sorted.median(&times), expected, "{times:?}"),
                None => assert!(sorted.median(&times).is_nan()),
            }
        }
    }

    #[test]
    fn draws_are_even_and_normal_ones_normal() {
        let mut draws = Draws::of_seed(1);
        let mut counts = [0; 5];
        (0..10_000).for_each(|_| counts[draws.below(5)] += 1);
        assert!(
            counts.iter().all(|n| (1850..2150).contains(n)),
            "{counts:?}"
        );
        let normal: Vec<f64> = (0..10_000).map(|_| draws.normal()).collect();
        let beyond = normal.iter().filter(|x| x.abs() > 1.96).count();
        assert!((430..570).contains(&beyond), "{beyond}");
    }
}
