//! Plain traffic, for ceilings: reading a buffer, and copying one.

use rayon::prelude::*;

use super::device::{Buf, Device};
use super::sample::Argmax;
use super::simd::{LANES, Simd, Work, dispatch};
use super::{Cost, check_len};
use crate::error::{Error, Result};

/// Elements of one parallel task of a copy: a core's second-level cache many times over, yet many tasks a buffer.
const TASK: usize = 1 << 20;

/// Elements that one result of reading depends on.
const PART: usize = 1 << 14;

/// Reads every element of an f32 buffer and leaves what depends on each, so that nothing can be left out: the exclusive
/// or of all results is that of all elements' bits.
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

    /// How many results there are.
    pub fn results(&self) -> usize {
        self.count.div_ceil(PART)
    }

    /// Reads `x [count]` into `out [results]` (u32).
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(&self, device: &Device, x: &Buf, out: &mut Buf) -> Result<()> {
        check_len("stream", x, self.count)?;
        check_len("stream result", out, self.results())?;
        match device {
            Device::Cpu => {
                let x: &[u32] = bytemuck::cast_slice(&x.host::<f32>()?[..self.count]);
                let out = out.host_mut::<u32>()?.par_iter_mut();
                out.zip(x.par_chunks(PART))
                    .for_each(|(out, x)| *out = dispatch(Folded { x }));
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

/// The exclusive or of all elements.
struct Folded<'a> {
    x: &'a [u32],
}

impl Work for Folded<'_> {
    type Out = u32;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> u32 {
        let (blocks, rest) = self.x.as_chunks::<{ 4 * LANES }>();
        let mut lanes = [0; 4 * LANES];
        for block in blocks {
            for (lane, x) in lanes.iter_mut().zip(block) {
                *lane ^= x;
            }
        }
        lanes.iter().chain(rest).fold(0, |all, x| all ^ x)
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
