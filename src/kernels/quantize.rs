//! Rounding to codes: weights to nearest (RTN), and a product's input token by token.
//!
//! Both follow compressed-tensors (`quantization/utils/helpers.py`, `lifecycle/forward_helpers.py`): the scale is the
//! largest magnitude over half the number of codes, so over 7.5 or 127.5, held in the weight's own type; the quotient
//! is rounded to that type, clamped, and rounded half to even.

use rayon::prelude::*;

use super::device::{Buf, Device, HostElem, with_dtype};
use super::linear::{LinearWeight, WeightData};
use super::parallel::least;
use super::{Cost, check_len};
use crate::error::{Error, Result};
use crate::scheme::{CodeFormat, DType, Elem};

/// Symmetric round-to-nearest of some rows of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizeRows {
    /// Rows given.
    pub rows: usize,
    /// Columns.
    pub k: usize,
    /// How codes are written: as integers, so not [`CodeFormat::E4M3`].
    pub format: CodeFormat,
    /// Columns per scale; divides `k`.
    pub group: usize,
}

impl QuantizeRows {
    /// Traffic for rows of type `dtype`.
    pub fn cost(&self, dtype: DType) -> Cost {
        let numbers = (self.rows * self.k) as f64;
        Cost {
            read: numbers * dtype.size() as f64,
            written: (self.rows * self.format.row_bytes(self.k)) as f64
                + numbers / self.group as f64 * dtype.size() as f64,
            flops: 3.0 * numbers,
        }
    }

    /// Quantises `source [rows, k]` into rows `first ..` of `weight`, whose scales are of the source's type.
    ///
    /// # Errors
    /// If shapes or types do not fit.
    pub fn run(
        &self,
        device: &Device,
        source: &Buf,
        weight: &mut LinearWeight,
        first: usize,
    ) -> Result<()> {
        check_len("rows to quantise", source, self.rows * self.k)?;
        let WeightData::Packed(packed) = &mut weight.data else {
            return Err(Error::Internal(
                "quantising into a weight that is not packed".into(),
            ));
        };
        packed.check_simple("rounding to nearest", self.k)?;
        if (packed.format, packed.group, weight.k) != (self.format, self.group, self.k)
            || packed.scales.dtype()? != source.dtype()?
        {
            return Err(Error::Internal(
                "quantising into a weight of another form".into(),
            ));
        }
        let (codes, scales) = (&mut packed.codes, &mut packed.scales);
        let groups = self.k / self.group;
        let width = self.format.row_bytes(self.k);
        check_len("codes", codes, (first + self.rows) * width)?;
        check_len("scales", scales, (first + self.rows) * groups)?;
        match device {
            Device::Cpu => with_dtype!(source.dtype()?, T => {
                let source = &source.host::<T>()?[..self.rows * self.k];
                let codes = &mut codes.host_mut::<u8>()?[first * width..][..self.rows * width];
                let scales = &mut scales.host_mut::<T>()?[first * groups..][..self.rows * groups];
                self.reference::<T>(source, codes, scales);
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::quantize_rows(gpu, self, source, codes, scales, first),
        }
    }

    fn reference<T: Elem>(&self, source: &[T], codes: &mut [u8], scales: &mut [T]) {
        let groups = self.k / self.group;
        let outputs = codes
            .par_chunks_exact_mut(self.format.row_bytes(self.k))
            .zip(scales.par_chunks_exact_mut(groups));
        source.par_chunks_exact(self.k).zip(outputs).for_each_init(
            || vec![0_u8; self.k],
            |single, (row, (codes, scales))| {
                let parts = row
                    .chunks_exact(self.group)
                    .zip(single.chunks_exact_mut(self.group));
                for ((x, q), scale) in parts.zip(scales) {
                    *scale = round_group(x, self.format, q);
                }
                self.format.pack_row(single, codes);
            },
        );
    }
}

/// The largest magnitude; NaN if there is one, so that a broken value shows in everything made of it.
fn largest<T: Elem>(x: &[T]) -> f32 {
    x.iter().fold(0.0, |most, x| {
        let x = x.to_f32().abs();
        if x > most || x.is_nan() { x } else { most }
    })
}

/// Codes and scale of one group.
fn round_group<T: Elem>(x: &[T], format: CodeFormat, codes: &mut [u8]) -> T {
    let (low, high) = format.range();
    let middle = format.middle();
    let (low, high) = (low - f32::from(middle), high - f32::from(middle));
    let largest = largest(x);
    let scale = T::from_f32(largest / ((high - low) / 2.0));
    // A group of zeros, or of numbers so small that their scale is, gets any scale but 0.
    let scale = if scale.to_f32() == 0.0 {
        T::from_f32(1.0)
    } else {
        scale
    };
    for (code, x) in codes.iter_mut().zip(x) {
        let quotient = T::from_f32(x.to_f32() / scale.to_f32()).to_f32();
        let steps = quotient.clamp(low, high).round_ties_even() as i8;
        *code = steps.cast_unsigned().wrapping_add(middle);
    }
    scale
}

/// Symmetric int8 codes of a product's input, one scale per token, found on the fly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizeAct {
    /// Rows.
    pub tokens: usize,
    /// Numbers per row.
    pub width: usize,
}

impl QuantizeAct {
    /// Traffic and arithmetic in activations of type `act`.
    pub fn cost(&self, act: DType) -> Cost {
        let numbers = (self.tokens * self.width) as f64;
        Cost {
            read: numbers * act.size() as f64,
            written: numbers + 4.0 * self.tokens as f64,
            flops: 3.0 * numbers,
        }
    }

