//! Rows of weights in each form that the CPU widens in registers.

use half::{bf16, f16};

use super::super::device::HostElem;
use super::super::simd::{LANES, Simd};
use crate::error::Result;
use crate::kernels::Buf;
use crate::scheme::{BLOCK, DType, Elem};

/// Scales in whatever type they are kept.
#[derive(Clone, Copy)]
pub(super) enum ScaleSlice<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a> ScaleSlice<'a> {
    pub(super) fn of(scales: &'a Buf) -> Result<Self> {
        Ok(match scales.dtype()? {
            DType::F32 => Self::F32(scales.host()?),
            DType::F16 => Self::F16(scales.host()?),
            DType::BF16 => Self::BF16(scales.host()?),
        })
    }

    #[inline(always)]
    pub(super) fn get(self, i: usize) -> f32 {
        match self {
            Self::F32(s) => s[i],
            Self::F16(s) => Elem::to_f32(s[i]),
            Self::BF16(s) => Elem::to_f32(s[i]),
        }
    }
}

/// Rows of weights that are widened as they are read.
pub(super) trait Rows: Copy + Sync {
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
pub(super) fn halves<E>(block: &[E; BLOCK]) -> (&[E; LANES], &[E; LANES]) {
    let (low, high) = block.split_at(LANES);
    (
        low.try_into().expect("half a block"),
        high.try_into().expect("half a block"),
    )
}

/// A row of elements: its whole blocks, and what follows them.
pub(super) type Blocks<'a, E> = (&'a [[E; BLOCK]], &'a [E]);

#[derive(Clone, Copy)]
pub(super) struct Plain<'a, W> {
    pub(super) w: &'a [W],
    pub(super) k: usize,
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
pub(super) fn widened<S: Simd, W: Elem + HostElem>(s: S, x: &[W; LANES]) -> S::V {
    match W::DTYPE {
        DType::F32 => s.load(bytemuck::cast_ref::<[W; LANES], [f32; LANES]>(x)),
        DType::F16 => s.load_f16(bytemuck::cast_ref::<[W; LANES], [f16; LANES]>(x)),
        DType::BF16 => s.load_bf16(bytemuck::cast_ref::<[W; LANES], [bf16; LANES]>(x)),
    }
}

#[derive(Clone, Copy)]
pub(super) struct Int8<'a> {
    pub(super) codes: &'a [u8],
    pub(super) scales: ScaleSlice<'a>,
    pub(super) k: usize,
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
pub(super) struct Int4<'a> {
    pub(super) codes: &'a [u8],
    pub(super) scales: ScaleSlice<'a>,
    pub(super) k: usize,
    /// Groups of a row.
    pub(super) groups: usize,
}

/// A row of nibbles: sixteen bytes a block, and where its scales are.
#[derive(Clone, Copy)]
pub(super) struct NibbleRow<'a> {
    blocks: &'a [[u8; LANES]],
    pub(super) scales: ScaleSlice<'a>,
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

/// What follows the last whole block of a row, padded with zeros.
#[inline(never)]
pub(super) fn rest<R: Rows>(row: R::Row, k: usize) -> [f32; BLOCK] {
    let mut rest = [0.0; BLOCK];
    for (w, column) in rest.iter_mut().zip(k / BLOCK * BLOCK..k) {
        *w = R::one(row, column);
    }
    rest
}
