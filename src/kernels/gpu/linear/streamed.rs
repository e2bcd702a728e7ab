//! Launches of `linear_few.cu`, `linear_tile.cu` and `linear_wgmma.cu`.

use super::geometry::{ROWS, STEP, THREADS, WARPS};
use super::plan::{LinearKernel, Problem};
use super::storage::StreamedBufs;
use super::{Outcome, Product};
use crate::error::Result;
use crate::kernels::gpu::driver::Grid;
use crate::kernels::gpu::launch::{Address, KernelArg, Op, elem_type, launch};
use crate::kernels::gpu::step::StepProduct;
use crate::kernels::gpu::workspace::Scratch;
use crate::kernels::linear::{LinearWeight, WeightData};
use crate::kernels::{Buf, BufType};
use crate::scheme::DType;

/// `StreamedWeight` of `common/stream.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct StreamedWeight {
    data: Address,
    scales: Address,
    zeros: Address,
    n: u32,
    k: u32,
    row_bytes: u32,
    groups: u32,
    group_log: u32,
    scale_type: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for StreamedWeight {}

impl StreamedWeight {
    /// Where the numbers lie.
    pub(super) const fn data(&self) -> Address {
        self.data
    }

    /// Where the scales lie, and their type.
    pub(super) const fn scales(&self) -> (Address, u32) {
        (self.scales, self.scale_type)
    }
}

/// `ProductArgs` of `common/product.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::kernels::gpu) struct ProductArgs {
    pub(super) weight: StreamedWeight,
    pub(super) x: Address,
    pub(super) x_scales: Address,
    pub(super) outcome: Outcome,
    pub(in crate::kernels::gpu) partial: Address,
    pub(in crate::kernels::gpu) arrived: Address,
    pub(super) tokens: u32,
    pub(super) splits: u32,
    pub(super) steps_per_split: u32,
    pub(super) unused: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for ProductArgs {}

/// Runs `kernel`, which is one of the three.
pub(super) fn run(product: &Product<'_>, problem: &Problem, kernel: LinearKernel) -> Result<()> {
    let op = product.op;
    let facts = op.gpu.facts();
    let Some((family, size)) = kernel.compiled() else {
        return Err(op.bug(&format!("'{kernel}' does not stream weights")));
    };
    if matches!(kernel, LinearKernel::Wgmma { .. }) && !facts.has_wgmma() {
        let (major, minor) = facts.compute_capability;
        return Err(op.bug(&format!(
            "'{kernel}' is for compute capability 9.0, and {} has {major}.{minor}",
            facts.name
        )));
    }
    let is_few = matches!(kernel, LinearKernel::Few { .. });
    let splits = kernel.splits();
    let blocks = if is_few {
        let items = problem.groups(size.tiles) * splits;
        let at_once = kernel.blocks_per_multiprocessor(problem.storage, facts);
        let most = (facts.multiprocessors * at_once).max(1);
        [items.min(most), 1]
    } else {
        let groups = problem.groups(size.tiles * WARPS);
        [groups * splits, problem.tokens.div_ceil(size.tokens)]
    };
    let mut args = ProductArgs {
        weight: weight_args(op, product.weight)?,
        x: product.input.x,
        x_scales: product.input.scales,
        outcome: product.outcome,
        partial: Address::NULL,
        arrived: Address::NULL,
        tokens: op.dim("tokens", product.tokens)?,
        splits: op.dim("splits", splits)?,
        steps_per_split: op.dim("steps", problem.k.div_ceil(STEP).div_ceil(splits))?,
        unused: 0,
    };
    let of_step = StepProduct {
        problem: *problem,
        splits,
        picks: false,
    };
    if is_few && op.gpu.gathers(|all| all.push_product(args, of_step)) {
        return Ok(());
    }
    if splits > 1 {
        let (sums, counters) = kernel.workspace(problem);
        args.partial = op.gpu.scratch(Scratch::Partial, sums * 4)?;
        args.arrived = op.gpu.scratch(Scratch::Counters, counters * 4)?;
    }
    let grid = Grid {
        shared_bytes: op.dim("shared memory", kernel.shared_bytes(problem.storage))?,
        ..op.grid(blocks[0], blocks[1], THREADS)?
    };
    let name = family.kernel_name(&problem.storage.name(), size);
    // SAFETY: the argument of all three .cu files; every array holds its shape, and the workspace what `workspace` says.
    unsafe { launch!(op.gpu, &name, grid; args) }
}

/// The weight as kernels take it, once its arrays are known to hold it.
pub(super) fn weight_args(op: Op<'_>, weight: &LinearWeight) -> Result<StreamedWeight> {
    let (n, k) = (weight.n, weight.k);
    let tiles = n.div_ceil(ROWS);
    match &weight.data {
        WeightData::Plain(data) => Ok(StreamedWeight {
            data: op.reads("weight", data, data.kind(), &[tiles * ROWS, k])?,
            scales: Address::NULL,
            zeros: Address::NULL,
            n: op.dim("n", n)?,
            k: op.dim("k", k)?,
            row_bytes: op.dim("row", k * data.dtype()?.size())?,
            groups: 1,
            group_log: 31,
            scale_type: elem_type(DType::F32),
        }),
        WeightData::Streamed(bufs) => packed_args(op, bufs, [n, k]),
        WeightData::Packed(_) | WeightData::Apart(_) => {
            Err(op.bug("weights that were not repacked cannot be streamed"))
        }
    }
}

fn packed_args(op: Op<'_>, bufs: &StreamedBufs, [n, k]: [usize; 2]) -> Result<StreamedWeight> {
    let tiles = n.div_ceil(ROWS);
    let groups = k.div_ceil(bufs.group);
    let per_row = groups == 1;
    let row_bytes = bufs.row_bytes(k);
    let scales = |what: &str, buf: &Buf, kind: BufType| {
        // One scale a row is not repacked, so there are no more of them than rows.
        let count = if per_row { n } else { tiles * ROWS * groups };
        op.reads(what, buf, kind, &[count])
    };
    Ok(StreamedWeight {
        data: op.reads(
            "codes",
            &bufs.codes,
            BufType::U8,
            &[tiles * ROWS, row_bytes],
        )?,
        scales: scales("scales", &bufs.scales, bufs.scales.kind())?,
        zeros: match &bufs.zeros {
            Some(zeros) => scales("zeros", zeros, BufType::U8)?,
            None => Address::NULL,
        },
        n: op.dim("n", n)?,
        k: op.dim("k", k)?,
        row_bytes: op.dim("row", row_bytes)?,
        groups: op.dim("groups", groups)?,
        group_log: if per_row { 31 } else { bufs.group.ilog2() },
        scale_type: elem_type(bufs.scales.dtype()?),
    })
}