    /// `x [tokens, width]` into `codes` (as bytes, same shape) and `scales [tokens]` (f32).
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(&self, device: &Device, x: &Buf, codes: &mut Buf, scales: &mut Buf) -> Result<()> {
        let numbers = self.tokens * self.width;
        check_len("activations", x, numbers)?;
        check_len("activation codes", codes, numbers)?;
        check_len("activation scales", scales, self.tokens)?;
        match device {
            Device::Cpu => with_dtype!(x.dtype()?, T => {
                let x = &x.host::<T>()?[..numbers];
                let codes = &mut codes.host_mut::<u8>()?[..numbers];
                let scales = &mut scales.host_mut::<f32>()?[..self.tokens];
                self.reference::<T>(x, codes, scales);
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::quantize_act(gpu, self, x, codes, scales),
        }
    }

    fn reference<T: Elem + HostElem>(&self, x: &[T], codes: &mut [u8], scales: &mut [f32]) {
        let outputs = codes.par_chunks_exact_mut(self.width).zip(scales);
        x.par_chunks_exact(self.width)
            .with_min_len(least(self.width))
            .zip(outputs)
            .for_each(|(x, (codes, scale))| *scale = round_row(x, codes));
    }
}

/// Codes of a row, as bytes; gives their scale.
pub(super) fn round_row<T: Elem>(x: &[T], codes: &mut [u8]) -> f32 {
    let largest = largest(x);
    let scale = if largest == 0.0 { 1.0 } else { largest / 127.5 };
    for (code, x) in codes.iter_mut().zip(x) {
        let steps = (x.to_f32() / scale).clamp(-128.0, 127.0).round_ties_even() as i8;
        *code = steps.cast_unsigned();
    }
    scale
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::scheme::{Levels, PackedWeight, Scales};

    /// The weights of the vectors CT-6 and CT-7, run through compressed-tensors 0.20.
    const W: [f32; 16] = [
        0.10, -0.70, 0.35, 0.05, 1.50, -0.20, 0.75, -1.00, //
        -0.02, 0.01, 0.03, -0.04, 0.60, 0.50, -0.10, 0.20,
    ];

    /// Steps from the middle, and scales.
    fn quantised<T: Elem>(x: &[T], format: CodeFormat, group: usize) -> (Vec<f32>, Vec<f32>) {
        let mut codes = vec![0; x.len()];
        let scales = x
            .chunks(group)
            .zip(codes.chunks_mut(group))
            .map(|(x, q)| round_group(x, format, q).to_f32());
        let scales = scales.collect();
        let middle = format.value(format.middle());
        let steps = codes.iter().map(|&code| format.value(code) - middle);
        (steps.collect(), scales)
    }

    #[test]
    fn four_bit_codes_equal_those_of_compressed_tensors() {
        let expected = [
            1.0, -8.0, 4.0, 1.0, 7.0, -1.0, 4.0, -5.0, -4.0, 2.0, 6.0, -8.0, 7.0, 6.0, -1.0, 2.0,
        ];
        let (codes, scales) = quantised(&W, CodeFormat::U4, 4);
        assert_eq!(codes, expected);
        for (scale, truth) in
            scales
                .iter()
                .zip([0.093_333_334, 0.2, 0.005_333_333_3, 0.080_000_006])
        {
            assert!((scale - truth).abs() < 1e-8, "{scale} {truth}");
        }
        let (codes, scales) = quantised(&W.map(<bf16 as Elem>::from_f32), CodeFormat::U4, 4);
        assert_eq!(codes, expected);
        assert_eq!(
            scales,
            [0.093_261_72, 0.200_195_31, 0.005_340_576, 0.080_078_125]
        );
    }

    #[test]
    fn eight_bit_codes_equal_those_of_compressed_tensors() {
        let (codes, scales) = quantised(&W, CodeFormat::I8, 8);
        assert_eq!(
            codes,
            [
                8.0, -59.0, 30.0, 4.0, 127.0, -17.0, 64.0, -85.0, -4.0, 2.0, 6.0, -8.0, 127.0,
                106.0, -21.0, 42.0
            ]
        );
        assert_eq!(scales, [0.011_764_706, 0.004_705_882_6]);
    }

    #[test]
    fn activation_codes_equal_those_of_compressed_tensors() {
        let x = Buf::from_vec(vec![0.5, -1.0, 0.25, 3.0, 0.01, 0.02, -0.03, 0.04_f32]);
        let (mut codes, mut scales) = (
            Buf::from_vec(vec![0_u8; 8]),
            Buf::from_vec(vec![0.0_f32; 2]),
        );
        QuantizeAct {
            tokens: 2,
            width: 4,
        }
        .run(&Device::Cpu, &x, &mut codes, &mut scales)
        .unwrap();
        let codes: Vec<i8> = codes
            .host::<u8>()
            .unwrap()
            .iter()
            .map(|b| b.cast_signed())
            .collect();
        assert_eq!(codes, [21, -42, 11, 127, 32, 64, -96, 127]);
        assert_eq!(
            scales.host::<f32>().unwrap(),
            [0.023_529_412, 0.000_313_725_5]
        );
    }

    #[test]
    fn requantising_a_dequantised_weight_gives_the_same_codes() {
        let source: Vec<f32> = (0..64 * 128)
            .map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0)
            .collect();
        use CodeFormat::{I8, U4};
        for (format, group) in [(U4, 32), (U4, 128), (I8, 128), (I8, 32)] {
            let op = QuantizeRows {
                rows: 64,
                k: 128,
                format,
                group,
            };
            let shape = [64, 128];
            let mut weight =
                LinearWeight::packed(&Device::Cpu, shape, format, group, DType::F32).unwrap();
            op.run(&Device::Cpu, &Buf::from_vec(source.clone()), &mut weight, 0)
                .unwrap();
            let WeightData::Packed(bufs) = &weight.data else {
                unreachable!()
            };
            let packed = PackedWeight {
                n: 64,
                k: 128,
                format,
                group,
                scale_rows: 1,
                codes: bufs.codes.host::<u8>().unwrap().to_vec(),
                scales: Scales::F32(bufs.scales.host::<f32>().unwrap().to_vec()),
                levels: Levels::Symmetric,
                order: None,
            };
            packed.check().unwrap();
            for row in 0..64 {
                let codes = packed.row_codes(row);
                let middle = format.value(format.middle());
                let again: Vec<f32> = packed
                    .dequantise_row(row)
                    .iter()
                    .enumerate()
                    .map(|(j, w)| {
                        (w / packed.scales.get((row * 128 + j) / group)).round_ties_even() + middle
                    })
                    .collect();
                let named: Vec<f32> = codes.iter().map(|&code| format.value(code)).collect();
                assert_eq!(named, again);
                for (j, w) in packed.dequantise_row(row).iter().enumerate() {
                    let scale = packed.scales.get((row * 128 + j) / group);
                    let error = (w - source[row * 128 + j]).abs();
                    // Half a step, or a whole half-step more where the largest value is clamped to the last code.
                    assert!(error <= scale * 0.5001, "{error} {scale}");
                }
            }
        }
    }
}
