//! AWQ (Lin et al. 2023, `mit-han-lab/llm-awq`, `casper-hansen/AutoAWQ`): input channels that matter are multiplied up
//! before rounding and divided down in whatever makes the input, and ranges are clipped where that lessens the error.
//!
//! Both searches weigh errors by the Gram matrix of the inputs, so every calibration token counts and none is kept: the
//! error of a scale is the squared error of the linear layers' outputs (the papers' code takes that of the attention's or
//! the feed-forward layer's), that of a clipped range the squared error of one group's share of one output.

use rayon::prelude::*;

use super::calibration::Statistics;
use super::grid::{Form, Grid, range};
use super::layer::Matrix;
use super::linalg::Quadratic;

/// Exponents that the search tries, from 0 on in equal steps below 1.
const RATIOS: usize = 20;
/// Ranges that clipping tries, each smaller than the one before by a twentieth of the whole.
const CLIPS: usize = 10;
/// Clipping weighs errors by blocks of the Gram matrix: beyond this width they would cost more than they give.
const WIDEST_CLIPPED: usize = 256;

/// What a search found.
pub(super) struct Found {
    /// The factors of the input channels, `[k]`.
    pub(super) scales: Vec<f32>,
    /// The exponent that they came of; `None` where nothing was better than no factors.
    pub(super) ratio: Option<f64>,
}

/// The best factors for the input of `members`, whose statistics these are.
pub(super) fn search(statistics: &Statistics, members: &[Matrix], form: Form) -> Found {
    let k = statistics.k;
    let gram = Quadratic::new(&statistics.gram, k);
    let means = (statistics.means(), weight_means(members, k, form.group));
    let error = |scales: &[f32]| -> f64 {
        let parts = members
            .iter()
            .map(|m| gram.sum(&differences(m, scales, form)));
        parts.sum()
    };
    let mut best = Found {
        scales: vec![1.0; k],
        ratio: None,
    };
    let mut least = error(&best.scales);
    for i in 0..RATIOS {
        let ratio = i as f64 / RATIOS as f64;
        let scales = candidate(&means.0, &means.1, ratio);
        let found = error(&scales);
        if found < least {
            least = found;
            best = Found {
                scales,
                ratio: Some(ratio),
            };
        }
    }
    best
}

/// Mean magnitude of each column over all rows, each weight as a share of the largest of its group, `[k]`.
fn weight_means(members: &[Matrix], k: usize, group: usize) -> Vec<f64> {
    let mut sums = vec![0.0; k];
    for row in members.iter().flat_map(|m| m.weights.chunks_exact(k)) {
        for (sums, group) in sums.chunks_mut(group).zip(row.chunks(group)) {
            let largest = group.iter().fold(0.0_f32, |m, w| m.max(w.abs())) + 1e-6;
            for (sum, w) in sums.iter_mut().zip(group) {
                *sum += f64::from(w.abs() / largest);
            }
        }
    }
    let rows: usize = members.iter().map(|m| m.n).sum();
    sums.iter().map(|sum| sum / rows as f64).collect()
}

/// `x^r / w^(1 - r)`, normalised so that the largest and the smallest factor are each other's inverses.
fn candidate(inputs: &[f64], weights: &[f64], ratio: f64) -> Vec<f32> {
    let raw: Vec<f64> = inputs
        .iter()
        .zip(weights)
        .map(|(x, w)| (x.powf(ratio) / (w.powf(1.0 - ratio) + 1e-4)).max(1e-4))
        .collect();
    let (least, most) = raw
        .iter()
        .fold((f64::INFINITY, 0.0_f64), |(a, b), &s| (a.min(s), b.max(s)));
    let middle = (least * most).sqrt();
    raw.iter()
        .map(|s| (s / middle) as f32)
        .map(|s| if s.is_finite() && s > 0.0 { s } else { 1.0 })
        .collect()
}

/// `Q(w s) / s - w` for every weight.
fn differences(matrix: &Matrix, scales: &[f32], form: Form) -> Vec<f32> {
    let mut out = vec![0.0; matrix.weights.len()];
    let rows = out.par_chunks_mut(matrix.k);
    rows.zip(matrix.weights.par_chunks(matrix.k))
        .for_each(|(out, row)| {
            let groups = out.chunks_mut(form.group).zip(row.chunks(form.group));
            for ((out, w), s) in groups.zip(scales.chunks(form.group)) {
                let scaled = out.iter_mut().zip(w).zip(s);
                scaled.for_each(|((out, w), s)| *out = w * s);
                let (low, high) = range(out);
                let grid = Grid::over(low, high, form);
                for ((out, w), s) in out.iter_mut().zip(w).zip(s) {
                    *out = grid.rounded(*out) / s - w;
                }
            }
        });
    out
}

/// Whether groups of this width are clipped.
pub(super) const fn clips(form: Form) -> bool {
    form.group <= WIDEST_CLIPPED
}

