//! The block types of GGUF: so many elements of a row in so many bytes, and how they become floats.
//!
//! In the comments `d` and `m` are the block's scale and offset in binary16, `u` an unsigned and `q` a signed code.

use half::{bf16, f16};

use crate::scheme::DType;

/// How elements are stored.
#[derive(Debug)]
pub(super) struct BlockType {
    /// The format's number for it.
    id: u32,
    /// The format's name for it.
    pub(super) name: &'static str,
    /// Elements of one block.
    pub(super) elements: usize,
    /// Bytes of one block.
    pub(super) bytes: usize,
    /// The element type, if this is a plain one.
    pub(super) plain: Option<DType>,
    /// Decodes one block of `bytes` into `elements`.
    decode: fn(&[u8], &mut [f32]),
}

impl BlockType {
    const fn new(
        id: u32,
        name: &'static str,
        elements: usize,
        bytes: usize,
        decode: fn(&[u8], &mut [f32]),
    ) -> Self {
        let plain = match id {
            0 => Some(DType::F32),
            1 => Some(DType::F16),
            30 => Some(DType::BF16),
            _ => None,
        };
        Self {
            id,
            name,
            elements,
            bytes,
            plain,
            decode,
        }
    }

    /// Bytes of `elements` elements, a multiple of the block.
    pub(super) const fn bytes_of(&self, elements: usize) -> usize {
        elements / self.elements * self.bytes
    }

    /// Decodes whole blocks; `out` has as many elements as `stored` holds.
    pub(super) fn decode(&self, stored: &[u8], out: &mut [f32]) {
        let blocks = stored.chunks_exact(self.bytes);
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.elements)) {
            (self.decode)(block, out);
        }
    }
}

static TYPES: [BlockType; 13] = [
    BlockType::new(0, "F32", 1, 4, f32_),
    BlockType::new(1, "F16", 1, 2, f16_),
    BlockType::new(30, "BF16", 1, 2, bf16_),
    BlockType::new(2, "Q4_0", 32, 18, q4_0),
    BlockType::new(3, "Q4_1", 32, 20, q4_1),
    BlockType::new(6, "Q5_0", 32, 22, q5_0),
    BlockType::new(7, "Q5_1", 32, 24, q5_1),
    BlockType::new(8, "Q8_0", 32, 34, q8_0),
    BlockType::new(10, "Q2_K", 256, 84, q2_k),
    BlockType::new(11, "Q3_K", 256, 110, q3_k),
    BlockType::new(12, "Q4_K", 256, 144, q4_k),
    BlockType::new(13, "Q5_K", 256, 176, q5_k),
    BlockType::new(14, "Q6_K", 256, 210, q6_k),
];

/// Names of types that are recognised only to be refused by name.
const UNSUPPORTED: [(u32, &str); 19] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// The type of this number, or why there is none.
pub(super) fn by_id(id: u32) -> Result<&'static BlockType, String> {
    if let Some(kind) = TYPES.iter().find(|kind| kind.id == id) {
        return Ok(kind);
    }
    let supported: Vec<&str> = TYPES.iter().map(|kind| kind.name).collect();
    let known = UNSUPPORTED.iter().find(|(number, _)| *number == id);
    let name = known.map_or_else(|| format!("type {id}"), |(_, name)| (*name).to_owned());
    Err(format!(
        "stored as {name}, which is not supported (supported: {})",
        supported.join(", ")
    ))
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn f32_(block: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

fn f16_(block: &[u8], out: &mut [f32]) {
    out[0] = half_at(block, 0);
}

fn bf16_(block: &[u8], out: &mut [f32]) {
    out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
}

/// `d (u - 8)`; byte `i` holds element `i` in its low half and element `i + 16` in its high half, here and in all
/// blocks of 32.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = (f32::from(byte & 15) - 8.0) * d;
        out[i + 16] = (f32::from(byte >> 4) - 8.0) * d;
    }
}

/// `d u + m`.
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = f32::from(byte & 15) * d + m;
        out[i + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// The five-bit codes of a block of 32: fifth bits in four bytes, then nibbles.
fn five_bits(codes: &[u8]) -> impl Iterator<Item = (usize, f32)> {
    let high = u32::from_le_bytes([codes[0], codes[1], codes[2], codes[3]]);
    (0..32).map(move |i| {
        let byte = codes[4 + i % 16];
        let low = if i < 16 { byte & 15 } else { byte >> 4 };
        let fifth = u8::from(high >> i & 1 == 1) << 4;
        (i, f32::from(low | fifth))
    })
}

/// `d (u - 16)`.
fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, u) in five_bits(&block[2..]) {
        out[i] = (u - 16.0) * d;
    }
}

/// `d u + m`.
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, u) in five_bits(&block[4..]) {
        out[i] = u * d + m;
    }
}

/// `d q`.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * d;
    }
}

/// Two bits: 16 scale bytes (scale low, offset high), 64 code bytes, `d`, `dmin`. A half of 128 elements lies in 32
/// bytes, its groups of 32 at rising bits.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (g, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[g] & 15);
        let offset = dmin * f32::from(scales[g] >> 4);
        let (half, shift, side) = (g / 8, g % 8 / 2 * 2, g % 2);
        for (out, &byte) in out.iter_mut().zip(&codes[32 * half + 16 * side..]) {
            *out = scale * f32::from(byte >> shift & 3) - offset;
        }
    }
}

