//! Products of int8 codes with int8 codes: integer sums of each group are exact.

use super::{Epilogue, TASK_ROWS, TILE};
use crate::error::{Error, Result};
use crate::kernels::linear::rows::Groups;
use crate::kernels::linear::{LevelBufs, LinearWeight, WeightData};
use crate::kernels::parallel::{Columns, for_column_tiles};
use crate::kernels::simd::{Simd, Work, dispatch};
use crate::scheme::{BLOCK, CodeFormat};

/// `x [tokens, k padded to 32]` and its scales, times `weight`.
pub(super) fn products(
    x: &[i16],
    x_scales: &[f32],
    weight: &LinearWeight,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) -> Result<()> {
    let packed = match &weight.data {
        WeightData::Packed(packed)
            if packed.format == CodeFormat::I8 && matches!(packed.levels, LevelBufs::Symmetric) =>
        {
            packed
        }
        WeightData::Packed(packed) => {
            return Err(Error::Config(format!(
                "int8 inputs need symmetric i8 weights; these are {}",
                packed.in_words()
            )));
        }
        WeightData::Plain(_) | WeightData::Streamed(_) | WeightData::Apart(_) => {
            return Err(Error::Config(
                "int8 inputs need symmetric i8 weights; these are not quantised".into(),
            ));
        }
    };
    let k = weight.k;
    let (codes, groups) = (packed.codes.host::<u8>()?, Groups::of(packed, k)?);
    let each = TASK_ROWS * k * x_scales.len();
    for_column_tiles(out, weight.n, TASK_ROWS, each, |columns| {
        dispatch(IntegerTask {
            x,
            x_scales,
            codes,
            groups,
            k,
            epilogue,
            columns,
        });
    });
    Ok(())
}

/// Tokens of int8 codes times some rows of int8 codes.
struct IntegerTask<'a> {
    /// `[tokens, k padded to 32]`.
    x: &'a [i16],
    x_scales: &'a [f32],
    codes: &'a [u8],
    groups: Groups<'a>,
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
            while token + TILE <= self.x_scales.len() {
                self.tokens::<S, TILE>(s, w, &rows, token, padded);
                token += TILE;
            }
            for token in token..self.x_scales.len() {
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
        let mut totals = [[0.0; TILE]; M];
        let each = self.groups.columns.div_ceil(BLOCK).min(steps);
        for number in 0..self.groups.per_row {
            let mut sums = [[s.zero_i(); TILE]; M];
            for step in number * each..((number + 1) * each).min(steps) {
                for (sums, x) in sums.iter_mut().zip(x) {
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = s.dot_i8_i16(*sum, &w[step], &x[step]);
                    }
                }
            }
            for (i, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
                let x_scale = self.x_scales[token + i];
                for (row, (total, sum)) in rows.clone().zip(totals.iter_mut().zip(sums)) {
                    let scale = self.groups.scale(self.groups.first(row) + number);
                    *total += s.sum_i(sum) as f32 * x_scale * scale;
                }
            }
        }
        let start = self.columns.range().start;
        for (i, totals) in totals.into_iter().enumerate() {
            let out = self.columns.row(token + i);
            for (row, total) in rows.clone().zip(totals) {
                self.epilogue.store(total, row, &mut out[row - start]);
            }
        }
    }
}
