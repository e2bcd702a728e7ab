//! The level of AVX2, and what AVX-512 takes from it.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{LANES, Simd, Work};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<W: Work>(work: W) -> W::Out {
    work.run(Avx2(()))
}

/// Coefficients of `e^r` for `|r| <= ln(2) / 2`: the Taylor polynomial with its last two terms adjusted (Cephes
/// `expf`, S. Moshier).
pub(super) const EXP: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];
/// ln 2 in two parts, the first short enough that `n * LN2.0` is exact.
pub(super) const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
/// Beyond these `exp` gives 0 and infinity; between them the power of two stays a normal number.
pub(super) const EXP_RANGE: (f32, f32) = (-87.0, 88.0);

/// `i` with `i + 4`, then `i + 2`, `i + 1`.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: by contract.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

/// Does `f` to both halves.
macro_rules! both {
    ($f:ident, $($v:expr),+) => {
        ($f($($v.0),+), $f($($v.1),+))
    };
}

// SAFETY of every block below: the token exists only where the machine has the instructions, which is all that functions of
// this module ask for, and each load or store lies within the array whose length its type tells.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type V = (__m256, __m256);
    type I = (__m256i, __m256i);
    /// Zero points as bytes, and the scale.
    type Nibbles = (__m128i, __m256);
    const TILE_TOKENS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        unsafe {
            (
                _mm256_loadu_ps(x.as_ptr()),
                _mm256_loadu_ps(x[8..].as_ptr()),
            )
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x[8..].as_ptr().cast()));
            let (low, high) = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
            (_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::V {
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()));
            (
                low,
                _mm256_cvtph_ps(_mm_loadu_si128(x[8..].as_ptr().cast())),
            )
        }
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; LANES]) -> Self::V {
        unsafe { signed8(_mm_loadu_si128(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_e4m3(self, x: &[u8; LANES]) -> Self::V {
        unsafe {
            let halves = e4m3_as_f16(_mm_loadu_si128(x.as_ptr().cast()));
            (
                _mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves)),
            )
        }
    }
    #[inline(always)]
    fn nibbles(self, zero: u8, scale: f32) -> Self::Nibbles {
        unsafe { (_mm_set1_epi8(zero.cast_signed()), _mm256_set1_ps(scale)) }
    }
    #[inline(always)]
    fn load_nibbles(self, x: &[u8; LANES], (zero, scale): Self::Nibbles) -> (Self::V, Self::V) {
        unsafe {
            let (low, high) = nibbles(x);
            let low = signed8(_mm_sub_epi8(low, zero));
            let high = signed8(_mm_sub_epi8(high, zero));
            let scale = (scale, scale);
            (self.mul(low, scale), self.mul(high, scale))
        }
    }
    #[inline(always)]
    fn lookup(self, x: &[u8; LANES], table: Self::V) -> (Self::V, Self::V) {
        unsafe {
            let (low, high) = nibbles(x);
            (entries(low, table), entries(high, table))
        }
    }
    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), v.0);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), v.1);
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_add_ps, a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_sub_ps, a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_mul_ps, a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_div_ps, a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { both!(_mm256_fmadd_ps, a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_max_ps, a, b) }
    }
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        unsafe { both!(exp8, x) }
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        unsafe { sum8(_mm256_add_ps(v.0, v.1)) }
    }
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        unsafe {
            let v = _mm256_max_ps(v.0, v.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
    #[inline(always)]
    fn zero_i(self) -> Self::I {
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    fn dot_i8_i16(self, acc: Self::I, a: &[u8; 32], b: &[i16; 32]) -> Self::I {
        unsafe {
            let low = _mm256_cvtepi8_epi16(_mm_loadu_si128(a.as_ptr().cast()));
            let high = _mm256_cvtepi8_epi16(_mm_loadu_si128(a[LANES..].as_ptr().cast()));
            let low = _mm256_madd_epi16(low, _mm256_loadu_si256(b.as_ptr().cast()));
            let high = _mm256_madd_epi16(high, _mm256_loadu_si256(b[LANES..].as_ptr().cast()));
            (_mm256_add_epi32(acc.0, low), _mm256_add_epi32(acc.1, high))
        }
    }
    #[inline(always)]
    fn sum_i(self, v: Self::I) -> i32 {
        let mut lanes = [0i32; 8];
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(v.0, v.1)) };
        lanes.iter().sum()
    }
}

/// Sixteen signed bytes as two vectors of f32.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn signed8(b: __m128i) -> (__m256, __m256) {
    // SAFETY: by contract.
    unsafe {
        let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b));
        (
            low,
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(b))),
        )
    }
}

/// `e^x`, as [`Simd::exp`] has it.
///
/// # Safety
/// The machine has AVX2 and FMA.
#[inline(always)]
unsafe fn exp8(x: __m256) -> __m256 {
    // SAFETY: by contract.
    unsafe {
        let n = _mm256_round_ps::<0>(_mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E)));
        let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2.0), x);
        let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2.1), r);
        let mut p = _mm256_set1_ps(EXP[0]);
        for c in &EXP[1..] {
            p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
        }
        let p = _mm256_add_ps(
            _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r),
            _mm256_set1_ps(1.0),
        );
        let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(
            _mm256_cvtps_epi32(n),
            _mm256_set1_epi32(127),
        ));
        let y = _mm256_mul_ps(p, _mm256_castsi256_ps(power));
        let low = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(EXP_RANGE.0));
        let high = _mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_set1_ps(EXP_RANGE.1));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        let y = _mm256_andnot_ps(low, y);
        let y = _mm256_blendv_ps(y, _mm256_set1_ps(f32::INFINITY), high);
        _mm256_blendv_ps(y, x, nan)
    }
}

/// The low and the high halves of sixteen bytes.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn nibbles(x: &[u8; LANES]) -> (__m128i, __m128i) {
    // SAFETY: by contract; the array is as long as the register.
    unsafe {
        let bytes = _mm_loadu_si128(x.as_ptr().cast());
        let mask = _mm_set1_epi8(15);
        let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
        (_mm_and_si128(bytes, mask), high)
    }
}

/// The entries of a table of sixteen that sixteen bytes below 16 name.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn entries(index: __m128i, table: (__m256, __m256)) -> (__m256, __m256) {
    // SAFETY: by contract.
    unsafe {
        let wide = (
            _mm256_cvtepu8_epi32(index),
            _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(index)),
        );
        both!(entries8, wide, (table, table))
    }
}

/// As [`entries`], of eight indices that are 32 bits wide.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn entries8(index: __m256i, table: (__m256, __m256)) -> __m256 {
    // SAFETY: by contract.
    unsafe {
        // The permutation looks at the low three bits; the fourth, moved to the sign, says in which half.
        let below_eight = _mm256_permutevar8x32_ps(table.0, index);
        let from_eight = _mm256_permutevar8x32_ps(table.1, index);
        let half = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
        _mm256_blendv_ps(below_eight, from_eight, half)
    }
}

/// Sixteen E4M3 numbers as f16, divided by [`super::E4M3_UNIT`]: exponent and mantissa move up to where an f16 has them,
/// and of the sign, which the widening copied into every upper bit, only the top one stays.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn e4m3_as_f16(codes: __m128i) -> __m256i {
    // SAFETY: by contract.
    unsafe {
        let moved = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(codes));
        _mm256_and_si256(moved, _mm256_set1_epi16(!0x4000))
    }
}
