//! The product on the CPU.
//!
//! Every output is one chain of sixteen-lane multiply-adds along K, whatever the number of tokens, so a token's result
//! has the same bits alone and in any batch. Weights are widened in registers (one token) or a cache-sized panel at a
//! time (several); a whole widened weight never exists.

use std::cell::RefCell;

use half::{bf16, f16};
use rayon::prelude::*;

use super::super::device::{Buf, HostElem, with_dtype};
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

/// Scales in whatever type they are kept.
#[derive(Clone, Copy)]
enum ScaleSlice<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a> ScaleSlice<'a> {
    fn of(scales: &'a Buf) -> Result<Self> {
        Ok(match scales.dtype()? {
            DType::F32 => Self::F32(scales.host()?),
            DType::F16 => Self::F16(scales.host()?),
            DType::BF16 => Self::BF16(scales.host()?),
        })
    }

    #[inline(always)]
    fn get(self, i: usize) -> f32 {
        match self {
            Self::F32(s) => s[i],
            Self::F16(s) => Elem::to_f32(s[i]),
            Self::BF16(s) => Elem::to_f32(s[i]),
        }
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
    /// One row, ready to be read.
    type Row: Copy;
    /// Whether codes are multiplied by the scale of their group as they are read.
    const GROUPED: bool = false;
    /// Columns.
    fn k(&self) -> usize;
    /// Whole blocks that share a scale.
    fn blocks_per_group(&self) -> usize {
        usize::MAX
    }
    /// A row.
    fn row(&self, row: usize) -> Self::Row;
    /// Weights `32 block ..` of a row, before the scale of their group.
    fn load<S: Simd>(s: S, row: Self::Row, block: usize) -> (S::V, S::V);
    /// The scale of a group of a row.
    fn group_scale(_row: Self::Row, _group: usize) -> f32 {
        1.0
    }
    /// One weight, for what is left of a row after its last whole block.
    fn one(row: Self::Row, column: usize) -> f32;
    /// What the finished sum of `row` is multiplied by.
    fn scale(&self, _row: usize) -> f32 {
        1.0
    }
}

/// Both halves of a block.
#[inline(always)]
fn halves<E>(block: &[E; BLOCK]) -> (&[E; LANES], &[E; LANES]) {
    let (low, high) = block.split_at(LANES);
    (
        low.try_into().expect("half a block"),
        high.try_into().expect("half a block"),
    )
}

/// A row of elements: its whole blocks, and what follows them.
type Blocks<'a, E> = (&'a [[E; BLOCK]], &'a [E]);

#[derive(Clone, Copy)]
struct Plain<'a, W> {
    w: &'a [W],
    k: usize,
}

impl<'a, W: Elem + HostElem> Rows for Plain<'a, W> {
    type Row = Blocks<'a, W>;
    fn k(&self) -> usize {
        self.k
    }
    #[inline(always)]
    fn row(&self, row: usize) -> Self::Row {
        self.w[row * self.k..][..self.k].as_chunks()
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: Self::Row, block: usize) -> (S::V, S::V) {
        let (low, high) = halves(&row.0[block]);
        (widened(s, low), widened(s, high))
    }
    fn one(row: Self::Row, column: usize) -> f32 {
        row.1[column % BLOCK].to_f32()
    }
}

/// Sixteen plain weights as f32.
#[inline(always)]
fn widened<S: Simd, W: Elem + HostElem>(s: S, x: &[W; LANES]) -> S::V {
    match W::DTYPE {
        DType::F32 => s.load(bytemuck::cast_ref::<[W; LANES], [f32; LANES]>(x)),
        DType::F16 => s.load_f16(bytemuck::cast_ref::<[W; LANES], [f16; LANES]>(x)),
        DType::BF16 => s.load_bf16(bytemuck::cast_ref::<[W; LANES], [bf16; LANES]>(x)),
    }
}

#[derive(Clone, Copy)]
struct Int8<'a> {
    codes: &'a [u8],
    scales: ScaleSlice<'a>,
    k: usize,
}

impl<'a> Rows for Int8<'a> {
    type Row = Blocks<'a, u8>;
    fn k(&self) -> usize {
        self.k
    }
    #[inline(always)]
    fn row(&self, row: usize) -> Self::Row {
        self.codes[row * self.k..][..self.k].as_chunks()
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: Self::Row, block: usize) -> (S::V, S::V) {
        let (low, high) = halves(&row.0[block]);
        (s.load_i8(low), s.load_i8(high))
    }
    fn one(row: Self::Row, column: usize) -> f32 {
        f32::from(row.1[column % BLOCK].cast_signed())
    }
    #[inline(always)]
    fn scale(&self, row: usize) -> f32 {
        self.scales.get(row)
    }
}

#[derive(Clone, Copy)]
struct Int4<'a> {
    codes: &'a [u8],
    scales: ScaleSlice<'a>,
    k: usize,
    /// Groups of a row.
    groups: usize,
}

