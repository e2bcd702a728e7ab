//! The product on the CPU.
//!
//! Every output is one chain of sixteen-lane multiply-adds along K, whatever the number of tokens, so a token's result
//! has the same bits alone and in any batch. Weights are widened in registers (a few tokens) or a cache-sized panel at a
//! time (many); a whole widened weight never exists.

use std::cell::RefCell;

use rayon::prelude::*;

use super::super::device::{HostElem, with_dtype};
use super::super::parallel::{Columns, for_column_tiles};
use super::super::simd::{LANES, Simd, Work, dispatch};
use super::rows::{Int4, Int8, Plain, Rows, ScaleSlice, halves, rest};
use super::{Input, Linear, LinearPlan, LinearWeight, WeightData};
use crate::error::{Error, Result};
use crate::scheme::{BLOCK, Bits, DType, Elem};

/// Rows and tokens of the innermost tile.
pub(super) const TILE: usize = 4;
/// Tokens up to which weights are widened in registers.
pub(super) const FEW: usize = 16;
/// Tokens that share a weight in its register.
const BLOCK_TOKENS: usize = 4;
/// Rows that one token's product works on at once: enough chains to hide the latency of a multiply-add.
const CHAINS: usize = 8;
/// Rows of one parallel task of a product of few tokens.
const TASK_ROWS: usize = 32;

impl Linear {
    /// The CPU face; `out` has exactly the op's shape.
    pub(super) fn reference<T: Elem + HostElem>(
        &self,
        input: Input<'_>,
        weight: &LinearWeight,
        bias: Option<&[T]>,
        out: &mut [T],
    ) -> Result<()> {
        if T::DTYPE == DType::F32 {
            let bias = bias.map(bytemuck::cast_slice);
            let epilogue = Epilogue {
                bias,
                accumulate: self.accumulate,
            };
            return self.products(input, weight, epilogue, bytemuck::cast_slice_mut(out));
        }
        // The kernels exist for f32 outputs only, a third of the code; narrower ones take a second pass.
        let mut sums = vec![0.0; out.len()];
        self.products(
            input,
            weight,
            Epilogue {
                bias: None,
                accumulate: false,
            },
            &mut sums,
        )?;
        out.par_chunks_mut(weight.n)
            .zip(sums.par_chunks(weight.n))
            .for_each(|(out, sums)| {
                for (column, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                    let bias = bias.map_or(0.0, |bias| bias[column].to_f32());
                    let residual = if self.accumulate { out.to_f32() } else { 0.0 };
                    *out = T::from_f32(sum + bias + residual);
                }
            });
        Ok(())
    }

    fn products(
        &self,
        input: Input<'_>,
        weight: &LinearWeight,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let k = weight.k;
        let x = match input {
            Input::Float(x) => with_dtype!(x.dtype()?, X => {
                widen(&x.host::<X>()?[..self.tokens * k], self.tokens, k)
            }),
            Input::Int8 { codes, scales } => {
                let (codes, scales) = (codes.host::<u8>()?, scales.host::<f32>()?);
                return self.integers(codes, scales, weight, epilogue, out);
            }
        };
        let plan = self.plan(weight.n, k, rayon::current_num_threads());
        let job = Job {
            x: &x,
            tokens: self.tokens,
            plan,
            n: weight.n,
            epilogue,
        };
        match &weight.data {
            WeightData::Plain(w) => with_dtype!(w.dtype()?, W => {
                job.run(Plain { w: w.host::<W>()?, k }, out);
            }),
            WeightData::Packed {
                bits: Bits::Eight,
                group,
                codes,
                scales,
            } if *group == k => {
                job.run(
                    Int8 {
                        codes: codes.host()?,
                        scales: ScaleSlice::of(scales)?,
                        k,
                    },
                    out,
                );
            }
            WeightData::Packed {
                bits: Bits::Four,
                group,
                codes,
                scales,
            } => {
                let scales = ScaleSlice::of(scales)?;
                job.run(
                    Int4 {
                        codes: codes.host()?,
                        scales,
                        k,
                        groups: k / group,
                    },
                    out,
                );
            }
            WeightData::Packed { bits, group, .. } => {
                return Err(Error::Internal(format!(
                    "no CPU kernel for {}-bit weights in groups of {group}",
                    bits.count()
                )));
            }
        }
        Ok(())
    }

