//! Ops of a decoding step as one launch of `step.cu`.
//!
//! The ops are asked for as ever; while they are being gathered, each launch function hands its argument to a list instead
//! of launching. What the list cannot hold, no kernel is compiled for, and the step stays many launches.

use super::advance::AdvanceArgs;
use super::attention::AttentionArgs;
use super::device::Gpu;
use super::driver::{Facts, Follows};
use super::flash;
use super::launch::{Address, Grid, KernelArg, Op, launch};
use super::linear::{
    FusedArgs, Problem, ProductArgs, Size, Storage, THREADS, WARPS, name_of, norm_bytes,
    partial_sums, prepared_bytes, sums_bytes,
};
use super::memory::{GpuBytes, Kept};
use super::rows::GatherArgs;
use crate::error::Result;
use crate::kernels::attention::Attention;
use crate::scheme::{DType, KvFormat};

/// `RINGS_AT` and `RING` of `step.cu`: bytes before the rings, and of each.
const RINGS_AT: usize = 1 << 10;
const RING: usize = 10 << 10;
/// Head sizes that the kernels are compiled for.
const HEAD_DIMS: [usize; 2] = [64, 128];
/// The most query heads for a head of keys.
const MOST_HEADS: usize = 8;
/// Numbers of a query head in shared memory beside its own (`Q_STRIDE` of `common/attention.cuh`).
const QUERY_GAP: usize = 8;

/// `StepKind` of `step.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Gather = 0,
    Normed = 1,
    Product = 2,
    Head = 3,
    Attend = 4,
    Advance = 5,
}

/// `StepOp` of `step.cu`.
#[repr(C, align(16))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct StepOp {
    kind: u32,
    ranges: u32,
    /// The argument that the op would have as a launch of its own.
    args: [u64; 25],
}

impl StepOp {
    fn new<A: bytemuck::Pod>(kind: Kind, ranges: u32, args: &A) -> Self {
        let mut op = Self {
            kind: kind as u32,
            ranges,
            args: [0; 25],
        };
        let bytes = bytemuck::bytes_of(args);
        bytemuck::bytes_of_mut(&mut op.args)[..bytes.len()].copy_from_slice(bytes);
        op
    }
}

/// `StepArgs` of `step.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct StepArgs {
    ops: Address,
    arrived: Address,
    count: u32,
    norm: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for StepArgs {}

/// What is known of a product beside its argument.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepProduct {
    pub(super) problem: Problem,
    /// Parts of its columns.
    pub(super) splits: usize,
    /// Whether the row of the largest result is wanted, instead of the results.
    pub(super) picks: bool,
}

/// An op on its way to the list.
enum Gathered {
    Gather(GatherArgs),
    Normed(FusedArgs, StepProduct),
    Product(ProductArgs, StepProduct),
    Attend(AttentionArgs, u32),
    Advance(AdvanceArgs),
}

/// The ops asked for so far.
#[derive(Default)]
pub(super) struct Gathering {
    ops: Vec<Gathered>,
    /// Type of activations: that of the first rows.
    act: Option<DType>,
    /// Of the weights of the layers: that of the first product.
    layers: Option<Storage>,
    head_dim: Option<usize>,
    /// Why they cannot be one launch: the first reason.
    obstacle: Option<String>,
}

impl Gathering {
    /// There is no kernel for what was asked for.
    pub(super) fn cannot(&mut self, what: &str) {
        self.obstacle
            .get_or_insert_with(|| format!("{what} is a launch of its own"));
    }

    pub(super) fn push_gather(
        &mut self,
        args: GatherArgs,
        count: usize,
        (table, out): (DType, DType),
    ) {
        if count != 1 || table != out {
            return self.cannot("the gathering of several rows or of another type");
        }
        self.act.get_or_insert(out);
        self.ops.push(Gathered::Gather(args));
    }

    pub(super) fn push_normed(&mut self, args: FusedArgs, product: StepProduct) {
        self.product(&product);
        self.ops.push(Gathered::Normed(args, product));
    }

    pub(super) fn push_product(&mut self, args: ProductArgs, product: StepProduct) {
        self.product(&product);
        self.ops.push(Gathered::Product(args, product));
    }