/// Three bits: 32 bytes of third bits (set means not negative), 64 bytes as in [`q2_k`], 12 bytes of six-bit scales, `d`.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (third, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (g, out) in out.chunks_exact_mut(16).enumerate() {
        let low = if g < 8 {
            packed[g] & 15
        } else {
            packed[g - 8] >> 4
        };
        let high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (half, shift, side) = (g / 8, g % 8 / 2 * 2, g % 2);
        let bit = 4 * half + g % 8 / 2;
        let bytes = codes[32 * half + 16 * side..]
            .iter()
            .zip(&third[16 * side..]);
        for (out, (&byte, &third)) in out.iter_mut().zip(bytes) {
            let borrowed = if third >> bit & 1 == 1 { 0.0 } else { 4.0 };
            *out = scale * (f32::from(byte >> shift & 3) - borrowed);
        }
    }
}

/// The six-bit scale and offset of group `g` of the 8 in twelve bytes.
fn scale_and_offset(packed: &[u8], g: usize) -> (f32, f32) {
    let (scale, offset) = if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        (
            packed[g + 4] & 15 | packed[g - 4] >> 6 << 4,
            packed[g + 4] >> 4 | packed[g] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(offset))
}

/// Four bits: `d`, `dmin`, 12 bytes of scales, 128 code bytes. 32 bytes hold a group in their low halves and the next in
/// their high halves.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, codes) = (&block[4..16], &block[16..]);
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(packed, g);
        let (scale, offset) = (d * scale, dmin * offset);
        for (out, &byte) in out.iter_mut().zip(&codes[g / 2 * 32..]) {
            *out = scale * f32::from(byte >> (4 * (g % 2)) & 15) - offset;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits, one bit per group, before the codes.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifth, codes) = (&block[4..16], &block[16..48], &block[48..]);
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(packed, g);
        let (scale, offset) = (d * scale, dmin * offset);
        let bytes = codes[g / 2 * 32..].iter().zip(fifth);
        for (out, (&byte, &fifth)) in out.iter_mut().zip(bytes) {
            let code = byte >> (4 * (g % 2)) & 15 | (fifth >> g & 1) << 4;
            *out = scale * f32::from(code) - offset;
        }
    }
}

/// Six bits: 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, `d`. In a half of 128 elements, quarter `t` of
/// 32 has its nibbles in the low (t < 2) or high halves of bytes `32 (t % 2)` on, its pairs at bit `2 t`.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (g, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[g].cast_signed());
        let (half, quarter, side) = (g / 8, g % 8 / 2, g % 2);
        let low = &low[64 * half + 32 * (quarter % 2) + 16 * side..];
        let high = &high[32 * half + 16 * side..];
        for (out, (&low, &high)) in out.iter_mut().zip(low.iter().zip(high)) {
            let code = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
            *out = scale * (f32::from(code) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};

    use super::*;
    use crate::model::uniform;

    fn from_hex(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks_exact(2);
        digits
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn decode(id: u32, stored: &[u8]) -> Vec<f32> {
        let kind = by_id(id).unwrap();
        let mut out = vec![f32::NAN; stored.len() / kind.bytes * kind.elements];
        kind.decode(stored, &mut out);
        out
    }

    #[test]
    fn blocks_of_32_decode_to_the_ramp_that_they_were_made_from() {
        for (id, hex, tolerance) in [
            (2, "c033809191a2a2b3b3c4c4d5d5e6e6f7f7f8", 0.25),
            (3, "2234c0bf80809191a2a2b3b3c4c4d5d5e6e6f7f7", 0.15),
            (
                8,
                "d0238189919aa2aab2bac3cbd3dbe3ecf4fc040c141d252d353d464e565e666f777f",
                0.01,
            ),
        ] {
            for (i, w) in decode(id, &from_hex(hex)).into_iter().enumerate() {
                let x = (i as f32 - 15.5) / 8.0;
                assert!(
                    (w - x).abs() <= tolerance,
                    "type {id}, element {i}: {w} for {x}"
                );
            }
        }
    }

    #[test]
    fn q4_k_unpacks_scales_as_published() {
        let mut block = Vec::new();
        block.extend(f16::from_f32(0.01).to_le_bytes());
        block.extend(f16::from_f32(0.002).to_le_bytes());
        block.extend(from_hex("81cad4e18085c9d11882ecff"));
        block.extend((0..128u32).map(|i| (7 * i + 3) as u8));
        let w = decode(12, &block);
        for (i, want) in [
            (0, 0.030_006_4),
            (1, 0.100_021_4),
            (2, 0.010_002_1),
            (32, -0.010_004),
            (255, 4.284_891),
        ] {
            assert!((w[i] - want).abs() < 1e-6, "{i}: {} for {want}", w[i]);
        }
        let sum: f64 = w.iter().map(|&x| f64::from(x)).sum();
        assert!((sum - 633.7965).abs() < 1e-3, "{sum}");
    }

    #[test]
    fn every_quantised_type_agrees_with_candle_on_random_blocks() {
        let candle = [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
            GgmlDType::Q2K,
            GgmlDType::Q3K,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ];
        for (kind, dtype) in TYPES[3..].iter().zip(candle) {
            let mut stored = Vec::new();
            for i in 0..8 * kind.bytes as u64 {
                stored.push((uniform(u64::from(kind.id), i) * 128.0) as i8 as u8);
            }
            // Keeps every binary16 finite: an exponent of all ones needs both of these bits.
            for byte in &mut stored {
                *byte &= 0b1011_1111;
            }
            let ours = decode(kind.id, &stored);
            let storage = QStorage::from_data(Cow::Owned(stored), &Device::Cpu, dtype).unwrap();
            let tensor = QTensor::new(storage, ours.len()).unwrap();
            let theirs = tensor
                .dequantize(&Device::Cpu)
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            assert_eq!(ours, theirs, "{}", kind.name);
        }
    }
}
