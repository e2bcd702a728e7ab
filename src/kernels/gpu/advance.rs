//! The end of a decode step.

use super::device::Gpu;
use super::launch::{Address, KernelArg, Op, launch};
use crate::error::Result;
use crate::kernels::BufType;
use crate::kernels::advance::{Advance, Feed};
use crate::kernels::device::Buf;
use crate::kernels::mailbox::Mailbox;

/// More rows than these share a thread.
const MAX_THREADS: usize = 256;

/// `AdvanceArgs` of `common/advance.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AdvanceArgs {
    picked: Address,
    tokens: Address,
    positions: Address,
    steps: Address,
    told: Address,
    first: u32,
    rows: u32,
    width: u32,
    lines: u32,
    ends: u32,
    unused: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for AdvanceArgs {}

/// `advance.cu`.
pub(crate) fn advance(
    gpu: &Gpu,
    shape: &Advance,
    picked: &Buf,
    feed: Feed<'_>,
    mailbox: &Mailbox,
    lines: usize,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "advance",
    };
    let Advance {
        first,
        rows,
        width,
        ends,
    } = *shape;
    let args = AdvanceArgs {
        picked: op.reads("picked", picked, BufType::U32, &[rows])?,
        tokens: op.writes("tokens", feed.tokens, BufType::U32, 0, &[first + rows])?,
        positions: op.writes(
            "positions",
            feed.positions,
            BufType::U32,
            0,
            &[first + rows],
        )?,
        steps: op.writes("steps", feed.steps, BufType::U32, 0, &[1])?,
        told: Address::at(gpu.mailbox_address(mailbox.gpu()?)?),
        first: op.dim("first", first)?,
        rows: op.dim("rows", rows)?,
        width: op.dim("width", width)?,
        lines: op.dim("lines", lines)?,
        ends: u32::from(ends),
        unused: 0,
    };
    if gpu.gathers(|all| all.push_advance(args)) {
        return Ok(());
    }
    let threads = rows
        .clamp(1, MAX_THREADS)
        .next_multiple_of(super::launch::WARP);
    let grid = op.grid(1, 1, op.dim("threads", threads)?)?;
    // SAFETY: the argument of advance.cu; every array holds its rows, and the mailbox as many lines of `width` words.
    unsafe { launch!(gpu, "advance", grid; args) }
}
