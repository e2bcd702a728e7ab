//! The product on the CPU.
//!
//! Every output is one chain of sixteen-lane multiply-adds along K, whatever the number of tokens, so a token's result
//! has the same bits alone and in any batch. Weights are widened in registers (one token) or a cache-sized panel at a
//! time (several); a whole widened weight never exists.

use std::cell::RefCell;

use half::{bf16, f16};

use super::super::device::{HostElem, with_dtype};
use super::super::parallel::{Columns, for_column_tiles};
use super::super::simd::{LANES, Simd, Work, dispatch};
use super::{Input, Linear, LinearPlan, LinearWeight, WeightData};
use crate::error::{Error, Result};
use crate::scheme::{BLOCK, Bits, DType, Elem};

/// Rows and tokens of the innermost tile.
pub(super) const TILE: usize = 4;
/// Rows that one token's product works on at once: enough chains to hide the latency of a multiply-add.
const CHAINS: usize = 8;
/// Rows of one parallel task of a one-token product.
const TASK_ROWS: usize = 32;

impl Linear {
    /// The CPU face; slices have exactly the op's shapes.
    pub(super) fn reference<T: Elem + HostElem>(
        &self,
        input: Input<'_>,
        weight: &LinearWeight,
        bias: Option<&[T]>,
        out: &mut [T],
    ) -> Result<()> {
        let epilogue = Epilogue { bias, accumulate: self.accumulate };
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
        let job = Job { x: &x, tokens: self.tokens, plan, n: weight.n, epilogue };
        match &weight.data {
            WeightData::Plain(w) => with_dtype!(w.dtype()?, W => {
                job.run(Plain { w: w.host::<W>()?, k }, out);
                Ok(())
            }),
            WeightData::Packed { bits: Bits::Eight, group, codes, scales } if *group == k => {
                with_dtype!(scales.dtype()?, S => {
                    job.run(Int8 { codes: codes.host()?, scales: scales.host::<S>()?, k }, out);
                    Ok(())
                })
            }
            WeightData::Packed { bits: Bits::Four, group, codes, scales } => {
                with_dtype!(scales.dtype()?, S => {
                    let scales = scales.host::<S>()?;
                    job.run(Int4 { codes: codes.host()?, scales, k, group: *group }, out);
                    Ok(())
                })
            }
            WeightData::Packed { bits, group, .. } => Err(Error::Internal(format!(
                "no CPU kernel for {}-bit weights in groups of {group}",
                bits.count()
            ))),
        }
    }

    /// int8 inputs and weights: exact integer sums, scaled at the end.
    fn integers<T: Elem>(
        &self,
        x: &[u8],
        x_scales: &[f32],
        weight: &LinearWeight,
        epilogue: Epilogue<'_, T>,
        out: &mut [T],
    ) -> Result<()> {
        let WeightData::Packed { bits: Bits::Eight, group, codes, scales } = &weight.data else {
            return Err(Error::Internal("int8 inputs need int8 weights".into()));
        };
        if *group != weight.k {
            return Err(Error::Internal("int8 inputs need one weight scale per row".into()));
        }
        let (k, padded) = (weight.k, weight.k.next_multiple_of(BLOCK));
        let mut wide = vec![0_i16; self.tokens * padded];
        for (wide, x) in wide.chunks_exact_mut(padded).zip(x.chunks_exact(k)) {
            wide.iter_mut().zip(x).for_each(|(w, &x)| *w = i16::from(x.cast_signed()));
        }
        let codes = codes.host::<u8>()?;
        with_dtype!(scales.dtype()?, S => {
            let scales = scales.host::<S>()?;
            for_column_tiles(out, weight.n, TASK_ROWS, |columns| {
                dispatch(IntegerTask {
                    x: &wide, x_scales, tokens: self.tokens, codes, scales, k, epilogue, columns,
                });
            });
        });
        Ok(())
    }
}

/// What happens to a sum before it is rounded and stored.
#[derive(Clone, Copy)]
struct Epilogue<'a, T> {
    bias: Option<&'a [T]>,
    accumulate: bool,
}

impl<T: Elem> Epilogue<'_, T> {
    #[inline(always)]
    fn store(&self, sum: f32, column: usize, out: &mut T) {
        let mut sum = sum;
        if let Some(bias) = self.bias {
            sum += bias[column].to_f32();
        }
        if self.accumulate {
            sum += out.to_f32();
        }
        *out = T::from_f32(sum);
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

/// Rows of weights that are widened as they are read.
trait Rows: Copy + Sync {
    /// Columns.
    fn k(&self) -> usize;
    /// Weights `32 block ..` of `row`.
    fn load<S: Simd>(&self, s: S, row: usize, block: usize) -> (S::V, S::V);
    /// One weight, for what is left of a row after its last whole block.
    fn one(&self, row: usize, column: usize) -> f32;
    /// What the finished sum of `row` is multiplied by.
    fn scale(&self, _row: usize) -> f32 {
        1.0
    }
}

/// The 32 elements of block `block` of a row that starts at `start`, as two vectors' worth.
#[inline(always)]
fn halves<E>(row: &[E], start: usize) -> (&[E; LANES], &[E; LANES]) {
    let block: &[E; BLOCK] = row[start..start + BLOCK].try_into().expect("a whole block");
    let (low, high) = block.split_at(LANES);
    (low.try_into().expect("half a block"), high.try_into().expect("half a block"))
}

#[derive(Clone, Copy)]
struct Plain<'a, W> {
    w: &'a [W],
    k: usize,
}

