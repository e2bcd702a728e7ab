//! Buffers filled with made-up values.

use super::device::Gpu;
use super::driver::Facts;
use super::launch::{Op, launch};
use super::workspace::Scratch;
use crate::error::Result;
use crate::kernels::Buf;
use crate::kernels::fill::Filling;

const THREADS: u32 = 256;

/// Blocks that fill any GPU; the kernels stride over the rest.
const MAX_BLOCKS: usize = 4096;

/// `fill.cu`: elements `offset .. offset + count` of `out`.
pub(crate) fn fill(
    gpu: &Gpu,
    filling: Filling,
    out: &mut Buf,
    offset: usize,
    count: usize,
) -> Result<()> {
    let op = Op { gpu, name: "fill" };
    if count == 0 {
        return Ok(());
    }
    let dtype = out.dtype()?;
    let out = op.writes("out", out, out.kind(), offset, &[count])?;
    let grid = op.grid(count.div_ceil(THREADS as usize).min(MAX_BLOCKS), 1, THREADS)?;
    match filling {
        Filling::Constant(value) => {
            let name = format!("fill_constant_{dtype}");
            // SAFETY: the arguments of fill_constant in fill.cu; there are `count` elements.
            unsafe { launch!(gpu, &name, grid; out, count, value) }
        }
        Filling::Uniform { stream, amplitude } => {
            let name = format!("fill_uniform_{dtype}");
            // SAFETY: the arguments of fill_uniform in fill.cu; there are `count` elements.
            unsafe { launch!(gpu, &name, grid; out, count, stream, amplitude) }
        }
    }
}

/// Bytes that [`evict_cache`] writes.
pub(super) fn eviction_bytes(facts: &Facts) -> usize {
    facts.cache_bytes.max(1 << 20) * 2
}

/// Writes so much that nothing else is left in the second-level cache.
pub(super) fn evict_cache(gpu: &Gpu) -> Result<()> {
    let op = Op { gpu, name: "evict" };
    let bytes = eviction_bytes(gpu.facts());
    let count = bytes / size_of::<f32>();
    let out = gpu.scratch(Scratch::Eviction, bytes)?;
    let grid = op.grid(count.div_ceil(THREADS as usize).min(MAX_BLOCKS), 1, THREADS)?;
    let value = 0.0_f32;
    // SAFETY: the arguments of fill_constant in fill.cu; there are `count` elements.
    unsafe { launch!(gpu, "fill_constant_f32", grid; out, count, value) }
}
