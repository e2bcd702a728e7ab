//! The tensors of one linear layer, checked before anything is allocated or read.

use std::fmt::Display;
use std::ops::Range;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::model::safetensors::Safetensors;
use crate::scheme::{DType, PackedWeight, Scales};

/// Integers of 32 bits; packed codes are either.
pub(in crate::model) const WORDS: &[&str] = &["I32", "U32"];

/// A linear layer of a checkpoint.
#[derive(Clone, Copy)]
pub(in crate::model) struct Parts<'a> {
    pub(in crate::model) files: &'a Safetensors,
    /// As in `model.layers.0.mlp.up_proj`.
    pub(in crate::model) module: &'a str,
    /// Output features, as the configuration has them.
    pub(in crate::model) n: usize,
    /// Input features, as the configuration has them.
    pub(in crate::model) k: usize,
}

impl<'a> Parts<'a> {
    /// The tensor `module.part`, if there is one.
    pub(in crate::model) fn find(&self, part: &str) -> Result<Option<Part<'a>>> {
        let name = format!("{}.{part}", self.module);
        if !self.files.contains(&name) {
            return Ok(None);
        }
        Ok(Some(Part {
            files: self.files,
            stored: self.files.stored_static(&name)?,
            shape: self.files.shape(&name)?,
            name,
        }))
    }

    /// The tensor `module.part`.
    pub(in crate::model) fn get(&self, part: &str) -> Result<Part<'a>> {
        self.find(part)?.ok_or_else(|| {
            let name = format!("{}.{part}", self.module);
            Error::data(
                self.files.path_of(&name),
                format!("tensor '{name}': missing"),
            )
        })
    }

    /// Something that is well described but that this program cannot run.
    pub(in crate::model) fn unsupported(&self, what: impl Display) -> Error {
        let path = self.files.path_of(&format!("{}.weight", self.module));
        Error::Config(format!("{}: '{}': {what}", path.display(), self.module))
    }

    /// Something that is wrong with the layer as a whole; `part` says in which file it is.
    pub(in crate::model) fn fault(&self, part: &str, what: impl Display) -> Error {
        let name = format!("{}.{part}", self.module);
        Error::data(
            self.files.path_of(&name),
            format!("tensor '{name}': {what}"),
        )
    }

    /// `weight`, if its parts fit together and every number is one; `part` names its codes.
    pub(in crate::model) fn checked(
        &self,
        part: &str,
        weight: PackedWeight,
    ) -> Result<PackedWeight> {
        weight.check().map_err(|what| self.fault(part, what))?;
        Ok(weight)
    }
}

/// One tensor of a linear layer.
pub(in crate::model) struct Part<'a> {
    files: &'a Safetensors,
    pub(in crate::model) name: String,
    /// Its type as the file names it.
    pub(in crate::model) stored: &'static str,
    pub(in crate::model) shape: Vec<usize>,
}

