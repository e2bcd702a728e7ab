//! Plain traffic, for ceilings: reading a buffer, and copying one.

use rayon::prelude::*;

use super::device::{Buf, Device};
use super::sample::Argmax;
use super::simd::{LANES, Simd, Work, dispatch};
use super::{Cost, check_len};
use crate::error::{Error, Result};

/// Elements of one parallel task: a core's second-level cache many times over, yet many tasks a buffer.
const TASK: usize = 1 << 20;

/// Reads every element of an f32 buffer and makes one number of them, so that nothing can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadAll {
    /// Elements; a multiple of 2^20 on a GPU.
    pub count: usize,
}

impl ReadAll {
    /// Traffic.
    pub fn cost(&self) -> Cost {
        Cost {
            read: 4.0 * self.count as f64,
            ..Cost::default()
        }
    }

    /// Reads `x [count]`; something that depends on every element lands in `out` (u32, one per 2^20 elements).
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(&self, device: &Device, x: &Buf, out: &mut Buf) -> Result<()> {
        check_len("stream", x, self.count)?;
        check_len("stream result", out, self.count.div_ceil(TASK))?;
        match device {
            Device::Cpu => {
                let x = &x.host::<f32>()?[..self.count];
                let out = out.host_mut::<u32>()?.par_iter_mut();
                out.zip(x.par_chunks(TASK))
                    .for_each(|(out, x)| *out = dispatch(Sum { x }).to_bits());
                Ok(())
            }
            Device::Gpu(_) => Argmax {
                rows: self.count / TASK,
                vocab: TASK,
            }
            .run(device, x, out),
        }
    }
}

struct Sum<'a> {
    x: &'a [f32],
}

impl Work for Sum<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (blocks, rest) = self.x.as_chunks::<{ 4 * LANES }>();
        let mut sums = [s.splat(0.0); 4];
        for block in blocks {
            for (sum, x) in sums.iter_mut().zip(block.as_chunks::<LANES>().0) {
                *sum = s.add(*sum, s.load(x));
            }
        }
        let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
        s.sum(sum) + rest.iter().sum::<f32>()
    }
}

/// Copies an f32 buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyAll {
    /// Elements.
    pub count: usize,
}

impl CopyAll {
    /// Traffic, both directions.
    pub fn cost(&self) -> Cost {
        Cost {
            read: 4.0 * self.count as f64,
            written: 4.0 * self.count as f64,
            flops: 0.0,
        }
    }

    /// Copies `x [count]` to `out`.
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(&self, device: &Device, x: &Buf, out: &mut Buf) -> Result<()> {
        check_len("stream", x, self.count)?;
        if out.len() != self.count {
            return Err(Error::Internal(
                "a copy needs a buffer of its own size".into(),
            ));
        }
        match device {
            Device::Cpu => {
                let (x, out) = (&x.host::<f32>()?[..self.count], out.host_mut::<f32>()?);
                out.par_chunks_mut(TASK)
                    .zip(x.par_chunks(TASK))
                    .for_each(|(out, x)| out.copy_from_slice(x));
                Ok(())
            }
            Device::Gpu(gpu) => gpu.copy(x.gpu()?, out.gpu_mut()?),
        }
    }
}
