//! Ops that work row by row, one block each.

use super::device::Gpu;
use super::driver::Facts;
use super::launch::{Address, KernelArg, Op, launch};
use crate::error::Result;
use crate::kernels::embed::Gather;
use crate::kernels::norm::RmsNorm;
use crate::kernels::sample::{Argmax, LogProb};
use crate::kernels::silu_mul::{GateUp, SiluMul};
use crate::kernels::{Buf, BufType};
use crate::scheme::DType;

/// Threads for a row of activations; `NORM_THREADS` of `common/norm.cuh`.
pub(super) const ROW_THREADS: u32 = 256;

/// Threads for each of so many rows where it does not matter how many there are: all that a block can have where rows alone
/// do not fill the device.
pub(super) fn threads_for(rows: usize, facts: &Facts) -> u32 {
    if rows <= facts.multiprocessors {
        1024
    } else {
        ROW_THREADS
    }
}

/// Threads for a row as wide as a vocabulary.
const VOCABULARY_THREADS: u32 = 1024;

/// `GatherArgs` of `common/gather.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct GatherArgs {
    ids: Address,
    table: Address,
    out: Address,
    rows: u32,
    width: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for GatherArgs {}

/// `embed.cu`. An id outside the table gives a row of NaN.
pub(crate) fn gather(
    gpu: &Gpu,
    shape: &Gather,
    ids: &Buf,
    table: &Buf,
    out: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "gather",
    };
    let Gather { count, rows, width } = *shape;
    if count == 0 {
        return Ok(());
    }
    let name = format!("gather_{}_{}", table.dtype()?, out.dtype()?);
    let kinds = (table.dtype()?, out.dtype()?);
    let args = GatherArgs {
        ids: op.reads("ids", ids, BufType::U32, &[count])?,
        table: op.reads("table", table, table.kind(), &[rows, width])?,
        out: op.writes("out", out, out.kind(), 0, &[count, width])?,
        rows: op.dim("rows", rows)?,
        width: op.dim("width", width)?,
    };
    if gpu.gathers(|all| all.push_gather(args, count, kinds)) {
        return Ok(());
    }
    let grid = op.grid(count, 1, ROW_THREADS)?;
    // SAFETY: the argument of embed.cu; every array holds its shape, and the kernel checks each id.
    unsafe { launch!(gpu, &name, grid; args) }
}

/// `norm.cu`.
pub(crate) fn rms_norm(
    gpu: &Gpu,
    shape: &RmsNorm,
    x: &Buf,
    weight: &Buf,
    out: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "rms_norm",
    };
    let RmsNorm { rows, width, eps } = *shape;
    if rows == 0 {
        return Ok(());
    }
    let dtype = out.dtype()?;
    let kind = BufType::Float(dtype);
    let x = op.reads("x", x, kind, &[rows, width])?;
    let weight = op.reads("weight", weight, kind, &[width])?;
    let out = op.writes("out", out, kind, 0, &[rows, width])?;
    let width = op.dim("width", width)?;
    let grid = op.grid(rows, 1, ROW_THREADS)?;
    let name = format!("rms_norm_{dtype}");
    // SAFETY: the arguments of norm.cu; every array holds its shape.
    unsafe { launch!(gpu, &name, grid; x, weight, out, width, eps) }
}

/// `GateUp` of `common/silu.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct GateUpArgs {
    width: u32,
    in_eights: u32,
}

// SAFETY: the layout of the C++ struct `GateUp`: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for GateUpArgs {}

impl GateUpArgs {
    /// Refuses widths that are no multiples of what comes in turn.
    pub(super) fn new(op: Op<'_>, shape: &SiluMul) -> Result<Self> {
        let in_eights = shape.layout == GateUp::Eights;
        if in_eights && !shape.width.is_multiple_of(8) {
            return Err(op.bug(&format!("{} numbers are not so many eights", shape.width)));
        }
        Ok(Self {
            width: op.dim("width", shape.width)?,
            in_eights: u32::from(in_eights),
        })
    }
}

/// `silu_mul.cu`.
pub(crate) fn silu_mul(gpu: &Gpu, shape: &SiluMul, gate_up: &Buf, out: &mut Buf) -> Result<()> {
    let op = Op {
        gpu,
        name: "silu_mul",
    };
    let SiluMul { rows, width, .. } = *shape;
    if rows == 0 {
        return Ok(());
    }
    let dtype = out.dtype()?;
    let kind = BufType::Float(dtype);
    let gate_up = op.reads("gate_up", gate_up, kind, &[rows, 2, width])?;
    let out = op.writes("out", out, kind, 0, &[rows, width])?;
    let at = GateUpArgs::new(op, shape)?;
    let grid = op.grid(rows, 1, threads_for(rows, gpu.facts()))?;
    let name = format!("silu_mul_{dtype}");
    // SAFETY: the arguments of silu_mul.cu; every array holds its shape.
    unsafe { launch!(gpu, &name, grid; gate_up, out, at) }
}

/// `argmax` of `sample.cu`.
pub(crate) fn argmax(gpu: &Gpu, shape: &Argmax, logits: &Buf, out: &mut Buf) -> Result<()> {
    let op = Op {
        gpu,
        name: "argmax",
    };
    let Argmax { rows, vocab } = *shape;
    if rows == 0 {
        return Ok(());
    }
    let name = format!("argmax_{}", logits.dtype()?);
    let logits = op.reads("logits", logits, logits.kind(), &[rows, vocab])?;
    let out = op.writes("out", out, BufType::U32, 0, &[rows])?;
    let vocab = op.dim("vocab", vocab)?;
    let grid = op.grid(rows, 1, VOCABULARY_THREADS)?;
    // SAFETY: the arguments of argmax in sample.cu; every array holds its shape.
    unsafe { launch!(gpu, &name, grid; logits, out, vocab) }
}

/// `log_prob` of `sample.cu`. A target outside the vocabulary gives NaN.
pub(crate) fn log_prob(
    gpu: &Gpu,
    shape: &LogProb,
    logits: &Buf,
    targets: &Buf,
    out: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "log_prob",
    };
    let LogProb { rows, vocab } = *shape;
    if rows == 0 {
        return Ok(());
    }
    let name = format!("log_prob_{}", logits.dtype()?);
    let logits = op.reads("logits", logits, logits.kind(), &[rows, vocab])?;
    let targets = op.reads("targets", targets, BufType::U32, &[rows])?;
    let out = op.writes("out", out, BufType::Float(DType::F32), 0, &[rows])?;
    let vocab = op.dim("vocab", vocab)?;
    let grid = op.grid(rows, 1, VOCABULARY_THREADS)?;
    // SAFETY: the arguments of log_prob in sample.cu; every array holds its shape, and the kernel checks each target.
    unsafe { launch!(gpu, &name, grid; logits, targets, out, vocab) }
}
