//! Scales of a packed weight, and where those of a row and group stand.

use half::{bf16, f16};

use crate::error::Result;
use crate::kernels::Buf;
use crate::kernels::linear::{LevelBufs, PackedBufs};
use crate::scheme::{DType, Elem};

/// Numbers in whatever type they are kept.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a> Numbers<'a> {
    fn of(buf: &'a Buf) -> Result<Self> {
        Ok(match buf.dtype()? {
            DType::F32 => Self::F32(buf.host()?),
            DType::F16 => Self::F16(buf.host()?),
            DType::BF16 => Self::BF16(buf.host()?),
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

/// The groups of a packed weight.
#[derive(Clone, Copy)]
pub(crate) struct Groups<'a> {
    scales: Numbers<'a>,
    /// Empty where there are none.
    zeros: &'a [u8],
    offsets: Option<Numbers<'a>>,
    /// Groups of a row.
    pub(crate) per_row: usize,
    /// Columns of a group.
    pub(crate) columns: usize,
    /// Rows that share their groups.
    rows: usize,
}

impl<'a> Groups<'a> {
    /// The groups of a weight with rows of `k`.
    pub(crate) fn of(packed: &'a PackedBufs, k: usize) -> Result<Self> {
        let (mut zeros, mut offsets) = (&[][..], None);
        match &packed.levels {
            LevelBufs::Symmetric | LevelBufs::Codebook(_) => {}
            LevelBufs::Zeros(buf) => zeros = buf.host()?,
            LevelBufs::Offsets(buf) => offsets = Some(Numbers::of(buf)?),
        }
        Ok(Self {
            scales: Numbers::of(&packed.scales)?,
            zeros,
            offsets,
            per_row: k.div_ceil(packed.group),
            columns: packed.group,
            rows: packed.scale_rows,
        })
    }

    /// The number of the first group of a row.
    #[inline(always)]
    pub(crate) fn first(&self, row: usize) -> usize {
        let row = if self.rows == 1 { row } else { row / self.rows };
        row * self.per_row
    }

    /// The scale of a group.
    #[inline(always)]
    pub(crate) fn scale(&self, group: usize) -> f32 {
        self.scales.get(group)
    }

    /// The zero point of a group, a code, of a weight that has them.
    #[inline(always)]
    pub(super) fn zero(&self, group: usize) -> u8 {
        self.zeros[group]
    }

    /// What a group adds to the products of its numbers and its scale.
    #[inline(always)]
    pub(super) fn offset(&self, group: usize) -> f32 {
        self.offsets.map_or(0.0, |offsets| offsets.get(group))
    }
}
