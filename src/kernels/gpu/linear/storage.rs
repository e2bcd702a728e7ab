//! Weights in the forms that the streaming kernels read (`kernels/common/stream.cuh`).

use super::geometry::{ROWS, STEP};
use crate::kernels::Buf;
use crate::scheme::DType;

/// A quantised weight as it lies on a GPU: repacked once, when it is loaded.
pub struct StreamedBufs {
    /// What the codes are.
    pub(crate) form: Form,
    /// Whole tiles of 16 rows: in rows, or in the order of fragments where the form says so.
    pub(crate) codes: Buf,
    /// `[n / 16, groups, 16]`, or one a row.
    pub(crate) scales: Buf,
    /// As the scales, where groups have codes of zero of their own.
    pub(crate) zeros: Option<Buf>,
    /// Columns per scale; `k` where a scale covers a row.
    pub(crate) group: usize,
    /// `[k]`: the input of each column, where that is not its own number.
    pub(crate) order: Option<Buf>,
}

/// What the codes of a [`StreamedBufs`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Two's complement bytes in rows.
    Int8,
    /// FP8 E4M3 in rows.
    E4m3,
    /// Nibbles in the order of fragments; 8 stands for zero unless there are zeros.
    Int4,
}

impl StreamedBufs {
    /// Bytes of all its parts.
    pub(crate) fn bytes(&self) -> usize {
        let optional = |buf: &Option<Buf>| buf.as_ref().map_or(0, Buf::bytes);
        self.codes.bytes() + self.scales.bytes() + optional(&self.zeros) + optional(&self.order)
    }

    /// Columns per scale.
    pub(crate) fn group(&self) -> usize {
        self.group
    }

    /// The storage for inputs of type `x`; `None` where there is no kernel for the pair.
    pub(crate) fn storage(&self, k: usize, x: DType) -> Option<Storage> {
        let scales = self.scales.dtype().ok()?;
        let groups = self.group < k;
        match (self.form, x) {
            (_, DType::F32) => None,
            (Form::Int8, x) => Some(Storage::Int8 { groups, x }),
            (Form::E4m3, x) => Some(Storage::E4m3 { groups, x }),
            (Form::Int4, x) if scales == x || scales == DType::F32 => Some(Storage::Int4 {
                zeros: self.zeros.is_some(),
                wide_scales: scales == DType::F32,
                x,
            }),
            (Form::Int4, _) => None,
        }
    }
}

/// A weight and the type of what it is multiplied with: what a streaming kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Storage {
    /// 16-bit numbers in rows, of the type of the input.
    Plain(DType),
    /// Bytes in rows.
    Int8 {
        /// Scales cover groups of a row, in f32; else a row, in any type.
        groups: bool,
        /// Type of the input.
        x: DType,
    },
    /// FP8 in rows.
    E4m3 {
        /// As for bytes.
        groups: bool,
        /// Type of the input.
        x: DType,
    },
    /// Nibbles in the order of fragments.
    Int4 {
        /// Groups have codes of zero of their own.
        zeros: bool,
        /// Scales are f32, not of the type of the input.
        wide_scales: bool,
        /// Type of the input.
        x: DType,
    },
    /// Bytes in rows times codes of the input.
    Codes,
}

impl Storage {
    /// As kernels are named after it.
    pub(crate) fn name(self) -> String {
        let of = |what: &str, groups: bool, x: DType| {
            format!("{what}{}_{x}", if groups { "_groups" } else { "" })
        };
        match self {
            Self::Plain(x) => format!("plain_{x}"),
            Self::Int8 { groups, x } => of("int8", groups, x),
            Self::E4m3 { groups, x } => of("e4m3", groups, x),
            Self::Int4 {
                zeros,
                wide_scales,
                x,
            } => {
                let zeros = if zeros { "_zeros" } else { "" };
                let wide = if wide_scales { "_f32" } else { "" };
                format!("int4{zeros}{wide}_{x}")
            }
            Self::Codes => "w8a8".into(),
        }
    }

    /// Every one that kernels are compiled for.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Codes];
        for x in [DType::BF16, DType::F16] {
            all.push(Self::Plain(x));
            for flag in [false, true] {
                all.push(Self::Int8 { groups: flag, x });
                all.push(Self::E4m3 { groups: flag, x });
                for wide_scales in [false, true] {
                    all.push(Self::Int4 {
                        zeros: flag,
                        wide_scales,
                        x,
                    });
                }
            }
        }
        all
    }

    /// Whether a kernel for a whole step is compiled for layers of it.
    pub(in crate::kernels::gpu) const fn has_step(self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Int8 { groups, .. } | Self::E4m3 { groups, .. } => !groups,
            Self::Int4 { wide_scales, .. } => !wide_scales,
            Self::Codes => true,
        }
    }

    /// Bytes of a number of the input.
    pub(super) const fn bytes_of_input(self) -> usize {
        match self {
            Self::Codes => 1,
            _ => 2,
        }
    }

    /// Bits of a weight.
    const fn bits(self) -> usize {
        match self {
            Self::Plain(_) => 16,
            Self::Int8 { .. } | Self::E4m3 { .. } | Self::Codes => 8,
            Self::Int4 { .. } => 4,
        }
    }

    /// Bytes of a tile's step of codes.
    pub(super) const fn tile_bytes(self) -> usize {
        ROWS * STEP * self.bits() / 8
    }

    /// Bytes of a row of `k` codes, about; scales, which are few, left out.
    pub(super) const fn bytes_of_row(self, k: usize) -> usize {
        k * self.bits() / 8
    }

    /// Shared memory for the scales and zeros of a step of that many tiles: `StepScales::BYTES`.
    pub(super) const fn scale_bytes(self, tiles: usize) -> usize {
        let (scale, zero) = match self {
            Self::Plain(_) | Self::Codes => (0, 0),
            Self::Int8 { groups, .. } | Self::E4m3 { groups, .. } => {
                (if groups { 4 } else { 0 }, 0)
            }
            Self::Int4 {
                zeros, wide_scales, ..
            } => (if wide_scales { 4 } else { 2 }, if zeros { 1 } else { 0 }),
        };
        tiles * 2 * ROWS * (scale + zero)
    }
}
