//! The end of a decode step.

use super::device::Gpu;
use super::launch::{Address, Op, launch};
use crate::error::Result;
use crate::kernels::BufType;
use crate::kernels::advance::{Advance, Feed};
use crate::kernels::device::Buf;
use crate::kernels::mailbox::Mailbox;

/// More rows than these share a thread.
const MAX_THREADS: usize = 256;

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
    let threads = rows
        .clamp(1, MAX_THREADS)
        .next_multiple_of(super::launch::WARP);
    let grid = op.grid(1, 1, op.dim("threads", threads)?)?;
    let picked = op.reads("picked", picked, BufType::U32, &[rows])?;
    let tokens = op.writes("tokens", feed.tokens, BufType::U32, 0, &[first + rows])?;
    let positions = op.writes(
        "positions",
        feed.positions,
        BufType::U32,
        0,
        &[first + rows],
    )?;
    let steps = op.writes("steps", feed.steps, BufType::U32, 0, &[1])?;
    let told = Address::at(gpu.mailbox_address(mailbox.gpu()?)?);
    let [first, rows, width, lines] = [
        op.dim("first", first)?,
        op.dim("rows", rows)?,
        op.dim("width", width)?,
        op.dim("lines", lines)?,
    ];
    let ends = u32::from(ends);
    // SAFETY: the arguments of advance.cu; every array holds its rows, and the mailbox as many lines of `width` words.
    unsafe {
        launch!(
            gpu, "advance", grid;
            picked, tokens, positions, steps, told, first, rows, width, lines, ends
        )
    }
}
