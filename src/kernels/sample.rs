//! What is read off logits on the device: the most likely token, and the log-probability of a given one.

use rayon::prelude::*;

use super::device::{Buf, Device, HostElem, with_dtype};
use super::simd::{LANES, Simd, Work, dispatch};
use super::{Cost, check_len};
use crate::error::{Error, Result};
use crate::scheme::{DType, Elem};

/// What [`Argmax`] gives for a row without a single number in it.
pub const NO_TOKEN: u32 = u32::MAX;

/// The position of the largest logit of each row; the first of several; never a NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argmax {
    /// Rows.
    pub rows: usize,
    /// Logits per row.
    pub vocab: usize,
}

impl Argmax {
    /// Traffic for logits of type `act`.
    pub fn cost(&self, act: DType) -> Cost {
        Cost {
            read: (self.rows * self.vocab * act.size()) as f64,
            written: 4.0 * self.rows as f64,
            flops: 0.0,
        }
    }

    /// `logits [rows, vocab]` into `out [rows]` (u32); [`NO_TOKEN`] where all are NaN.
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(&self, device: &Device, logits: &Buf, out: &mut Buf) -> Result<()> {
        check_len("logits", logits, self.rows * self.vocab)?;
        check_len("tokens", out, self.rows)?;
        match device {
            Device::Cpu => with_dtype!(logits.dtype()?, T => {
                let logits = &logits.host::<T>()?[..self.rows * self.vocab];
                let out = &mut out.host_mut::<u32>()?[..self.rows];
                out.par_iter_mut().zip(logits.par_chunks_exact(self.vocab)).for_each(|(out, row)| {
                    *out = argmax(row);
                });
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::argmax(gpu, self, logits, out),
        }
    }
}

/// The position of the largest number of a row.
fn argmax<T: Elem>(row: &[T]) -> u32 {
    let mut best = (f32::NEG_INFINITY, NO_TOKEN);
    for (i, x) in row.iter().enumerate() {
        let x = x.to_f32();
        if x > best.0 || (best.1 == NO_TOKEN && !x.is_nan()) {
            best = (x, i as u32);
        }
    }
    best.1
}

/// The log-probability that softmax gives to one token of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogProb {
    /// Rows.
    pub rows: usize,
    /// Logits per row.
    pub vocab: usize,
}

impl LogProb {
    /// Traffic and arithmetic for logits of type `act`.
    pub fn cost(&self, act: DType) -> Cost {
        let logits = (self.rows * self.vocab) as f64;
        Cost {
            read: logits * act.size() as f64,
            written: 4.0 * self.rows as f64,
            flops: 4.0 * logits,
        }
    }

    /// `logits [rows, vocab]` and `targets [rows]` (u32) into `out [rows]` (f32, natural logarithm). A row with a NaN
    /// or an infinity gives NaN.
    ///
    /// # Errors
    /// If a buffer is too short or of another type, or a target lies outside the vocabulary.
    pub fn run(&self, device: &Device, logits: &Buf, targets: &Buf, out: &mut Buf) -> Result<()> {
        check_len("logits", logits, self.rows * self.vocab)?;
        check_len("targets", targets, self.rows)?;
        check_len("log-probabilities", out, self.rows)?;
        match device {
            Device::Cpu => with_dtype!(logits.dtype()?, T => {
                let targets = &targets.host::<u32>()?[..self.rows];
                if let Some(target) = targets.iter().find(|&&t| t as usize >= self.vocab) {
                    return Err(Error::Config(format!("token id {target} is outside the vocabulary of {}", self.vocab)));
                }
                let logits = &logits.host::<T>()?[..self.rows * self.vocab];
                let out = &mut out.host_mut::<f32>()?[..self.rows];
                let rows = logits.par_chunks_exact(self.vocab).zip(targets);
                out.par_iter_mut().zip(rows).for_each(|(out, (row, &target))| {
                    *out = (f64::from(row[target as usize].to_f32()) - dispatch(LogSumExp { row })) as f32;
                });
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::log_prob(gpu, self, logits, targets, out),
        }
    }
}

/// `ln(Σ e^x)` of a row; lanes are added up in f64 often enough that a large vocabulary loses nothing.
struct LogSumExp<'a, T> {
    row: &'a [T],
}

/// Steps of sixteen after which the lanes are added up.
const FLUSH: usize = 64;

impl<T: Elem + HostElem> Work for LogSumExp<'_, T> {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let (steps, rest) = self.row.as_chunks::<LANES>();
        let mut most = s.splat(f32::NEG_INFINITY);
        for x in steps {
            most = s.max(s.load(&wide(x)), most);
        }
        let max = rest
            .iter()
            .fold(s.largest(most), |max, x| max.max(x.to_f32()));
        let mut total = 0.0;
        for steps in steps.chunks(FLUSH) {
            let mut sum = s.splat(0.0);
            for x in steps {
                sum = s.add(sum, s.exp(s.sub(s.load(&wide(x)), s.splat(max))));
            }
            total += f64::from(s.sum(sum));
        }
        total += rest
            .iter()
            .map(|x| f64::from(x.to_f32() - max).exp())
            .sum::<f64>();
        f64::from(max) + total.ln()
    }
}

#[inline(always)]
fn wide<T: Elem>(x: &[T; LANES]) -> [f32; LANES] {
    let mut wide = [0.0; LANES];
    wide.iter_mut()
        .zip(x)
        .for_each(|(wide, x)| *wide = x.to_f32());
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_largest_number_wins_and_nan_never() {
        let n = f32::NAN;
        let rows = [
            [n, 1.0, 3.0, 3.0],
            [n; 4],
            [f32::NEG_INFINITY, n, f32::NEG_INFINITY, n],
        ];
        let mut out = Buf::from_vec(vec![9_u32; 3]);
        Argmax { rows: 3, vocab: 4 }
            .run(&Device::Cpu, &Buf::from_vec(rows.concat()), &mut out)
            .unwrap();
        assert_eq!(out.host::<u32>().unwrap(), [2, NO_TOKEN, 0]);
    }

    #[test]
    fn log_probabilities_equal_those_in_f64() {
        let vocab = 50_003;
        let logits: Vec<f32> = (0..2 * vocab)
            .map(|i| ((i as f32) * 0.37).sin() * 12.0 + 100.0)
            .collect();
        let mut out = Buf::from_vec(vec![0.0_f32; 2]);
        let targets = Buf::from_vec(vec![7_u32, 50_002]);
        let op = LogProb { rows: 2, vocab };
        op.run(
            &Device::Cpu,
            &Buf::from_vec(logits.clone()),
            &targets,
            &mut out,
        )
        .unwrap();
        for (row, target) in [(0, 7), (1, 50_002)] {
            let row_logits = &logits[row * vocab..][..vocab];
            let sum: f64 = row_logits
                .iter()
                .map(|&x| (f64::from(x) - 100.0).exp())
                .sum();
            let truth = f64::from(row_logits[target]) - 100.0 - sum.ln();
            let got = f64::from(out.host::<f32>().unwrap()[row]);
            assert!((got - truth).abs() < 2e-6, "{got} {truth}");
        }
        let mut bad = logits;
        bad[100] = f32::NAN;
        op.run(&Device::Cpu, &Buf::from_vec(bad), &targets, &mut out)
            .unwrap();
        assert!(out.host::<f32>().unwrap()[0].is_nan());
    }
}
