//! GPTQ (Frantar et al. 2022, `IST-DASLab/gptq`): the columns of a matrix are rounded one after another, and what
//! rounding one does to the outputs is made good, as far as it can be, by the columns that follow.
//!
//! Columns go by importance (the diagonal of the inputs' Gram matrix, largest first), while groups stay made of
//! neighbours with ranges of the original weights: activation order with static groups, LLM Compressor's default, of
//! which nothing shows in the file. Rows do not depend on each other, so threads share them.

use rayon::prelude::*;

use super::grid::{Form, Grid, code, pack};
use super::linalg::inverse_factor;
use crate::error::{Error, Result};
use crate::scheme::PackedWeight;

/// Columns whose errors are gathered before the ones after them are touched.
const BLOCK: usize = 128;
/// Rows of one parallel task: they share what is read of the factor.
const ROWS: usize = 16;
/// Dampening by default: the share of the mean of the diagonal that is added to it.
pub(super) const DAMPENING: f64 = 0.01;
/// Where a matrix cannot be factored, dampening grows to at most this.
const MOST_DAMPENING: f64 = 1.0;

/// What rounding the columns of matrices with one input has in common.
pub(super) struct Propagation {
    k: usize,
    /// Columns in the order in which they are rounded.
    order: Vec<usize>,
    /// Inputs that were 0 in every token, whose weights become 0.
    dead: Vec<bool>,
    /// Upper triangular, `[k, k]`, rows and columns in that order: `h⁻¹ = uᵀ u` for the dampened Gram matrix `h`.
    upper: Vec<f32>,
    /// The dampening that it took.
    pub(super) dampening: f64,
}

impl Propagation {
    /// From the Gram matrix of the inputs, `[k, k]`.
    ///
    /// # Errors
    /// If the matrix holds a number that is not finite.
    pub(super) fn new(gram: &[f32], k: usize, dampening: f64) -> Result<Self> {
        let mut diagonal: Vec<f32> = (0..k).map(|i| gram[i * k + i]).collect();
        if let Some(i) = diagonal.iter().position(|x| !x.is_finite()) {
            return Err(Error::Config(format!(
                "input {i} of a layer is not finite when the model reads the calibration text: try --dtype f32"
            )));
        }
        let dead: Vec<bool> = diagonal.iter().map(|&x| x == 0.0).collect();
        for (x, &dead) in diagonal.iter_mut().zip(&dead) {
            *x = if dead { 1.0 } else { *x };
        }
        let mut order: Vec<usize> = (0..k).collect();
        // A stable sort: equal columns keep their order, so that results do not depend on anything else.
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        let mean = diagonal.iter().map(|&x| f64::from(x)).sum::<f64>() / k as f64;
        let mut share = dampening;
        loop {
            let mut h = vec![0.0; k * k];
            h.par_chunks_mut(k).zip(&order).for_each(|(row, &i)| {
                for (out, &j) in row.iter_mut().zip(&order) {
                    *out = gram[i * k + j];
                }
            });
            for (i, &column) in order.iter().enumerate() {
                h[i * k + i] = (f64::from(diagonal[column]) + share * mean) as f32;
            }
            if let Some(upper) = inverse_factor(&h, k) {
                return Ok(Self {
                    k,
                    order,
                    dead,
                    upper,
                    dampening: share,
                });
            }
            if share >= MOST_DAMPENING {
                return Err(Error::Internal(
                    "a Gram matrix has no Cholesky factor however much it is dampened".into(),
                ));
            }
            share = (share * 10.0).clamp(1e-3, MOST_DAMPENING);
        }
    }

