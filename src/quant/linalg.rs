//! The few products and the one factorisation that quantisers need. Products are the engine's own on the CPU; the
//! factorisation is in f64, blocked so that what a thread touches stays in its cache.

use rayon::prelude::*;

use crate::kernels::linear::multiply;

/// Rows of the result that one product makes: the part above the diagonal's blocks is not computed.
const GRAM_BLOCK: usize = 384;
/// Columns of a block of the factorisation.
const BLOCK: usize = 64;
/// Rows and columns of a tile of a transposition: both sides of it stay in the cache.
const TRANSPOSED: usize = 32;

/// `x [rows, k]` with rows and columns exchanged, `[k, rows]`.
fn transposed(x: &[f32], k: usize) -> Vec<f32> {
    let rows = x.len() / k.max(1);
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut((TRANSPOSED * rows).max(1))
        .enumerate()
        .for_each(|(block, out)| {
            let first = block * TRANSPOSED;
            for begin in (0..rows).step_by(TRANSPOSED) {
                let end = (begin + TRANSPOSED).min(rows);
                for (column, out) in out.chunks_exact_mut(rows).enumerate() {
                    for (out, row) in out[begin..end].iter_mut().zip(begin..end) {
                        *out = x[row * k + first + column];
                    }
                }
            }
        });
    out
}

/// Adds `xᵀ x` to the lower triangle, block by block, of `gram [k, k]`, for `x [tokens, k]`.
pub(super) fn add_gram(x: &[f32], k: usize, gram: &mut [f32]) {
    let tokens = x.len() / k;
    let columns = transposed(x, k);
    for first in (0..k).step_by(GRAM_BLOCK) {
        let last = (first + GRAM_BLOCK).min(k);
        let mut product = vec![0.0; (last - first) * last];
        let rows = &columns[first * tokens..last * tokens];
        multiply(rows, &columns[..last * tokens], tokens, &mut product);
        gram[first * k..last * k]
            .par_chunks_mut(k)
            .zip(product.par_chunks(last))
            .for_each(|(row, more)| row.iter_mut().zip(more).for_each(|(a, b)| *a += b));
    }
}

/// Copies the lower triangle of `gram [k, k]` to the upper one.
pub(super) fn mirror(gram: &mut [f32], k: usize) {
    for i in 0..k {
        for j in i + 1..k {
            gram[i * k + j] = gram[j * k + i];
        }
    }
}

/// A symmetric matrix `[k, k]` that forms are taken of.
#[derive(Clone, Copy)]
pub(super) struct Quadratic<'a> {
    gram: &'a [f32],
    k: usize,
}

impl<'a> Quadratic<'a> {
    pub(super) const fn new(gram: &'a [f32], k: usize) -> Self {
        Self { gram, k }
    }

    /// The sum of `d g dᵀ` over the rows `d` of `rows [n, k]`.
    pub(super) fn sum(self, rows: &[f32]) -> f64 {
        let mut product = vec![0.0; rows.len()];
        multiply(rows, self.gram, self.k, &mut product);
        product
            .par_chunks(self.k)
            .zip(rows.par_chunks(self.k))
            .map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>())
            .sum()
    }
}

/// The upper triangular `u` with `h⁻¹ = uᵀ u`, for a symmetric positive definite `h [k, k]`; `None` if it is not that.
///
/// With rows and columns reversed, `h = m mᵀ` has a lower triangular `m` (Cholesky); `u` is `m⁻¹`, reversed back. So one
/// factorisation and one triangular inverse do what GPTQ's code does by a factorisation, an inverse and another
/// factorisation.
pub(super) fn inverse_factor(h: &[f32], k: usize) -> Option<Vec<f32>> {
    let mut m: Vec<f64> = h.iter().rev().map(|&x| f64::from(x)).collect();
    cholesky(&mut m, k)?;
    let inverse = invert_lower(&m, k);
    drop(m);
    Some(inverse.into_par_iter().rev().map(|x| x as f32).collect())
}

/// Overwrites the lower triangle of `a [k, k]` by its Cholesky factor.
fn cholesky(a: &mut [f64], k: usize) -> Option<()> {
    for first in (0..k).step_by(BLOCK) {
        let last = (first + BLOCK).min(k);
        let (above, below) = a.split_at_mut(last * k);
        // The block on the diagonal, column by column.
        for j in first..last {
            let row = j * k;
            let square: f64 = above[row + first..row + j].iter().map(|x| x * x).sum();
            let pivot = above[row + j] - square;
            if !(pivot > 0.0 && pivot.is_finite()) {
                return None;
            }
            let root = pivot.sqrt();
            above[row + j] = root;
            for i in j + 1..last {
                let dot: f64 = (first..j).map(|c| above[i * k + c] * above[row + c]).sum();
                above[i * k + j] = (above[i * k + j] - dot) / root;
            }
        }
        let diagonal = &above[first * k..];
        let width = last - first;
        // The rows below, each by itself.
        below.par_chunks_mut(k).for_each(|row| {
            for j in 0..width {
                let dot: f64 = (0..j)
                    .map(|c| row[first + c] * diagonal[j * k + first + c])
                    .sum();
                row[first + j] = (row[first + j] - dot) / diagonal[j * k + first + j];
            }
        });
        // What is left, less the product of those rows with each other.
        let rest = k - last;
        let mut columns = vec![0.0; width * rest];
        for (i, row) in below.chunks(k).enumerate() {
            for c in 0..width {
                columns[c * rest + i] = row[first + c];
            }
        }
        below.par_chunks_mut(k).enumerate().for_each(|(i, row)| {
            let (factors, target) = row.split_at_mut(last);
            let target = &mut target[..=i];
            for (factor, column) in factors[first..].iter().zip(columns.chunks(rest)) {
                subtract(target, *factor, column);
            }
        });
    }
    Some(())
}

