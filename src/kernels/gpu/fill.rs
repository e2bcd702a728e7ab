//! Buffers filled with made-up values.

use super::device::Gpu;
use super::driver::Facts;
use super::launch::{Grid, Op, launch};
use super::workspace::Scratch;
use crate::error::Result;
use crate::kernels::Buf;
use crate::kernels::fill::Filling;
use crate::kernels::stream::ReadPlan;

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

/// How [`evict_cache`] reads.
const EVICTION: ReadPlan = ReadPlan::PLENTY;

/// Bytes that [`evict_cache`] reads: twice what the second-level cache holds, for it need not forget the oldest first.
fn evicting_bytes(facts: &Facts) -> usize {
    facts.cache_bytes.max(1 << 20) * 2
}

fn eviction_blocks(facts: &Facts) -> usize {
    EVICTION.blocks * facts.multiprocessors.max(1)
}

/// Bytes that [`evict_cache`] needs: what it reads, and a result of each block.
pub(super) fn eviction_bytes(facts: &Facts) -> usize {
    evicting_bytes(facts) + eviction_blocks(facts) * size_of::<u32>()
}

/// Reads so much that nothing else is left in the second-level cache. Not by writing: what has been written there goes to
/// memory when something else needs the place, so the launch that is timed next would have to share the memory with as many
/// bytes as it reads. In a step, too, it is mostly weights, only read, that a launch finds in the cache.
pub(super) fn evict_cache(gpu: &Gpu) -> Result<()> {
    let op = Op { gpu, name: "evict" };
    let facts = gpu.facts();
    let bytes = evicting_bytes(facts);
    let count = bytes / size_of::<u32>();
    let x = gpu.scratch(Scratch::Eviction, eviction_bytes(facts))?;
    let out = x.plus(bytes);
    let grid = Grid {
        shared_bytes: op.dim("shared memory", EVICTION.shared_bytes())?,
        ..op.grid(eviction_blocks(facts), 1, THREADS)?
    };
    // SAFETY: the arguments of the readers in stream.cu; there are `count` words, and behind them a result for every block.
    unsafe { launch!(gpu, &EVICTION.kernel(), grid; x, count, out) }
}
