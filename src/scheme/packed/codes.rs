//! Codes: what the bytes of a packed weight name, and the order in which they stand.

/// Weights of one row that share one packing unit: 32 four-bit codes are 16 bytes.
pub const BLOCK: usize = 32;

/// How codes are written. A code is a byte wherever it stands alone; only four-bit codes share bytes once packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeFormat {
    /// Nibbles that name `0 ..= 15`. In a block of 32 weights of a row, byte `i` holds weight `i` in its low half and
    /// weight `i + 16` in its high half, so that a 16-lane register unpacks with one mask or one shift.
    U4,
    /// Two's complement bytes that name `-128 ..= 127`, in plain order. Unsigned eight-bit codes of a file, and their
    /// zero points, become these by subtracting 128 from both (flipping the top bit), which changes no weight.
    I8,
    /// Bytes of OCP FP8 E4M3 (sign, four exponent bits with bias 7, three mantissa bits; `±448` at most, no infinity),
    /// in plain order. A packed weight holds neither of the two codes of NaN, `0x7f` and `0xff`.
    E4M3,
}

impl CodeFormat {
    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Self::U4 => 4,
            Self::I8 | Self::E4M3 => 8,
        }
    }

    /// The name used in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U4 => "u4",
            Self::I8 => "i8",
            Self::E4M3 => "e4m3",
        }
    }

    /// Smallest and largest number that a code names.
    pub const fn range(self) -> (f32, f32) {
        match self {
            Self::U4 => (0.0, 15.0),
            Self::I8 => (-128.0, 127.0),
            Self::E4M3 => (-448.0, 448.0),
        }
    }

    /// The code that stands for 0 where no zero point says otherwise.
    pub const fn middle(self) -> u8 {
        match self {
            Self::U4 => 8,
            Self::I8 | Self::E4M3 => 0,
        }
    }

    /// The number that `code` names; NaN for the two codes of NaN.
    #[inline]
    pub fn value(self, code: u8) -> f32 {
        match self {
            Self::U4 => f32::from(code & 15),
            Self::I8 => f32::from(code.cast_signed()),
            Self::E4M3 => e4m3(code),
        }
    }

    /// The E4M3 code nearest to `x`, ties to the even one; beyond the range the largest one of its sign, NaN for NaN.
    #[inline]
    pub fn e4m3_nearest(x: f32) -> u8 {
        let sign = ((x.to_bits() >> 24) & 0x80) as u8;
        let magnitude = x.abs();
        if x.is_nan() {
            return sign | 0x7f;
        }
        if magnitude >= 448.0 {
            return sign | 0x7e;
        }
        // Adding a number whose last bit is worth a step of the result rounds to it, half to even: steps are 2^-9 below
        // 2^-6 and an eighth of the power of two below the number above.
        let exponent = (magnitude.to_bits() >> 23).max(127 - 6);
        let rounder = f32::from_bits((exponent + 20) << 23);
        let rounded = (magnitude + rounder) - rounder;
        let steps = rounded * f32::from_bits((127 + 9) << 23);
        let code = if steps < 8.0 {
            steps as u32
        } else {
            (rounded.to_bits() >> 20) - ((127 - 7) << 3)
        };
        sign | code as u8
    }

    /// Bytes that `k` codes of one row take.
    pub const fn row_bytes(self, k: usize) -> usize {
        match self {
            Self::U4 => k / 2,
            Self::I8 | Self::E4M3 => k,
        }
    }

    /// Packs the codes of one row (`[k]`, `k` a multiple of 32 for four bits) into `out` (`[row_bytes(k)]`).
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn pack_row(self, codes: &[u8], out: &mut [u8]) {
        assert_eq!(out.len(), self.row_bytes(codes.len()));
        match self {
            Self::I8 | Self::E4M3 => out.copy_from_slice(codes),
            Self::U4 => {
                assert_eq!(codes.len() % BLOCK, 0);
                for (out, codes) in out
                    .chunks_exact_mut(BLOCK / 2)
                    .zip(codes.chunks_exact(BLOCK))
                {
                    let (low, high) = codes.split_at(BLOCK / 2);
                    for ((o, &l), &h) in out.iter_mut().zip(low).zip(high) {
                        *o = (l & 15) | (h << 4);
                    }
                }
            }
        }
    }

    /// The inverse of [`CodeFormat::pack_row`].
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn unpack_row(self, packed: &[u8], codes: &mut [u8]) {
        assert_eq!(packed.len(), self.row_bytes(codes.len()));
        match self {
            Self::I8 | Self::E4M3 => codes.copy_from_slice(packed),
            Self::U4 => {
                assert_eq!(codes.len() % BLOCK, 0);
                for (codes, packed) in codes
                    .chunks_exact_mut(BLOCK)
                    .zip(packed.chunks_exact(BLOCK / 2))
                {
                    let (low, high) = codes.split_at_mut(BLOCK / 2);
                    for ((l, h), &b) in low.iter_mut().zip(high).zip(packed) {
                        (*l, *h) = (b & 15, b >> 4);
                    }
                }
            }
        }
    }
}

/// Whether an E4M3 code is one of the two of NaN.
pub(super) const fn is_e4m3_nan(code: u8) -> bool {
    code & 0x7f == 0x7f
}

