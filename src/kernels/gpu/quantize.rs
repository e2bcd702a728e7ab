//! Rounding to nearest on the GPU: weights per group, activations per token.

use super::device::Gpu;
use super::launch::{Op, WARP, launch};
use crate::error::Result;
use crate::kernels::quantize::{QuantizeAct, QuantizeRows};
use crate::kernels::{Buf, BufType};
use crate::scheme::{BLOCK, CodeFormat, DType};

const THREADS: u32 = 256;

/// `quantize_int8` and `quantize_int4` of `quantize.cu`: `source [rows, k]` into rows `first ..` of codes and scales.
pub(crate) fn quantize_rows(
    gpu: &Gpu,
    shape: &QuantizeRows,
    source: &Buf,
    codes: &mut Buf,
    scales: &mut Buf,
    first: usize,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "quantize_rows",
    };
    let QuantizeRows {
        rows,
        k,
        format,
        group,
    } = *shape;
    check_group(op, format, k, group)?;
    let groups_per_row = k / group;
    let groups = rows * groups_per_row;
    if groups == 0 {
        return Ok(());
    }
    let dtype = source.dtype()?;
    let kind = BufType::Float(dtype);
    let source = op.reads("source", source, kind, &[rows, k])?;
    let row_bytes = format.row_bytes(k);
    let codes = op.writes(
        "codes",
        codes,
        BufType::U8,
        first * row_bytes,
        &[rows, row_bytes],
    )?;
    let scales = op.writes(
        "scales",
        scales,
        kind,
        first * groups_per_row,
        &[rows, groups_per_row],
    )?;
    let group = op.dim("group", group)?;
    let grid = op.grid(groups.div_ceil(THREADS as usize / WARP), 1, THREADS)?;
    let name = match format {
        CodeFormat::I8 => format!("quantize_int8_{dtype}"),
        CodeFormat::U4 => format!("quantize_int4_{dtype}"),
        CodeFormat::E4M3 => return Err(op.bug("nothing is rounded to e4m3")),
    };
    // SAFETY: the arguments of quantize_int8 and quantize_int4 in quantize.cu; every array holds its shape, and the groups
    // tile the rows.
    unsafe { launch!(gpu, &name, grid; source, codes, scales, groups, group) }
}

/// `quantize_act` of `quantize.cu`.
pub(crate) fn quantize_act(
    gpu: &Gpu,
    shape: &QuantizeAct,
    x: &Buf,
    codes: &mut Buf,
    scales: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "quantize_act",
    };
    let QuantizeAct { tokens, width } = *shape;
    if tokens == 0 {
        return Ok(());
    }
    let name = format!("quantize_act_{}", x.dtype()?);
    let x = op.reads("x", x, x.kind(), &[tokens, width])?;
    let codes = op.writes("codes", codes, BufType::U8, 0, &[tokens, width])?;
    let scales = op.writes("scales", scales, BufType::Float(DType::F32), 0, &[tokens])?;
    let width = op.dim("width", width)?;
    let grid = op.grid(tokens, 1, THREADS)?;
    // SAFETY: the arguments of quantize_act in quantize.cu; every array holds its shape.
    unsafe { launch!(gpu, &name, grid; x, codes, scales, width) }
}

/// Checks that groups of this size tile rows of `k` in a way that the kernels can follow.
fn check_group(op: Op<'_>, format: CodeFormat, k: usize, group: usize) -> Result<()> {
    let whole_blocks = format != CodeFormat::U4 || group.is_multiple_of(BLOCK);
    if group == 0 || !k.is_multiple_of(group) || !whole_blocks {
        return Err(op.bug(&format!(
            "groups of {group} do not tile rows of {k} {} codes",
            format.name()
        )));
    }
    Ok(())
}
