//! Plain traffic, and launches of nothing.

use super::device::Gpu;
use super::launch::{Follows, Grid, Op, launch};
use crate::error::Result;
use crate::kernels::stream::ReadAll;
use crate::kernels::{Buf, BufType};
use crate::scheme::DType;

/// Threads of every block.
const THREADS: u32 = 256;

/// Blocks of a copy for each multiprocessor.
const COPY_BLOCKS: usize = 8;

/// The readers of `stream.cu`, with as many blocks as there are `results`.
pub(crate) fn read_all(
    gpu: &Gpu,
    shape: &ReadAll,
    x: &Buf,
    out: &mut Buf,
    results: usize,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "read_all",
    };
    let count = shape.count;
    let x = op.reads("x", x, BufType::Float(DType::F32), &[count])?;
    let out = op.writes("out", out, BufType::U32, 0, &[results])?;
    let grid = Grid {
        shared_bytes: op.dim("shared memory", shape.plan.shared_bytes())?,
        ..op.grid(results, 1, THREADS)?
    };
    let name = shape.plan.kernel();
    // SAFETY: the arguments of the readers in stream.cu; there are `count` words, and a result for every block.
    unsafe { launch!(gpu, &name, grid; x, count, out) }
}

/// `copy_words` of `stream.cu`.
pub(crate) fn copy_all(gpu: &Gpu, count: usize, x: &Buf, out: &mut Buf) -> Result<()> {
    let op = Op {
        gpu,
        name: "copy_all",
    };
    if count == 0 {
        return Ok(());
    }
    let kind = BufType::Float(DType::F32);
    let x = op.reads("x", x, kind, &[count])?;
    let out = op.writes("out", out, kind, 0, &[count])?;
    let blocks = count.div_ceil(4 * THREADS as usize);
    let most = COPY_BLOCKS * gpu.facts().multiprocessors;
    let grid = op.grid(blocks.min(most), 1, THREADS)?;
    // SAFETY: the arguments of copy_words in stream.cu; both arrays have `count` words.
    unsafe { launch!(gpu, "copy_words", grid; x, count, out) }
}

/// `nothing` of `stream.cu`, a block on every multiprocessor.
pub(crate) fn nothing(gpu: &Gpu, overlaps: bool) -> Result<()> {
    let op = Op {
        gpu,
        name: "nothing",
    };
    let grid = Grid {
        follows: if overlaps {
            Follows::Overlapping
        } else {
            Follows::Done
        },
        ..op.grid(gpu.facts().multiprocessors, 1, THREADS)?
    };
    let name = if overlaps {
        "nothing_overlapping"
    } else {
        "nothing"
    };
    let unused = 0_u32;
    // SAFETY: the argument of both kernels in stream.cu; they touch no memory.
    unsafe { launch!(gpu, name, grid; unused) }
}
