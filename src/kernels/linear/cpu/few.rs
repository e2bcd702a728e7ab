//! Products of a few tokens: each weight is widened in registers and used by four tokens there.

use super::{Job, TILE};
use crate::kernels::linear::rows::{Rows, halves, rest};
use crate::kernels::parallel::Columns;
use crate::kernels::simd::{Simd, Work};
use crate::scheme::BLOCK;

/// Tokens that share a weight in its register.
const BLOCK_TOKENS: usize = 4;
/// Rows that one token's product works on at once: enough chains to hide the latency of a multiply-add.
const CHAINS: usize = 8;

/// A few tokens times some rows, each weight widened in registers.
pub(super) struct FewTask<'a, R> {
    pub(super) job: Job<'a>,
    pub(super) rows: R,
    pub(super) columns: Columns<'a, f32>,
}

impl<R: Rows> Work for FewTask<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        // The second block of tokens finds this task's weights in the cache.
        let mut token = 0;
        while token + BLOCK_TOKENS <= self.job.tokens {
            self.tokens::<S, TILE, BLOCK_TOKENS>(s, token);
            token += BLOCK_TOKENS;
        }
        match self.job.tokens - token {
            3 => self.tokens::<S, TILE, 3>(s, token),
            2 => self.tokens::<S, TILE, 2>(s, token),
            1 => self.tokens::<S, CHAINS, 1>(s, token),
            _ => {}
        }
    }
}

impl<R: Rows> FewTask<'_, R> {
    /// `M` tokens from `token` on, `N` rows at a time.
    #[inline(always)]
    fn tokens<S: Simd, const N: usize, const M: usize>(&mut self, s: S, token: usize) {
        let range = self.columns.range();
        let x = &self.job.x[token * self.rows.k().next_multiple_of(BLOCK)..];
        let mut row = range.start;
        while row + N <= range.end {
            let sums = dots::<S, R, N, M>(s, &self.rows, row, x);
            self.store(token, row, &sums);
            row += N;
        }
        while row < range.end {
            let sums = dots::<S, R, 1, M>(s, &self.rows, row, x);
            self.store(token, row, &sums);
            row += 1;
        }
    }

    #[inline(always)]
    fn store<const N: usize, const M: usize>(
        &mut self,
        token: usize,
        row: usize,
        sums: &[[f32; N]; M],
    ) {
        let first = self.columns.range().start;
        for (token, sums) in (token..).zip(sums) {
            let out = self.columns.row(token);
            for (i, sum) in (row..).zip(sums) {
                self.job
                    .epilogue
                    .store(sum * self.rows.scale(i), i, &mut out[i - first]);
            }
        }
    }
}

/// The products of `N` rows from `first` on with `M` tokens, `x [M, padded]`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain loops over lanes; see `Work`
fn dots<S: Simd, R: Rows, const N: usize, const M: usize>(
    s: S,
    rows: &R,
    first: usize,
    x: &[f32],
) -> [[f32; N]; M] {
    let k = rows.k();
    let padded = k.next_multiple_of(BLOCK);
    let (whole, all) = (k / BLOCK, padded / BLOCK);
    let mut xs = [x[..padded].as_chunks::<BLOCK>().0; M];
    for (token, xs) in xs.iter_mut().enumerate() {
        *xs = &x[token * padded..][..padded].as_chunks::<BLOCK>().0[..all];
    }
    let mut row = [rows.row(first); N];
    for (i, row) in row.iter_mut().enumerate() {
        *row = rows.row(first + i);
    }
    let mut sums = [[s.splat(0.0); N]; M];
    let each = rows.blocks_per_group().min(whole.max(1));
    let mut start = 0;
    let mut number = 0;
    while start < whole {
        let mut group = [rows.group(s, row[0], number); N];
        for i in 1..N {
            group[i] = rows.group(s, row[i], number);
        }
        for block in start..(start + each).min(whole) {
            for i in 0..N {
                let (low, high) = R::load(s, row[i], block, group[i]);
                for token in 0..M {
                    let (x_low, x_high) = halves(&xs[token][block]);
                    sums[token][i] = s.fma(low, s.load(x_low), sums[token][i]);
                    sums[token][i] = s.fma(high, s.load(x_high), sums[token][i]);
                }
            }
        }
        start += each;
        number += 1;
    }
    if whole < all {
        for i in 0..N {
            let rest = rest(rows, row[i]);
            let (low, high) = halves(&rest);
            for token in 0..M {
                let (x_low, x_high) = halves(&xs[token][whole]);
                sums[token][i] = s.fma(s.load(low), s.load(x_low), sums[token][i]);
                sums[token][i] = s.fma(s.load(high), s.load(x_high), sums[token][i]);
            }
        }
    }
    let mut out = [[0.0; N]; M];
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = s.sum(sum);
        }
    }
    out
}
