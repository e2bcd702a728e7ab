//! Products by the device's library: on plain weights, on codes, and on weights dequantised piece by piece.

use super::plan::ROWS;
use super::storage::Storage;
use super::streamed::weight_args;
use super::{Outcome, Product, SMALL_THREADS};
use crate::error::Result;
use crate::kernels::gpu::gemm::{Gemm, Numbers};
use crate::kernels::gpu::launch::{Address, WARP, launch};
use crate::kernels::gpu::workspace::Scratch;
use crate::scheme::DType;

/// Weights where they lie.
pub(super) fn run(product: &Product<'_>, storage: Storage) -> Result<()> {
    let op = product.op;
    let (n, k) = (product.weight.n, product.weight.k);
    let weight = weight_args(op, product.weight)?;
    let gemm = Gemm {
        tokens: product.tokens,
        n,
        k,
        x: product.input.x,
        weight: weight.data(),
        numbers: Numbers::Float(product.input.dtype.unwrap_or(DType::BF16), product.out_type),
        out: product.outcome.out,
        row_stride: product.outcome.row_stride as usize,
        accumulate: product.add_bias()?,
    };
    if storage != Storage::Codes {
        // SAFETY: every array holds its shape.
        return unsafe { op.gpu.gemm(&gemm) };
    }
    let sums = op.gpu.scratch(Scratch::Sums, product.tokens * n * 4)?;
    let exact = Gemm {
        numbers: Numbers::Codes,
        out: sums,
        row_stride: n,
        accumulate: false,
        ..gemm
    };
    // SAFETY: every array holds its shape.
    unsafe { op.gpu.gemm(&exact) }?;
    product.scale_codes(sums, weight.scales())
}

/// Weights as rows of the input's type, `tiles` tiles of 16 rows at a time.
pub(super) fn run_dequantized(product: &Product<'_>, storage: Storage, tiles: usize) -> Result<()> {
    let op = product.op;
    let (n, k) = (product.weight.n, product.weight.k);
    let x_type = product.input.dtype.unwrap_or(DType::BF16);
    let weight = weight_args(op, product.weight)?;
    let rows = op
        .gpu
        .scratch(Scratch::Dequantized, tiles * ROWS * k * x_type.size())?;
    let accumulate = product.add_bias()?;
    let all = n.div_ceil(ROWS);
    let name = format!("dequantize_{}", storage.name());
    for first in (0..all).step_by(tiles) {
        let here = tiles.min(all - first);
        let warps = here * k.div_ceil(super::plan::STEP);
        let grid = op.grid(
            warps.div_ceil(SMALL_THREADS as usize / WARP),
            1,
            SMALL_THREADS,
        )?;
        let (from, count) = (op.dim("tile", first)?, op.dim("tiles", here)?);
        // SAFETY: the arguments of dequantize.cu; the weight holds its shape, and the scratch memory that many tiles.
        unsafe { launch!(op.gpu, &name, grid; weight, rows, from, count) }?;
        let column = first * ROWS;
        let gemm = Gemm {
            tokens: product.tokens,
            n: (n - column).min(here * ROWS),
            k,
            x: product.input.x,
            weight: rows,
            numbers: Numbers::Float(x_type, product.out_type),
            out: product.outcome.out.plus(column * product.out_type.size()),
            row_stride: product.outcome.row_stride as usize,
            accumulate,
        };
        // SAFETY: x and out hold their shapes, of which this is a part; the rows have just been written.
        unsafe { op.gpu.gemm(&gemm) }?;
    }
    Ok(())
}

impl Product<'_> {
    /// A library adds to what is there but knows no bias along this dimension, so the bias goes there first. Whether there
    /// is something to add to.
    fn add_bias(&self) -> Result<bool> {
        let adds = self.outcome.accumulate != 0;
        if self.outcome.bias.is_null() || self.input.dtype.is_none() {
            return Ok(adds);
        }
        let op = self.op;
        let grid = op.grid(self.tokens, 1, SMALL_THREADS)?;
        let features = op.dim("n", self.weight.n)?;
        // SAFETY: the arguments of add_bias in linear_rest.cu; the arrays of the outcome hold the shape.
        unsafe { launch!(op.gpu, "add_bias", grid; self.outcome, features) }?;
        Ok(true)
    }

    /// Exact sums `[tokens, n]` become results.
    fn scale_codes(&self, sums: Address, (scales, scale_type): (Address, u32)) -> Result<()> {
        let op = self.op;
        let grid = op.grid(self.tokens, 1, SMALL_THREADS)?;
        let features = op.dim("n", self.weight.n)?;
        let outcome: Outcome = self.outcome;
        let x_scales = self.input.scales;
        // SAFETY: the arguments of scale_codes in linear_rest.cu; every array holds its shape.
        unsafe {
            launch!(op.gpu, "scale_codes", grid; sums, x_scales, scales, scale_type, outcome, features)
        }
    }
}