    /// int8 inputs and weights: exact integer sums, scaled at the end.
    fn integers(
        &self,
        x: &[u8],
        x_scales: &[f32],
        weight: &LinearWeight,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let WeightData::Packed {
            bits: Bits::Eight,
            group,
            codes,
            scales,
        } = &weight.data
        else {
            return Err(Error::Internal("int8 inputs need int8 weights".into()));
        };
        if *group != weight.k {
            return Err(Error::Internal(
                "int8 inputs need one weight scale per row".into(),
            ));
        }
        let (k, padded) = (weight.k, weight.k.next_multiple_of(BLOCK));
        let mut wide = vec![0_i16; self.tokens * padded];
        for (wide, x) in wide.chunks_exact_mut(padded).zip(x.chunks_exact(k)) {
            wide.iter_mut()
                .zip(x)
                .for_each(|(w, &x)| *w = i16::from(x.cast_signed()));
        }
        let (codes, scales) = (codes.host::<u8>()?, ScaleSlice::of(scales)?);
        let each = TASK_ROWS * k * self.tokens;
        for_column_tiles(out, weight.n, TASK_ROWS, each, |columns| {
            let x = &wide;
            dispatch(IntegerTask {
                x,
                x_scales,
                tokens: self.tokens,
                codes,
                scales,
                k,
                epilogue,
                columns,
            });
        });
        Ok(())
    }
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy)]
struct Epilogue<'a> {
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

impl Epilogue<'_> {
    #[inline(always)]
    fn store(&self, sum: f32, column: usize, out: &mut f32) {
        let bias = self.bias.map_or(0.0, |bias| bias[column]);
        let residual = if self.accumulate { *out } else { 0.0 };
        *out = sum + bias + residual;
    }
}

/// `x [tokens, k]` as f32 with each row padded by zeros to a multiple of 32; borrowed where it is that already.
fn widen<T: Elem + HostElem>(x: &[T], tokens: usize, k: usize) -> std::borrow::Cow<'_, [f32]> {
    let padded = k.next_multiple_of(BLOCK);
    if T::DTYPE == DType::F32 && padded == k {
        return bytemuck::cast_slice(x).into();
    }
    let mut wide = vec![0.0; tokens * padded];
    for (wide, x) in wide.chunks_exact_mut(padded).zip(x.chunks_exact(k)) {
        wide.iter_mut().zip(x).for_each(|(w, x)| *w = x.to_f32());
    }
    wide.into()
}

/// A product whose input is ready.
#[derive(Clone, Copy)]
struct Job<'a> {
    /// `[tokens, k padded to 32]`.
    x: &'a [f32],
    tokens: usize,
    plan: LinearPlan,
    n: usize,
    epilogue: Epilogue<'a>,
}

impl Job<'_> {
    fn run<R: Rows>(self, rows: R, out: &mut [f32]) {
        let tile = match self.plan {
            LinearPlan::Registers => TASK_ROWS,
            LinearPlan::Panels { rows } => rows,
        };
        let each = tile * rows.k() * self.tokens;
        for_column_tiles(out, self.n, tile, each, |columns| match self.plan {
            LinearPlan::Registers => dispatch(FewTask {
                job: self,
                rows,
                columns,
            }),
            LinearPlan::Panels { .. } => PANEL.with_borrow_mut(|panel| {
                dispatch(PanelTask {
                    job: self,
                    rows,
                    columns,
                    panel,
                });
            }),
        });
    }
}

