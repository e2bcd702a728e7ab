//! Launches of `linear_any.cu` and `linear_any_w8a8.cu`: products of any shape and type.

use super::{Outcome, Product, unsupported};
use crate::error::Result;
use crate::kernels::BufType;
use crate::kernels::gpu::launch::{Address, Grid, KernelArg, WARP, elem_type, launch};
use crate::kernels::linear::{LevelBufs, PackedBufs, WeightData};
use crate::scheme::{BLOCK, CodeFormat, DType};

/// Tokens that one pass of the `few` kernels serves.
const FEW_TOKENS: usize = 8;

/// Threads of a block of the `few` kernels: one warp per output feature.
const FEW_THREADS: u32 = 128;

/// Tokens and features of a block of the `many` kernels.
const TILE: usize = 64;

/// Threads of a block of the `many` kernels.
const TILE_THREADS: u32 = 256;

/// The largest K whose sum of products of int8 codes fits an i32.
pub(super) const MAX_INT8_K: usize = 131_071;

/// `WeightArgs` of `common/weight.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct WeightArgs {
    data: Address,
    scales: Address,
    zeros: Address,
    offsets: Address,
    book: Address,
    scale_type: u32,
    offset_type: u32,
    group: u32,
    scale_rows: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for WeightArgs {}

/// `W8A8Args` of `linear_any_w8a8.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct W8A8Args {
    x: Address,
    x_scales: Address,
    w: Address,
    w_scales: Address,
    w_scale_type: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for W8A8Args {}

/// Runs a product that has been checked.
pub(super) fn run(product: &Product<'_>) -> Result<()> {
    let op = product.op;
    let (storage, weight) = weight_args(product)?;
    let few = product.tokens <= FEW_TOKENS;
    let (method, grid) = if few {
        ("few", few_grid(product)?)
    } else {
        ("many", many_grid(product)?)
    };
    let (tokens, n, k) = (
        op.dim("tokens", product.tokens)?,
        op.dim("n", product.weight.n)?,
        op.dim("k", product.weight.k)?,
    );
    let outcome: Outcome = product.outcome;
    let x = product.input.x;
    let Some(x_type) = product.input.dtype else {
        let args = W8A8Args {
            x,
            x_scales: product.input.scales,
            w: weight.data,
            w_scales: weight.scales,
            w_scale_type: weight.scale_type,
        };
        let name = format!("linear_any_w8a8_{method}");
        // SAFETY: the arguments of linear_any_w8a8.cu; every array holds its shape.
        return unsafe { launch!(op.gpu, &name, grid; args, outcome, tokens, n, k) };
    };
    let name = format!("linear_any_{method}_{storage}_{x_type}");
    // SAFETY: the arguments of linear_any.cu; every array holds its shape.
    unsafe { launch!(op.gpu, &name, grid; weight, x, outcome, tokens, n, k) }
}

/// The storage as kernel names have it, and the arguments, once the arrays are known to hold the weight.
fn weight_args(product: &Product<'_>) -> Result<(&'static str, WeightArgs)> {
    let (op, weight) = (product.op, product.weight);
    let (n, k) = (weight.n, weight.k);
    let refused = |why: &str| unsupported(weight, product.input.dtype, why);
    match &weight.data {
        WeightData::Plain(data) => {
            if product.input.dtype.is_none() {
                return Err(refused("its numbers are not quantised"));
            }
            let args = WeightArgs {
                data: op.reads("weight", data, data.kind(), &[n, k])?,
                scales: Address::NULL,
                zeros: Address::NULL,
                offsets: Address::NULL,
                book: Address::NULL,
                scale_type: 0,
                offset_type: 0,
                group: op.dim("k", k)?,
                scale_rows: 1,
            };
            Ok((data.dtype()?.name(), args))
        }
        WeightData::Packed(packed) => {
            if product.input.dtype.is_none() {
                check_codes(packed, k).map_err(|why| refused(&why))?;
            }
            let scales = [n.div_ceil(packed.scale_rows), k.div_ceil(packed.group)];
            if packed.format == CodeFormat::U4
                && packed.group < k
                && !packed.group.is_multiple_of(BLOCK)
            {
                return Err(refused("groups of nibbles come in multiples of 32 columns"));
            }
            let row = packed.format.row_bytes(k);
            let (mut zeros, mut offsets, mut book) = (Address::NULL, Address::NULL, Address::NULL);
            let mut offset_type = 0;
            match &packed.levels {
                LevelBufs::Symmetric => {}
                LevelBufs::Zeros(buf) => zeros = op.reads("zeros", buf, BufType::U8, &scales)?,
                LevelBufs::Offsets(buf) => {
                    offsets = op.reads("offsets", buf, buf.kind(), &scales)?;
                    offset_type = elem_type(buf.dtype()?);
                }
                LevelBufs::Codebook(buf) => {
                    book = op.reads("codebook", buf, BufType::Float(DType::F32), &[16])?;
                }
            }
            let args = WeightArgs {
                data: op.reads("codes", &packed.codes, BufType::U8, &[n, row])?,
                scales: op.reads("scales", &packed.scales, packed.scales.kind(), &scales)?,
                zeros,
                offsets,
                book,
                scale_type: elem_type(packed.scales.dtype()?),
                offset_type,
                group: op.dim("group", packed.group.min(k))?,
                scale_rows: op.dim("rows per scale", packed.scale_rows)?,
            };
            let storage = match packed.format {
                CodeFormat::I8 => "int8",
                CodeFormat::E4M3 => "e4m3",
                CodeFormat::U4 => "int4",
            };
            Ok((storage, args))
        }
        WeightData::Apart(_) => Err(op.bug("parts are multiplied one by one")),
        WeightData::Streamed(_) => Err(refused(
            "it was repacked for inputs of another 16-bit type, or to be multiplied with numbers, not codes",
        )),
    }
}

/// Refuses weights that codes cannot be multiplied with.
fn check_codes(packed: &PackedBufs, k: usize) -> std::result::Result<(), String> {
    let simple = packed.format == CodeFormat::I8
        && matches!(packed.levels, LevelBufs::Symmetric)
        && packed.group >= k
        && packed.scale_rows == 1;
    if !simple || k > MAX_INT8_K {
        return Err(format!(
            "codes are multiplied with symmetric int8 weights with one scale per row of at most {MAX_INT8_K} columns"
        ));
    }
    Ok(())
}

fn few_grid(product: &Product<'_>) -> Result<Grid> {
    let features_per_block = FEW_THREADS as usize / WARP;
    product.op.grid(
        product.weight.n.div_ceil(features_per_block),
        product.tokens.div_ceil(FEW_TOKENS),
        FEW_THREADS,
    )
}

fn many_grid(product: &Product<'_>) -> Result<Grid> {
    product.op.grid(
        product.weight.n.div_ceil(TILE),
        product.tokens.div_ceil(TILE),
        TILE_THREADS,
    )
}
