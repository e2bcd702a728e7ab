//! The canonical packed weight on the host: codes, scales per group, in the order that the kernels stream.

use half::{bf16, f16};

use super::DType;
use crate::error::{Error, Result};

/// Weights of one row that share one packing unit: 32 four-bit codes are 16 bytes.
pub const BLOCK: usize = 32;

/// Width of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// Unsigned nibbles `u` of weight `s * (u - 8)`. In a block of 32 weights of a row, byte `i` holds weight `i` in its
    /// low half and weight `i + 16` in its high half, so that a 16-lane register unpacks with one mask or one shift.
    Four,
    /// Two's complement bytes `q` of weight `s * q`, in plain order.
    Eight,
}

impl Bits {
    /// The number of bits.
    pub const fn count(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// Smallest and largest signed code.
    pub const fn range(self) -> (i32, i32) {
        match self {
            Self::Four => (-8, 7),
            Self::Eight => (-128, 127),
        }
    }

    /// Bytes that `k` codes of one row take.
    pub const fn row_bytes(self, k: usize) -> usize {
        match self {
            Self::Four => k / 2,
            Self::Eight => k,
        }
    }

    /// Packs the signed codes of one row (`[k]`, `k` a multiple of 32 for four bits) into `out` (`[row_bytes(k)]`).
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn pack_row(self, codes: &[i8], out: &mut [u8]) {
        assert_eq!(out.len(), self.row_bytes(codes.len()));
        match self {
            Self::Eight => out
                .iter_mut()
                .zip(codes)
                .for_each(|(o, &q)| *o = q.cast_unsigned()),
            Self::Four => {
                assert_eq!(codes.len() % BLOCK, 0);
                for (o, q) in out
                    .chunks_exact_mut(BLOCK / 2)
                    .zip(codes.chunks_exact(BLOCK))
                {
                    let (low, high) = q.split_at(BLOCK / 2);
                    for ((o, &l), &h) in o.iter_mut().zip(low).zip(high) {
                        *o = nibble(l) | (nibble(h) << 4);
                    }
                }
            }
        }
    }

    /// The inverse of [`Bits::pack_row`].
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn unpack_row(self, packed: &[u8], codes: &mut [i8]) {
        assert_eq!(packed.len(), self.row_bytes(codes.len()));
        match self {
            Self::Eight => codes
                .iter_mut()
                .zip(packed)
                .for_each(|(q, &b)| *q = b.cast_signed()),
            Self::Four => {
                for (q, b) in codes
                    .chunks_exact_mut(BLOCK)
                    .zip(packed.chunks_exact(BLOCK / 2))
                {
                    let (low, high) = q.split_at_mut(BLOCK / 2);
                    for ((l, h), &b) in low.iter_mut().zip(high).zip(b) {
                        *l = (b & 15).cast_signed() - 8;
                        *h = (b >> 4).cast_signed() - 8;
                    }
                }
            }
        }
    }
}

const fn nibble(q: i8) -> u8 {
    (q + 8).cast_unsigned() & 15
}

/// Scale factors in the precision in which their file, or the source that was quantised, holds them.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// binary32.
    F32(Vec<f32>),
    /// binary16.
    F16(Vec<f16>),
    /// bfloat16.
    BF16(Vec<bf16>),
}

impl Scales {
    /// Rounds `values` to `dtype`.
    pub fn new(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::F32 => Self::F32(values.to_vec()),
            DType::F16 => Self::F16(values.iter().map(|&x| f16::from_f32(x)).collect()),
            DType::BF16 => Self::BF16(values.iter().map(|&x| bf16::from_f32(x)).collect()),
        }
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
        }
    }

    /// Number of scales.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `i`-th scale, widened.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(v) => v[i],
            Self::F16(v) => v[i].to_f32(),
            Self::BF16(v) => v[i].to_f32(),
        }
    }
}

/// A quantised matrix `[n, k]`: `w[i, j] = scale[i, j / group] * q[i, j]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedWeight {
    /// Output features (rows).
    pub n: usize,
    /// Input features (columns).
    pub k: usize,
    /// Width and order of the codes.
    pub bits: Bits,
    /// Columns that share a scale; `k` for one scale per row (per channel).
    pub group: usize,
    /// `[n, row_bytes(k)]`, rows one after another.
    pub codes: Vec<u8>,
    /// `[n, k / group]`.
    pub scales: Scales,
}

impl PackedWeight {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// Names the part that does not.
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str| {
            Err(Error::Internal(format!(
                "packed weight [{}, {}]: {what}",
                self.n, self.k
            )))
        };
        if self.group == 0 || !self.k.is_multiple_of(self.group) {
            return bad("the group does not divide K");
        }
        if self.bits == Bits::Four
            && (!self.group.is_multiple_of(BLOCK) || !self.k.is_multiple_of(BLOCK))
        {
            return bad("four-bit groups come in multiples of 32");
        }
        if self.codes.len() != self.n * self.bits.row_bytes(self.k) {
            return bad("wrong number of codes");
        }
        if self.scales.len() != self.n * (self.k / self.group) {
            return bad("wrong number of scales");
        }
        Ok(())
    }

    /// Bytes of codes and scales.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() * self.scales.dtype().size()
    }

    /// The signed codes of row `i`, `[k]`.
    pub fn row_codes(&self, i: usize) -> Vec<i8> {
        let width = self.bits.row_bytes(self.k);
        let mut codes = vec![0; self.k];
        self.bits
            .unpack_row(&self.codes[i * width..][..width], &mut codes);
        codes
    }

    /// Row `i` as `f32(q) * f32(scale)`, `[k]`; the product is not rounded further.
    pub fn dequantise_row(&self, i: usize) -> Vec<f32> {
        let groups = self.k / self.group;
        let codes = self.row_codes(i);
        codes
            .iter()
            .enumerate()
            .map(|(j, &q)| f32::from(q) * self.scales.get(i * groups + j / self.group))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_code_survives_packing() {
        for bits in [Bits::Four, Bits::Eight] {
            let (low, high) = bits.range();
            let all: Vec<i8> = (low..=high).map(|q| i8::try_from(q).unwrap()).collect();
            let codes: Vec<i8> = all.iter().cycle().take(1024).copied().collect();
            let mut packed = vec![0; bits.row_bytes(codes.len())];
            bits.pack_row(&codes, &mut packed);
            let mut back = vec![0; codes.len()];
            bits.unpack_row(&packed, &mut back);
            assert_eq!(back, codes);
        }
    }

    proptest! {
        #[test]
        fn packing_is_a_bijection(bytes in proptest::collection::vec(any::<u8>(), 64)) {
            for bits in [Bits::Four, Bits::Eight] {
                let mut codes = vec![0; bytes.len() * 8 / bits.count()];
                bits.unpack_row(&bytes, &mut codes);
                let mut again = vec![0; bytes.len()];
                bits.pack_row(&codes, &mut again);
                prop_assert_eq!(&again, &bytes);
            }
        }
    }
}
