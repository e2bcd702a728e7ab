//! Codes of four bits.

use super::{Groups, Rows};
use crate::kernels::simd::{LANES, Simd};
use crate::scheme::{BLOCK, CodeFormat};

/// A row of nibbles, sixteen bytes a block, and the number of its first group.
#[derive(Clone, Copy)]
pub(crate) struct NibbleRow<'a> {
    blocks: &'a [[u8; LANES]],
    first_group: usize,
}

/// Nibbles `u` of weights `(u - z) * s`; without `ZEROS` every `z` is 8, known while compiling.
#[derive(Clone, Copy)]
pub(crate) struct Nibbles<'a, const ZEROS: bool> {
    pub(crate) codes: &'a [u8],
    pub(crate) groups: Groups<'a>,
    pub(crate) k: usize,
}

impl<'a, const ZEROS: bool> Rows for Nibbles<'a, ZEROS> {
    type Row = NibbleRow<'a>;
    type Group<S: Simd> = S::Nibbles;
    fn k(&self) -> usize {
        self.k
    }
    fn blocks_per_group(&self) -> usize {
        self.groups.columns / BLOCK
    }
    #[inline(always)]
    fn row(&self, row: usize) -> Self::Row {
        let blocks = self.codes[row * self.k / 2..][..self.k / 2].as_chunks().0;
        NibbleRow {
            blocks,
            first_group: self.groups.first(row),
        }
    }
    #[inline(always)]
    fn group<S: Simd>(&self, s: S, row: Self::Row, group: usize) -> Self::Group<S> {
        let at = row.first_group + group;
        let zero = if ZEROS {
            self.groups.zero(at)
        } else {
            CodeFormat::U4.middle()
        };
        s.nibbles(zero, self.groups.scale(at))
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: Self::Row, block: usize, group: Self::Group<S>) -> (S::V, S::V) {
        s.load_nibbles(&row.blocks[block], group)
    }
    fn one(&self, _row: Self::Row, _column: usize) -> f32 {
        unreachable!("four-bit rows are whole blocks")
    }
}

/// Nibbles `u` of weights `t[u] * s + b`, looked up in a table that is made once per group.
#[derive(Clone, Copy)]
pub(crate) struct NibbleTables<'a> {
    pub(crate) nibbles: Nibbles<'a, false>,
    pub(crate) table: &'a [f32; LANES],
}

impl<'a> Rows for NibbleTables<'a> {
    type Row = NibbleRow<'a>;
    type Group<S: Simd> = S::V;
    fn k(&self) -> usize {
        self.nibbles.k
    }
    fn blocks_per_group(&self) -> usize {
        self.nibbles.blocks_per_group()
    }
    #[inline(always)]
    fn row(&self, row: usize) -> Self::Row {
        self.nibbles.row(row)
    }
    #[inline(always)]
    fn group<S: Simd>(&self, s: S, row: Self::Row, group: usize) -> Self::Group<S> {
        let (groups, at) = (&self.nibbles.groups, row.first_group + group);
        let products = s.mul(s.load(self.table), s.splat(groups.scale(at)));
        s.add(products, s.splat(groups.offset(at)))
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: Self::Row, block: usize, table: Self::Group<S>) -> (S::V, S::V) {
        s.lookup(&row.blocks[block], table)
    }
    fn one(&self, _row: Self::Row, _column: usize) -> f32 {
        unreachable!("four-bit rows are whole blocks")
    }
}
