//! Launches of `linear_fused.cu`, and when they are worth it.

use super::choose::{self, Spare};
use super::geometry::{Family, MOST_FUSED, STEP, Size, THREADS, partial_sums};
use super::plan::{LinearKernel, Problem};
use super::storage::Storage;
use super::streamed::{ProductArgs, weight_args};
use super::{CheckedInput, Outcome, Product, storage_of};
use crate::error::Result;
use crate::kernels::gpu::device::Gpu;
use crate::kernels::gpu::driver::{Facts, Grid};
use crate::kernels::gpu::launch::{Address, KernelArg, Op, elem_type, launch};
use crate::kernels::gpu::step::StepProduct;
use crate::kernels::gpu::workspace::Scratch;
use crate::kernels::linear::{FusedLinear, LinearWeight, Normed, Then, WeightData};
use crate::kernels::{Buf, BufType};
use crate::scheme::DType;

/// Bytes of a step of a token.
const STEP_BYTES: usize = STEP * 2;

/// `FusedArgs` of `common/fused.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::kernels::gpu) struct FusedArgs {
    pub(in crate::kernels::gpu) product: ProductArgs,
    norm: Address,
    rows: Address,
    x_rows: u32,
    eps: f32,
    then: u32,
    unused: u32,
    pub(in crate::kernels::gpu) best_values: Address,
    pub(in crate::kernels::gpu) best_rows: Address,
    pub(in crate::kernels::gpu) arrived: Address,
    picked: Address,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for FusedArgs {}

/// For how many tokens there is a fused kernel, and for how many it should be faster than separate ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FusedTokens {
    /// As many as fit.
    pub(crate) most: usize,
    /// As many as should be faster.
    pub(crate) worth: usize,
}

/// Products of a weight with inputs of type `act` that are normed, or become `codes`, in the same launch, on a GPU with
/// these facts.
pub(crate) fn fused_tokens(
    facts: &Facts,
    weight: &LinearWeight,
    act: DType,
    codes: bool,
) -> FusedTokens {
    let ordered = match &weight.data {
        WeightData::Plain(_) => false,
        // Products of their own.
        WeightData::Apart(_) => return FusedTokens { most: 0, worth: 0 },
        WeightData::Packed(packed) => packed.order.is_some(),
        WeightData::Streamed(bufs) => bufs.order.is_some(),
    };
    match storage_of(weight, (!codes).then_some(act)) {
        Some(storage) if !ordered && act != DType::F32 => of_shape(facts, storage, weight.k),
        _ => FusedTokens { most: 0, worth: 0 },
    }
}

/// The same of any weight with `k` columns in this storage.
///
/// A launch of its own costs about two microseconds where launches follow each other in a graph. Instead every block reads
/// all tokens from the second-level cache and norms them, at about the rates of an H100.
fn of_shape(facts: &Facts, storage: Storage, k: usize) -> FusedTokens {
    const LAUNCH: f64 = 2.0e-6;
    const CACHE: f64 = 5.5e12;
    const NUMBERS: f64 = 128.0 * 1.7e9 / 10.0; // of a multiprocessor in a second
    let fits = |&tokens: &usize| {
        let kernels = FusedKernel::all(storage, tokens, 1);
        let fits = |kernel: FusedKernel| facts.has_room_for(kernel.shared_bytes(storage, k));
        kernels.into_iter().any(fits)
    };
    let most = (1..=MOST_FUSED).take_while(fits).last().unwrap_or(0);
    let read = facts.multiprocessors as f64 * (k * 2) as f64 / CACHE;
    let each = read + k as f64 / NUMBERS;
    // One token is always worth it: what is read and computed for it would be there in the other kernel too.
    let worth = ((LAUNCH / each) as usize).clamp(1, MOST_FUSED).min(most);
    FusedTokens { most, worth }
}

/// Shared memory for `tokens` rows of `k` numbers that are normed or become codes: `bytes` of `NormedTokens` and
/// `CodedTokens`.
pub(in crate::kernels::gpu) fn prepared_bytes(storage: Storage, tokens: usize, k: usize) -> usize {
    let steps = k.div_ceil(STEP);
    match storage {
        Storage::Codes => steps * (tokens * STEP + STEP_BYTES) + tokens * 4,
        _ => tokens * steps * STEP_BYTES,
    }
}

