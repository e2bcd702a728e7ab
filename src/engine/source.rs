//! What the matrices of a model are made from, in one variant: known from headers, before anything is read.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::model::{Model, StoredLinear};
use crate::scheme::{
    CodeFormat, DType, InputRounding, InputScale, LevelForm, Variant, WeightScheme,
};

/// Where weights come from.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightSource {
    /// The precision that linear weights are quantised from, hence that of their scales: the file's own; f32 where its
    /// tensors differ or are quantised already; that of the checkpoint where one is made first.
    pub precision: DType,
    /// What each matrix stays as, by the name of its tensor; empty unless the variant is `as-is`.
    kept: BTreeMap<String, Kept>,
}

/// What a matrix stays as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kept {
    /// Numbers of this type.
    Plain(DType),
    /// Codes.
    Packed(StoredLinear),
}

/// What happens to the input of a linear layer on its way to the product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum InputPath {
    /// Nothing.
    Float,
    /// It becomes int8 codes with a scale per token, which are multiplied with the weight's codes.
    Codes,
    /// It is rounded, and goes on in its own type.
    Rounded(InputRounding),
}

impl WeightSource {
    /// What `variant` of `model` is made from.
    ///
    /// # Errors
    /// If a tensor is missing.
    pub fn of(model: &Model, variant: &Variant) -> Result<Self> {
        let mut precision = None;
        let mut kept = BTreeMap::new();
        for tensor in model.config.tensors() {
            if tensor.is_linear() {
                let own = model.weights.precision(&tensor.name)?;
                let same = precision.is_none_or(|before| before == own);
                precision = Some(if same { own } else { DType::F32 });
            }
            if variant.weights == WeightScheme::AsIs && tensor.shape.len() == 2 {
                let what = match model.weights.stored_linear(&tensor.name) {
                    Some(stored) => Kept::Packed(stored),
                    None => Kept::Plain(model.weights.kept_type(&tensor.name)?),
                };
                kept.insert(tensor.name, what);
            }
        }
        let precision = match (variant.is_made_on_load(), model.config.dtype) {
            (true, _) => precision.unwrap_or(DType::F32),
            // A checkpoint is written first, in the model's own 16-bit type.
            (false, DType::F32) => DType::BF16,
            (false, dtype) => dtype,
        };
        Ok(Self { precision, kept })
    }

    /// What a matrix stays as; `None` if the variant turns it into something else.
    pub(super) fn kept(&self, name: &str) -> Option<Kept> {
        self.kept.get(name).copied()
    }

    /// Whether the input of any layer takes this path.
    fn any(&self, taken: impl Fn(InputPath) -> bool) -> bool {
        self.kept.values().any(|kept| taken(kept.input()))
    }

    /// Whether the input of any layer that stays as it is becomes codes.
    pub(super) fn has_codes(&self) -> bool {
        self.any(|path| path == InputPath::Codes)
    }

    /// Whether the columns of any layer that stays as it is stand in an order of their own.
    pub(super) fn has_orders(&self) -> bool {
        let ordered = |kept: &Kept| matches!(kept, Kept::Packed(stored) if stored.form.ordered);
        self.kept.values().any(ordered)
    }

    /// Whether the input of any layer that stays as it is, is rounded in its own type.
    pub(super) fn has_rounded(&self) -> bool {
        self.any(|path| matches!(path, InputPath::Rounded(_)))
    }
}

impl Kept {
    /// Bytes of a matrix `[n, k]`.
    pub(super) fn bytes(self, [n, k]: [usize; 2]) -> usize {
        match self {
            Self::Plain(dtype) => n * k * dtype.size(),
            Self::Packed(stored) => stored.form.bytes(),
        }
    }

    /// What happens to its input.
    pub(super) fn input(self) -> InputPath {
        let Self::Packed(StoredLinear { form, inputs }) = self else {
            return InputPath::Float;
        };
        let whole_rows = form.group >= form.k && form.scale_rows == 1;
        let integers = form.format == CodeFormat::I8 && form.levels == LevelForm::Symmetric;
        match inputs {
            None => InputPath::Float,
            Some(rounding)
                if rounding == InputRounding::INT8_PER_TOKEN && integers && whole_rows =>
            {
                InputPath::Codes
            }
            Some(rounding) => InputPath::Rounded(rounding),
        }
    }
}

impl InputPath {
    /// One path for the inputs of two layers that are one; `None` if they have none in common. Of scales in the file the
    /// larger one counts, as in vLLM.
    pub(super) fn and(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Rounded(a), Self::Rounded(b)) => match (a.scale, b.scale) {
                (InputScale::Fixed(x), InputScale::Fixed(y)) if a.number == b.number => {
                    let scale = InputScale::Fixed(x.max(y));
                    Some(Self::Rounded(InputRounding { scale, ..a }))
                }
                _ => (a == b).then_some(self),
            },
            _ => (self == other).then_some(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::InputNumber;

    #[test]
    fn layers_that_are_one_share_what_happens_to_their_input() {
        let fixed = |scale| {
            InputPath::Rounded(InputRounding {
                number: InputNumber::E4M3,
                scale: InputScale::Fixed(scale),
            })
        };
        assert_eq!(fixed(0.5).and(fixed(0.25)), Some(fixed(0.5)));
        assert_eq!(InputPath::Float.and(InputPath::Codes), None);
        assert_eq!(
            InputPath::Codes.and(InputPath::Codes),
            Some(InputPath::Codes)
        );
        assert_eq!(
            fixed(0.5).and(InputPath::Rounded(InputRounding::INT8_PER_TOKEN)),
            None
        );
    }
}
