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

/// What [`Simd::load_e4m3`] divides by: the bits of an E4M3 number, moved up within an f16, lack the difference of the
/// two exponents' biases, and a scale that is multiplied by anyway mends it for free.
pub(crate) const E4M3_UNIT: f32 = 256.0;

/// What nibbles name.
pub(crate) const NIBBLES: [f32; LANES] = [
    0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
];

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
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let wide = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
            if avx2 && wide && has!("bmi2") {
                return Self::Avx512;
            }
            if avx2 {
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
    /// What turns nibbles into the weights of one group.
    type Nibbles: Copy;
    /// Tokens of a tile of a product with four rows, whose sums and operands the registers hold: six, or two.
    const TILE_TOKENS: usize;

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
    /// Sixteen bytes of E4M3, each number divided by [`E4M3_UNIT`]; the codes of NaN give other numbers.
    fn load_e4m3(self, x: &[u8; LANES]) -> Self::V;
    /// For weights `(u - zero) * scale` of nibbles `u`; `zero` is at most 15.
    fn nibbles(self, zero: u8, scale: f32) -> Self::Nibbles;
    /// Sixteen bytes as thirty-two weights: those of the low halves, then those of the high halves.
    fn load_nibbles(self, x: &[u8; LANES], group: Self::Nibbles) -> (Self::V, Self::V);
    /// Sixteen bytes as thirty-two entries of a table: those of the low halves, then those of the high halves.
    fn lookup(self, x: &[u8; LANES], table: Self::V) -> (Self::V, Self::V);
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
    use crate::scheme::CodeFormat;

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
            let v = s.load(self.x);
            for part in [s.load_f16(&halves), s.load_bf16(&brains), s.exp(v)] {
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

    /// What some work gives at every level that the machine has, plain Rust first.
    fn at_every_level<W: Work>(work: impl Fn() -> W) -> Vec<(Level, W::Out)> {
        let mut found = vec![(Level::Portable, work().run(Portable))];
        #[cfg(target_arch = "x86_64")]
        {
            let best = Level::detect();
            if best != Level::Portable {
                // SAFETY: both levels above plain Rust imply AVX2.
                found.push((Level::Avx2, unsafe { avx2::run(work()) }));
            }
            if best == Level::Avx512 {
                // SAFETY: `detect` saw the features.
                found.push((Level::Avx512, unsafe { avx512::run(work()) }));
            }
        }
        found
    }

    #[test]
    fn every_level_agrees_with_plain_rust() {
        let (x, bytes, wide) = probe();
        let all = at_every_level(|| Probe {
            x: &x,
            bytes: &bytes,
            wide: &wide,
        });
        let plain = &all[0].1;
        for (level, out) in &all {
            for (a, b) in out.0.iter().zip(&plain.0) {
                assert!((a - b).abs() <= 3e-7 * b.abs(), "{level:?}: {a} {b}");
            }
            let exact = (out.1, out.2, out.3);
            assert_eq!(exact, (plain.1, plain.2, plain.3), "{level:?}");
        }
        // The two that fuse products do so alike.
        if let [_, (_, avx2), (_, avx512)] = &all[..] {
            assert_eq!(avx2, avx512);
        }
    }

    /// Everything that bytes are read as.
    struct Codes<'a> {
        bytes: &'a [u8; 256],
        zero: u8,
        scale: f32,
        table: &'a [f32; LANES],
    }

    impl Work for Codes<'_> {
        type Out = [Vec<f32>; 4];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Out {
            let mut out = [const { Vec::new() }; 4];
            let mut keep = |at: usize, v| {
                let mut lanes = [0.0; LANES];
                s.store(v, &mut lanes);
                out[at].extend(lanes);
            };
            let group = s.nibbles(self.zero, self.scale);
            let table = s.load(self.table);
            for bytes in self.bytes.as_chunks().0 {
                keep(0, s.load_i8(bytes));
                keep(1, s.load_e4m3(bytes));
                let (low, high) = s.load_nibbles(bytes, group);
                keep(2, low);
                keep(2, high);
                let (low, high) = s.lookup(bytes, table);
                keep(3, low);
                keep(3, high);
            }
            out
        }
    }

    #[test]
    fn every_level_reads_every_code() {
        let bytes: [u8; 256] = std::array::from_fn(|i| i as u8);
        let table = std::array::from_fn(|i| (i as f32 - 3.7) * 0.3);
        for zero in 0..16 {
            let scale = 0.1 + f32::from(zero);
            let all = at_every_level(|| Codes {
                bytes: &bytes,
                zero,
                scale,
                table: &table,
            });
            for (level, [i8s, e4m3s, nibbles, entries]) in all {
                for (code, (whole, small)) in (0..=255).zip(i8s.iter().zip(&e4m3s)) {
                    assert_eq!(*whole, CodeFormat::I8.value(code), "{level:?} {code:#x}");
                    if code & 0x7f != 0x7f {
                        let value = small * E4M3_UNIT;
                        assert_eq!(value, CodeFormat::E4M3.value(code), "{level:?} {code:#x}");
                    }
                }
                for (block, bytes) in bytes.chunks(LANES).enumerate() {
                    for (i, byte) in bytes.iter().enumerate() {
                        for (half, u) in [byte & 15, byte >> 4].into_iter().enumerate() {
                            let at = 2 * LANES * block + LANES * half + i;
                            let weight = (f32::from(u) - f32::from(zero)) * scale;
                            assert_eq!(nibbles[at], weight, "{level:?} {u} {zero}");
                            assert_eq!(entries[at], table[usize::from(u)], "{level:?} {u}");
                        }
                    }
                }
            }
        }
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
