//! From the canonical form of a packed weight to what the kernels stream: once, when a weight is loaded.

use super::geometry::{ROWS, STEP};
use super::storage::{Form, Storage, StreamedBufs};
use super::{SMALL_THREADS, any::MAX_INT8_K};
use crate::error::{Error, Result};
use crate::kernels::gpu::device::Gpu;
use crate::kernels::gpu::launch::{Address, Op, launch};
use crate::kernels::linear::{LevelBufs, LinearWeight, PackedBufs, WeightData};
use crate::kernels::silu_mul::GateUp;
use crate::kernels::{Buf, BufType, Device};
use crate::scheme::{CodeFormat, DType};

/// Rows that a weight of `n` has room for on a GPU, so that kernels need not look where the last tile ends.
pub(crate) const fn rows_held(n: usize) -> usize {
    n.next_multiple_of(ROWS)
}

/// `weight` for products with inputs of type `act`: repacked where a streaming kernel takes it, else as it is.
///
/// # Errors
/// If no kernel of any kind takes it, naming what is supported; or if memory is short.
pub(crate) fn streamed(
    device: &Device,
    gpu: &Gpu,
    weight: LinearWeight,
    act: DType,
) -> Result<LinearWeight> {
    let LinearWeight { n, k, data } = weight;
    let data = match data {
        WeightData::Packed(packed) if act != DType::F32 => {
            let op = Op {
                gpu,
                name: "repack",
            };
            match plan(&packed, k, act) {
                Target::Tiles { scales } => {
                    WeightData::Streamed(tiles(op, device, packed, [n, k], scales)?)
                }
                Target::Rows => WeightData::Streamed(rows(op, device, packed, [n, k])?),
                Target::AsItIs => WeightData::Packed(packed),
                Target::No(why) => {
                    return Err(Error::Config(format!(
                        "no GPU kernel for a weight [{n}, {k}] with {why}; supported are u4 codes with scales per row or \
                         per group of a multiple of 32 columns, symmetric, with zero points, offsets or a codebook, and i8 \
                         and e4m3 codes with scales per row, tensor, or group of any number of columns"
                    )));
                }
            }
        }
        WeightData::Apart(parts) => {
            let parts = parts
                .into_iter()
                .map(|part| streamed(device, gpu, part, act));
            WeightData::Apart(parts.collect::<Result<_>>()?)
        }
        data => data,
    };
    Ok(LinearWeight { n, k, data })
}

/// The rows of `weight`, which is `[gate; up]`, and of the bias beside it, eight of each in turn, so that both are in one
/// tile; as they are where they are not so many eights.
///
/// # Errors
/// If memory is short.
pub(crate) fn paired(
    device: &Device,
    gpu: &Gpu,
    weight: LinearWeight,
    bias: Option<Buf>,
) -> Result<(LinearWeight, Option<Buf>, GateUp)> {
    let op = Op { gpu, name: "pair" };
    let LinearWeight { n, k, data } = weight;
    if !n.is_multiple_of(ROWS) || matches!(data, WeightData::Apart(_)) {
        return Ok((LinearWeight { n, k, data }, bias, GateUp::Halves));
    }
    let rows = |buf: &Buf, length, shared| paired_rows(op, device, buf, [n, length], shared);
    let data = match data {
        WeightData::Streamed(_) | WeightData::Apart(_) => {
            return Err(op.bug("rows come before tiles, and of one matrix"));
        }
        WeightData::Plain(data) => WeightData::Plain(rows(&data, k, 1)?),
        WeightData::Packed(packed) => {
            let (groups, shared) = (k.div_ceil(packed.group), packed.scale_rows);
            WeightData::Packed(PackedBufs {
                scale_rows: 1,
                codes: rows(&packed.codes, packed.format.row_bytes(k), 1)?,
                scales: rows(&packed.scales, groups, shared)?,
                levels: match packed.levels {
                    LevelBufs::Zeros(zeros) => LevelBufs::Zeros(rows(&zeros, groups, shared)?),
                    LevelBufs::Offsets(offsets) => {
                        LevelBufs::Offsets(rows(&offsets, groups, shared)?)
                    }
                    same @ (LevelBufs::Symmetric | LevelBufs::Codebook(_)) => same,
                },
                ..packed
            })
        }
    };
    let bias = bias.map(|bias| rows(&bias, 1, 1)).transpose()?;
    Ok((LinearWeight { n, k, data }, bias, GateUp::Eights))
}

