//! Rounding to nearest on the GPU: weights per group, activations per token, also right after what computes them.

use super::device::Gpu;
use super::launch::{Address, Op, WARP, launch};
use super::rows::{GateUpArgs, ROW_THREADS, threads_for};
use crate::error::Result;
use crate::kernels::norm::RmsNorm;
use crate::kernels::quantize::{QuantizeAct, QuantizeRows};
use crate::kernels::silu_mul::SiluMul;
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
    let (codes, scales) = codes_and_scales(op, codes, scales, [tokens, width])?;
    let width = op.dim("width", width)?;
    let grid = op.grid(tokens, 1, threads_for(tokens, gpu.facts()))?;
    // SAFETY: the arguments of quantize_act in quantize.cu; every array holds its shape.
    unsafe { launch!(gpu, &name, grid; x, codes, scales, width) }
}

/// `rms_norm_quantize` of `quantize.cu`: `x [rows, width]` with the norm's weight `[width]`.
pub(crate) fn rms_norm_to_codes(
    gpu: &Gpu,
    shape: &RmsNorm,
    [x, weight]: [&Buf; 2],
    codes: &mut Buf,
    scales: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "rms_norm_quantize",
    };
    let RmsNorm { rows, width, eps } = *shape;
    if rows == 0 {
        return Ok(());
    }
    let name = format!("rms_norm_quantize_{}", x.dtype()?);
    let kind = x.kind();
    let x = op.reads("x", x, kind, &[rows, width])?;
    let weight = op.reads("weight", weight, kind, &[width])?;
    let (codes, scales) = codes_and_scales(op, codes, scales, [rows, width])?;
    let width = op.dim("width", width)?;
    let grid = op.grid(rows, 1, ROW_THREADS)?;
    // SAFETY: the arguments of rms_norm_quantize in quantize.cu; every array holds its shape.
    unsafe { launch!(gpu, &name, grid; x, weight, codes, scales, width, eps) }
}

/// `silu_mul_quantize` of `quantize.cu`.
pub(crate) fn silu_mul_to_codes(
    gpu: &Gpu,
    shape: &SiluMul,
    gate_up: &Buf,
    codes: &mut Buf,
    scales: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "silu_mul_quantize",
    };
    let SiluMul { rows, width, .. } = *shape;
    if rows == 0 {
        return Ok(());
    }
    let name = format!("silu_mul_quantize_{}", gate_up.dtype()?);
    let gate_up = op.reads("gate_up", gate_up, gate_up.kind(), &[rows, 2, width])?;
    let (codes, scales) = codes_and_scales(op, codes, scales, [rows, width])?;
    let at = GateUpArgs::new(op, shape)?;
    let grid = op.grid(rows, 1, threads_for(rows, gpu.facts()))?;
    // SAFETY: the arguments of silu_mul_quantize in quantize.cu; every array holds its shape.
    unsafe { launch!(gpu, &name, grid; gate_up, codes, scales, at) }
}

/// Where codes `[rows, width]` and their scales `[rows]` go.
fn codes_and_scales(
    op: Op<'_>,
    codes: &mut Buf,
    scales: &mut Buf,
    [rows, width]: [usize; 2],
) -> Result<(Address, Address)> {
    Ok((
        op.writes("codes", codes, BufType::U8, 0, &[rows, width])?,
        op.writes("scales", scales, BufType::Float(DType::F32), 0, &[rows])?,
    ))
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