    fn product(&mut self, product: &StepProduct) {
        if product.problem.tokens != 1 {
            self.cannot("a product of several tokens");
        }
        self.layers.get_or_insert(product.problem.storage);
    }

    /// `ranges`: into how many ranges the parts of the keys are divided.
    pub(super) fn push_attention(&mut self, args: AttentionArgs, shape: &Attention, ranges: u32) {
        let fits = HEAD_DIMS.contains(&shape.head_dim)
            && shape.heads <= MOST_HEADS * shape.kv_heads
            && shape.kv == KvFormat::Auto
            && args.rotates()
            && *self.head_dim.get_or_insert(shape.head_dim) == shape.head_dim;
        if !fits {
            return self.cannot("attention of this shape or cache");
        }
        self.ops.push(Gathered::Attend(args, ranges));
    }

    pub(super) fn push_advance(&mut self, args: AdvanceArgs) {
        self.ops.push(Gathered::Advance(args));
    }

    /// The launch, or why there is none.
    pub(super) fn finish(self, gpu: &Gpu, kept: Kept) -> Result<Result<OneLaunch, String>> {
        let op = Op { gpu, name: "step" };
        let plan = match self.plan(gpu.facts()) {
            Ok(plan) => plan,
            Err(why) => return Ok(Err(why)),
        };
        let shared = op.dim("shared memory", plan.shared_bytes())?;
        let blocks = gpu.resident_blocks(&plan.kernel(), THREADS, shared)?;
        if blocks == 0 {
            return Ok(Err(format!("no block of '{}' fits", plan.kernel())));
        }
        let count = op.dim("ops", self.ops.len())?;
        // Operations, counters of waits, counters and sums of products, one behind the other.
        let ops_bytes = self.ops.len() * size_of::<StepOp>();
        let waits_at = ops_bytes;
        let counters_at = waits_at + self.ops.len() * 4;
        let (mut sums, mut counters) = (0, 0);
        for product in self.products() {
            let need = plan.workspace(product, blocks);
            (sums, counters) = (sums.max(need.0), counters.max(need.1));
        }
        let sums_at = (counters_at + counters * 4).next_multiple_of(256);
        let mut memory = gpu.alloc(sums_at + sums * 4)?;
        let start = Address::at(gpu.address(&memory)?);
        let (partial, arrived) = (start.plus(sums_at), start.plus(counters_at));
        let ops: Vec<StepOp> = self
            .ops
            .iter()
            .map(|gathered| plan.op(gathered, blocks, partial, arrived))
            .collect();
        gpu.upload(&mut memory, 0, bytemuck::cast_slice(&ops))?;
        let grid = Grid {
            shared_bytes: shared,
            follows: Follows::Together,
            ..op.grid(blocks, 1, THREADS)?
        };
        let args = StepArgs {
            ops: start,
            arrived: start.plus(waits_at),
            count,
            norm: op.dim("bytes of a norm", plan.norm)?,
        };
        Ok(Ok(OneLaunch {
            kernel: plan.kernel(),
            grid,
            args,
            memory,
            kept,
        }))
    }

    fn products(&self) -> impl Iterator<Item = &StepProduct> {
        self.ops.iter().filter_map(|op| match op {
            Gathered::Normed(_, product) | Gathered::Product(_, product) => Some(product),
            _ => None,
        })
    }

