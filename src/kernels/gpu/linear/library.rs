//! Products by the device's library: on plain weights, on codes, and on weights dequantised piece by piece.

use super::geometry::{ROWS, STEP};
use super::storage::Storage;
use super::streamed::weight_args;
use super::{CheckedInput, Outcome, Product, SMALL_THREADS};
use crate::error::Result;
use crate::kernels::gpu::gemm::{Gemm, Numbers};
use crate::kernels::gpu::launch::{Address, WARP, launch};
use crate::kernels::gpu::workspace::Scratch;
use crate::scheme::DType;

/// A library is not asked for as few tokens as these.
pub(super) const FEWEST_TOKENS: usize = 8;
/// Bytes of exact sums at a time, about what the second-level cache of a large GPU holds, but for fewer tokens than fill
/// it.
const SUMS_BYTES: usize = 64 << 20;
const LEAST_AT_ONCE: usize = 512;
/// Tokens of the largest tiles that libraries use: pieces are whole ones.
const TILE: usize = 256;

/// Tokens whose exact sums of `n` rows are held at once.
pub(super) fn tokens_at_once(n: usize) -> usize {
    (SUMS_BYTES / (n * 4).max(1)).max(LEAST_AT_ONCE) / TILE * TILE
}

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
    let at_once = tokens_at_once(n).min(product.tokens);
    let sums = op.gpu.scratch(Scratch::Sums, at_once * n * 4)?;
    for first in (0..product.tokens).step_by(at_once) {
        let part = product.some_tokens(first, at_once.min(product.tokens - first));
        let exact = Gemm {
            tokens: part.tokens,
            x: part.input.x,
            numbers: Numbers::Codes,
            out: sums,
            row_stride: n,
            accumulate: false,
            ..gemm
        };
        // SAFETY: every array holds its shape, of which this is a part.
        unsafe { op.gpu.gemm(&exact) }?;
        part.scale_codes(sums, weight.scales())?;
    }
    Ok(())
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
        let warps = here * k.div_ceil(STEP);
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
    /// The part of a product of codes that `count` tokens from `first` on are in.
    fn some_tokens(&self, first: usize, count: usize) -> Self {
        let row = self.outcome.row_stride as usize * self.out_type.size();
        Self {
            tokens: count,
            input: CheckedInput {
                x: self.input.x.plus(first * self.weight.k),
                scales: self.input.scales.plus(first * size_of::<f32>()),
                ..self.input
            },
            outcome: Outcome {
                out: self.outcome.out.plus(first * row),
                ..self.outcome
            },
            ..*self
        }
    }

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
