//! Sixteen f32 lanes, whatever the machine calls them.
//!
//! The CPU references are written once over [`Simd`] and compiled for AVX-512, AVX2 and plain Rust; the best that the
//! machine has is chosen at run time. Every level adds the lanes of a sum in the same tree and fuses the same products,
//! so a result has the same bits on AVX-512 and AVX2.
//!
//! This folder is the CPU's home of `unsafe`: a level's token is only made by the function that [`dispatch`] calls after
//! the machine said that it has the instructions, and only the token's methods use them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::{bf16, f16};

use portable::Portable;

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
            Level::Avx512 => return unsafe { avx512::run(work) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { avx2::run(work) },
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
