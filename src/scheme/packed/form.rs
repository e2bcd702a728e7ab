//! What a packed weight is, before its numbers are read.

use super::{CodeFormat, Levels, PackedWeight};
use crate::scheme::DType;

/// The shape of a [`PackedWeight`] and of its parts: all that its size depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackedForm {
    /// Output features (rows).
    pub n: usize,
    /// Input features (columns).
    pub k: usize,
    /// How codes are written.
    pub format: CodeFormat,
    /// Columns that share a scale.
    pub group: usize,
    /// Rows that share their scales.
    pub scale_rows: usize,
    /// Type of the scales.
    pub scales: DType,
    /// What the codes stand for.
    pub levels: LevelForm,
    /// Whether the columns stand in an order of their own.
    pub ordered: bool,
}

/// The kinds of [`Levels`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LevelForm {
    /// Nothing beside the scales.
    Symmetric,
    /// A zero point per scale.
    Zeros,
    /// A float of the type of the scales per scale.
    Offsets,
    /// Sixteen numbers.
    Codebook,
}

impl PackedForm {
    /// The form of a weight that is there.
    pub fn of(weight: &PackedWeight) -> Self {
        Self {
            n: weight.n,
            k: weight.k,
            format: weight.format,
            group: weight.group,
            scale_rows: weight.scale_rows,
            scales: weight.scales.dtype(),
            levels: match &weight.levels {
                Levels::Symmetric => LevelForm::Symmetric,
                Levels::Zeros(_) => LevelForm::Zeros,
                Levels::Offsets(_) => LevelForm::Offsets,
                Levels::Codebook(_) => LevelForm::Codebook,
            },
            ordered: weight.order.is_some(),
        }
    }

    /// Scales of the whole: groups of a row times rows that have scales of their own.
    pub const fn scale_count(&self) -> usize {
        self.n.div_ceil(self.scale_rows) * self.k.div_ceil(self.group)
    }

    /// Bytes of all parts, as [`PackedWeight::bytes`] counts them.
    pub const fn bytes(&self) -> usize {
        let scales = self.scale_count();
        let levels = match self.levels {
            LevelForm::Symmetric => 0,
            LevelForm::Zeros => scales,
            LevelForm::Offsets => scales * self.scales.size(),
            LevelForm::Codebook => 16 * size_of::<f32>(),
        };
        let order = if self.ordered {
            self.k * size_of::<u32>()
        } else {
            0
        };
        self.n * self.format.row_bytes(self.k) + scales * self.scales.size() + levels + order
    }
}