/// The rows of `[n / shared, length]`, each for `shared` rows of the weight, as one for each row, paired.
fn paired_rows(
    op: Op<'_>,
    device: &Device,
    buf: &Buf,
    [n, length]: [usize; 2],
    shared: usize,
) -> Result<Buf> {
    let kind = buf.kind();
    let mut out = device.alloc(kind, n * length)?;
    let bytes = length * kind.size();
    let unit = if bytes.is_multiple_of(4) { 4 } else { 1 };
    let count = n * (bytes / unit);
    let from = op.reads("rows", buf, kind, &[n.div_ceil(shared), length])?;
    let to = op.writes("pairs", &mut out, kind, 0, &[n, length])?;
    let grid = op.grid(count.div_ceil(SMALL_THREADS as usize), 1, SMALL_THREADS)?;
    let (half, units) = (op.dim("half", n / 2)?, op.dim("units", bytes / unit)?);
    // More than all rows is as good as all of them.
    let shared = op.dim("rows per scale", shared.min(n))?;
    let name = format!("pair_rows_{unit}");
    // SAFETY: the arguments of pair_rows in repack.cu; both arrays hold their shapes.
    unsafe { launch!(op.gpu, &name, grid; from, to, half, units, shared) }?;
    Ok(out)
}

/// What becomes of a packed weight.
enum Target {
    /// Nibbles in the order of fragments, with scales of this type.
    Tiles { scales: DType },
    /// Codes in rows, as they are.
    Rows,
    /// Left to the kernels for any shape.
    AsItIs,
    /// Nothing multiplies with it.
    No(String),
}

fn plan(packed: &PackedBufs, k: usize, act: DType) -> Target {
    let per_row = packed.group >= k;
    let group = packed.group;
    match &packed.levels {
        LevelBufs::Offsets(_) | LevelBufs::Codebook(_) => return Target::AsItIs,
        LevelBufs::Zeros(_) if packed.format != CodeFormat::U4 => return Target::AsItIs,
        LevelBufs::Symmetric | LevelBufs::Zeros(_) => {}
    }
    if packed.format == CodeFormat::U4 {
        if !(per_row || group.is_power_of_two() && group >= 32) {
            return if group.is_multiple_of(32) {
                Target::AsItIs
            } else {
                Target::No(format!("groups of {group} columns"))
            };
        }
        let held = packed.scales.dtype().unwrap_or(DType::F32);
        // A type that the kernel for these inputs knows without losing a bit.
        let scales = if held == act { act } else { DType::F32 };
        return Target::Tiles { scales };
    }
    if k.is_multiple_of(16) && (per_row || (group.is_power_of_two() && group >= STEP)) {
        Target::Rows
    } else {
        Target::AsItIs
    }
}

/// Nibbles into tiles.
fn tiles(
    op: Op<'_>,
    device: &Device,
    packed: PackedBufs,
    [n, k]: [usize; 2],
    scale_type: DType,
) -> Result<StreamedBufs> {
    let tile_count = n.div_ceil(ROWS);
    let words = tile_count * k.div_ceil(STEP) * ROWS * STEP / 8;
    let mut codes = device.alloc(BufType::U8, words * 4)?;
    let from = op.reads("codes", &packed.codes, BufType::U8, &[n, k / 2])?;
    let to = op.writes("tiles", &mut codes, BufType::U8, 0, &[words, 4])?;
    let grid = op.grid(words.div_ceil(SMALL_THREADS as usize), 1, SMALL_THREADS)?;
    let (rows, columns) = (op.dim("n", n)?, op.dim("k", k)?);
    // SAFETY: the arguments of repack_int4 in repack.cu; both arrays hold their shapes.
    unsafe { launch!(op.gpu, "repack_int4", grid; from, to, rows, columns) }?;
    let scales = repacked_scales(op, device, &packed, [n, k], scale_type)?;
    let zeros = match &packed.levels {
        LevelBufs::Zeros(zeros) => {
            let groups = k.div_ceil(packed.group);
            let source = op.reads(
                "zeros",
                zeros,
                BufType::U8,
                &[n.div_ceil(packed.scale_rows), groups],
            )?;
            let count = tile_count * ROWS * groups;
            let mut out = device.alloc(BufType::U8, count)?;
            let target = op.writes("zeros", &mut out, BufType::U8, 0, &[count])?;
            launch_groups(op, "repack_zeros", [source, target], &packed, [n, k])?;
            Some(out)
        }
        _ => None,
    };
    Ok(StreamedBufs {
        form: Form::Int4,
        codes,
        scales,
        zeros,
        group: packed.group.min(k),
        order: packed.order,
    })
}

