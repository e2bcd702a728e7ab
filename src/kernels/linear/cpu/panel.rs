//! Products of many tokens: rows are widened into a panel that stays in the cache while every token uses it.

use super::{Job, TILE};
use crate::kernels::linear::rows::{Rows, rest};
use crate::kernels::parallel::Columns;
use crate::kernels::simd::{LANES, Simd, Work};
use crate::scheme::BLOCK;

/// Many tokens times a panel of rows.
pub(super) struct PanelTask<'a, 'p, R> {
    pub(super) job: Job<'a>,
    pub(super) rows: R,
    pub(super) columns: Columns<'a, f32>,
    pub(super) panel: &'p mut Vec<f32>,
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
            for (number, wide) in whole.chunks_mut(self.rows.blocks_per_group()).enumerate() {
                let group = self.rows.group(s, row, number);
                for wide in wide {
                    let (low, high) = R::load(s, row, block, group);
                    let (out_low, out_high) = wide.split_at_mut(LANES);
                    s.store(low, out_low.try_into().expect("half a block"));
                    s.store(high, out_high.try_into().expect("half a block"));
                    block += 1;
                }
            }
            if !k.is_multiple_of(BLOCK) {
                wide[k / BLOCK * BLOCK..].copy_from_slice(&rest(&self.rows, row));
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