/// The number that an E4M3 code names.
#[inline]
fn e4m3(code: u8) -> f32 {
    if is_e4m3_nan(code) {
        return f32::NAN;
    }
    // Exponent and mantissa stand in place for f32 but for the bias, which the product mends; it normalises
    // subnormals, too.
    let small = f32::from_bits(u32::from(code & 0x7f) << 20);
    let magnitude = small * f32::from_bits((127 + 127 - 7) << 23);
    if code & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [CodeFormat; 3] = [CodeFormat::U4, CodeFormat::I8, CodeFormat::E4M3];

    #[test]
    fn every_code_survives_packing() {
        for format in ALL {
            let last = if format == CodeFormat::U4 { 15 } else { 255 };
            let codes: Vec<u8> = (0..=last).cycle().take(1024).collect();
            let mut packed = vec![0; format.row_bytes(codes.len())];
            format.pack_row(&codes, &mut packed);
            let mut back = vec![0; codes.len()];
            format.unpack_row(&packed, &mut back);
            assert_eq!(back, codes, "{format:?}");
        }
    }

    proptest! {
        #[test]
        fn packing_is_a_bijection(bytes in proptest::collection::vec(any::<u8>(), 64)) {
            for format in ALL {
                let mut codes = vec![0; bytes.len() * 8 / format.bits()];
                format.unpack_row(&bytes, &mut codes);
                let mut again = vec![0; bytes.len()];
                format.pack_row(&codes, &mut again);
                prop_assert_eq!(&again, &bytes);
            }
        }
    }

    /// E4M3 by its definition: `(-1)^s 2^(e-7) (1 + m/8)`, `(-1)^s 2^-6 m/8` where `e` is 0, NaN where all bits are set.
    fn by_definition(code: u8) -> f64 {
        let sign = if code >= 128 { -1.0 } else { 1.0 };
        let (exponent, mantissa) = (i32::from(code / 8 % 16), f64::from(code % 8));
        match (exponent, code % 8) {
            (15, 7) => f64::NAN,
            (0, _) => sign * 2.0_f64.powi(-6) * (mantissa / 8.0),
            _ => sign * 2.0_f64.powi(exponent - 7) * (1.0 + mantissa / 8.0),
        }
    }

    #[test]
    fn every_e4m3_code_names_the_number_of_its_definition() {
        for code in 0..=255 {
            let (got, truth) = (CodeFormat::E4M3.value(code), by_definition(code));
            if truth.is_nan() {
                assert!(got.is_nan() && is_e4m3_nan(code), "{code:#x}: {got}");
            } else {
                assert_eq!(f64::from(got).to_bits(), truth.to_bits(), "{code:#x}");
                assert!(!is_e4m3_nan(code));
            }
        }
        // Vector CT-9, run through compressed-tensors 0.20: the largest number and its neighbours.
        let value = |code| CodeFormat::E4M3.value(code);
        assert_eq!(
            [value(0x7e), value(0x7d), value(0xfe)],
            [448.0, 416.0, -448.0]
        );
        assert_eq!(
            [value(0x01), value(0x08)],
            [2.0_f32.powi(-9), 2.0_f32.powi(-6)]
        );
    }

    #[test]
    fn the_nearest_e4m3_code_is_the_nearest_and_ties_go_to_even() {
        for code in 0..=0x7d_u8 {
            let (low, high) = (by_definition(code) as f32, by_definition(code + 1) as f32);
            let middle = low + (high - low) / 2.0;
            let even = code + code % 2;
            let near = |x: f32, wanted: u8| {
                assert_eq!(CodeFormat::e4m3_nearest(x), wanted, "{x} beside {code:#x}");
                assert_eq!(CodeFormat::e4m3_nearest(-x), wanted | 0x80, "-{x}");
            };
            near(low, code);
            near(middle, even);
            near(middle.next_down(), code);
            near(middle.next_up(), code + 1);
        }
        assert_eq!(
            [449.0, 1e30, f32::INFINITY].map(CodeFormat::e4m3_nearest),
            [0x7e; 3]
        );
        assert_eq!(CodeFormat::e4m3_nearest(f32::NAN) & 0x7f, 0x7f);
        // Vector CT-9, run through compressed-tensors 0.20: one scale for the tensor.
        let w = [0.10, -0.70, 0.35, 0.05, 1.50, -0.20, 0.75, -1.00_f32];
        let codes = w.map(|w| CodeFormat::e4m3_nearest(w / (1.5 / 448.0)));
        assert_eq!(codes, [0x5f, 0xf5, 0x6d, 0x57, 0x7e, 0xe7, 0x76, 0xf9]);
    }

    #[test]
    fn ranges_are_those_of_the_codes() {
        for format in ALL {
            let last = if format == CodeFormat::U4 { 15 } else { 255 };
            let values = (0..=last)
                .map(|code| format.value(code))
                .filter(|v| !v.is_nan());
            let (low, high) = values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            });
            assert_eq!((low, high), format.range(), "{format:?}");
        }
        assert_eq!(CodeFormat::U4.value(CodeFormat::U4.middle()), 8.0);
        assert_eq!(CodeFormat::I8.value(CodeFormat::I8.middle()), 0.0);
        assert_eq!(CodeFormat::E4M3.value(CodeFormat::E4M3.middle()), 0.0);
    }
}