/// Shared memory for the weight of a norm of `k` numbers.
pub(in crate::kernels::gpu) fn norm_bytes(k: usize) -> usize {
    k.div_ceil(STEP) * STEP_BYTES
}

impl Gpu {
    /// Whether engines that are made from now on fuse launches, which is how a GPU begins, or launch op by op.
    pub fn set_fused(&self, enabled: bool) {
        self.choices().unfused = !enabled;
    }

    /// Whether engines fuse launches.
    pub fn fuses(&self) -> bool {
        !self.choices().unfused
    }
}

/// Tokens that the kernel for so many is made for: columns of matrix instructions.
const fn columns(tokens: usize) -> usize {
    if tokens == 1 { 1 } else { MOST_FUSED }
}

/// One way to launch `linear_fused.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FusedKernel {
    /// Tiles of 16 rows that a block has in hand.
    pub(super) tiles: usize,
    /// Tokens that there are.
    tokens: usize,
    /// Parts of the columns.
    splits: usize,
}

impl FusedKernel {
    /// Every kernel that is compiled for so many tokens.
    fn all(storage: Storage, tokens: usize, splits: usize) -> Vec<Self> {
        let with = |size: &Size| Self {
            tiles: size.tiles,
            tokens,
            splits,
        };
        let sizes = Family::Fused.sizes(storage).iter();
        sizes
            .filter(|size| size.tokens == columns(tokens))
            .map(with)
            .collect()
    }

    /// What it is compiled as.
    const fn size(self) -> Size {
        Size {
            tiles: self.tiles,
            tokens: columns(self.tokens),
        }
    }

    /// Dynamic shared memory of a block, with the weight of the norm and what `NormedTokens` or `CodedTokens` takes.
    fn shared_bytes(self, storage: Storage, k: usize) -> usize {
        Family::Fused.shared_bytes(self.size(), storage)
            + norm_bytes(k)
            + prepared_bytes(storage, self.tokens, k)
    }

    /// How many of its blocks a multiprocessor runs at a time.
    fn blocks_per_multiprocessor(self, storage: Storage, k: usize, facts: &Facts) -> usize {
        let room = facts.blocks_by_shared_memory(self.shared_bytes(storage, k));
        room.clamp(1, 2)
    }

    /// The one for a product: columns in as many parts as the product by itself is summed in, for the same bits.
    pub(super) fn choose(problem: &Problem, alone: LinearKernel, facts: &Facts) -> Option<Self> {
        let splits = match alone {
            LinearKernel::Few { splits, .. } => splits,
            _ => 1,
        };
        let fits =
            |kernel: &Self| facts.has_room_for(kernel.shared_bytes(problem.storage, problem.k));
        let time = |kernel: &Self| {
            let like = LinearKernel::Few {
                tiles: kernel.tiles,
                tokens: columns(kernel.tokens),
                splits,
            };
            problem.predicted(like, facts)
        };
        let all = Self::all(problem.storage, problem.tokens, splits).into_iter();
        all.filter(fits).min_by(|a, b| time(a).total_cmp(&time(b)))
    }

    /// Blocks of its launch: no more than run at a time, each taking piece after piece.
    pub(super) fn blocks(self, problem: &Problem, facts: &Facts) -> usize {
        let groups = problem.groups(self.tiles);
        let each = self.blocks_per_multiprocessor(problem.storage, problem.k, facts);
        (groups * self.splits).min((facts.multiprocessors * each).max(1))
    }

    /// f32 numbers that parts of sums take, where columns are in parts.
    fn sums(self, groups: usize) -> usize {
        partial_sums(groups, self.splits, columns(self.tokens), self.tiles)
    }

    /// Numbers of four bytes for parts of sums and for the best of each of `picking` blocks, and counters of both.
    pub(super) fn workspace(self, groups: usize, picking: usize) -> (usize, usize) {
        (self.sums(groups) + 2 * picking * self.tokens, groups + 1)
    }
}