    /// Rounds `weights [n, k]` to `grids`.
    pub(super) fn round(
        &self,
        weights: &[f32],
        n: usize,
        grids: &[Grid],
        form: Form,
    ) -> PackedWeight {
        let k = self.k;
        let groups = k / form.group;
        let mut codes = vec![0; n * k];
        codes
            .par_chunks_mut(ROWS * k)
            .zip(weights.par_chunks(ROWS * k))
            .zip(grids.par_chunks(ROWS * groups))
            .for_each(|((codes, weights), grids)| self.round_rows(codes, weights, grids, form));
        pack(&codes, grids, [n, k], form)
    }

    fn round_rows(&self, codes: &mut [u8], weights: &[f32], grids: &[Grid], form: Form) {
        let (k, groups) = (self.k, self.k / form.group);
        let rows = weights.len() / k;
        let mut left = vec![0.0; rows * k];
        for (left, weights) in left.chunks_mut(k).zip(weights.chunks(k)) {
            for (out, &column) in left.iter_mut().zip(&self.order) {
                *out = if self.dead[column] {
                    0.0
                } else {
                    weights[column]
                };
            }
        }
        let mut errors = vec![0.0; rows * BLOCK];
        for first in (0..k).step_by(BLOCK) {
            let last = (first + BLOCK).min(k);
            for (row, left) in left.chunks_mut(k).enumerate() {
                let errors = &mut errors[row * BLOCK..][..last - first];
                for i in first..last {
                    let column = self.order[i];
                    let grid = grids[row * groups + column / form.group];
                    let step = grid.nearest(left[i]);
                    codes[row * k + column] = code(form.format, step);
                    let factor = &self.upper[i * k..][..k];
                    let error = (left[i] - grid.value(step)) / factor[i];
                    errors[i - first] = error;
                    for (w, u) in left[i + 1..last].iter_mut().zip(&factor[i + 1..last]) {
                        *w -= error * u;
                    }
                }
            }
            self.pass_on(&mut left, &errors, first, last);
        }
    }

