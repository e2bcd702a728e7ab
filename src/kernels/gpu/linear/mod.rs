//! Products with a weight matrix: streaming kernels for weights in their forms, the device's library where tokens are many,
//! and plain kernels for everything else.

mod any;
mod choose;
mod fused;
mod geometry;
mod kept;
mod library;
mod need;
mod plan;
mod repack;
mod storage;
mod streamed;

use super::device::Gpu;
use super::launch::{Address, KernelArg, Op, elem_type, launch};
use super::workspace::Scratch;
use crate::error::{Error, Result};
use crate::kernels::linear::{Input, Linear, LinearWeight, WeightData};
use crate::kernels::{Buf, BufType};
use crate::scheme::DType;
pub(super) use choose::Choices;
use choose::Spare;
pub(super) use fused::{FusedArgs, name_of, norm_bytes, prepared_bytes};
pub(crate) use fused::{fused_linear, fused_tokens};
use geometry::Family;
pub(super) use geometry::{Size, THREADS, WARPS, partial_sums, sums_bytes};
pub(super) use need::{add_need, unwanted_bytes};
pub use plan::LinearKernel;
pub(super) use plan::Problem;
pub(crate) use repack::{paired, rows_held, streamed};
pub(crate) use storage::Storage;
pub use storage::StreamedBufs;
pub(super) use streamed::ProductArgs;

/// Threads of a block of the small kernels beside the products.
const SMALL_THREADS: u32 = 256;

/// `Outcome` of `common/outcome.cuh`: where results go, and what is added on the way.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Outcome {
    out: Address,
    bias: Address,
    out_type: u32,
    row_stride: u32,
    first_column: u32,
    accumulate: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for Outcome {}

/// The input of a product, its buffers checked.
#[derive(Clone, Copy)]
struct CheckedInput {
    x: Address,
    /// Null unless `x` are codes.
    scales: Address,
    /// `None` for codes.
    dtype: Option<DType>,
}

/// A product whose buffers have been checked.
struct Product<'a> {
    op: Op<'a>,
    weight: &'a LinearWeight,
    tokens: usize,
    input: CheckedInput,
    outcome: Outcome,
    out_type: DType,
}

/// `out = input weightᵀ (+ bias) (+ out)` by the kernel that is chosen for its shape. Every sum is f32, or exact for codes,
/// and rounded once; but a library finds a bias in `out`, where it lies rounded with what was there, and dequantised
/// weights have been rounded to the input's type.
pub(crate) fn linear(
    gpu: &Gpu,
    shape: &Linear,
    input: Input<'_>,
    weight: &LinearWeight,
    bias: Option<&Buf>,
    out: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "linear",
    };
    let tokens = shape.tokens;
    let (n, k) = (weight.n, weight.k);
    if tokens == 0 || n == 0 {
        return Ok(());
    }
    let out_type = out.dtype()?;
    let kind = BufType::Float(out_type);
    let outcome = Outcome {
        out: op.writes("out", out, kind, 0, &[tokens, n])?,
        bias: bias.map_or(Ok(Address::NULL), |bias| op.reads("bias", bias, kind, &[n]))?,
        out_type: elem_type(out_type),
        row_stride: op.dim("n", n)?,
        first_column: 0,
        accumulate: u32::from(shape.accumulate),
    };
    let input = checked(op, input, tokens, k)?;
    let WeightData::Apart(parts) = &weight.data else {
        return one(op, weight, tokens, input, outcome, out_type);
    };
    let mut first = 0;
    for part in parts {
        let skipped = first * out_type.size();
        let outcome = Outcome {
            out: outcome.out.plus(skipped),
            bias: if outcome.bias.is_null() {
                outcome.bias
            } else {
                outcome.bias.plus(skipped)
            },
            ..outcome
        };
        one(op, part, tokens, input, outcome, out_type)?;
        first += part.n;
    }
    Ok(())
}

/// A product with one matrix, whose results are some columns of `outcome`.
fn one(
    op: Op<'_>,
    weight: &LinearWeight,
    tokens: usize,
    input: CheckedInput,
    outcome: Outcome,
    out_type: DType,
) -> Result<()> {
    let gpu = op.gpu;
    if weight.n == 0 {
        return Ok(());
    }
    let product = Product {
        op,
        weight,
        tokens,
        input: ordered(op, weight, tokens, input)?,
        outcome,
        out_type,
    };
    let Some(problem) = product.problem() else {
        return any::run(&product);
    };
    // A statement of its own: in the `match` below, the lock would be held while the choice is made, which takes it again.
    let chosen = gpu.choices().of(&problem);
    let kernel = match chosen {
        Some(kernel) => kernel,
        None => {
            let spare = match outcome.accumulate {
                0 => Spare::InPlace,
                _ => Spare::Elsewhere,
            };
            choose::choose(&product, &problem, spare)?
        }
    };
    product.run(&problem, kernel)
}

