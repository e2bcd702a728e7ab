//! The same documents scored by a base and by a variant, and how far what they say of both is to be believed.

use crate::stats::{self, Interval, Paired};

/// Values of documents that count alike, of one task or of several.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Documents {
    /// The base's.
    pub(super) base: Vec<f64>,
    /// The variant's, in the same order.
    pub(super) other: Vec<f64>,
    /// How many of these each task has.
    pub(super) sizes: Vec<usize>,
}

impl Documents {
    /// Those of several, all together.
    pub(super) fn pooled(parts: &[&Self]) -> Self {
        Self {
            base: parts.iter().flat_map(|part| part.base.clone()).collect(),
            other: parts.iter().flat_map(|part| part.other.clone()).collect(),
            sizes: parts.iter().flat_map(|part| part.sizes.clone()).collect(),
        }
    }

    /// The difference of the means, documents paired; where they are right or wrong, with the score interval.
    pub(super) fn difference(&self) -> Option<Paired> {
        let mut found = stats::paired_difference(&self.base, &self.other)?;
        found.interval = self.score_interval().or(found.interval);
        Some(found)
    }

    /// Documents that the variant alone gets right, and those that the base alone does; `None` where some are neither
    /// right nor wrong.
    pub(super) fn discordant(&self) -> Option<(usize, usize)> {
        let binary = |values: &[f64]| values.iter().all(|&value| value == 0.0 || value == 1.0);
        let pairs = || self.base.iter().zip(&self.other);
        (binary(&self.base) && binary(&self.other)).then(|| {
            let won = pairs().filter(|(base, other)| other > base).count();
            let lost = pairs().filter(|(base, other)| other < base).count();
            (won, lost)
        })
    }

    /// The score interval of the difference, where documents are right or wrong.
    fn score_interval(&self) -> Option<Interval> {
        let (won, lost) = self.discordant()?;
        stats::paired_proportions(won, lost, self.other.len())
    }

    /// How far that reaches below and above the difference found.
    fn score_reach(&self) -> Option<[f64; 2]> {
        let (ends, (won, lost)) = (self.score_interval()?, self.discordant()?);
        let found = (won as f64 - lost as f64) / self.other.len() as f64;
        Some([found - ends.low, ends.high - found])
    }

    /// How far an interval of a mean over its documents reaches by its standard error.
    fn linear_reach(&self, stderr: f64) -> f64 {
        Interval::student(0.0, stderr, self.other.len()).high
    }

    /// The standard error of the mean of `other − ratio · base` over its documents.
    fn residual_error(&self, ratio: f64) -> Option<f64> {
        let pairs = self.other.iter().zip(&self.base);
        let residuals: Vec<f64> = pairs.map(|(other, base)| other - ratio * base).collect();
        stats::standard_error(&residuals)
    }

    /// The standard error of the mean of values of its documents, which vary within each task.
    fn error(&self, values: &[f64]) -> Option<f64> {
        let mut rest = values;
        let parts = self.sizes.iter().map(|&size| {
            let (own, others) = rest.split_at(size);
            rest = others;
            Some((size, stats::standard_error(own)?))
        });
        stats::pooled_standard_error(&parts.collect::<Option<Vec<_>>>()?)
    }

    fn differences(&self) -> Vec<f64> {
        let pairs = self.other.iter().zip(&self.base);
        pairs.map(|(other, base)| other - base).collect()
    }
}

/// A weighted mean of the figures of several sets of documents, each independent of the others.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mean {
    /// The base's.
    pub(super) base: f64,
    /// The variant's.
    pub(super) value: f64,
    /// Its standard error.
    pub(super) value_stderr: Option<f64>,
    /// The variant's over the base's; `None` where the base has none.
    pub(super) ratio: Option<f64>,
    /// Its standard error.
    pub(super) stderr: Option<f64>,
    /// Its 95 % interval.
    pub(super) ratio_interval: Option<Interval>,
    /// The variant's less the base's, documents paired; its interval is made of those of the parts.
    pub(super) difference: Paired,
}

impl Mean {
    /// Of parts with weights that add up to one; `None` if there is none, or one has no documents.
    pub(super) fn of(parts: &[(f64, &Documents)]) -> Option<Self> {
        let mean = |of: fn(&Documents) -> &[f64]| {
            let means = parts.iter();
            let means = means.map(|(weight, part)| Some(weight * stats::mean(of(part))?));
            means.sum::<Option<f64>>().filter(|_| !parts.is_empty())
        };
        let (base, value) = (mean(|part| &part.base)?, mean(|part| &part.other)?);
        // Parts are independent: their squared errors add up.
        let error = |of: &dyn Fn(&Documents) -> Option<f64>| {
            let squares = parts
                .iter()
                .map(|(weight, part)| Some((weight * of(part)?).powi(2)));
            Some(squares.sum::<Option<f64>>()?.sqrt())
        };
        let ratio = (base > 0.0).then(|| value / base);
        let reach = together(parts.iter().map(|(weight, part)| {
            let linear = part.linear_reach(part.error(&part.differences())?);
            let reach = part.score_reach().unwrap_or([linear; 2]);
            Some(reach.map(|reach| weight * reach))
        }));
        let difference = value - base;
        Some(Self {
            base,
            value,
            value_stderr: error(&|part| part.error(&part.other)),
            ratio,
            // By its linearisation: with `R = Σ aₜ / Σ bₜ` over parts, the errors of the means of `a − R b` within each,
            // which are independent, over `Σ bₜ` (Cochran, Sampling Techniques, 3rd ed., section 6.3).
            stderr: ratio.and_then(|ratio| Some(error(&|part| part.residual_error(ratio))? / base)),
            ratio_interval: ratio.and_then(|ratio| ratio_interval(parts, ratio, base)),
            difference: Paired {
                mean: difference,
                stderr: error(&|part| part.error(&part.differences())),
                interval: reach.map(|[below, above]| Interval {
                    low: difference - below,
                    high: difference + above,
                }),
            },
        })
    }
}

/// The 95 % interval of a ratio to a mean of `base`: what each part's figure may be off by is what the linearisation says
/// or the score interval of its difference, whichever reaches further. Near a ratio of one they agree for many documents,
/// and only the second is more than zero where no document differs; far above one only the first counts how unsure the
/// base is.
fn ratio_interval(parts: &[(f64, &Documents)], ratio: f64, base: f64) -> Option<Interval> {
    let [below, above] = together(parts.iter().map(|(weight, part)| {
        let linear = part.linear_reach(part.residual_error(ratio)?);
        let score = part.score_reach().unwrap_or([linear; 2]);
        Some(score.map(|reach| weight * reach.max(linear)))
    }))?;
    Some(Interval {
        low: ratio - below / base,
        high: ratio + above / base,
    })
}

/// How far a sum reaches whose independent parts reach so far below and above: squares add up on either side (Zou and
/// Donner, "Construction of Confidence Limits about Effect Measures", Statistics in Medicine 27, 2008).
fn together(reaches: impl Iterator<Item = Option<[f64; 2]>>) -> Option<[f64; 2]> {
    let mut squares = [0.0; 2];
    for reach in reaches {
        let reach = reach?;
        squares[0] += reach[0] * reach[0];
        squares[1] += reach[1] * reach[1];
    }
    Some(squares.map(f64::sqrt))
}