impl<W: Elem + HostElem> Rows for Plain<'_, W> {
    fn k(&self) -> usize {
        self.k
    }
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, row: usize, block: usize) -> (S::V, S::V) {
        let (low, high) = halves(self.w, row * self.k + block * BLOCK);
        let load = |x: &[W; LANES]| match W::DTYPE {
            DType::F32 => s.load(bytemuck::cast_ref::<[W; LANES], [f32; LANES]>(x)),
            DType::F16 => s.load_f16(bytemuck::cast_ref::<[W; LANES], [f16; LANES]>(x)),
            DType::BF16 => s.load_bf16(bytemuck::cast_ref::<[W; LANES], [bf16; LANES]>(x)),
        };
        (load(low), load(high))
    }
    fn one(&self, row: usize, column: usize) -> f32 {
        self.w[row * self.k + column].to_f32()
    }
}

#[derive(Clone, Copy)]
struct Int8<'a, S> {
    codes: &'a [u8],
    scales: &'a [S],
    k: usize,
}

impl<E: Elem> Rows for Int8<'_, E> {
    fn k(&self) -> usize {
        self.k
    }
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, row: usize, block: usize) -> (S::V, S::V) {
        let (low, high) = halves(self.codes, row * self.k + block * BLOCK);
        (s.load_i8(low), s.load_i8(high))
    }
    fn one(&self, row: usize, column: usize) -> f32 {
        f32::from(self.codes[row * self.k + column].cast_signed())
    }
    #[inline(always)]
    fn scale(&self, row: usize) -> f32 {
        self.scales[row].to_f32()
    }
}

#[derive(Clone, Copy)]
struct Int4<'a, S> {
    codes: &'a [u8],
    scales: &'a [S],
    k: usize,
    group: usize,
}

impl<E: Elem> Rows for Int4<'_, E> {
    fn k(&self) -> usize {
        self.k
    }
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, row: usize, block: usize) -> (S::V, S::V) {
        let start = row * (self.k / 2) + block * LANES;
        let bytes = self.codes[start..start + LANES].try_into().expect("a whole block");
        let (low, high) = s.load_nibbles(bytes);
        let scale = self.scales[row * (self.k / self.group) + block * BLOCK / self.group];
        let scale = s.splat(scale.to_f32());
        (s.mul(low, scale), s.mul(high, scale))
    }
    fn one(&self, _row: usize, _column: usize) -> f32 {
        unreachable!("four-bit rows are whole blocks")
    }
}

/// A product whose input is ready.
#[derive(Clone, Copy)]
struct Job<'a, T> {
    /// `[tokens, k padded to 32]`.
    x: &'a [f32],
    tokens: usize,
    plan: LinearPlan,
    n: usize,
    epilogue: Epilogue<'a, T>,
}

impl<T: Elem> Job<'_, T> {
    fn run<R: Rows>(self, rows: R, out: &mut [T]) {
        let tile = match self.plan {
            LinearPlan::Vector => TASK_ROWS,
            LinearPlan::Panels { rows } => rows,
        };
        for_column_tiles(out, self.n, tile, |columns| match self.plan {
            LinearPlan::Vector => dispatch(VectorTask { job: self, rows, columns }),
            LinearPlan::Panels { .. } => PANEL.with_borrow_mut(|panel| {
                dispatch(PanelTask { job: self, rows, columns, panel });
            }),
        });
    }
}

thread_local! {
    /// A thread's panel, kept so that a product does not pay for fresh memory.
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// One token times some rows.
struct VectorTask<'a, T, R> {
    job: Job<'a, T>,
    rows: R,
    columns: Columns<'a, T>,
}

impl<T: Elem, R: Rows> Work for VectorTask<'_, T, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let range = self.columns.range();
        let mut row = range.start;
        while row + CHAINS <= range.end {
            let sums = dots::<S, R, CHAINS>(s, self.rows, row, self.job.x);
            self.store(row, &sums);
            row += CHAINS;
        }
        while row < range.end {
            let sums = dots::<S, R, 1>(s, self.rows, row, self.job.x);
            self.store(row, &sums);
            row += 1;
        }
    }
}

impl<T: Elem, R: Rows> VectorTask<'_, T, R> {
    #[inline(always)]
    fn store(&mut self, row: usize, sums: &[f32]) {
        let first = self.columns.range().start;
        let out = self.columns.row(0);
        for (i, sum) in (row..).zip(sums) {
            self.job.epilogue.store(sum * self.rows.scale(i), i, &mut out[i - first]);
        }
    }
}