thread_local! {
    /// A thread's panel, kept so that a product does not pay for fresh memory.
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A few tokens times some rows, each weight widened in registers.
struct FewTask<'a, R> {
    job: Job<'a>,
    rows: R,
    columns: Columns<'a, f32>,
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
    let mut group = 0;
    while start < whole {
        let mut scales = [s.splat(1.0); N];
        if R::GROUPED {
            for i in 0..N {
                scales[i] = s.splat(R::group_scale(row[i], group));
            }
        }
        for block in start..(start + each).min(whole) {
            for i in 0..N {
                let (mut low, mut high) = R::load(s, row[i], block);
                if R::GROUPED {
                    (low, high) = (s.mul(low, scales[i]), s.mul(high, scales[i]));
                }
                for token in 0..M {
                    let (x_low, x_high) = halves(&xs[token][block]);
                    sums[token][i] = s.fma(low, s.load(x_low), sums[token][i]);
                    sums[token][i] = s.fma(high, s.load(x_high), sums[token][i]);
                }
            }
        }
        start += each;
        group += 1;
    }
    if whole < all {
        for i in 0..N {
            let rest = rest::<R>(row[i], k);
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

/// Many tokens times a panel of rows.
struct PanelTask<'a, 'p, R> {
    job: Job<'a>,
    rows: R,
    columns: Columns<'a, f32>,
    panel: &'p mut Vec<f32>,
}

impl<R: Rows> Work for PanelTask<'_, '_, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let padded = self.rows.k().next_multiple_of(BLOCK);
        self.fill(s, padded);
        let panel = std::mem::take(self.panel);
        let mut token = 0;
        while token + TILE <= self.job.tokens {
            self.tokens::<S, TILE>(s, &panel, token, padded);
            token += TILE;
        }
        match self.job.tokens - token {
            3 => self.tokens::<S, 3>(s, &panel, token, padded),
            2 => self.tokens::<S, 2>(s, &panel, token, padded),
            1 => self.tokens::<S, 1>(s, &panel, token, padded),
            _ => {}
        }
        *self.panel = panel;
    }
}

impl<R: Rows> PanelTask<'_, '_, R> {
    /// Widens this task's rows into the panel; missing rows of the last tile are zeros.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, padded: usize) {
        let range = self.columns.range();
        let k = self.rows.k();
        self.panel.clear();
        self.panel
            .resize(range.len().next_multiple_of(TILE) * padded, 0.0);
        for (row, wide) in range.zip(self.panel.chunks_exact_mut(padded)) {
            let row = self.rows.row(row);
            let (whole, _) = wide[..k / BLOCK * BLOCK].as_chunks_mut::<BLOCK>();
            let mut block = 0;
            for (group, wide) in whole.chunks_mut(self.rows.blocks_per_group()).enumerate() {
                let scale = s.splat(R::group_scale(row, group));
                for wide in wide {
                    let (mut low, mut high) = R::load(s, row, block);
                    if R::GROUPED {
                        (low, high) = (s.mul(low, scale), s.mul(high, scale));
                    }
                    let (out_low, out_high) = wide.split_at_mut(LANES);
                    s.store(low, out_low.try_into().expect("half a block"));
                    s.store(high, out_high.try_into().expect("half a block"));
                    block += 1;
                }
            }
            if !k.is_multiple_of(BLOCK) {
                wide[k / BLOCK * BLOCK..].copy_from_slice(&rest::<R>(row, k));
            }
        }
    }

    #[inline(always)]
    fn tokens<S: Simd, const M: usize>(
        &mut self,
        s: S,
        panel: &[f32],
        token: usize,
        padded: usize,
    ) {
        let range = self.columns.range();
        let x: [&[f32]; M] = std::array::from_fn(|i| &self.job.x[(token + i) * padded..][..padded]);
        for (tile, w) in panel.chunks_exact(TILE * padded).enumerate() {
            let w: [&[f32]; TILE] = std::array::from_fn(|i| &w[i * padded..][..padded]);
            let sums = tile_of_dots::<S, M>(s, x, w);
            let columns = tile * TILE..(tile * TILE + TILE).min(range.len());
            for (i, sums) in sums.iter().enumerate() {
                let out = self.columns.row(token + i);
                for (column, sum) in columns.clone().zip(sums) {
                    let row = range.start + column;
                    self.job
                        .epilogue
                        .store(sum * self.rows.scale(row), row, &mut out[column]);
                }
            }
        }
    }
}