    /// What the kernel has to be, if there is one.
    fn plan(&self, facts: &Facts) -> Result<StepLaunch, String> {
        if let Some(why) = &self.obstacle {
            return Err(why.clone());
        }
        // The kernel has begun to copy the next product's weights into its rings when it comes to choose a token, and takes
        // the memory of the rings for that.
        let products: Vec<&StepProduct> = self.products().collect();
        if let Some((_, before)) = products.split_last()
            && before.iter().any(|product| product.picks)
        {
            return Err("a product follows the choice of a token".into());
        }
        let act = self.act.ok_or("nothing is embedded in it")?;
        let layers = self.layers.ok_or("there is no product in it")?;
        if !layers.has_step() {
            return Err(format!("no kernel is compiled for {}", layers.name()));
        }
        let head_dim = self.head_dim.ok_or("there is no attention in it")?;
        let mut plan = StepLaunch {
            layers,
            act,
            head_dim,
            norm: 0,
            prepared: 0,
        };
        for gathered in &self.ops {
            let (product, also) = match gathered {
                Gathered::Normed(_, product) => {
                    let Problem { storage, k, .. } = product.problem;
                    plan.norm = plan.norm.max(norm_bytes(k));
                    plan.prepared = plan.prepared.max(prepared_bytes(storage, 1, k));
                    (product, Storage::Plain(act))
                }
                Gathered::Product(_, product) => (product, layers),
                _ => continue,
            };
            let storage = product.problem.storage;
            if storage != layers && storage != also {
                let (one, all) = (storage.name(), layers.name());
                return Err(format!("a product of {one} among {all}"));
            }
        }
        let needs = plan.shared_bytes();
        if !facts.has_room_for(needs) {
            let most = facts.shared_bytes;
            return Err(format!(
                "its blocks need {needs} bytes of shared memory of {most}"
            ));
        }
        Ok(plan)
    }
}

/// Which kernel runs a step, and what decides its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StepLaunch {
    layers: Storage,
    act: DType,
    head_dim: usize,
    /// Bytes for the weight of any norm, and for what any product makes of its input.
    norm: usize,
    prepared: usize,
}

impl StepLaunch {
    fn kernel(self) -> String {
        kernel_name(self.layers, self.act, self.head_dim)
    }

    /// Tiles that a block has in hand of a product of this storage.
    const fn tiles(storage: Storage) -> usize {
        match storage {
            Storage::Plain(_) => 1,
            _ => 2,
        }
    }

    /// Dynamic shared memory of a block: products have theirs, or attention.
    fn shared_bytes(self) -> usize {
        let size = Size {
            tiles: Self::tiles(self.layers),
            tokens: 1,
        };
        let products = WARPS * RING + sums_bytes(size) + self.norm + self.prepared;
        let dim = self.head_dim;
        let queries = MOST_HEADS * (dim + QUERY_GAP) * 2;
        let attention = flash::own_bytes(MOST_HEADS, dim, KvFormat::Auto) + queries;
        RINGS_AT + products.max(attention)
    }

    /// Numbers of four bytes for parts of sums and for the best of each block, and counters of both.
    fn workspace(self, product: &StepProduct, blocks: usize) -> (usize, usize) {
        let (parts, groups) = self.parts(product);
        let bests = if product.picks { 2 * blocks } else { 0 };
        (parts + bests, groups + 1)
    }

    /// Numbers for parts of sums, and groups of tiles.
    fn parts(self, product: &StepProduct) -> (usize, usize) {
        let tiles = Self::tiles(product.problem.storage);
        let groups = product.problem.groups(tiles);
        let parts = partial_sums(groups, product.splits, 1, tiles);
        (parts, groups)
    }

    fn op(self, gathered: &Gathered, blocks: usize, partial: Address, arrived: Address) -> StepOp {
        match gathered {
            Gathered::Gather(args) => StepOp::new(Kind::Gather, 0, args),
            Gathered::Normed(args, product) => {
                let (parts, groups) = self.parts(product);
                let mut args = *args;
                (args.product.partial, args.product.arrived) = (partial, arrived);
                if product.picks {
                    args.best_values = partial.plus(parts * 4);
                    args.best_rows = partial.plus((parts + blocks) * 4);
                    args.arrived = arrived.plus(groups * 4);
                }
                let kind = if product.problem.storage == self.layers {
                    Kind::Normed
                } else {
                    Kind::Head
                };
                StepOp::new(kind, 0, &args)
            }
            Gathered::Product(args, _) => {
                let mut args = *args;
                (args.partial, args.arrived) = (partial, arrived);
                StepOp::new(Kind::Product, 0, &args)
            }
            Gathered::Attend(args, ranges) => StepOp::new(Kind::Attend, *ranges, args),
            Gathered::Advance(args) => StepOp::new(Kind::Advance, 0, args),
        }
    }
}

fn kernel_name(layers: Storage, act: DType, head_dim: usize) -> String {
    format!("step_{}_{head_dim}", name_of(layers, act))
}

