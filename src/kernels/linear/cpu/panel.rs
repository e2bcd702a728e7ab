//! Products of many tokens: inputs are laid out once, and rows widened a panel at a time, as the innermost loop reads them:
//! sixteen columns of each token or row of a tile side by side. A panel stays in the second-level cache while every token
//! uses it; a tile's inputs stay in the first while every row of the panel passes.

use rayon::prelude::*;

use super::{Job, TILE};
use crate::kernels::linear::rows::{Rows, rest};
use crate::kernels::parallel::{Columns, least};
use crate::kernels::simd::{LANES, Simd, Work, dispatch};
use crate::scheme::BLOCK;

/// Sixteen columns of a token or a row, where a whole register is read at once.
#[repr(align(64))]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lanes([f32; LANES]);

/// Steps of sixteen columns between which sums leave the registers: the inputs of a tile take a third of a first-level
/// cache then.
const STEPS: usize = 48;

/// Tokens of a tile at the level of vector instructions that is in use.
struct TileTokens;

impl Work for TileTokens {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _s: S) -> usize {
        S::TILE_TOKENS
    }
}

/// `x [tokens, padded]` as tiles read it: `[tile, step, token of the tile]`, missing tokens of the last tile zeros.
pub(super) fn tiles_of(x: &[f32], padded: usize) -> Vec<Lanes> {
    let tokens = dispatch(TileTokens);
    let tile = padded / LANES * tokens;
    let count = (x.len() / padded.max(1)).div_ceil(tokens);
    let mut tiles = vec![Lanes::default(); count * tile];
    tiles
        .par_chunks_exact_mut(tile.max(1))
        .with_min_len(least(tokens * padded))
        .zip(x.par_chunks(tokens * padded.max(1)))
        .for_each(|(tile, x)| {
            for (token, x) in x.chunks_exact(padded).enumerate() {
                for (step, x) in x.as_chunks().0.iter().enumerate() {
                    tile[step * tokens + token] = Lanes(*x);
                }
            }
        });
    tiles
}

/// Many tokens times a panel of rows.
pub(super) struct PanelTask<'a, 'p, R> {
    pub(super) job: Job<'a>,
    /// By [`tiles_of`].
    pub(super) x: &'a [Lanes],
    pub(super) rows: R,
    pub(super) columns: Columns<'a, f32>,
    pub(super) memory: &'p mut PanelMemory,
}

/// What a thread keeps, so that a product does not pay for fresh memory.
#[derive(Default)]
pub(super) struct PanelMemory {
    /// `[tile of rows, step, row of the tile]`.
    panel: Vec<Lanes>,
    /// Sums of a tile of tokens with every tile of rows, between one part of the columns and the next.
    sums: Vec<Lanes>,
}

impl<R: Rows> Work for PanelTask<'_, '_, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match S::TILE_TOKENS {
            6 => self.all::<S, 6>(s),
            _ => self.all::<S, 2>(s),
        }
    }
}

impl<R: Rows> PanelTask<'_, '_, R> {
    #[inline(always)]
    fn all<S: Simd, const M: usize>(mut self, s: S) {
        let steps = self.rows.k().next_multiple_of(BLOCK) / LANES;
        let mut memory = std::mem::take(self.memory);
        self.fill(s, steps, &mut memory.panel);
        let x = self.x;
        for (tile, x) in x.chunks_exact((steps * M).max(1)).enumerate() {
            self.tokens::<S, M>(s, x, &mut memory, tile * M);
        }
        *self.memory = memory;
    }