/// Grids of all groups, `[n, k / group]`, over ranges clipped to where the error of their share of the output is least.
pub(super) fn clipped(matrix: &Matrix, statistics: &Statistics, form: Form) -> Vec<Grid> {
    let (k, group) = (matrix.k, form.group);
    // The blocks on the Gram matrix's diagonal, side by side.
    let blocks: Vec<Vec<f32>> = (0..k)
        .step_by(group)
        .map(|first| {
            let rows = statistics.gram[first * k..].chunks(k).take(group);
            rows.flat_map(|row| &row[first..first + group])
                .copied()
                .collect()
        })
        .collect();
    let groups = k / group;
    matrix
        .weights
        .par_chunks(group)
        .enumerate()
        .map_init(
            || (vec![0.0; group], vec![0.0; group]),
            |(errors, product), (i, weights)| {
                clip(weights, &blocks[i % groups], form, errors, product)
            },
        )
        .collect()
}

/// The best of the clipped ranges of one group; `gram [group, group]` belongs to it.
fn clip(
    weights: &[f32],
    gram: &[f32],
    form: Form,
    errors: &mut [f32],
    product: &mut [f32],
) -> Grid {
    let (low, high) = range(weights);
    let largest = high.max(-low);
    let mut best = (Grid::over(low, high, form), f32::INFINITY);
    for i in 0..CLIPS {
        let limit = largest * (1.0 - i as f32 / (2 * CLIPS) as f32);
        let grid = Grid::over(low.max(-limit), high.min(limit), form);
        for (error, &w) in errors.iter_mut().zip(weights) {
            *error = grid.rounded(w) - w;
        }
        product.fill(0.0);
        for (error, row) in errors.iter().zip(gram.chunks_exact(form.group)) {
            for (p, g) in product.iter_mut().zip(row) {
                *p += error * g;
            }
        }
        let found: f32 = product.iter().zip(&*errors).map(|(p, e)| p * e).sum();
        if found < best.1 {
            best = (grid, found);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::{CodeFormat, DType};

    const FORM: Form = Form {
        format: CodeFormat::U4,
        group: 32,
        symmetric: true,
        scales: DType::F32,
    };

    /// The vectors of the research notes, by AutoAWQ's rule.
    #[test]
    fn candidates_equal_those_of_autoawq() {
        let (x, w) = ([0.1, 1.0, 0.5, 20.0], [0.3, 0.25, 0.4, 0.2]);
        for (ratio, truth) in [
            (0.5, [0.240_286_1, 0.832_360_9, 0.465_323_4, 4.161_706_4]),
            (0.25, [0.442_951_4, 0.903_080_1, 0.533_845_1, 2.257_584]),
            (0.0, [0.942_848_3, 1.131_342_6, 0.707_195_2, 1.414_036_8]),
        ] {
            for (found, truth) in candidate(&x, &w, ratio).iter().zip(truth) {
                assert!((found - truth).abs() < 1e-5, "{found} {truth}");
            }
        }
    }

    /// A layer in which one channel of the input is far larger than the others.
    fn case() -> (Statistics, Matrix) {
        let (n, k) = (24, 64);
        // Channels that have nothing to do with each other.
        let mut state = 7_u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let x: Vec<f32> = (0..200 * k)
            .map(|i| noise() * if i % k == 9 { 40.0 } else { 1.0 })
            .collect();
        let mut statistics = Statistics::new(k);
        statistics.add(&x);
        statistics.finish();
        // Its weights are small, so that they are rounded coarsely and can be multiplied up without being the largest.
        let weights = (0..n * k)
            .map(|i| (1.37 * i as f32).cos() * if i % k == 9 { 0.05 } else { 0.3 })
            .collect();
        let bias = None;
        (
            statistics,
            Matrix {
                n,
                k,
                weights,
                bias,
            },
        )
    }

    #[test]
    fn a_channel_that_matters_is_multiplied_up() {
        let (statistics, matrix) = case();
        let gram = Quadratic::new(&statistics.gram, 64);
        let found = search(&statistics, std::slice::from_ref(&matrix), FORM);
        assert!(found.ratio.is_some());
        let others = found.scales.iter().enumerate().filter(|&(i, _)| i != 9);
        let most = others.fold(0.0_f32, |m, (_, &s)| m.max(s));
        assert!(found.scales[9] > 2.0 * most, "{:?}", found.scales);
        let error = |scales: &[f32]| gram.sum(&differences(&matrix, scales, FORM));
        assert!(error(&found.scales) < 0.5 * error(&[1.0; 64]));
    }

    #[test]
    fn a_clipped_range_never_has_the_larger_error() {
        let (statistics, mut matrix) = case();
        // One weight far out, on a channel that is hardly there.
        matrix.weights[3] = 2.0;
        let mut quiet = vec![1.0; 64];
        quiet[3] = 1e3;
        let mut statistics = statistics;
        statistics.divide(&quiet);
        let grids = clipped(&matrix, &statistics, FORM);
        let whole = Grid::over(-0.3, 2.0, FORM);
        assert!(grids[0].scale < 0.8 * whole.scale, "{:?}", grids[0]);
        assert_eq!(grids.len(), 48);
    }
}
