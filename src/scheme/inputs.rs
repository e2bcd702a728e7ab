//! How the inputs of linear layers are rounded before the product.

use std::fmt;

/// A rounding of a linear layer's input. Codes and scales follow compressed-tensors (`calculate_qparams`): the scale is the
/// largest magnitude over 127.5 for integers and over 448 for E4M3; quotients are clamped, then rounded half to even.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InputRounding {
    /// What the input is rounded to.
    pub number: InputNumber,
    /// What shares a scale, and where that comes from.
    pub scale: InputScale,
}

/// What an input is rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputNumber {
    /// Symmetric eight-bit integers, `-128 ..= 127`.
    Int8,
    /// FP8 E4M3.
    E4M3,
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum InputScale {
    /// A token, found on the fly.
    Token,
    /// This many columns of a token, found on the fly.
    Columns(usize),
    /// Everything: the checkpoint has it.
    Fixed(f32),
}

impl InputRounding {
    /// The rounding of this program's own `w8a8`.
    pub const INT8_PER_TOKEN: Self = Self {
        number: InputNumber::Int8,
        scale: InputScale::Token,
    };
}

impl InputNumber {
    /// The largest magnitude over the scale.
    pub const fn half_range(self) -> f32 {
        match self {
            Self::Int8 => 127.5,
            Self::E4M3 => 448.0,
        }
    }
}

impl fmt::Display for InputRounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = match self.number {
            InputNumber::Int8 => "int8",
            InputNumber::E4M3 => "fp8",
        };
        match self.scale {
            InputScale::Token => write!(f, "{number}-per-token"),
            InputScale::Columns(columns) => write!(f, "{number}-per-{columns}-columns"),
            InputScale::Fixed(_) => write!(f, "{number}-static"),
        }
    }
}