    /// Widens this task's rows into the panel; missing rows of the last tile are zeros.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, steps: usize, panel: &mut Vec<Lanes>) {
        let range = self.columns.range();
        let k = self.rows.k();
        panel.clear();
        panel.resize(range.len().next_multiple_of(TILE) * steps, Lanes::default());
        for (place, row) in range.enumerate() {
            let at = |step: usize| (place / TILE * steps + step) * TILE + place % TILE;
            let row = self.rows.row(row);
            let mut group_number = 0;
            let mut block = 0;
            while block < k / BLOCK {
                let group = self.rows.group(s, row, group_number);
                let last = block
                    .saturating_add(self.rows.blocks_per_group())
                    .min(k / BLOCK);
                while block < last {
                    let (low, high) = R::load(s, row, block, group);
                    s.store(low, &mut panel[at(2 * block)].0);
                    s.store(high, &mut panel[at(2 * block + 1)].0);
                    block += 1;
                }
                group_number += 1;
            }
            if !k.is_multiple_of(BLOCK) {
                let rest = rest(&self.rows, row);
                for (i, half) in rest.as_chunks().0.iter().enumerate() {
                    panel[at(2 * block + i)] = Lanes(*half);
                }
            }
        }
    }

    /// `M` tokens from `token` on, of which the last ones may be missing, times the panel.
    #[inline(always)]
    fn tokens<S: Simd, const M: usize>(
        &mut self,
        s: S,
        x: &[Lanes],
        memory: &mut PanelMemory,
        token: usize,
    ) {
        let steps = x.len() / M;
        let PanelMemory { panel, sums } = memory;
        let tiles = panel.len() / (steps * TILE).max(1);
        let held = if steps > STEPS { tiles * M * TILE } else { 0 };
        if sums.len() < held {
            sums.resize(held, Lanes::default());
        }
        let mut first = 0;
        while first < steps {
            let last = (first + STEPS).min(steps);
            let x = &x[first * M..last * M];
            for tile in 0..tiles {
                let w = &panel[(tile * steps + first) * TILE..(tile * steps + last) * TILE];
                let held = tile * M * TILE;
                let mut totals = [[s.splat(0.0); TILE]; M];
                if first > 0 {
                    for i in 0..M {
                        for r in 0..TILE {
                            totals[i][r] = s.load(&sums[held + i * TILE + r].0);
                        }
                    }
                }
                let totals = add_products::<S, M>(s, x, w, totals);
                if last == steps {
                    self.store::<S, M>(s, totals, token, tile);
                } else {
                    for i in 0..M {
                        for r in 0..TILE {
                            s.store(totals[i][r], &mut sums[held + i * TILE + r].0);
                        }
                    }
                }
            }
            first = last;
        }
    }

    #[inline(always)]
    fn store<S: Simd, const M: usize>(
        &mut self,
        s: S,
        sums: [[S::V; TILE]; M],
        token: usize,
        tile: usize,
    ) {
        let range = self.columns.range();
        let first = tile * TILE;
        let count = TILE.min(range.len() - first);
        let mut scales = [1.0; TILE];
        for (i, scale) in scales[..count].iter_mut().enumerate() {
            *scale = self.rows.scale(range.start + first + i);
        }
        for (token, sums) in (token..self.job.tokens).zip(sums) {
            let out = &mut self.columns.row(token)[first..first + count];
            for (r, out) in out.iter_mut().enumerate() {
                let sum = s.sum(sums[r]) * scales[r];
                self.job.epilogue.store(sum, range.start + first + r, out);
            }
        }
    }
}

/// Adds the products of `M` tokens, `x [steps, M]`, with four rows, `w [steps, 4]`, to `sums`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain loops over lanes; see `Work`
fn add_products<S: Simd, const M: usize>(
    s: S,
    x: &[Lanes],
    w: &[Lanes],
    mut sums: [[S::V; TILE]; M],
) -> [[S::V; TILE]; M] {
    let (x, w) = (x.as_chunks::<M>().0, w.as_chunks::<TILE>().0);
    for (x, w) in x.iter().zip(w) {
        let mut wide = [s.splat(0.0); TILE];
        for r in 0..TILE {
            wide[r] = s.load(&w[r].0);
        }
        for i in 0..M {
            let x = s.load(&x[i].0);
            for r in 0..TILE {
                sums[i][r] = s.fma(wide[r], x, sums[i][r]);
            }
        }
    }
    sums
}
