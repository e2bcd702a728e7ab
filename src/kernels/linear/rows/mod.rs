//! Rows of weights in each form that the CPU widens in registers.

mod bytes;
mod groups;
mod nibbles;
mod plain;

use super::super::simd::{LANES, Simd};
use crate::scheme::BLOCK;

pub(super) use bytes::{ByteGroups, ByteRows, E4M3, I8};
pub(super) use groups::Groups;
pub(super) use nibbles::{NibbleTables, Nibbles};
pub(super) use plain::Plain;

/// Rows of weights that are widened as they are read.
pub(super) trait Rows: Copy + Sync {
    /// One row, ready to be read.
    type Row: Copy;
    /// What turns the codes of one group of a row into weights.
    type Group<S: Simd>: Copy;
    /// Columns.
    fn k(&self) -> usize;
    /// Whole blocks that share a [`Rows::Group`].
    fn blocks_per_group(&self) -> usize {
        usize::MAX
    }
    /// A row.
    fn row(&self, row: usize) -> Self::Row;
    /// A group of a row.
    fn group<S: Simd>(&self, s: S, row: Self::Row, group: usize) -> Self::Group<S>;
    /// Weights `32 block ..` of a row, which lie in `group`.
    fn load<S: Simd>(s: S, row: Self::Row, block: usize, group: Self::Group<S>) -> (S::V, S::V);
    /// The weight that [`Rows::load`] would give, for what is left of a row after its last whole block.
    fn one(&self, row: Self::Row, column: usize) -> f32;
    /// What the finished sum of `row` is multiplied by.
    fn scale(&self, _row: usize) -> f32 {
        1.0
    }
}

/// Both halves of a block.
#[inline(always)]
pub(super) fn halves<E>(block: &[E; BLOCK]) -> (&[E; LANES], &[E; LANES]) {
    let (low, high) = block.split_at(LANES);
    (
        low.try_into().expect("half a block"),
        high.try_into().expect("half a block"),
    )
}

/// A row of elements: its whole blocks, and what follows them.
type Blocks<'a, E> = (&'a [[E; BLOCK]], &'a [E]);

/// What follows the last whole block of a row, padded with zeros.
#[inline(never)]
pub(super) fn rest<R: Rows>(rows: &R, row: R::Row) -> [f32; BLOCK] {
    let k = rows.k();
    let mut rest = [0.0; BLOCK];
    for (w, column) in rest.iter_mut().zip(k / BLOCK * BLOCK..k) {
        *w = rows.one(row, column);
    }
    rest
}
