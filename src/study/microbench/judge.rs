//! Whether a result is right: element by element, and all together.

use crate::error::Result;
use crate::kernels::device::HostElem;
use crate::kernels::{Buf, BufType, Device};
use crate::results::microbench::record::Verification;
use crate::scheme::{DType, Elem};

/// Half of the step between the smallest numbers of a type, which rounding to them may miss whatever they stand for.
pub(super) fn least_step(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2.0_f64.powi(-25),
        // Below anything that occurs.
        DType::F32 | DType::BF16 => 0.0,
    }
}

/// The largest relative error of rounding to `dtype`.
pub(super) fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2.0_f64.powi(-24),
        DType::F16 => 2.0_f64.powi(-11),
        DType::BF16 => 2.0_f64.powi(-8),
    }
}

/// What sums of `k` products in f32 may be off by, relative to the sum of their magnitudes. Every kernel sums in at
/// least sixteen chains (lanes of a register, or the depth of a matrix instruction), each step of which loses at most
/// one unit in the last place; the constant covers putting the chains together and scaling them.
pub(super) fn summed(k: usize) -> f64 {
    (k as f64 / 8.0 + 16.0) * 2.0_f64.powi(-24)
}

/// What a judge found.
pub(super) type Judgement = std::result::Result<Verification, String>;

/// Compares elements with the truth.
#[derive(Default)]
pub(super) struct Judge {
    elements: u64,
    worst: f64,
    errors: f64,
    truths: f64,
    fault: Option<String>,
}

impl Judge {
    /// Holds one element to the truth; the first that fails is the one that is named.
    pub(super) fn element(
        &mut self,
        got: f32,
        truth: f64,
        tolerance: f64,
        place: impl FnOnce() -> String,
    ) {
        let error = (f64::from(got) - truth).abs();
        self.elements += 1;
        self.errors += error * error;
        self.truths += truth * truth;
        self.worst = self.worst.max(error / tolerance.max(f64::MIN_POSITIVE));
        // Written so that NaN fails.
        let passed = error <= tolerance;
        if !passed && self.fault.is_none() {
            self.fault = Some(format!(
                "{} is {got} instead of {truth:.7}, off by {error:.2e} where {tolerance:.2e} is allowed",
                place()
            ));
        }
    }

    /// Notes what needs no truth to be wrong.
    pub(super) fn fault(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }

    /// The verdict; `whole` is what all errors together may be, relative to the truth.
    pub(super) fn verdict(self, whole: f64) -> Judgement {
        let found = (self.errors / self.truths.max(f64::MIN_POSITIVE)).sqrt();
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.elements == 0 {
            return Err("no element was compared".into());
        }
        let passed = self.truths == 0.0 || found <= whole;
        if !passed {
            return Err(format!(
                "all {} elements together are off by {found:.2e} of their size where {whole:.2e} is allowed",
                self.elements
            ));
        }
        Ok(Verification {
            elements: self.elements,
            worst: self.worst,
            whole: if self.truths == 0.0 { 0.0 } else { found },
        })
    }
}

/// What all elements of an op that rounds its result to `dtype` may be off by together: a few roundings.
pub(super) fn whole(dtype: DType) -> f64 {
    4.0 * unit(dtype) + 2.0_f64.powi(-13)
}

/// The numbers `range` of a floating-point buffer.
pub(super) fn numbers(
    device: &Device,
    buf: &Buf,
    range: std::ops::Range<usize>,
) -> Result<Vec<f32>> {
    fn widened<T: Elem + HostElem>(
        device: &Device,
        buf: &Buf,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<f32>> {
        let numbers: Vec<T> = device.download(buf, range)?;
        Ok(numbers.into_iter().map(T::to_f32).collect())
    }
    match buf.dtype()? {
        DType::F32 => device.download(buf, range),
        DType::F16 => widened::<half::f16>(device, buf, range),
        DType::BF16 => widened::<half::bf16>(device, buf, range),
    }
}

/// Fills a buffer with what no correct kernel leaves behind: NaN, or all bits set.
pub(super) fn poison(device: &Device, buf: &mut Buf) -> Result<()> {
    let count = buf.len();
    match buf.kind() {
        BufType::Float(_) => {
            crate::kernels::fill::Filling::Constant(f32::NAN).run(device, buf, 0, count)
        }
        BufType::U8 => device.upload(buf, 0, &vec![u8::MAX; count]),
        BufType::U32 => device.upload(buf, 0, &vec![u32::MAX; count]),
    }
}

/// Indices below `count`, one from each of as many equal stretches as there are, ends included: no stretch of `stride`
/// elements goes without one.
pub(super) fn spread(count: usize, stride: usize, seed: u64) -> Vec<usize> {
    let mut found: Vec<usize> = (0..count.div_ceil(stride))
        .map(|stretch| {
            let (first, last) = (stretch * stride, ((stretch + 1) * stride).min(count));
            first + (mixed(seed, stretch as u64) % (last - first) as u64) as usize
        })
        .chain([0, count - 1])
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// A hash of two numbers (the finaliser of SplitMix64).
pub(super) fn mixed(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(pairs: &[(f32, f64)], tolerance: f64, whole: f64) -> Judgement {
        let mut judge = Judge::default();
        for (i, (got, truth)) in pairs.iter().enumerate() {
            judge.element(*got, *truth, tolerance, || format!("element {i}"));
        }
        judge.verdict(whole)
    }

    #[test]
    fn one_wrong_element_fails_and_is_named() {
        let good = judged(&[(1.0, 1.0), (2.01, 2.0)], 0.02, 0.01).unwrap();
        assert_eq!(good.elements, 2);
        assert!((good.worst - 0.5).abs() < 1e-3);
        let fault = judged(&[(1.0, 1.0), (2.1, 2.0), (9.0, 2.0)], 0.02, 10.0).unwrap_err();
        assert!(fault.contains("element 1 is 2.1 instead of 2"), "{fault}");
        assert!(judged(&[(f32::NAN, 1.0)], 1e9, 1e9).is_err());
        assert!(judged(&[], 1.0, 1.0).is_err());
    }

    #[test]
    fn many_small_errors_fail_together() {
        let pairs: Vec<(f32, f64)> = (0..100).map(|_| (1.01, 1.0)).collect();
        assert!(judged(&pairs, 0.02, 0.02).is_ok());
        let fault = judged(&pairs, 0.02, 0.005).unwrap_err();
        assert!(fault.contains("together"), "{fault}");
    }

    #[test]
    fn no_stretch_goes_without_an_element() {
        for (count, stride) in [(1, 32), (31, 32), (32, 32), (33, 32), (1000, 7)] {
            let found = spread(count, stride, 3);
            assert!(found.is_sorted() && found[0] == 0 && found[found.len() - 1] == count - 1);
            for first in (0..count).step_by(stride) {
                let stretch = first..(first + stride).min(count);
                assert!(
                    found.iter().any(|i| stretch.contains(i)),
                    "{count} {stride} {first}"
                );
            }
        }
    }
}