/// `out` as `shape` says, from the norm of `input`.
pub(crate) fn fused_linear(
    gpu: &Gpu,
    shape: &FusedLinear,
    input: Normed<'_>,
    weight: &LinearWeight,
    bias: Option<&Buf>,
    out: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "fused_linear",
    };
    let FusedLinear {
        tokens,
        codes,
        then,
        accumulate,
    } = *shape;
    let (n, k) = (weight.n, weight.k);
    if tokens == 0 || n == 0 {
        return Ok(());
    }
    let act = input.x.dtype()?;
    let facts = gpu.facts();
    let most = fused_tokens(facts, weight, act, codes).most;
    let storage = storage_of(weight, (!codes).then_some(act)).filter(|_| tokens <= most);
    let Some(storage) = storage else {
        return Err(op.bug(&format!(
            "no kernel for {tokens} tokens of {act} with a weight [{n}, {k}], for {most} at most"
        )));
    };
    let problem = Problem {
        storage,
        n,
        k,
        tokens,
    };
    let kind = BufType::Float(act);
    let x_rows = match input.rows {
        None => tokens,
        Some(_) => input.x.len() / k,
    };
    let x = op.reads("x", input.x, kind, &[x_rows, k])?;
    let mut results = Results::new(op, shape, weight, bias, out)?;
    results.outcome.accumulate = u32::from(accumulate);
    let alone = Product {
        op,
        weight,
        tokens,
        // Where x becomes codes, there are none yet. What a product of codes takes does not depend on them, and x is longer
        // than they and their scales.
        input: CheckedInput {
            x,
            scales: if codes { x } else { Address::NULL },
            dtype: (!codes).then_some(act),
        },
        outcome: Outcome {
            row_stride: op.dim("n", n)?,
            ..results.outcome
        },
        out_type: results.out_type,
    };
    let chosen = gpu.choices().of(&problem);
    let chosen = match chosen {
        Some(kernel) => kernel,
        // Its trials read as many rows of x as there are tokens.
        None if x_rows >= tokens => choose::choose(&alone, &problem, Spare::Elsewhere)?,
        None => problem.candidates(facts)[0],
    };
    let kernel = FusedKernel::choose(&problem, chosen, facts)
        .ok_or_else(|| op.bug(&format!("no kernel fits the shared memory for K = {k}")))?;
    let args = ProductArgs {
        weight: weight_args(op, weight)?,
        x,
        x_scales: Address::NULL,
        outcome: results.outcome,
        partial: Address::NULL,
        arrived: Address::NULL,
        tokens: op.dim("tokens", tokens)?,
        splits: op.dim("splits", kernel.splits)?,
        steps_per_split: op.dim("steps", k.div_ceil(STEP).div_ceil(kernel.splits))?,
        unused: 0,
    };
    let groups = problem.groups(kernel.tiles);
    let blocks = kernel.blocks(&problem, facts);
    let mut job = FusedArgs {
        product: args,
        norm: input
            .weight
            .map_or(Ok(Address::NULL), |norm| op.reads("norm", norm, kind, &[k]))?,
        rows: match input.rows {
            None => Address::NULL,
            Some(rows) => op.reads("rows", rows, BufType::U32, &[tokens])?,
        },
        x_rows: op.dim("rows of x", x_rows)?,
        eps: input.eps,
        then: then as u32,
        unused: 0,
        best_values: Address::NULL,
        best_rows: Address::NULL,
        arrived: Address::NULL,
        picked: results.picked,
    };
    let of_step = StepProduct {
        problem,
        splits: kernel.splits,
        picks: then == Then::Pick,
    };
    if gpu.gathers(|all| all.push_normed(job, of_step)) {
        return Ok(());
    }
    job.workspace(
        op,
        kernel,
        groups,
        if then == Then::Pick { blocks } else { 0 },
    )?;
    let grid = Grid {
        shared_bytes: op.dim("shared memory", kernel.shared_bytes(storage, k))?,
        ..op.grid(blocks, 1, THREADS)?
    };
    let name = Family::Fused.kernel_name(&name_of(storage, act), kernel.size());
    // SAFETY: the argument of linear_fused.cu; every array holds its shape, and the kernel checks the numbers of rows.
    unsafe { launch!(gpu, &name, grid; job) }
}

impl FusedArgs {
    /// Room for parts of sums, where columns are in parts, and for the best of each of `picking` blocks; counters of both.
    fn workspace(
        &mut self,
        op: Op<'_>,
        kernel: FusedKernel,
        groups: usize,
        picking: usize,
    ) -> Result<()> {
        let (sums, bests) = (kernel.sums(groups), picking * kernel.tokens);
        if sums + bests == 0 {
            return Ok(());
        }
        let (numbers, counters) = kernel.workspace(groups, picking);
        let partial = op.gpu.scratch(Scratch::Partial, numbers * 4)?;
        let counters = op.gpu.scratch(Scratch::Counters, counters * 4)?;
        if kernel.splits > 1 {
            (self.product.partial, self.product.arrived) = (partial, counters);
        }
        if picking > 0 {
            self.best_values = partial.plus(sums * 4);
            self.best_rows = partial.plus((sums + bests) * 4);
            self.arrived = counters.plus(groups * 4);
        }
        Ok(())
    }
}