/// Codes in rows, with scales in tiles unless there is one a row.
fn rows(
    op: Op<'_>,
    device: &Device,
    packed: PackedBufs,
    [n, k]: [usize; 2],
) -> Result<StreamedBufs> {
    let per_row = packed.group >= k && packed.scale_rows == 1;
    let scales = if per_row {
        None
    } else {
        Some(repacked_scales(op, device, &packed, [n, k], DType::F32)?)
    };
    let held = rows_held(n) * k;
    let codes = if packed.codes.len() >= held {
        packed.codes
    } else {
        let mut codes = device.alloc(BufType::U8, held)?;
        op.gpu.copy(packed.codes.gpu()?, codes.gpu_mut()?)?;
        codes
    };
    Ok(StreamedBufs {
        form: match packed.format {
            CodeFormat::E4M3 => Form::E4m3,
            _ => Form::Int8,
        },
        codes,
        scales: scales.unwrap_or(packed.scales),
        zeros: None,
        group: packed.group.min(k),
        order: packed.order,
    })
}

/// Scales `[n / 16, groups, 16]` of another type.
fn repacked_scales(
    op: Op<'_>,
    device: &Device,
    packed: &PackedBufs,
    [n, k]: [usize; 2],
    to: DType,
) -> Result<Buf> {
    let from = packed.scales.dtype()?;
    let groups = k.div_ceil(packed.group);
    let shape = [n.div_ceil(packed.scale_rows), groups];
    let source = op.reads("scales", &packed.scales, packed.scales.kind(), &shape)?;
    let count = rows_held(n) * groups;
    let mut scales = device.alloc(BufType::Float(to), count)?;
    let target = op.writes("scales", &mut scales, BufType::Float(to), 0, &[count])?;
    let name = format!("repack_scales_{from}_{to}");
    launch_groups(op, &name, [source, target], packed, [n, k])?;
    Ok(scales)
}

/// A kernel of `repack.cu` that gives a number per row and group.
fn launch_groups(
    op: Op<'_>,
    name: &str,
    [source, target]: [Address; 2],
    packed: &PackedBufs,
    [n, k]: [usize; 2],
) -> Result<()> {
    let groups = k.div_ceil(packed.group);
    let count = rows_held(n) * groups;
    let grid = op.grid(count.div_ceil(SMALL_THREADS as usize), 1, SMALL_THREADS)?;
    let (n, groups) = (op.dim("n", n)?, op.dim("groups", groups)?);
    let scale_rows = op.dim("rows per scale", packed.scale_rows)?;
    // SAFETY: the arguments of repack_scales and repack_zeros in repack.cu; both arrays hold their shapes.
    unsafe { launch!(op.gpu, name, grid; source, target, n, groups, scale_rows) }
}

impl StreamedBufs {
    /// Bytes from one row of codes to the next, on average where they are in tiles.
    pub(super) fn row_bytes(&self, k: usize) -> usize {
        match self.form {
            Form::Int8 | Form::E4m3 => k,
            Form::Int4 => k.next_multiple_of(STEP) / 2,
        }
    }

    /// The storage for codes as inputs; `None` where they cannot be multiplied.
    pub(super) fn storage_for_codes(&self, k: usize) -> Option<Storage> {
        let fits = self.form == Form::Int8 && self.group >= k && k <= MAX_INT8_K;
        fits.then_some(Storage::Codes)
    }
}
