//! Blocks of a GGUF file that are kept as they are: Q4_0 and Q4_1, whose nibbles lie as in the canonical weight, and Q8_0.

use half::f16;

use super::blocks::BlockType;
use crate::scheme::{
    BLOCK, CodeFormat, DType, LevelForm, Levels, PackedForm, PackedWeight, Scales,
};

/// Codes and levels of a block type that is kept.
pub(super) fn form_of(kind: &BlockType) -> Option<(CodeFormat, LevelForm)> {
    match kind.name {
        // w = d (u - 8)
        "Q4_0" => Some((CodeFormat::U4, LevelForm::Symmetric)),
        // w = d u + m
        "Q4_1" => Some((CodeFormat::U4, LevelForm::Offsets)),
        // w = d q
        "Q8_0" => Some((CodeFormat::I8, LevelForm::Symmetric)),
        _ => None,
    }
}

/// A weight that is put together row by row.
pub(super) struct Blocks {
    form: PackedForm,
    codes: Vec<u8>,
    scales: Vec<f16>,
    offsets: Vec<f16>,
}

impl Blocks {
    pub(super) fn new(form: &PackedForm) -> Self {
        let scales = form.scale_count();
        let offsets = if form.levels == LevelForm::Offsets {
            scales
        } else {
            0
        };
        Self {
            form: *form,
            codes: Vec::with_capacity(form.n * form.format.row_bytes(form.k)),
            scales: Vec::with_capacity(scales),
            offsets: Vec::with_capacity(offsets),
        }
    }

    /// The blocks of the next row: each its scale, its offset if it has one, and its codes.
    pub(super) fn push_row(&mut self, stored: &[u8]) {
        let offsets = self.form.levels == LevelForm::Offsets;
        let head = if offsets { 4 } else { 2 };
        let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]);
        for block in stored.chunks_exact(head + self.form.format.row_bytes(BLOCK)) {
            self.scales.push(half(block));
            if offsets {
                self.offsets.push(half(&block[2..]));
            }
            self.codes.extend_from_slice(&block[head..]);
        }
    }

    pub(super) fn finish(self) -> PackedWeight {
        let PackedForm {
            n,
            k,
            format,
            group,
            ..
        } = self.form;
        debug_assert_eq!(self.form.scales, DType::F16);
        PackedWeight {
            n,
            k,
            format,
            group,
            scale_rows: 1,
            codes: self.codes,
            scales: Scales::F16(self.scales),
            levels: match self.form.levels {
                LevelForm::Offsets => Levels::Offsets(Scales::F16(self.offsets)),
                _ => Levels::Symmetric,
            },
            order: None,
        }
    }
}