/// The names of the kernels.
pub(super) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for storage in Storage::all()
        .into_iter()
        .filter(|storage| storage.has_step())
    {
        for act in [DType::BF16, DType::F16] {
            names.extend(HEAD_DIMS.map(|dim| kernel_name(storage, act, dim)));
        }
    }
    names.sort();
    names.dedup();
    names
}

impl Gpu {
    /// Whether ops are being gathered for one launch; then `collect` is what becomes of this one.
    pub(super) fn gathers(&self, collect: impl FnOnce(&mut Gathering)) -> bool {
        self.gathering().as_mut().map(collect).is_some()
    }
}

/// Ops that were gathered by [`Gpu::gather`]. It keeps the memory that they use.
pub struct OneLaunch {
    kernel: String,
    grid: Grid,
    args: StepArgs,
    /// Of the ops, of blocks' waits for each other, and of sums.
    memory: GpuBytes,
    /// What the ops read and write.
    kept: Kept,
}

impl OneLaunch {
    /// Puts it into the stream of `gpu`, which gathered it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn launch(&self, gpu: &Gpu) -> Result<()> {
        // Refuses another GPU. A graph that records this has to keep all of the memory, too: it may outlive this.
        gpu.address(&self.memory)?;
        gpu.keep(&self.kept);
        // SAFETY: the argument of step.cu; its ops were checked when this GPU gathered them, there is room for the sums of
        // as many blocks as there are, and their memory is kept.
        unsafe { launch!(gpu, &self.kernel, self.grid; self.args) }
    }

    /// The kernel and how many blocks of it there are.
    pub fn describe(&self) -> String {
        let [blocks, ..] = self.grid.blocks;
        format!(
            "{}, {} ops by {blocks} blocks",
            self.kernel, self.args.count
        )
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    const ACT: DType = DType::BF16;

    /// Products of a layer and of the head, which chooses a token or not, and then those of `after`.
    fn gathered(picks: bool, after: &[StepProduct]) -> Gathering {
        let product = StepProduct {
            problem: Problem {
                storage: Storage::Plain(ACT),
                n: 256,
                k: 128,
                tokens: 1,
            },
            splits: 1,
            picks: false,
        };
        let mut gathering = Gathering {
            act: Some(ACT),
            head_dim: Some(64),
            ..Gathering::default()
        };
        gathering.push_normed(FusedArgs::zeroed(), product);
        gathering.push_product(ProductArgs::zeroed(), product);
        gathering.push_normed(FusedArgs::zeroed(), StepProduct { picks, ..product });
        gathering.push_advance(AdvanceArgs::zeroed());
        for &product in after {
            gathering.push_product(ProductArgs::zeroed(), product);
        }
        gathering
    }

    #[test]
    fn a_choice_of_a_token_is_the_last_product_of_a_launch() {
        let facts = Facts::h100();
        assert!(gathered(true, &[]).plan(&facts).is_ok());
        let one = gathered(false, &[]);
        let product = *one.products().next().unwrap();
        assert!(gathered(false, &[product]).plan(&facts).is_ok());
        for after in [&[product][..], &[product, product]] {
            let why = gathered(true, after).plan(&facts).unwrap_err();
            assert_eq!(why, "a product follows the choice of a token");
        }
    }

    #[test]
    fn a_step_needs_room_in_shared_memory() {
        let small = Facts {
            shared_bytes: 64 << 10,
            ..Facts::h100()
        };
        let why = gathered(true, &[]).plan(&small).unwrap_err();
        assert!(why.contains("bytes of shared memory of 65536"), "{why}");
    }

    #[test]
    fn blocks_have_the_shared_memory_that_their_kernel_lays_out() {
        // Rings of 80 KiB and 1 KiB before them; sums of one tile, or two, and a gap for each of eight warps.
        let launch = |layers| StepLaunch {
            layers,
            act: ACT,
            head_dim: 64,
            norm: 512,
            prepared: 1024,
        };
        let rings = (1 << 10) + 8 * (10 << 10);
        let plain = launch(Storage::Plain(ACT)).shared_bytes();
        assert_eq!(plain, rings + 8 * (16 + 4) * 4 + 512 + 1024);
        let codes = launch(Storage::Codes).shared_bytes();
        assert_eq!(codes, rings + 8 * (32 + 4) * 4 + 512 + 1024);
    }
}
