//! Sixteen f32 lanes, whatever the machine calls them.
//!
//! The CPU references are written once over [`Simd`] and compiled for AVX-512, AVX2 and plain Rust; the best that the
//! machine has is chosen at run time. Every level adds the lanes of a sum in the same tree and fuses the same products,
//! so a result has the same bits on AVX-512 and AVX2.
//!
//! This file is the CPU's home of `unsafe`: a level's token can only be made by [`Level::detect`], after the machine
//! said that it has the instructions, and only the token's methods use them.

use half::{bf16, f16};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A level of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Whatever the compiler's target has.
    Portable,
}

impl Level {
    /// The best level of this machine.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f")
                && has!("avx512bw")
                && has!("avx512vl")
                && has!("avx512dq")
                && has!("fma")
            {
                return Self::Avx512;
            }
            if has!("avx2") && has!("fma") && has!("f16c") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// The name printed by `info`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

/// Work that is compiled once for every level.
///
/// No closure or iterator adaptor may use the lanes: it would be a function of its own, compiled without the level's
/// instructions, and each lane operation in it a call. Plain loops only.
pub(crate) trait Work {
    /// What comes out.
    type Out;
    /// Does it; must be `#[inline(always)]`, so that it becomes code of the caller's level.
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// Runs `work` at the best level of this machine.
#[inline]
pub(crate) fn dispatch<W: Work>(work: W) -> W::Out {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::OnceLock;
        static LEVEL: OnceLock<Level> = OnceLock::new();
        match *LEVEL.get_or_init(Level::detect) {
            // SAFETY: `detect` saw the features that the function is compiled for.
            Level::Avx512 => return unsafe { x86::run_avx512(work) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { x86::run_avx2(work) },
            Level::Portable => {}
        }
    }
    work.run(Portable)
}

/// Sixteen lanes of f32 and what the kernels do with them.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type V: Copy;
    /// Sixteen i32.
    type I: Copy;

    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// Sixteen f32.
    fn load(self, x: &[f32; LANES]) -> Self::V;
    /// Sixteen bf16, widened.
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V;
    /// Sixteen f16, widened.
    fn load_f16(self, x: &[f16; LANES]) -> Self::V;
    /// Sixteen bytes as signed integers.
    fn load_i8(self, x: &[u8; LANES]) -> Self::V;
    /// Sixteen bytes as thirty-two nibbles less 8: the low halves, then the high halves.
    fn load_nibbles(self, x: &[u8; LANES]) -> (Self::V, Self::V);
    /// Writes sixteen f32.
    fn store(self, v: Self::V, out: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each pair.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `e^x` to about 2 units in the last place for `-87 < x < 88`, 0 below, infinity above; NaN stays.
    fn exp(self, x: Self::V) -> Self::V;
    /// The sum of all lanes: `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, v: Self::V) -> f32;

    /// Zero in every lane.
    fn zero_i(self) -> Self::I;
    /// `acc + a * b` over 32 pairs, `a` signed; pairs share the lanes in an order of the level's own; exact.
    fn dot_i8_i16(self, acc: Self::I, a: &[u8; 32], b: &[i16; 32]) -> Self::I;
    /// The sum of all lanes.
    fn sum_i(self, v: Self::I) -> i32;
}

/// The level without special instructions.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn lanes(mut f: impl FnMut(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(&mut f)
}

impl Simd for Portable {
    type V = [f32; LANES];
    type I = [i32; LANES];

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
    fn load_nibbles(self, x: &[u8; LANES]) -> (Self::V, Self::V) {
        (
            lanes(|i| f32::from(x[i] & 15) - 8.0),
            lanes(|i| f32::from(x[i] >> 4) - 8.0),
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::{LANES, Simd, Work};

    /// Proof that the machine has AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(());

    /// Proof that the machine has AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")]
    pub(super) fn run_avx512<W: Work>(work: W) -> W::Out {
        work.run(Avx512(()))
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn run_avx2<W: Work>(work: W) -> W::Out {
        work.run(Avx2(()))
    }

    /// Coefficients of `e^r` for `|r| <= ln(2) / 2`: the Taylor polynomial with its last two terms adjusted (Cephes
    /// `expf`, S. Moshier).
    const EXP: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    /// ln 2 in two parts, the first short enough that `n * LN2.0` is exact.
    const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    /// Beyond these `exp` gives 0 and infinity; between them the power of two stays a normal number.
    const EXP_RANGE: (f32, f32) = (-87.0, 88.0);

    // SAFETY of every block below: the token exists only where the machine has the instructions, and each load or
    // store is of an array that is as long as the register.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx512 {
        type V = __m512;
        type I = __m512i;

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
        fn load_nibbles(self, x: &[u8; LANES]) -> (__m512, __m512) {
            unsafe {
                // A table of the sixteen values beats convert-and-subtract: the permutation looks at the low four bits.
                let table = _mm512_setr_ps(
                    -8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.,
                );
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

    /// `i` with `i + 4`, then `i + 2`, `i + 1`.
    #[inline(always)]
    unsafe fn sum8(v: __m256) -> f32 {
        // SAFETY: called only from methods of a token that implies AVX2.
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

    #[allow(clippy::undocumented_unsafe_blocks)] // as above
    impl Simd for Avx2 {
        type V = (__m256, __m256);
        type I = (__m256i, __m256i);

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
        fn load_nibbles(self, x: &[u8; LANES]) -> (Self::V, Self::V) {
            unsafe {
                let bytes = _mm_loadu_si128(x.as_ptr().cast());
                let (mask, eight) = (_mm_set1_epi8(15), _mm_set1_epi8(8));
                let low = _mm_sub_epi8(_mm_and_si128(bytes, mask), eight);
                let high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(bytes), mask), eight);
                (signed8(low), signed8(high))
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
    #[inline(always)]
    unsafe fn signed8(b: __m128i) -> (__m256, __m256) {
        // SAFETY: called only from methods of a token that implies AVX2.
        unsafe {
            let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b));
            (
                low,
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(b))),
            )
        }
    }

    #[inline(always)]
    unsafe fn exp8(x: __m256) -> __m256 {
        // SAFETY: called only from methods of a token that implies AVX2 and FMA.
        unsafe {
            let n =
                _mm256_round_ps::<0>(_mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E)));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything a level computes, so that levels can be held against each other and against plain arithmetic.
    struct Probe<'a> {
        x: &'a [f32; LANES],
        bytes: &'a [u8; 32],
        wide: &'a [i16; 32],
    }

    impl Work for Probe<'_> {
        type Out = (Vec<f32>, f32, f32, i32);
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Out {
            let mut lanes = Vec::new();
            let mut keep = |v| {
                let mut out = [0.0; LANES];
                s.store(v, &mut out);
                lanes.extend(out);
            };
            let halves = self.x.map(f16::from_f32);
            let brains = self.x.map(bf16::from_f32);
            let bytes = self.bytes.first_chunk().unwrap();
            let v = s.load(self.x);
            let (low, high) = s.load_nibbles(bytes);
            for part in [
                s.load_f16(&halves),
                s.load_bf16(&brains),
                s.load_i8(bytes),
                low,
                high,
                s.exp(v),
            ] {
                keep(part);
            }
            keep(s.fma(
                v,
                v,
                s.max(s.sub(v, s.splat(1.0)), s.div(v, s.add(v, s.mul(v, v)))),
            ));
            (
                lanes,
                s.sum(v),
                s.largest(v),
                s.sum_i(s.dot_i8_i16(s.zero_i(), self.bytes, self.wide)),
            )
        }
    }

    fn probe() -> ([f32; LANES], [u8; 32], [i16; 32]) {
        let x = std::array::from_fn(|i| (i as f32 - 7.3) * 1.7);
        let bytes = std::array::from_fn(|i| (i * 37 + 11) as u8);
        let wide = std::array::from_fn(|i| i as i16 * 7 - 100);
        (x, bytes, wide)
    }

    #[test]
    fn the_best_level_agrees_with_plain_rust() {
        let (x, bytes, wide) = probe();
        let best = dispatch(Probe {
            x: &x,
            bytes: &bytes,
            wide: &wide,
        });
        let plain = Probe {
            x: &x,
            bytes: &bytes,
            wide: &wide,
        }
        .run(Portable);
        for (a, b) in best.0.iter().zip(&plain.0) {
            assert!((a - b).abs() <= 3e-7 * b.abs(), "{a} {b}");
        }
        assert_eq!((best.1, best.2, best.3), (plain.1, plain.2, plain.3));
    }

    struct Exp<'a>(&'a [f32]);

    impl Work for Exp<'_> {
        type Out = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = vec![0.0; self.0.len()];
            for (o, x) in out.as_chunks_mut().0.iter_mut().zip(self.0.as_chunks().0) {
                s.store(s.exp(s.load(x)), o);
            }
            out
        }
    }

    #[test]
    fn exp_is_good_to_two_units_in_the_last_place() {
        let x: Vec<f32> = (0..160_000)
            .map(|i| -87.0 + i as f32 * (175.0 / 160_000.0))
            .collect();
        for (x, y) in x.iter().zip(dispatch(Exp(&x))) {
            let truth = f64::from(*x).exp();
            assert!(
                (f64::from(y) - truth).abs() <= truth * 2.4e-7,
                "exp({x}) = {y}, not {truth}"
            );
        }
        let mut edges = [0.0; LANES];
        edges[..4].copy_from_slice(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -1000.0]);
        let y = dispatch(Exp(&edges));
        assert_eq!((y[0], y[1], y[3], y[4]), (0.0, f32::INFINITY, 0.0, 1.0));
        assert!(y[2].is_nan());
    }
}