/// The kernels that may compute this product, the one that is taken first; empty where there is no choice.
pub(crate) fn linear_kernels(
    gpu: &Gpu,
    shape: &Linear,
    input: Option<DType>,
    weight: &LinearWeight,
) -> Vec<LinearKernel> {
    let Some(storage) = storage_of(weight, input) else {
        return vec![LinearKernel::Any];
    };
    let problem = Problem {
        storage,
        n: weight.n,
        k: weight.k,
        tokens: shape.tokens,
    };
    let mut kernels = problem.candidates(gpu.facts());
    if let Some(chosen) = gpu.choices().of(&problem) {
        kernels.retain(|&kernel| kernel != chosen);
        kernels.insert(0, chosen);
    }
    kernels
}

impl Product<'_> {
    /// As the streaming kernels see it; `None` where they cannot.
    fn problem(&self) -> Option<Problem> {
        Some(Problem {
            storage: storage_of(self.weight, self.input.dtype)?,
            n: self.weight.n,
            k: self.weight.k,
            tokens: self.tokens,
        })
    }

    fn run(&self, problem: &Problem, kernel: LinearKernel) -> Result<()> {
        match kernel {
            LinearKernel::Few { .. } | LinearKernel::Tile { .. } | LinearKernel::Wgmma { .. } => {
                streamed::run(self, problem, kernel)
            }
            LinearKernel::Library => library::run(self, problem.storage),
            LinearKernel::Dequantized { tiles } => {
                library::run_dequantized(self, problem.storage, tiles)
            }
            LinearKernel::Any => any::run(self),
        }
    }
}

/// What the streaming kernels call the pair of this weight and inputs of this type (`None`: codes); `None` where they have
/// no kernel for it.
fn storage_of(weight: &LinearWeight, x: Option<DType>) -> Option<Storage> {
    let k = weight.k;
    match (&weight.data, x) {
        (WeightData::Plain(data), Some(x)) => {
            let held = rows_held(weight.n) * k;
            let fits = x != DType::F32
                && data.dtype().ok() == Some(x)
                && k.is_multiple_of(8)
                && data.len() >= held;
            fits.then_some(Storage::Plain(x))
        }
        (WeightData::Streamed(bufs), Some(x)) => bufs.storage(k, x),
        (WeightData::Streamed(bufs), None) => bufs.storage_for_codes(k),
        _ => None,
    }
}

fn checked(op: Op<'_>, input: Input<'_>, tokens: usize, k: usize) -> Result<CheckedInput> {
    Ok(match input {
        Input::Float(x) => CheckedInput {
            x: op.reads("x", x, x.kind(), &[tokens, k])?,
            scales: Address::NULL,
            dtype: Some(x.dtype()?),
        },
        Input::Int8 { codes, scales } => CheckedInput {
            x: op.reads("codes", codes, BufType::U8, &[tokens, k])?,
            scales: op.reads("scales", scales, BufType::Float(DType::F32), &[tokens])?,
            dtype: None,
        },
    })
}

/// The input with its columns where the weight's are.
fn ordered(
    op: Op<'_>,
    weight: &LinearWeight,
    tokens: usize,
    input: CheckedInput,
) -> Result<CheckedInput> {
    let order = match &weight.data {
        WeightData::Plain(_) | WeightData::Apart(_) => None,
        WeightData::Packed(packed) => packed.order.as_ref(),
        WeightData::Streamed(bufs) => bufs.order.as_ref(),
    };
    let Some(order) = order else {
        return Ok(input);
    };
    let k = weight.k;
    let bytes = input.dtype.map_or(1, DType::size);
    let order = op.reads("order", order, BufType::U32, &[k])?;
    let x = op.gpu.scratch(Scratch::Ordered, tokens * k * bytes)?;
    let count = tokens * k;
    let width = op.dim("k", k)?;
    let grid = op.grid(count.div_ceil(SMALL_THREADS as usize), 1, SMALL_THREADS)?;
    let name = format!("permute_columns_{bytes}");
    // SAFETY: the arguments of permute_columns in embed.cu; every array holds its shape.
    unsafe { launch!(op.gpu, &name, grid; input.x, order, x, count, width) }?;
    Ok(CheckedInput { x, ..input })
}

/// A weight that no kernel can multiply with inputs of this type.
fn unsupported(weight: &LinearWeight, x: Option<DType>, why: &str) -> Error {
    let x = x.map_or("int8", DType::name);
    Error::Config(format!(
        "no GPU kernel for a weight [{}, {}] with {x} inputs: {why}",
        weight.n, weight.k
    ))
}

/// The names of the streaming kernels, and of those that dequantise.
pub(super) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for storage in Storage::all() {
        let name = storage.name();
        let plain = matches!(storage, Storage::Plain(_));
        if !plain && storage != Storage::Codes {
            names.push(format!("dequantize_{name}"));
        }
        for family in [
            Family::Few,
            Family::Tile,
            Family::Wgmma,
            Family::WgmmaInTurns,
        ] {
            let sizes = family.sizes(storage).iter();
            names.extend(sizes.map(|&size| family.kernel_name(&name, size)));
        }
    }
    names.extend(fused::names());
    names
}
