//! Element types of activations, plain weights and scales.

use half::{bf16, f16};

/// A floating-point element type that weights, scales, activations and the KV cache may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16: 11 significant bits, largest value 65504.
    F16,
    /// bfloat16: 8 significant bits, the range of binary32.
    BF16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The name used on the command line and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// Rounds `x` to this type and back, half to even.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::BF16 => bf16::from_f32(x).to_f32(),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "f32" | "float32" => Ok(Self::F32),
            "f16" | "float16" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::BF16),
            _ => Err(format!("unknown dtype '{s}': expected f32, f16 or bf16")),
        }
    }
}

/// An element type as a Rust type; arithmetic is always done in f32.
pub trait Elem: Copy + Send + Sync + Default + 'static {
    /// The type's run-time name.
    const DTYPE: DType;
    /// Widens exactly.
    fn to_f32(self) -> f32;
    /// Rounds half to even.
    fn from_f32(x: f32) -> Self;
}

impl Elem for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Elem for bf16 {
    const DTYPE: DType = DType::BF16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        // Half to even: add just under half of the last kept bit, and the whole half where that bit is odd.
        let bits = x.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
        let quiet = bits >> 16 | 0x40;
        bf16::from_bits((if x.is_nan() { quiet } else { rounded }) as u16)
    }
}

impl Elem for f16 {
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        // Without branches, so that loops over it become vector code: shift exponent and mantissa into place, mend the
        // bias by a multiplication (which also normalises subnormals), then put infinities and NaN back.
        let bits = u32::from(self.to_bits());
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
        let special = if bits & 0x7c00 == 0x7c00 {
            0x7f80_0000
        } else {
            0
        };
        f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_equal_those_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            let (a, b) = (Elem::to_f32(half), half.to_f32());
            assert!(
                a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
                "{bits:#x}: {a} {b}"
            );
            assert!(Elem::to_f32(brain).to_bits() == brain.to_f32().to_bits() || brain.is_nan());
        }
        for i in 0..1_000_000_u32 {
            let x = f32::from_bits(i.wrapping_mul(4_294_967));
            assert_eq!(
                <bf16 as Elem>::from_f32(x).to_bits(),
                bf16::from_f32(x).to_bits(),
                "{x}"
            );
        }
    }
}
