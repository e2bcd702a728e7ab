//! The level without special instructions.

use half::{bf16, f16};

use super::{LANES, Simd};

/// Nothing to prove: every machine has what the compiler's target has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn lanes(mut f: impl FnMut(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(&mut f)
}

impl Simd for Portable {
    type V = [f32; LANES];
    type I = [i32; LANES];
    /// Zero point and scale.
    type Nibbles = (f32, f32);
    const TILE_TOKENS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        lanes(|i| x[i])
    }
    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V {
        lanes(|i| x[i].to_f32())
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::V {
        lanes(|i| x[i].to_f32())
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; LANES]) -> Self::V {
        lanes(|i| f32::from(x[i].cast_signed()))
    }
    #[inline(always)]
    fn load_e4m3(self, x: &[u8; LANES]) -> Self::V {
        // As f16: the mantissa's three bits end ten bits up, and the sign goes to the top.
        lanes(|i| {
            let code = u16::from(x[i]);
            f16::from_bits((code & 0x7f) << 7 | (code & 0x80) << 8).to_f32()
        })
    }
    #[inline(always)]
    fn nibbles(self, zero: u8, scale: f32) -> Self::Nibbles {
        (f32::from(zero), scale)
    }
    #[inline(always)]
    fn load_nibbles(self, x: &[u8; LANES], (zero, scale): Self::Nibbles) -> (Self::V, Self::V) {
        (
            lanes(|i| (f32::from(x[i] & 15) - zero) * scale),
            lanes(|i| (f32::from(x[i] >> 4) - zero) * scale),
        )
    }
    #[inline(always)]
    fn lookup(self, x: &[u8; LANES], table: Self::V) -> (Self::V, Self::V) {
        (
            lanes(|i| table[usize::from(x[i] & 15)]),
            lanes(|i| table[usize::from(x[i] >> 4)]),
        )
    }
    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        *out = v;
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Without the instruction `mul_add` is a library call a hundred times slower.
        if cfg!(target_feature = "fma") || cfg!(target_arch = "aarch64") {
            lanes(|i| a[i].mul_add(b[i], c[i]))
        } else {
            lanes(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        lanes(|i| x[i].exp())
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut v = v;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn zero_i(self) -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    fn dot_i8_i16(self, mut acc: Self::I, a: &[u8; 32], b: &[i16; 32]) -> Self::I {
        for i in 0..2 * LANES {
            acc[i / 2] += i32::from(a[i].cast_signed()) * i32::from(b[i]);
        }
        acc
    }
    #[inline(always)]
    fn sum_i(self, v: Self::I) -> i32 {
        v.iter().sum()
    }
}