/// Where results go.
struct Results {
    outcome: Outcome,
    out_type: DType,
    picked: Address,
}

impl Results {
    fn new(
        op: Op<'_>,
        shape: &FusedLinear,
        weight: &LinearWeight,
        bias: Option<&Buf>,
        out: &mut Buf,
    ) -> Result<Self> {
        let (tokens, n) = (shape.tokens, weight.n);
        let out_type = match shape.then {
            Then::Pick => DType::F32,
            Then::Store | Then::Gate => out.dtype()?,
        };
        let kind = BufType::Float(out_type);
        let width = if shape.then == Then::Gate { n / 2 } else { n };
        let (out, picked) = match shape.then {
            Then::Pick => (
                Address::NULL,
                op.writes("out", out, BufType::U32, 0, &[tokens])?,
            ),
            Then::Store | Then::Gate => (
                op.writes("out", out, kind, 0, &[tokens, width])?,
                Address::NULL,
            ),
        };
        let outcome = Outcome {
            out,
            bias: bias.map_or(Ok(Address::NULL), |bias| op.reads("bias", bias, kind, &[n]))?,
            out_type: elem_type(out_type),
            row_stride: op.dim("row", width)?,
            first_column: 0,
            accumulate: 0,
        };
        Ok(Self {
            outcome,
            out_type,
            picked,
        })
    }
}

/// A storage with inputs of type `act` as kernels are named after it: codes are not named after what becomes them.
pub(in crate::kernels::gpu) fn name_of(storage: Storage, act: DType) -> String {
    match storage {
        Storage::Codes => format!("{}_{act}", storage.name()),
        _ => storage.name(),
    }
}

/// The names of the kernels.
pub(super) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for storage in Storage::all() {
        let acts = match storage {
            Storage::Codes => &[DType::BF16, DType::F16][..],
            // Named already.
            _ => &[DType::F32],
        };
        for &act in acts {
            let name = |&size| Family::Fused.kernel_name(&name_of(storage, act), size);
            names.extend(Family::Fused.sizes(storage).iter().map(name));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT4: Storage = Storage::Int4 {
        zeros: false,
        wide_scales: false,
        x: DType::BF16,
    };

    #[test]
    fn one_token_is_fused_up_to_8192_columns_and_more_tokens_where_they_are_cheap() {
        for storage in Storage::all() {
            for k in [576, 1024, 4096, 8192] {
                let found = of_shape(&Facts::h100(), storage, k);
                assert!(
                    found.worth >= 1 && found.worth <= found.most,
                    "{storage:?} {k}: {found:?}"
                );
            }
        }
        let worth = |k| of_shape(&Facts::h100(), INT4, k).worth;
        assert!(worth(1024) > worth(4096) && worth(4096) > worth(16384));
        assert_eq!(worth(1024), MOST_FUSED);
    }

    #[test]
    fn what_does_not_fit_is_not_fused() {
        let none = FusedTokens { most: 0, worth: 0 };
        // The widest input of Llama-3.1-8B becomes codes on an H100.
        assert!(of_shape(&Facts::h100(), Storage::Codes, 14_336).worth >= 1);
        assert_eq!(of_shape(&Facts::h100(), Storage::Codes, 1 << 20), none);
        assert_eq!(of_shape(&Facts::h100(), INT4, 1 << 20), none);
        let small = Facts {
            shared_bytes: 48 << 10,
            ..Facts::h100()
        };
        assert_eq!(of_shape(&small, INT4, 4096), none);
    }

    #[test]
    fn sums_are_cut_as_they_are_without_fusing() {
        let problem = Problem {
            storage: INT4,
            n: 4096,
            k: 4096,
            tokens: 1,
        };
        for kernel in problem.candidates(&Facts::h100()) {
            let LinearKernel::Few { splits, .. } = kernel else {
                panic!("one token by {kernel}");
            };
            let fused = FusedKernel::choose(&problem, kernel, &Facts::h100()).unwrap();
            assert_eq!(fused.splits, splits);
        }
    }
}
