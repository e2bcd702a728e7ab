//! The level of AVX-512.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::avx2::{EXP, EXP_RANGE, LN2, e4m3_as_f16, sum8};
use super::{LANES, NIBBLES, Simd, Work};

/// Proof that the machine has AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")]
pub(super) fn run<W: Work>(work: W) -> W::Out {
    work.run(Avx512(()))
}

// SAFETY of every block below: the token exists only where the machine has the instructions, which is all that functions of
// this module ask for, and each load or store lies within the array whose length its type tells.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type V = __m512;
    type I = __m512i;
    /// All sixteen weights: a permutation takes the place of subtracting, converting and multiplying.
    type Nibbles = __m512;
    const TILE_TOKENS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; LANES]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn load_e4m3(self, x: &[u8; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(e4m3_as_f16(_mm_loadu_si128(x.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn nibbles(self, zero: u8, scale: f32) -> __m512 {
        unsafe {
            let values = _mm512_sub_ps(self.load(&NIBBLES), _mm512_set1_ps(f32::from(zero)));
            _mm512_mul_ps(values, _mm512_set1_ps(scale))
        }
    }
    #[inline(always)]
    fn load_nibbles(self, x: &[u8; LANES], group: __m512) -> (__m512, __m512) {
        self.lookup(x, group)
    }
    #[inline(always)]
    fn lookup(self, x: &[u8; LANES], table: __m512) -> (__m512, __m512) {
        unsafe {
            // The permutation looks at the low four bits of an index only.
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm512_srli_epi32::<4>(wide);
            (
                _mm512_permutexvar_ps(wide, table),
                _mm512_permutexvar_ps(high, table),
            )
        }
    }
    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn exp(self, x: __m512) -> __m512 {
        unsafe {
            let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(
                x,
                _mm512_set1_ps(std::f32::consts::LOG2_E),
            ));
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2.0), x);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2.1), r);
            let mut p = _mm512_set1_ps(EXP[0]);
            for c in &EXP[1..] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
            }
            let p = _mm512_add_ps(
                _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r),
                _mm512_set1_ps(1.0),
            );
            let power = _mm512_slli_epi32::<23>(_mm512_add_epi32(
                _mm512_cvtps_epi32(n),
                _mm512_set1_epi32(127),
            ));
            let y = _mm512_mul_ps(p, _mm512_castsi512_ps(power));
            let low = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(EXP_RANGE.0));
            let high = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(EXP_RANGE.1));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let y = _mm512_mask_blend_ps(low, y, _mm512_setzero_ps());
            let y = _mm512_mask_blend_ps(high, y, _mm512_set1_ps(f32::INFINITY));
            _mm512_mask_blend_ps(nan, y, x)
        }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        unsafe {
            sum8(_mm256_add_ps(
                _mm512_castps512_ps256(v),
                _mm512_extractf32x8_ps::<1>(v),
            ))
        }
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    fn zero_i(self) -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn dot_i8_i16(self, acc: __m512i, a: &[u8; 32], b: &[i16; 32]) -> __m512i {
        unsafe {
            let a = _mm512_cvtepi8_epi16(_mm256_loadu_si256(a.as_ptr().cast()));
            _mm512_add_epi32(
                acc,
                _mm512_madd_epi16(a, _mm512_loadu_si512(b.as_ptr().cast())),
            )
        }
    }
    #[inline(always)]
    fn sum_i(self, v: __m512i) -> i32 {
        unsafe { _mm512_reduce_add_epi32(v) }
    }
}