    /// Takes the errors of the columns `first .. last` out of all columns after them.
    fn pass_on(&self, left: &mut [f32], errors: &[f32], first: usize, last: usize) {
        let k = self.k;
        let factor = |i: usize| &self.upper[i * k + last..(i + 1) * k];
        let mut i = first;
        // Four columns at a time: a quarter of the passes over a row.
        while i + 4 <= last {
            let [a, b, c, d] = [factor(i), factor(i + 1), factor(i + 2), factor(i + 3)];
            for (row, left) in left.chunks_mut(k).enumerate() {
                let e = &errors[row * BLOCK + i - first..][..4];
                let factors = a.iter().zip(b).zip(c.iter().zip(d));
                for (w, ((a, b), (c, d))) in left[last..].iter_mut().zip(factors) {
                    *w -= (e[0] * a + e[1] * b) + (e[2] * c + e[3] * d);
                }
            }
            i += 4;
        }
        for i in i..last {
            for (row, left) in left.chunks_mut(k).enumerate() {
                let error = errors[row * BLOCK + i - first];
                for (w, u) in left[last..].iter_mut().zip(factor(i)) {
                    *w -= error * u;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::grid::{dequantise, grids, of_range};
    use super::super::linalg::{Quadratic, add_gram, mirror};
    use super::super::rtn::to_nearest;
    use super::*;
    use crate::scheme::{CodeFormat, DType};

    /// Inputs that depend on each other, `[tokens, k]`, and weights `[n, k]`.
    fn case(tokens: usize, n: usize, k: usize) -> (Vec<f32>, Vec<f32>) {
        let wave = |t: usize, j: usize| {
            let (t, j) = (t as f32, j as f32);
            (0.37 * t + 0.11 * j).sin() + 0.3 * (1.7 * t * (j + 1.0)).cos()
        };
        let x = (0..tokens * k).map(|i| wave(i / k, i % k) * (1.0 + (i % k % 7) as f32));
        let w = (0..n * k).map(|i| (2.3 * i as f32).sin() * 0.4);
        (x.collect(), w.collect())
    }

    fn gram(x: &[f32], k: usize) -> Vec<f32> {
        let mut gram = vec![0.0; k * k];
        add_gram(x, k, &mut gram);
        mirror(&mut gram, k);
        gram
    }

    fn loss(gram: &[f32], k: usize, weights: &[f32], packed: &PackedWeight) -> f64 {
        let difference: Vec<f32> = weights
            .iter()
            .zip(dequantise(packed))
            .map(|(w, q)| w - q)
            .collect();
        Quadratic::new(gram, k).sum(&difference)
    }

    #[test]
    fn errors_are_made_good_by_later_columns() {
        for (n, k, symmetric) in [(5, 64, true), (33, 160, false), (16, 192, true)] {
            let form = Form {
                format: CodeFormat::U4,
                group: 32,
                symmetric,
                scales: DType::F32,
            };
            let (x, w) = case(400, n, k);
            let gram = gram(&x, k);
            let grids = grids(&w, k, form, |group| of_range(group, form));
            let nearest = loss(&gram, k, &w, &to_nearest(&w, [n, k], &grids, form));
            let propagation = Propagation::new(&gram, k, DAMPENING).unwrap();
            let packed = propagation.round(&w, n, &grids, form);
            packed.check().unwrap();
            let found = loss(&gram, k, &w, &packed);
            assert!(found < 0.6 * nearest, "[{n}, {k}]: {found} {nearest}");
        }
    }

    /// The tiny vector of the research notes: an f64 implementation of IST-DASLab's steps, activation order with static
    /// groups of 4.
    #[test]
    fn codes_equal_those_of_the_papers_steps() {
        let w = [
            0.10, -0.70, 0.35, 0.05, 1.50, -0.20, 0.75, -1.00, //
            -0.02, 0.01, 0.03, -0.04, 0.60, 0.50, -0.10, 0.20,
        ];
        let x: Vec<f32> = (0..12 * 8)
            .map(|i| {
                let (t, j) = (i / 8, i % 8);
                (((3 * t + 5 * j + t * j) % 11) as f32 - 5.0) / 4.0
            })
            .collect();
        let mut gram = gram(&x, 8);
        gram.iter_mut().for_each(|g| *g *= 2.0);
        assert_eq!((gram[0], gram[1]), (16.875, -6.875));
        let form = Form {
            format: CodeFormat::U4,
            group: 4,
            symmetric: true,
            scales: DType::F32,
        };
        let grids = grids(&w, 8, form, |group| of_range(group, form));
        let propagation = Propagation::new(&gram, 8, 0.01).unwrap();
        let mut codes = vec![0; 16];
        propagation.round_rows(&mut codes, &w, &grids, form);
        let truth = [9, 1, 12, 8, 15, 7, 12, 3, 4, 15, 14, 0, 15, 14, 7, 10];
        assert_eq!(codes, truth);
    }

    #[test]
    fn inputs_that_are_never_there_lose_their_weights() {
        let (mut x, w) = case(50, 2, 64);
        x.chunks_mut(64).for_each(|token| token[5] = 0.0);
        let form = Form {
            format: CodeFormat::U4,
            group: 32,
            symmetric: true,
            scales: DType::F32,
        };
        let grids = grids(&w, 64, form, |group| of_range(group, form));
        let propagation = Propagation::new(&gram(&x, 64), 64, DAMPENING).unwrap();
        let packed = propagation.round(&w, 2, &grids, form);
        for row in dequantise(&packed).chunks(64) {
            assert_eq!(row[5], 0.0);
        }
    }

    #[test]
    fn inputs_that_are_not_numbers_are_refused() {
        let error = Propagation::new(&[f32::NAN], 1, DAMPENING).err().unwrap();
        assert!(error.to_string().contains("not finite"), "{error}");
        // Few tokens: without dampening there would be no factor, so it grows until there is.
        let (x, _) = case(3, 1, 64);
        assert!(Propagation::new(&gram(&x, 64), 64, 0.0).is_ok());
    }
}
