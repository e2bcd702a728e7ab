//! Plain traffic, for ceilings: reading a buffer, copying one, and launching nothing.

use std::fmt;

use rayon::prelude::*;

use super::device::{Buf, Device};
use super::parallel::least;
use super::simd::{LANES, Simd, Work, dispatch};
use super::{Cost, check_len};
use crate::error::{Error, Result};

/// Elements of one parallel task of a copy: a core's second-level cache many times over, yet many tasks a buffer.
const TASK: usize = 1 << 20;

/// Elements that one result of reading depends on at least: two loads of every thread of a block.
const PART: usize = 1 << 11;

/// Threads of a block of the readers.
const THREADS: usize = 256;

/// How a GPU reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPlan {
    /// Whether the loads go to shared memory asynchronously instead of to registers.
    pub staged: bool,
    /// Loads of 16 bytes that each thread has in flight.
    pub loads: usize,
    /// Blocks of 256 threads for each multiprocessor; no more than fit on it at once.
    pub blocks: usize,
}

impl ReadPlan {
    /// What is tried for ceilings, from few bytes in flight to many.
    pub const ALL: [Self; 8] = {
        const fn plan(staged: bool, loads: usize, blocks: usize) -> ReadPlan {
            ReadPlan {
                staged,
                loads,
                blocks,
            }
        }
        [
            plan(false, 1, 2),
            plan(false, 2, 2),
            plan(false, 4, 2),
            plan(false, 8, 2),
            plan(false, 4, 6),
            plan(false, 8, 4),
            plan(true, 4, 4),
            plan(true, 8, 4),
        ]
    };

    /// What is known to be enough on every GPU that the kernels are compiled for.
    pub const PLENTY: Self = Self::ALL[4];

    /// Nearly as many bytes in flight by fewer blocks, which start and end sooner: for little to read.
    pub const FEW_BLOCKS: Self = Self::ALL[3];

    /// Bytes in flight on each multiprocessor.
    pub const fn in_flight(self) -> usize {
        self.loads * 16 * THREADS * self.blocks
    }

    /// The kernel's name.
    pub(super) fn kernel(self) -> String {
        let way = if self.staged { "staged" } else { "direct" };
        format!("read_{way}_{}", self.loads)
    }

    /// Dynamic shared memory of a block.
    pub(super) const fn shared_bytes(self) -> usize {
        if self.staged {
            self.loads * 16 * THREADS
        } else {
            0
        }
    }
}

impl fmt::Display for ReadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.staged {
            "asynchronous copies"
        } else {
            "loads"
        };
        let kib = self.in_flight() >> 10;
        write!(f, "{kib} KiB of {way} in flight per multiprocessor")
    }
}

/// Reads every element of an f32 buffer and leaves what depends on each, so that nothing can be left out: the exclusive
/// or of all results is that of all elements' bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadAll {
    /// Elements.
    pub count: usize,
    /// How a GPU does it.
    pub plan: ReadPlan,
}

impl ReadAll {
    /// As a GPU does it best.
    pub fn new(count: usize) -> Self {
        Self {
            count,
            plan: ReadPlan::PLENTY,
        }
    }

    /// Traffic.
    pub fn cost(&self) -> Cost {
        Cost {
            read: 4.0 * self.count as f64,
            ..Cost::default()
        }
    }

    /// How many results there are on `device`.
    pub fn results(&self, device: &Device) -> usize {
        let parts = self.count.div_ceil(PART).max(1);
        match device {
            Device::Cpu => parts,
            Device::Gpu(gpu) => parts.min(self.plan.blocks * gpu.facts().multiprocessors),
        }
    }

    /// Reads `x [count]` into `out [results]` (u32).
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(&self, device: &Device, x: &Buf, out: &mut Buf) -> Result<()> {
        check_len("stream", x, self.count)?;
        check_len("stream result", out, self.results(device))?;
        match device {
            Device::Cpu => {
                let x: &[u32] = bytemuck::cast_slice(&x.host::<f32>()?[..self.count]);
                let out = &mut out.host_mut::<u32>()?[..self.results(device)];
                out.fill(0);
                out.par_iter_mut()
                    .zip(x.par_chunks(PART))
                    .with_min_len(least(PART))
                    .for_each(|(out, x)| *out = dispatch(Folded { x }));
                Ok(())
            }
            Device::Gpu(gpu) => super::gpu::read_all(gpu, self, x, out, self.results(device)),
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
            Device::Gpu(gpu) => super::gpu::copy_all(gpu, self.count, x, out),
        }
    }
}

/// A launch of a kernel that does nothing, for what a launch alone takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nothing {
    /// Whether the grid may start while the one before it still runs (programmatic dependent launch).
    pub overlaps: bool,
}

impl Nothing {
    /// Launches it: one block on every multiprocessor. On the CPU there is nothing to launch.
    ///
    /// # Errors
    /// If the device fails.
    pub fn run(&self, device: &Device) -> Result<()> {
        match device {
            Device::Cpu => Ok(()),
            Device::Gpu(gpu) => super::gpu::nothing(gpu, self.overlaps),
        }
    }
}
