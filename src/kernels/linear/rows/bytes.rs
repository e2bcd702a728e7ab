//! Codes of eight bits.

use std::marker::PhantomData;

use super::{Blocks, Groups, Rows, halves};
use crate::kernels::simd::{E4M3_UNIT, LANES, Simd};
use crate::scheme::{BLOCK, CodeFormat};

/// A format of eight bits.
pub(crate) trait ByteFormat: Copy + Sync {
    const FORMAT: CodeFormat;
    /// What a loaded number is short of the one that its code names. Scales make up for it.
    const UNIT: f32;
    /// Sixteen codes as numbers over [`ByteFormat::UNIT`].
    fn load<S: Simd>(s: S, codes: &[u8; LANES]) -> S::V;
}

/// [`CodeFormat::I8`].
#[derive(Clone, Copy)]
pub(crate) struct I8;

impl ByteFormat for I8 {
    const FORMAT: CodeFormat = CodeFormat::I8;
    const UNIT: f32 = 1.0;
    #[inline(always)]
    fn load<S: Simd>(s: S, codes: &[u8; LANES]) -> S::V {
        s.load_i8(codes)
    }
}

/// [`CodeFormat::E4M3`].
#[derive(Clone, Copy)]
pub(crate) struct E4M3;

impl ByteFormat for E4M3 {
    const FORMAT: CodeFormat = CodeFormat::E4M3;
    const UNIT: f32 = E4M3_UNIT;
    #[inline(always)]
    fn load<S: Simd>(s: S, codes: &[u8; LANES]) -> S::V {
        s.load_e4m3(codes)
    }
}

/// Symmetric codes with one scale for all of a row, which waits until the sum is done.
#[derive(Clone, Copy)]
pub(crate) struct ByteRows<'a, F> {
    codes: &'a [u8],
    groups: Groups<'a>,
    k: usize,
    format: PhantomData<F>,
}

impl<'a, F> ByteRows<'a, F> {
    pub(crate) fn new(codes: &'a [u8], groups: Groups<'a>, k: usize) -> Self {
        Self {
            codes,
            groups,
            k,
            format: PhantomData,
        }
    }
}

impl<'a, F: ByteFormat> Rows for ByteRows<'a, F> {
    type Row = Blocks<'a, u8>;
    type Group<S: Simd> = ();
    fn k(&self) -> usize {
        self.k
    }
    #[inline(always)]
    fn row(&self, row: usize) -> Self::Row {
        self.codes[row * self.k..][..self.k].as_chunks()
    }
    #[inline(always)]
    fn group<S: Simd>(&self, _s: S, _row: Self::Row, _group: usize) {}
    #[inline(always)]
    fn load<S: Simd>(s: S, row: Self::Row, block: usize, _group: ()) -> (S::V, S::V) {
        let (low, high) = halves(&row.0[block]);
        (F::load(s, low), F::load(s, high))
    }
    fn one(&self, row: Self::Row, column: usize) -> f32 {
        F::FORMAT.value(row.1[column % BLOCK]) / F::UNIT
    }
    #[inline(always)]
    fn scale(&self, row: usize) -> f32 {
        self.groups.scale(self.groups.first(row)) * F::UNIT
    }
}

/// Codes that meet their group's scale, and with `ZEROS` its zero point, as they are read.
#[derive(Clone, Copy)]
pub(crate) struct ByteGroups<'a, F, const ZEROS: bool>(ByteRows<'a, F>);

impl<'a, F, const ZEROS: bool> ByteGroups<'a, F, ZEROS> {
    pub(crate) fn new(codes: &'a [u8], groups: Groups<'a>, k: usize) -> Self {
        Self(ByteRows::new(codes, groups, k))
    }
}

/// A row of bytes, and the number of its first group.
#[derive(Clone, Copy)]
pub(crate) struct ByteRow<'a> {
    codes: Blocks<'a, u8>,
    first_group: usize,
}

impl<'a, F: ByteFormat, const ZEROS: bool> Rows for ByteGroups<'a, F, ZEROS> {
    type Row = ByteRow<'a>;
    /// Zero point and scale.
    type Group<S: Simd> = (S::V, S::V);
    fn k(&self) -> usize {
        self.0.k
    }
    fn blocks_per_group(&self) -> usize {
        self.0.groups.columns.div_ceil(BLOCK)
    }
    #[inline(always)]
    fn row(&self, row: usize) -> Self::Row {
        ByteRow {
            codes: self.0.row(row),
            first_group: self.0.groups.first(row),
        }
    }
    #[inline(always)]
    fn group<S: Simd>(&self, s: S, row: Self::Row, group: usize) -> Self::Group<S> {
        let (zero, scale) = self.zero_and_scale(row, group);
        (s.splat(zero), s.splat(scale))
    }
    #[inline(always)]
    fn load<S: Simd>(
        s: S,
        row: Self::Row,
        block: usize,
        (zero, scale): Self::Group<S>,
    ) -> (S::V, S::V) {
        let (low, high) = halves(&row.codes.0[block]);
        let (mut low, mut high) = (F::load(s, low), F::load(s, high));
        if ZEROS {
            (low, high) = (s.sub(low, zero), s.sub(high, zero));
        }
        (s.mul(low, scale), s.mul(high, scale))
    }
    fn one(&self, row: Self::Row, column: usize) -> f32 {
        let (zero, scale) = self.zero_and_scale(row, column / self.0.groups.columns);
        (self.0.one(row.codes, column) - zero) * scale
    }
}

impl<F: ByteFormat, const ZEROS: bool> ByteGroups<'_, F, ZEROS> {
    #[inline(always)]
    fn zero_and_scale(&self, row: ByteRow<'_>, group: usize) -> (f32, f32) {
        let (groups, at) = (&self.0.groups, row.first_group + group);
        let zero = if ZEROS {
            F::FORMAT.value(groups.zero(at))
        } else {
            0.0
        };
        (zero, groups.scale(at) * F::UNIT)
    }
}