/// A row of nibbles: sixteen bytes a block, and where its scales are.
#[derive(Clone, Copy)]
struct NibbleRow<'a> {
    blocks: &'a [[u8; LANES]],
    scales: ScaleSlice<'a>,
    first_scale: usize,
}

impl<'a> Rows for Int4<'a> {
    type Row = NibbleRow<'a>;
    const GROUPED: bool = true;
    fn k(&self) -> usize {
        self.k
    }
    fn blocks_per_group(&self) -> usize {
        self.k / self.groups / BLOCK
    }
    #[inline(always)]
    fn row(&self, row: usize) -> Self::Row {
        let blocks = self.codes[row * self.k / 2..][..self.k / 2].as_chunks().0;
        NibbleRow {
            blocks,
            scales: self.scales,
            first_scale: row * self.groups,
        }
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: Self::Row, block: usize) -> (S::V, S::V) {
        s.load_nibbles(&row.blocks[block])
    }
    #[inline(always)]
    fn group_scale(row: Self::Row, group: usize) -> f32 {
        row.scales.get(row.first_scale + group)
    }
    fn one(_row: Self::Row, _column: usize) -> f32 {
        unreachable!("four-bit rows are whole blocks")
    }
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
            LinearPlan::Vector => TASK_ROWS,
            LinearPlan::Panels { rows } => rows,
        };
        let each = tile * rows.k() * self.tokens;
        for_column_tiles(out, self.n, tile, each, |columns| match self.plan {
            LinearPlan::Vector => dispatch(VectorTask {
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

/// One token times some rows.
struct VectorTask<'a, R> {
    job: Job<'a>,
    rows: R,
    columns: Columns<'a, f32>,
}

impl<R: Rows> Work for VectorTask<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let range = self.columns.range();
        let mut row = range.start;
        while row + CHAINS <= range.end {
            let sums = dots::<S, R, CHAINS>(s, &self.rows, row, self.job.x);
            self.store(row, &sums);
            row += CHAINS;
        }
        while row < range.end {
            let sums = dots::<S, R, 1>(s, &self.rows, row, self.job.x);
            self.store(row, &sums);
            row += 1;
        }
    }
}

impl<R: Rows> VectorTask<'_, R> {
    #[inline(always)]
    fn store(&mut self, row: usize, sums: &[f32]) {
        let first = self.columns.range().start;
        let out = self.columns.row(0);
        for (i, sum) in (row..).zip(sums) {
            self.job
                .epilogue
                .store(sum * self.rows.scale(i), i, &mut out[i - first]);
        }
    }
}

/// The products of `N` rows from `first` on with one `x` (padded).
#[inline(always)]
fn dots<S: Simd, R: Rows, const N: usize>(s: S, rows: &R, first: usize, x: &[f32]) -> [f32; N] {
    let k = rows.k();
    let (x, _) = x.as_chunks::<BLOCK>();
    let whole = &x[..k / BLOCK];
    let mut row = [rows.row(first); N];
    for (i, row) in row.iter_mut().enumerate() {
        *row = rows.row(first + i);
    }
    let mut sums = [s.splat(0.0); N];
    let mut block = 0;
    for (group, xs) in whole.chunks(rows.blocks_per_group()).enumerate() {
        let mut scales = [s.splat(1.0); N];
        if R::GROUPED {
            for i in 0..N {
                scales[i] = s.splat(R::group_scale(row[i], group));
            }
        }
        for x in xs {
            let (low, high) = halves(x);
            let (low, high) = (s.load(low), s.load(high));
            for i in 0..N {
                let (mut w_low, mut w_high) = R::load(s, row[i], block);
                if R::GROUPED {
                    (w_low, w_high) = (s.mul(w_low, scales[i]), s.mul(w_high, scales[i]));
                }
                sums[i] = s.fma(w_low, low, sums[i]);
                sums[i] = s.fma(w_high, high, sums[i]);
            }
            block += 1;
        }
    }
    if !k.is_multiple_of(BLOCK) {
        let (low, high) = halves(&x[block]);
        let (low, high) = (s.load(low), s.load(high));
        for i in 0..N {
            let rest = rest::<R>(row[i], k);
            let (w_low, w_high) = halves(&rest);
            sums[i] = s.fma(s.load(w_low), low, sums[i]);
            sums[i] = s.fma(s.load(w_high), high, sums[i]);
        }
    }
    let mut out = [0.0; N];
    for i in 0..N {
        out[i] = s.sum(sums[i]);
    }
    out
}

/// What follows the last whole block of a row, padded with zeros.
#[inline(never)]
fn rest<R: Rows>(row: R::Row, k: usize) -> [f32; BLOCK] {
    let mut rest = [0.0; BLOCK];
    for (w, column) in rest.iter_mut().zip(k / BLOCK * BLOCK..k) {
        *w = R::one(row, column);
    }
    rest
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