/// The products of `N` rows from `row` on with one `x` (padded).
#[inline(always)]
fn dots<S: Simd, R: Rows, const N: usize>(s: S, rows: R, row: usize, x: &[f32]) -> [f32; N] {
    let k = rows.k();
    let mut sums = [s.splat(0.0); N];
    for (block, x) in x.as_chunks::<BLOCK>().0.iter().take(k / BLOCK).enumerate() {
        let (low, high) = halves(x, 0);
        let (low, high) = (s.load(low), s.load(high));
        for (i, sum) in sums.iter_mut().enumerate() {
            let (w_low, w_high) = rows.load(s, row + i, block);
            *sum = s.fma(w_low, low, *sum);
            *sum = s.fma(w_high, high, *sum);
        }
    }
    if !k.is_multiple_of(BLOCK) {
        let start = k / BLOCK * BLOCK;
        let (low, high) = halves(x, start);
        let (low, high) = (s.load(low), s.load(high));
        for (i, sum) in sums.iter_mut().enumerate() {
            let rest = rest(rows, row + i, start);
            let (w_low, w_high) = halves(&rest, 0);
            *sum = s.fma(s.load(w_low), low, *sum);
            *sum = s.fma(s.load(w_high), high, *sum);
        }
    }
    sums.map(|sum| s.sum(sum))
}

/// What follows the last whole block of a row, padded with zeros.
#[inline(never)]
fn rest<R: Rows>(rows: R, row: usize, start: usize) -> [f32; BLOCK] {
    let mut rest = [0.0; BLOCK];
    for (w, column) in rest.iter_mut().zip(start..rows.k()) {
        *w = rows.one(row, column);
    }
    rest
}

/// Many tokens times a panel of rows.
struct PanelTask<'a, 'p, T, R> {
    job: Job<'a, T>,
    rows: R,
    columns: Columns<'a, T>,
    panel: &'p mut Vec<f32>,
}

impl<T: Elem, R: Rows> Work for PanelTask<'_, '_, T, R> {
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

impl<T: Elem, R: Rows> PanelTask<'_, '_, T, R> {
    /// Widens this task's rows into the panel; missing rows of the last tile are zeros.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, padded: usize) {
        let range = self.columns.range();
        let k = self.rows.k();
        self.panel.clear();
        self.panel.resize(range.len().next_multiple_of(TILE) * padded, 0.0);
        for (row, wide) in range.zip(self.panel.chunks_exact_mut(padded)) {
            let (blocks, _) = wide.as_chunks_mut::<LANES>();
            for block in 0..k / BLOCK {
                let (low, high) = self.rows.load(s, row, block);
                s.store(low, &mut blocks[2 * block]);
                s.store(high, &mut blocks[2 * block + 1]);
            }
            if !k.is_multiple_of(BLOCK) {
                let start = k / BLOCK * BLOCK;
                wide[start..].copy_from_slice(&rest(self.rows, row, start));
            }
        }
    }

    #[inline(always)]
    fn tokens<S: Simd, const M: usize>(&mut self, s: S, panel: &[f32], token: usize, padded: usize) {
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
                    self.job.epilogue.store(sum * self.rows.scale(row), row, &mut out[column]);
                }
            }
        }
    }
}

/// `M` tokens times four rows, all of the same padded length.
#[inline(always)]
fn tile_of_dots<S: Simd, const M: usize>(s: S, x: [&[f32]; M], w: [&[f32]; TILE]) -> [[f32; TILE]; M] {
    let steps = w[0].len() / LANES;
    let x = x.map(|x| &x.as_chunks::<LANES>().0[..steps]);
    let w = w.map(|w| &w.as_chunks::<LANES>().0[..steps]);
    let mut sums = [[s.splat(0.0); TILE]; M];
    for step in 0..steps {
        let w = w.map(|w| s.load(&w[step]));
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = s.load(&x[step]);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = s.fma(w, x, *sum);
            }
        }
    }
    sums.map(|sums| sums.map(|sum| s.sum(sum)))
}

/// Tokens of int8 codes times some rows of int8 codes.
struct IntegerTask<'a, T, S> {
    /// `[tokens, k padded to 32]`.
    x: &'a [i16],
    x_scales: &'a [f32],
    tokens: usize,
    codes: &'a [u8],
    scales: &'a [S],
    k: usize,
    epilogue: Epilogue<'a, T>,
    columns: Columns<'a, T>,
}

impl<T: Elem, E: Elem> Work for IntegerTask<'_, T, E> {
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

impl<T: Elem, E: Elem> IntegerTask<'_, T, E> {
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
            &self.x[(token + i) * padded..][..padded].as_chunks::<BLOCK>().0[..steps]
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
                let sum = s.sum_i(sum) as f32 * x_scale * self.scales[row].to_f32();
                self.epilogue.store(sum, row, &mut out[row - start]);
            }
        }
    }
}
