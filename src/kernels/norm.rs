//! Root-mean-square normalisation (Zhang and Sennrich 2019), rounded where transformers rounds it.

use rayon::prelude::*;

use super::device::{Buf, Device, with_dtype};
use super::parallel::least;
use super::quantize::{QuantizeAct, round_row};
use super::{Cost, check_len};
use crate::error::Result;
use crate::scheme::{DType, Elem};

/// `out = weight * round(x / sqrt(mean(x²) + eps))` for each row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Rows.
    pub rows: usize,
    /// Numbers per row.
    pub width: usize,
    /// Keeps the root from vanishing.
    pub eps: f32,
}

/// Rows of one parallel task.
const TASK_ROWS: usize = 16;

impl RmsNorm {
    /// Traffic and arithmetic in activations of type `act`.
    pub fn cost(&self, act: DType) -> Cost {
        let numbers = (self.rows * self.width) as f64;
        let bytes = numbers * act.size() as f64;
        Cost {
            read: bytes + (self.width * act.size()) as f64,
            written: bytes,
            flops: 4.0 * numbers,
        }
    }

    /// Normalises `x [rows, width]` into `out`, with `weight [width]`, all of one type.
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(&self, device: &Device, x: &Buf, weight: &Buf, out: &mut Buf) -> Result<()> {
        let numbers = self.rows * self.width;
        check_len("norm input", x, numbers)?;
        check_len("norm weight", weight, self.width)?;
        check_len("norm output", out, numbers)?;
        match device {
            Device::Cpu => with_dtype!(out.dtype()?, T => {
                let (x, weight) = (&x.host::<T>()?[..numbers], &weight.host::<T>()?[..self.width]);
                let out = &mut out.host_mut::<T>()?[..numbers];
                let task = TASK_ROWS * self.width;
                let tasks = out.par_chunks_mut(task).zip(x.par_chunks(task));
                tasks.with_min_len(least(task)).for_each(|(out, x)| {
                    for (out, x) in out.chunks_exact_mut(self.width).zip(x.chunks_exact(self.width)) {
                        normalise(x, weight, self.eps, out);
                    }
                });
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::rms_norm(gpu, self, x, weight, out),
        }
    }

    /// Traffic and arithmetic of [`RmsNorm::run_to_codes`] for activations of type `act`.
    pub fn cost_to_codes(&self, act: DType) -> Cost {
        let quantize = QuantizeAct {
            tokens: self.rows,
            width: self.width,
        };
        let (norm, codes) = (self.cost(act), quantize.cost(act));
        Cost {
            read: norm.read,
            written: codes.written,
            flops: norm.flops + codes.flops,
        }
    }

    /// Normalises `x [rows, width]` and rounds each row to int8 codes `[rows, width]` (as bytes) with a scale `[rows]`
    /// (f32): what [`RmsNorm::run`] and [`QuantizeAct`] give, bit for bit, in one launch.
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run_to_codes(
        &self,
        device: &Device,
        x: &Buf,
        weight: &Buf,
        codes: &mut Buf,
        scales: &mut Buf,
    ) -> Result<()> {
        let numbers = self.rows * self.width;
        check_len("norm input", x, numbers)?;
        check_len("norm weight", weight, self.width)?;
        check_len("activation codes", codes, numbers)?;
        check_len("activation scales", scales, self.rows)?;
        match device {
            Device::Cpu => with_dtype!(x.dtype()?, T => {
                let (x, weight) = (&x.host::<T>()?[..numbers], &weight.host::<T>()?[..self.width]);
                let codes = &mut codes.host_mut::<u8>()?[..numbers];
                let scales = &mut scales.host_mut::<f32>()?[..self.rows];
                let rows = codes.par_chunks_mut(self.width).zip(scales).zip(x.par_chunks(self.width));
                let blank = || vec![T::from_f32(0.0); self.width];
                rows.with_min_len(least(self.width)).for_each_init(blank, |row, ((codes, scale), x)| {
                    normalise(x, weight, self.eps, row);
                    *scale = round_row(row, codes);
                });
                Ok(())
            }),
            Device::Gpu(gpu) => {
                super::gpu::rms_norm_to_codes(gpu, self, [x, weight], codes, scales)
            }
        }
    }
}

/// One row; also the norm of a head.
pub(super) fn normalise<T: Elem>(x: &[T], weight: &[T], eps: f32, out: &mut [T]) {
    let factor = factor(x, eps);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = scaled(*x, *weight, factor);
    }
}

/// One row in its place.
pub(super) fn normalise_in_place<T: Elem>(x: &mut [T], weight: &[T], eps: f32) {
    let factor = factor(x, eps);
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = scaled(*x, *weight, factor);
    }
}

fn scaled<T: Elem>(x: T, weight: T, factor: f32) -> T {
    T::from_f32(T::from_f32(x.to_f32() * factor).to_f32() * weight.to_f32())
}

/// `1 / sqrt(mean(x²) + eps)`, summed in eight chains that the compiler can put into lanes.
fn factor<T: Elem>(x: &[T], eps: f32) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x.to_f32() * x.to_f32();
        }
    }
    let rest: f32 = rest.iter().map(|x| x.to_f32() * x.to_f32()).sum();
    let mean = (sums.iter().sum::<f32>() + rest) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_out_with_unit_mean_square_times_its_weight() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 - 17.0) * 3.0).collect();
        let weight: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 / 10.0).collect();
        let mut out = Buf::from_vec(vec![0.0_f32; 37]);
        let op = RmsNorm {
            rows: 1,
            width: 37,
            eps: 1e-6,
        };
        op.run(
            &Device::Cpu,
            &Buf::from_vec(x.clone()),
            &Buf::from_vec(weight.clone()),
            &mut out,
        )
        .unwrap();
        let mean = x.iter().map(|x| f64::from(x * x)).sum::<f64>() / 37.0;
        for ((out, x), weight) in out.host::<f32>().unwrap().iter().zip(x).zip(weight) {
            let truth = f64::from(x) / (mean + 1e-6).sqrt() * f64::from(weight);
            assert!((f64::from(*out) - truth).abs() < 1e-5, "{out} {truth}");
        }
    }
}
