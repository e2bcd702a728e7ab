//! Statistics of repeated measurements: quantiles that stay silent where the samples are too few, bootstrap intervals
//! from a seeded, portable generator, so that the same samples always give the same numbers, and verdicts over them.
//!
//! - [`Summary`], [`quantile`]: what is said about a set of samples.
//! - [`Ratio`], [`rate()`]: sums over sums, with their spread.
//! - [`bootstrap()`], [`Draws`]: samples drawn anew, and the intervals that follow.
//! - [`blocks`]: how long a series remembers, and draws that keep what it remembers.
//! - [`paired`]: differences over the same items.
//! - [`contrast`]: two sets of runs against each other, with what differs from run to run.
//! - [`verdict`]: what may be said of an interval, of one or of many.
//! - [`steady`]: whether a series had settled when it was measured.
//!
//! Everything here is pure. A formula's source stands with it.

pub mod blocks;
pub mod bootstrap;
pub mod contrast;
mod interval;
pub mod paired;
mod rate;
pub mod steady;
mod summary;
pub mod verdict;

pub use bootstrap::{Draws, RESAMPLES, bootstrap};
pub use interval::{CONFIDENCE, FEW_UNITS, Interval};
pub use paired::{
    Paired, mcnemar, paired_difference, paired_proportions, paired_rates, paired_test,
};
pub use rate::{Ratio, rate, rate_interval, rate_standard_error};
pub use summary::{
    Summary, mean, median, pooled_standard_error, quantile, standard_error, supports,
};

/// Whether two figures are the same but for rounding.
#[cfg(test)]
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * b.abs().max(1.0)
}

/// The share of intervals that hold `truth`, over so many draws of samples and of ratios: those of the mean and of the median
/// of the samples, and of the rate of the ratios.
#[cfg(test)]
fn coverage(
    times: u64,
    truth: f64,
    mut drawn: impl FnMut(u64) -> (Vec<f64>, Vec<Ratio>),
) -> [f64; 3] {
    let mut held = [0.0; 3];
    for time in 0..times {
        let (samples, ratios) = drawn(time);
        let summary = Summary::of(&samples).unwrap();
        let ends = [
            summary.mean_interval,
            summary.median_interval,
            rate_interval(&ratios),
        ];
        for (held, ends) in held.iter_mut().zip(ends) {
            *held += f64::from(u8::from(ends.unwrap().contains(truth))) / times as f64;
        }
    }
    held
}