/// The inverse of the lower triangle of `l [k, k]`, with zeros above.
fn invert_lower(l: &[f64], k: usize) -> Vec<f64> {
    // Columns of an inverse do not depend on each other: a thread takes some and stores them side by side.
    let starts: Vec<usize> = (0..k).step_by(BLOCK).collect();
    let parts: Vec<Vec<f64>> = starts
        .par_iter()
        .map(|&first| {
            let width = BLOCK.min(k - first);
            let mut part = vec![0.0; (k - first) * width];
            for i in first..k {
                let (before, rest) = part.split_at_mut((i - first) * width);
                let row = &mut rest[..width];
                if i < first + width {
                    row[i - first] = 1.0;
                }
                let factors = &l[i * k + first..i * k + i];
                for (factor, above) in factors.iter().zip(before.chunks(width)) {
                    subtract(row, *factor, above);
                }
                let pivot = l[i * k + i];
                row.iter_mut().for_each(|x| *x /= pivot);
            }
            part
        })
        .collect();
    let mut inverse = vec![0.0; k * k];
    inverse.par_chunks_mut(k).enumerate().for_each(|(i, row)| {
        for (&first, part) in starts.iter().zip(&parts) {
            if i >= first {
                let width = BLOCK.min(k - first);
                row[first..first + width].copy_from_slice(&part[(i - first) * width..][..width]);
            }
        }
    });
    inverse
}

/// `target -= factor * source`, as far as the target goes.
#[inline(always)]
fn subtract(target: &mut [f64], factor: f64, source: &[f64]) {
    for (t, s) in target.iter_mut().zip(source) {
        *t -= factor * s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some matrix of numbers around 0, `[rows, k]`.
    fn numbers(rows: usize, k: usize) -> Vec<f32> {
        let mut state = 1_u32;
        (0..rows * k)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn a_gram_matrix_is_the_sum_over_tokens() {
        let (tokens, k) = (9, 401);
        let x = numbers(tokens, k);
        let mut gram = vec![0.0; k * k];
        add_gram(&x[..4 * k], k, &mut gram);
        add_gram(&x[4 * k..], k, &mut gram);
        mirror(&mut gram, k);
        for (i, j) in [(0, 0), (3, 400), (400, 3), (399, 400), (385, 2)] {
            let truth: f32 = (0..tokens).map(|t| x[t * k + i] * x[t * k + j]).sum();
            assert!((gram[i * k + j] - truth).abs() < 1e-5, "{i} {j}");
        }
    }

    #[test]
    fn a_form_is_the_sum_of_squares_of_outputs() {
        let (tokens, k) = (7, 48);
        let (x, d) = (numbers(tokens, k), numbers(3, k));
        let mut gram = vec![0.0; k * k];
        add_gram(&x, k, &mut gram);
        mirror(&mut gram, k);
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let truth: f64 = d
            .chunks(k)
            .flat_map(|d| x.chunks(k).map(move |x| dot(d, x).powi(2)))
            .sum();
        let found = Quadratic::new(&gram, k).sum(&d);
        assert!((found - truth).abs() < 1e-4 * truth, "{found} {truth}");
    }

    #[test]
    fn the_factor_gives_the_inverse_at_sizes_around_a_block() {
        for k in [1, 3, 64, 65, 150] {
            let x = numbers(2 * k + 3, k);
            let mut h = vec![0.0; k * k];
            add_gram(&x, k, &mut h);
            mirror(&mut h, k);
            let u = inverse_factor(&h, k).unwrap();
            // uᵀ u h must be the identity.
            let at = |i: usize, j: usize| f64::from(u[i * k + j]);
            let mut inverse = vec![0.0; k * k];
            for i in 0..k {
                for j in 0..k {
                    assert!(i <= j || u[i * k + j] == 0.0, "{k}: below the diagonal");
                    inverse[i * k + j] = (0..=i.min(j)).map(|c| at(c, i) * at(c, j)).sum::<f64>();
                }
            }
            for i in 0..k {
                for j in 0..k {
                    let product: f64 = (0..k)
                        .map(|c| inverse[i * k + c] * f64::from(h[c * k + j]))
                        .sum();
                    let truth = f64::from(u8::from(i == j));
                    assert!((product - truth).abs() < 1e-2, "{k}: {i} {j}: {product}");
                }
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_has_no_factor() {
        assert!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], 2).is_none());
        assert!(inverse_factor(&[1.0, 0.0, 0.0, f32::NAN], 2).is_none());
    }
}
