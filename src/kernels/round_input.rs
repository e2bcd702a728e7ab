//! A product's input rounded to eight bits and back, in its own type: what checkpoints ask for whose codes no integer
//! product takes, as FP8 with FP8 inputs, or four-bit weights with eight-bit inputs.
//!
//! Scales and codes are those of [`InputRounding`]; a code times its scale is rounded once, to the type of the input.

use rayon::prelude::*;

use super::device::{Buf, Device, HostElem, with_dtype};
use super::parallel::least;
use super::{Cost, check_len};
use crate::error::Result;
use crate::scheme::{CodeFormat, DType, Elem, InputNumber, InputRounding, InputScale};

/// `out = s · q(x / s)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundInput {
    /// Rows.
    pub tokens: usize,
    /// Numbers per row.
    pub width: usize,
    /// What they are rounded to.
    pub rounding: InputRounding,
}

impl RoundInput {
    /// Traffic and arithmetic in activations of type `act`.
    pub fn cost(&self, act: DType) -> Cost {
        let numbers = (self.tokens * self.width) as f64;
        let bytes = numbers * act.size() as f64;
        Cost {
            read: bytes,
            written: bytes,
            flops: 4.0 * numbers,
        }
    }

    /// Columns that share a scale, and that scale where it is not found on the fly.
    pub(super) fn sharing(&self) -> (usize, Option<f32>) {
        match self.rounding.scale {
            InputScale::Token => (self.width, None),
            InputScale::Columns(columns) => (columns.clamp(1, self.width.max(1)), None),
            InputScale::Fixed(scale) => (self.width, Some(scale)),
        }
    }

    /// Rounds `x [tokens, width]` into `out`, of the same type and shape.
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(&self, device: &Device, x: &Buf, out: &mut Buf) -> Result<()> {
        let numbers = self.tokens * self.width;
        check_len("activations", x, numbers)?;
        check_len("rounded activations", out, numbers)?;
        match device {
            Device::Cpu => with_dtype!(x.dtype()?, T => {
                self.reference::<T>(&x.host::<T>()?[..numbers], &mut out.host_mut::<T>()?[..numbers]);
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::round_input(gpu, self, x, out),
        }
    }

    fn reference<T: Elem + HostElem>(&self, x: &[T], out: &mut [T]) {
        if self.width == 0 {
            return;
        }
        let (columns, fixed) = self.sharing();
        let number = self.rounding.number;
        x.par_chunks_exact(self.width)
            .with_min_len(least(self.width))
            .zip(out.par_chunks_exact_mut(self.width))
            .for_each(|(x, out)| {
                for (x, out) in x.chunks(columns).zip(out.chunks_mut(columns)) {
                    let scale = fixed.unwrap_or_else(|| scale_of(x, number));
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = T::from_f32(code(x.to_f32() / scale, number) * scale);
                    }
                }
            });
    }
}

/// The scale of numbers that share one; NaN if there is a NaN among them, so that it shows.
fn scale_of<T: Elem>(x: &[T], number: InputNumber) -> f32 {
    let largest = x.iter().fold(0.0_f32, |most, x| {
        let x = x.to_f32().abs();
        if x > most || x.is_nan() { x } else { most }
    });
    if largest == 0.0 {
        return 1.0;
    }
    largest / number.half_range()
}

/// The number that the code of a quotient names.
fn code(quotient: f32, number: InputNumber) -> f32 {
    match number {
        // The sum makes 0 of -0, which is no integer.
        InputNumber::Int8 => quotient.clamp(-128.0, 127.0).round_ties_even() + 0.0,
        InputNumber::E4M3 => CodeFormat::E4M3.value(CodeFormat::e4m3_nearest(quotient)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(x: &[f32], width: usize, number: InputNumber, scale: InputScale) -> Vec<f32> {
        let op = RoundInput {
            tokens: x.len() / width,
            width,
            rounding: InputRounding { number, scale },
        };
        let mut out = Buf::from_vec(vec![0.0_f32; x.len()]);
        op.run(&Device::Cpu, &Buf::from_vec(x.to_vec()), &mut out)
            .unwrap();
        out.host::<f32>().unwrap().to_vec()
    }

    #[test]
    fn integers_equal_those_of_compressed_tensors() {
        // Vector CT-8, run through compressed-tensors 0.20.
        let x = [0.5, -1.0, 0.25, 3.0, 0.01, 0.02, -0.03, 0.04];
        let got = rounded(&x, 4, InputNumber::Int8, InputScale::Token);
        let scales = [0.023_529_412_f32, 0.000_313_725_5];
        let codes = [[21.0, -42.0, 11.0, 127.0], [32.0, 64.0, -96.0, 127.0]];
        for ((got, codes), scale) in got.chunks(4).zip(codes).zip(scales) {
            assert_eq!(got, codes.map(|code: f32| code * scale));
        }
    }

    #[test]
    fn fp8_numbers_equal_those_of_compressed_tensors() {
        // Vector CT-9, run through compressed-tensors 0.20: one scale for everything, one for each row, one for blocks.
        let w = [
            0.10, -0.70, 0.35, 0.05, 1.50, -0.20, 0.75, -1.00, //
            -0.02, 0.01, 0.03, -0.04, 0.60, 0.50, -0.10, 0.20_f32,
        ];
        let check = |scale, bytes: &[[u8; 8]], scales: &[f32]| {
            let got = rounded(&w, 8, InputNumber::E4M3, scale);
            for (i, (got, bytes)) in got.chunks(8).zip(bytes).enumerate() {
                for (j, (got, &byte)) in got.iter().zip(bytes).enumerate() {
                    let scale = scales[(i * 8 + j) * scales.len() / 16];
                    let truth = CodeFormat::E4M3.value(byte) * scale;
                    assert!((got - truth).abs() <= 1e-6 * truth.abs(), "{got} {truth}");
                }
            }
        };
        let first = [0x5f, 0xf5, 0x6d, 0x57, 0x7e, 0xe7, 0x76, 0xf9];
        let fixed = InputScale::Fixed(1.5 / 448.0);
        check(
            fixed,
            &[first, [0xcc, 0x44, 0x51, 0xd4, 0x73, 0x71, 0xdf, 0x67]],
            &[1.5 / 448.0],
        );
        check(
            InputScale::Token,
            &[first, [0xd7, 0x4f, 0x5b, 0xdf, 0x7e, 0x7c, 0xe9, 0x71]],
            &[1.5 / 448.0, 0.6 / 448.0],
        );
        let got = rounded(&w[..8], 8, InputNumber::E4M3, InputScale::Columns(4));
        let bytes = [0x68, 0xfe, 0x76, 0x60, 0x7e, 0xe7, 0x76, 0xf9_u8];
        for ((got, byte), scale) in got
            .iter()
            .zip(bytes)
            .zip([[0.0015625_f32; 4], [1.5 / 448.0; 4]].concat())
        {
            let truth = CodeFormat::E4M3.value(byte) * scale;
            assert!((got - truth).abs() <= 1e-6 * truth.abs(), "{got} {truth}");
        }
    }

    #[test]
    fn zeros_stay_zeros_and_nan_shows() {
        for number in [InputNumber::Int8, InputNumber::E4M3] {
            assert_eq!(rounded(&[0.0; 4], 4, number, InputScale::Token), [0.0; 4]);
            let broken = rounded(&[1.0, f32::NAN, 2.0, 1.0], 2, number, InputScale::Token);
            assert!(
                broken[..2].iter().all(|x| x.is_nan()) && broken[2..].iter().all(|x| x.is_finite())
            );
        }
    }
}