/// `M` tokens times four rows, all of the same padded length.
#[inline(always)]
fn tile_of_dots<S: Simd, const M: usize>(
    s: S,
    x: [&[f32]; M],
    w: [&[f32]; TILE],
) -> [[f32; TILE]; M] {
    let steps = w[0].len() / LANES;
    let x = x.map(|x| &x.as_chunks::<LANES>().0[..steps]);
    let w = w.map(|w| &w.as_chunks::<LANES>().0[..steps]);
    let mut sums = [[s.splat(0.0); TILE]; M];
    for step in 0..steps {
        let mut wide = [s.splat(0.0); TILE];
        for (wide, w) in wide.iter_mut().zip(w) {
            *wide = s.load(&w[step]);
        }
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = s.load(&x[step]);
            for (sum, w) in sums.iter_mut().zip(wide) {
                *sum = s.fma(w, x, *sum);
            }
        }
    }
    let mut out = [[0.0; TILE]; M];
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = s.sum(sum);
        }
    }
    out
}

/// Tokens of int8 codes times some rows of int8 codes.
struct IntegerTask<'a> {
    /// `[tokens, k padded to 32]`.
    x: &'a [i16],
    x_scales: &'a [f32],
    tokens: usize,
    codes: &'a [u8],
    scales: ScaleSlice<'a>,
    k: usize,
    epilogue: Epilogue<'a>,
    columns: Columns<'a, f32>,
}

impl Work for IntegerTask<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let range = self.columns.range();
        let padded = self.k.next_multiple_of(BLOCK);
        let mut tile = vec![0_u8; TILE * padded];
        for first in range.clone().step_by(TILE) {
            let rows = first..(first + TILE).min(range.end);
            for (row, out) in rows.clone().zip(tile.chunks_exact_mut(padded)) {
                out[..self.k].copy_from_slice(&self.codes[row * self.k..][..self.k]);
            }
            let w = std::array::from_fn(|i| &tile[i * padded..][..padded]);
            let mut token = 0;
            while token + TILE <= self.tokens {
                self.tokens::<S, TILE>(s, w, &rows, token, padded);
                token += TILE;
            }
            for token in token..self.tokens {
                self.tokens::<S, 1>(s, w, &rows, token, padded);
            }
        }
    }
}

impl IntegerTask<'_> {
    #[inline(always)]
    fn tokens<S: Simd, const M: usize>(
        &mut self,
        s: S,
        w: [&[u8]; TILE],
        rows: &std::ops::Range<usize>,
        token: usize,
        padded: usize,
    ) {
        let steps = padded / BLOCK;
        let w = w.map(|w| &w.as_chunks::<BLOCK>().0[..steps]);
        let x: [_; M] = std::array::from_fn(|i| {
            &self.x[(token + i) * padded..][..padded]
                .as_chunks::<BLOCK>()
                .0[..steps]
        });
        let mut sums = [[s.zero_i(); TILE]; M];
        for step in 0..steps {
            for (sums, x) in sums.iter_mut().zip(x) {
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = s.dot_i8_i16(*sum, &w[step], &x[step]);
                }
            }
        }
        let start = self.columns.range().start;
        for (i, sums) in sums.into_iter().enumerate() {
            let x_scale = self.x_scales[token + i];
            let out = self.columns.row(token + i);
            for (row, sum) in rows.clone().zip(sums) {
                let sum = s.sum_i(sum) as f32 * x_scale * self.scales.get(row);
                self.epilogue.store(sum, row, &mut out[row - start]);
            }
        }
    }
}
