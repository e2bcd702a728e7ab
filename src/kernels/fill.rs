//! Weights out of nothing: seeded noise, generated where it is needed.

use rayon::prelude::*;

use super::device::{Buf, Device, with_dtype};
use super::{Cost, check_len};
use crate::error::Result;
use crate::scheme::{DType, Elem};

/// What a buffer is filled with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Filling {
    /// The same number everywhere.
    Constant(f32),
    /// Numbers from `[-amplitude, amplitude)`, each a function of the stream and its index alone (SplitMix64, Steele,
    /// Lea and Flood 2014), so that every device makes the same.
    Uniform {
        /// Which of the independent streams.
        stream: u64,
        /// Half the width of the range.
        amplitude: f32,
    },
}

/// Elements of one parallel task.
const TASK: usize = 1 << 16;

/// What a stream advances by from one element to the next: 2^64 over the golden ratio.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

impl Filling {
    /// The same from element `count` on.
    #[must_use]
    pub fn skip(self, count: u64) -> Self {
        match self {
            Self::Constant(_) => self,
            Self::Uniform { stream, amplitude } => Self::Uniform {
                stream: stream.wrapping_add(count.wrapping_mul(STEP)),
                amplitude,
            },
        }
    }

    /// Traffic of filling `count` elements of this type.
    pub fn cost(count: usize, dtype: DType) -> Cost {
        Cost {
            written: (count * dtype.size()) as f64,
            ..Cost::default()
        }
    }

    /// Fills elements `offset .. offset + count` of `out`; element `offset` gets number 0 of the stream.
    ///
    /// # Errors
    /// If the buffer is too short.
    pub fn run(&self, device: &Device, out: &mut Buf, offset: usize, count: usize) -> Result<()> {
        check_len("filled buffer", out, offset + count)?;
        match device {
            Device::Cpu => with_dtype!(out.dtype()?, T => {
                let out = &mut out.host_mut::<T>()?[offset..offset + count];
                out.par_chunks_mut(TASK).enumerate().for_each(|(task, out)| {
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = T::from_f32(self.element((task * TASK + i) as u64));
                    }
                });
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::fill(gpu, *self, out, offset, count),
        }
    }

    fn element(&self, index: u64) -> f32 {
        match *self {
            Self::Constant(x) => x,
            Self::Uniform { stream, amplitude } => {
                let mut z = stream.wrapping_add(index.wrapping_mul(STEP));
                z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
                z ^= z >> 31;
                let unit = (z >> 40) as f32 / (1 << 24) as f32;
                amplitude * (2.0 * unit - 1.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_flat_reproducible_and_different_per_stream() {
        let make = |stream| {
            let mut buf = Buf::from_vec(vec![0.0_f32; 200_000]);
            Filling::Uniform {
                stream,
                amplitude: 2.0,
            }
            .run(&Device::Cpu, &mut buf, 0, 200_000)
            .unwrap();
            buf.host::<f32>().unwrap().to_vec()
        };
        let a = make(1);
        assert_eq!(a, make(1));
        assert_ne!(a, make(2));
        let mut tail = Buf::from_vec(vec![0.0_f32; 1000]);
        let noise = Filling::Uniform {
            stream: 1,
            amplitude: 2.0,
        };
        noise
            .skip(199_000)
            .run(&Device::Cpu, &mut tail, 0, 1000)
            .unwrap();
        assert_eq!(tail.host::<f32>().unwrap(), &a[199_000..]);
        let mean = a.iter().map(|&x| f64::from(x)).sum::<f64>() / a.len() as f64;
        let square = a.iter().map(|&x| f64::from(x * x)).sum::<f64>() / a.len() as f64;
        assert!(
            mean.abs() < 0.01 && (square - 4.0 / 3.0).abs() < 0.01,
            "{mean} {square}"
        );
        assert!(a.iter().all(|x| (-2.0..2.0).contains(x)));
    }
}
