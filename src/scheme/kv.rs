//! How the KV cache holds the numbers of a head at a position.

use super::packed::CodeFormat;

/// A format of the KV cache. With codes, each vector of keys or values (one head, one position) has one scale in f32,
/// found when it is written: `x = scale · code`, where `scale` is the largest magnitude over the largest code. Nothing is
/// read from a checkpoint for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvFormat {
    /// The numbers as they are, in the type of the activations.
    #[default]
    Auto,
    /// Integers -127 ... 127.
    Int8,
    /// FP8 E4M3, up to 448.
    Fp8,
}

impl KvFormat {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Int8, Self::Fp8];

    /// The name on the command line and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
        }
    }

    /// What its codes are; `None` where there are none.
    pub const fn codes(self) -> Option<CodeFormat> {
        match self {
            Self::Auto => None,
            Self::Int8 => Some(CodeFormat::I8),
            Self::Fp8 => Some(CodeFormat::E4M3),
        }
    }

    /// Bytes of a vector of `head_dim` numbers beside activations of `act` bytes each, its scale included.
    pub const fn vector_bytes(self, act: usize, head_dim: usize) -> usize {
        match self {
            Self::Auto => head_dim * act,
            Self::Int8 | Self::Fp8 => head_dim + size_of::<f32>(),
        }
    }

    /// Codes of a vector, and gives its scale: 0 of a vector of zeros, not finite where a number is not.
    ///
    /// # Panics
    /// If the format has no codes.
    pub fn encode(self, x: impl Iterator<Item = f32> + Clone, codes: &mut [u8]) -> f32 {
        let code: fn(f32) -> u8 = match self {
            Self::Auto => unreachable!("plain numbers have no codes"),
            // Half to even; what is not finite has a scale that says so.
            Self::Int8 => |x| (x.round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned(),
            Self::Fp8 => nearest_e4m3,
        };
        let largest = x.clone().fold(0.0_f32, |most, x| {
            let x = x.abs();
            if x > most || x.is_nan() { x } else { most }
        });
        let scale = largest / if self == Self::Int8 { 127.0 } else { 448.0 };
        for (to, x) in codes.iter_mut().zip(x) {
            *to = code(if scale == 0.0 { 0.0 } else { x / scale });
        }
        scale
    }
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for KvFormat {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.name() == s);
        found.ok_or_else(|| format!("unknown KV cache format '{s}': expected auto, int8 or fp8"))
    }
}

/// The code of E4M3 nearest to `x`, half to even, of the largest magnitude beyond it; never one of the two of NaN.
fn nearest_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24 & 0x80) as u8;
    let magnitude = x.abs().min(448.0);
    if magnitude < 0.015_625 {
        // Below 2^-6 the codes count steps of 2^-9; the next one after them is 2^-6 itself.
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits();
    // Half a step less one, and one more where the last bit that stays is odd; then the exponent's bias, 127 - 7.
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_gets_the_nearest_code_of_e4m3() {
        let values: Vec<(u8, f32)> = (0..=0x7e)
            .map(|code| (code, CodeFormat::E4M3.value(code)))
            .collect();
        for pair in values.windows(2) {
            let [(low, a), (high, b)] = *pair else {
                unreachable!()
            };
            assert_eq!(nearest_e4m3(a), low);
            assert_eq!(nearest_e4m3(-b), high | 0x80);
            let middle = (a + b) / 2.0;
            let even = if low % 2 == 0 { low } else { high };
            assert_eq!(nearest_e4m3(middle), even, "{middle}");
            assert_eq!(nearest_e4m3(middle.next_down()), low, "{middle}");
            assert_eq!(nearest_e4m3(middle.next_up()), high, "{middle}");
        }
        assert_eq!(nearest_e4m3(1e9), 0x7e);
        assert_eq!(nearest_e4m3(f32::NEG_INFINITY), 0xfe);
        assert_ne!(nearest_e4m3(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn vectors_come_back_within_half_a_step() {
        let x: Vec<f32> = (0..64_u8)
            .map(|i| (f32::from(i) * 0.37).sin() * 3.0)
            .collect();
        for (format, relative, absolute) in [
            (KvFormat::Int8, 0.0, 0.5 / 127.0),
            // Four significant bits, and steps of 2^-9 of the scale below them.
            (KvFormat::Fp8, 1.0 / 16.0, 1.0 / 1024.0 / 448.0),
        ] {
            let mut codes = vec![0; x.len()];
            let scale = format.encode(x.iter().copied(), &mut codes);
            let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let kind = format.codes().unwrap();
            for (x, &code) in x.iter().zip(&codes) {
                let back = kind.value(code) * scale;
                let most = (relative * x.abs()).max(absolute * largest) * 1.001;
                assert!((back - x).abs() <= most, "{format}: {x} {back}");
            }
            assert_eq!(format.encode([0.0; 3].into_iter(), &mut codes), 0.0);
            assert_eq!(codes[..3], [0; 3]);
            for bad in [f32::NAN, f32::INFINITY] {
                let scale = format.encode([1.0, bad].into_iter(), &mut codes);
                assert!(!scale.is_finite(), "{format}");
            }
        }
    }

    #[test]
    fn names_are_read_back_and_others_refused() {
        for format in KvFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("bf16".parse::<KvFormat>().unwrap_err().contains("'bf16'"));
    }
}