impl Part<'_> {
    pub(in crate::model) fn fault(&self, what: impl Display) -> Error {
        Error::data(
            self.files.path_of(&self.name),
            format!("tensor '{}': {what}", self.name),
        )
    }

    /// Refuses another type.
    pub(in crate::model) fn of_type(self, types: &[&str]) -> Result<Self> {
        if types.contains(&self.stored) {
            return Ok(self);
        }
        let expected = types.join(" or ");
        Err(self.fault(format!("stored as {}, expected {expected}", self.stored)))
    }

    /// Refuses another shape than `[rows, columns]`; dimensions of one may be there or not.
    pub(in crate::model) fn of_shape(self, shape: [usize; 2]) -> Result<Self> {
        let plain =
            |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|&n| n != 1).collect() };
        if plain(&self.shape) == plain(&shape) {
            return Ok(self);
        }
        let [rows, columns] = shape;
        Err(self.fault(format!(
            "has the shape {:?}, where [{rows}, {columns}] is needed",
            self.shape
        )))
    }

    /// Some rows and columns of the tensor seen as `[.., width]`, whose shape has been checked.
    pub(in crate::model) fn block<T: Pod>(
        &self,
        rows: Range<usize>,
        width: usize,
        columns: Range<usize>,
    ) -> Result<Vec<T>> {
        let size = size_of::<T>() as u64;
        // The shape is that of bytes that lie in the file, so no product overflows and none is larger than the file.
        let mut out = vec![T::zeroed(); rows.len() * columns.len()];
        if out.is_empty() {
            return Ok(out);
        }
        let at = |row: usize| (row as u64 * width as u64 + columns.start as u64) * size;
        if columns.len() == width {
            let bytes = bytemuck::cast_slice_mut(&mut out);
            self.files.read_bytes(&self.name, at(rows.start), bytes)?;
            return Ok(out);
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(columns.len())) {
            self.files
                .read_bytes(&self.name, at(row), bytemuck::cast_slice_mut(out))?;
        }
        Ok(out)
    }

    /// All elements of a tensor of few.
    pub(in crate::model) fn all<T: Pod>(&self) -> Result<Vec<T>> {
        let count = self.shape.iter().product();
        self.block(0..1, count, 0..count)
    }

    /// The type of scales.
    pub(in crate::model) fn scale_type(&self) -> Result<DType> {
        match self.stored {
            "F32" | "F8_E8M0" => Ok(DType::F32),
            "F16" => Ok(DType::F16),
            "BF16" => Ok(DType::BF16),
            other => Err(self.fault(format!(
                "scales stored as {other}, expected F32, F16 or BF16"
            ))),
        }
    }

    /// Scales, some rows and columns of `[.., width]`.
    pub(in crate::model) fn scales(
        &self,
        rows: Range<usize>,
        width: usize,
        columns: Range<usize>,
    ) -> Result<Scales> {
        Ok(match self.stored {
            "F16" => Scales::F16(self.block::<f16>(rows, width, columns)?),
            "BF16" => Scales::BF16(self.block::<bf16>(rows, width, columns)?),
            // Powers of two: an exponent with the bias of binary32, NaN where all bits are set.
            "F8_E8M0" => {
                let exponents = self.block::<u8>(rows, width, columns)?;
                let scale = |e: u8| match e {
                    0 => f32::from_bits(1 << 22),
                    255 => f32::NAN,
                    e => f32::from_bits(u32::from(e) << 23),
                };
                Scales::F32(exponents.into_iter().map(scale).collect())
            }
            _ => {
                self.scale_type()?;
                Scales::F32(self.block::<f32>(rows, width, columns)?)
            }
        })
    }

    /// The one number of a tensor of one: the scale of an input.
    pub(in crate::model) fn single(self) -> Result<f32> {
        let part = self.of_shape([1, 1])?;
        let scale = part.scales(0..1, 1, 0..1)?.get(0);
        if !(scale.is_finite() && scale > 0.0) {
            return Err(part.fault(format!("the scale is {scale}")));
        }
        Ok(scale)
    }
}

/// `codes` of `bits`, low ones first, out of words; as many as `out` holds.
pub(in crate::model) fn unpack(words: &[u32], bits: u32, out: &mut [u8]) {
    let each = (32 / bits) as usize;
    let mask = (1_u32 << bits) - 1;
    for (word, out) in words.iter().zip(out.chunks_mut(each)) {
        for (i, code) in out.iter_mut().enumerate() {
            *code = (word >> (bits as usize * i) & mask) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_give_their_codes_low_bits_first() {
        // Vectors CT-1, CT-2 and CT-3, run through compressed-tensors 0.20.
        let signed = |words: &[u32], bits: u32, count: usize| -> Vec<i16> {
            let mut codes = vec![0; count];
            unpack(words, bits, &mut codes);
            codes
                .iter()
                .map(|&code| i16::from(code) - (1 << (bits - 1)))
                .collect()
        };
        assert_eq!(
            signed(&[0x7654_3210, 0xfedc_ba98], 4, 16),
            (-8..8).collect::<Vec<i16>>()
        );
        assert_eq!(
            signed(&[0xd5bf_9870, 0x6a], 4, 10),
            [-8, -1, 0, 1, 7, 3, -3, 5, 2, -2]
        );
        assert_eq!(
            signed(&[0xff80_7f00, 0x8483_8281], 8, 8),
            [-128, -1, 0, 127, 1, 2, 3, 4]
        );
    }
}
