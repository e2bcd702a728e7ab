//! Attention by matrix instructions: which of its kernels a shape gets, and their launches.

use std::fmt;

use super::attention::{AttentionArgs, suffix};
use super::driver::{Facts, Grid};
use super::launch::{Op, WARP, launch};
use super::workspace::{Scratch, WorkspaceNeed};
use crate::error::Result;
use crate::kernels::attention::{Attention, Queries};
use crate::scheme::{DType, KvFormat};

/// Warps of a block of `attention_single.cu` and of `attention_runs.cu`.
const WARPS: usize = 4;
/// Rows of queries of a warp.
const QUERIES: usize = 16;
/// Stages of a ring of `attention_single.cu`, and of `attention_runs.cu`.
const DEPTHS: (usize, usize) = (3, 2);
/// Head sizes that both are compiled for.
const HEAD_DIMS: [usize; 3] = [64, 96, 128];
/// Of `attention_wgmma.cu`: warps of a block, stages of the ring, head sizes that it is compiled for.
const WGMMA_WARPS: usize = 8;
const WGMMA_DEPTH: usize = 4;
const WGMMA_HEAD_DIMS: [usize; 2] = [64, 128];
/// Keys of a part of a token in `attention_single.cu`, at least, and how many parts there are at most.
const LEAST_PART: usize = 128;
const MOST_PARTS: usize = 64;

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionKernel {
    /// `attention_single.cu`: tokens that are alone in their slot.
    Single {
        /// The most parts that the keys of a token come in.
        parts: usize,
        /// Blocks that share them.
        blocks: usize,
    },
    /// `attention_runs.cu`: tiles of neighbouring tokens.
    Runs,
    /// `attention_wgmma.cu`: the same by the matrix instructions of compute capability 9.0.
    Wgmma,
    /// `attention.cu`: any type and head, and not fast.
    Any,
}

impl fmt::Display for AttentionKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single { parts, blocks } => {
                let plural =
                    |n: &usize, what| format!("{n} {what}{}", if *n == 1 { "" } else { "s" });
                let (parts, blocks) = (plural(parts, "part"), plural(blocks, "block"));
                write!(f, "single, {parts} in {blocks}")
            }
            Self::Runs => f.write_str("runs of tokens, 64 rows"),
            Self::Wgmma => f.write_str("runs of tokens, 128 rows by warpgroups"),
            Self::Any => f.write_str("any, a block per token and head"),
        }
    }
}

impl AttentionKernel {
    /// The kernel for a shape, on a device of which these are the facts.
    pub(super) fn plan(shape: &Attention, dtype: DType, facts: &Facts) -> Self {
        let group = shape.heads.checked_div(shape.kv_heads).unwrap_or(0);
        let kernel = match shape.queries {
            Queries::Single if group <= QUERIES => {
                let parts = shape.capacity.div_ceil(LEAST_PART).clamp(1, MOST_PARTS);
                let blocks = blocks(shape, parts, facts);
                Self::Single { parts, blocks }
            }
            Queries::Single | Queries::Runs => {
                let wide = shape.tokens.saturating_mul(group) > WARPS * QUERIES;
                let takes = shape.kv.codes().is_none() && WGMMA_HEAD_DIMS.contains(&shape.head_dim);
                if facts.has_wgmma() && wide && takes {
                    Self::Wgmma
                } else {
                    Self::Runs
                }
            }
        };
        let fits = dtype != DType::F32
            && HEAD_DIMS.contains(&shape.head_dim)
            && (1..=WARPS * QUERIES).contains(&group)
            && kernel.shared_bytes(shape) <= facts.shared_bytes;
        if fits { kernel } else { Self::Any }
    }

    /// Whether it can rotate heads and write the cache on the way.
    pub(crate) const fn appends(self) -> bool {
        matches!(self, Self::Single { .. })
    }

    /// Dynamic shared memory of a block: `SHARED` of the `.cu` files.
    fn shared_bytes(self, shape: &Attention) -> usize {
        let dim = shape.head_dim;
        let tile = |keys: usize| 2 * keys * shape.kv.vector_bytes(2, dim);
        match self {
            Self::Single { .. } => single_bytes(shape),
            Self::Runs => DEPTHS.1 * tile(64),
            Self::Wgmma => WGMMA_DEPTH * tile(64),
            Self::Any => 0,
        }
    }
}

/// Query heads of a head of keys that `attention_single.cu` is compiled for, for a shape that has no more.
fn rows_of(shape: &Attention) -> usize {
    let group = shape.heads.checked_div(shape.kv_heads).unwrap_or(0);
    if group <= QUERIES / 2 {
        QUERIES / 2
    } else {
        QUERIES
    }
}

/// As above, of `attention_single.cu`.
fn single_bytes(shape: &Attention) -> usize {
    own_bytes(rows_of(shape), shape.head_dim, shape.kv)
}

/// Shared memory of a block of `common/single.cuh` for `heads` query heads, those themselves left out: the rings of four
/// warps, results, and the token's own key.
pub(super) fn own_bytes(heads: usize, head_dim: usize, kv: KvFormat) -> usize {
    // Codes come twice as many at a time.
    let keys = if kv.codes().is_some() { 32 } else { 16 };
    let stage = 2 * keys * kv.vector_bytes(2, head_dim);
    let (rows, tops) = (heads * head_dim * 4, (WARPS + 2) * heads * 8);
    WARPS * DEPTHS.0 * stage + rows + tops + 2 * head_dim
}

/// Blocks for the parts of a token: as many as all multiprocessors hold at a time, and no more than have a part each. Which
/// block computes a part changes none of its bits.
fn blocks(shape: &Attention, parts: usize, facts: &Facts) -> usize {
    let whole = (shape.tokens * shape.kv_heads).max(1);
    let resident = facts.blocks_by_shared_memory(single_bytes(shape));
    let places = facts.multiprocessors * resident.clamp(1, 2);
    let each = parts.div_ceil((places / whole).clamp(1, parts));
    // Fewer have as much to do at most: no block of the longest token is there for nothing.
    parts.div_ceil(each)
}

/// Adds what launches for up to `shape.tokens` tokens that are alone in their slots need.
pub(super) fn add_need(shape: &Attention, dtype: DType, facts: &Facts, need: &mut WorkspaceNeed) {
    // More tokens than these have no parts: each has a block of its own.
    for tokens in 1..=shape.tokens.min(2 * facts.multiprocessors) {
        let here = Attention { tokens, ..*shape };
        if let AttentionKernel::Single { parts, blocks } =
            AttentionKernel::plan(&here, dtype, facts)
            && blocks > 1
        {
            let (numbers, counters) = workspace(&here, parts);
            need.at_least(Scratch::Partial, numbers * 4);
            need.at_least(Scratch::Counters, counters * 4);
        }
    }
}

/// f32 numbers that parts of a token's keys leave (`LEFT` of `common/single.cuh` for each row), and counters.
const fn workspace(shape: &Attention, parts: usize) -> (usize, usize) {
    let numbers = shape.tokens * parts * shape.heads * (shape.head_dim + 4);
    (numbers, shape.tokens * shape.kv_heads)
}

/// Runs `kernel`, which is one of the three; `args` are complete but for the workspace.
pub(super) fn run(
    op: Op<'_>,
    shape: &Attention,
    dtype: DType,
    kernel: AttentionKernel,
    mut args: AttentionArgs,
) -> Result<()> {
    let Attention {
        tokens,
        heads,
        kv_heads,
        head_dim,
        ..
    } = *shape;
    let (name, warps, blocks) = match kernel {
        AttentionKernel::Single { parts, blocks } => {
            if blocks > 1 {
                let (numbers, counters) = workspace(shape, parts);
                args.most_parts = op.dim("parts", parts)?;
                args.partial = op.gpu.scratch(Scratch::Partial, numbers * 4)?;
                args.arrived = op.gpu.scratch(Scratch::Counters, counters * 4)?;
            }
            ("single", WARPS, [blocks, kv_heads, tokens])
        }
        AttentionKernel::Runs | AttentionKernel::Wgmma => {
            let (name, warps) = match kernel {
                AttentionKernel::Wgmma => ("wgmma", WGMMA_WARPS),
                _ => ("runs", WARPS),
            };
            let tokens_of_tile = warps * QUERIES * kv_heads / heads;
            let blocks = [tokens.div_ceil(tokens_of_tile), kv_heads, 1];
            (name, warps, blocks)
        }
        AttentionKernel::Any => return Err(op.bug("there is no matrix instruction in it")),
    };
    let grid = Grid {
        blocks: [
            op.dim("blocks along x", blocks[0])?,
            op.dim("blocks along y", blocks[1])?,
            op.dim("blocks along z", blocks[2])?,
        ],
        shared_bytes: op.dim("shared memory", kernel.shared_bytes(shape))?,
        ..op.grid(1, 1, (warps * WARP) as u32)?
    };
    if let AttentionKernel::Single { blocks, .. } = kernel {
        let ranges = op.dim("ranges of keys", blocks)?;
        if op
            .gpu
            .gathers(|all| all.push_attention(args, shape, ranges))
        {
            return Ok(());
        }
    }
    let rows = matches!(kernel, AttentionKernel::Single { .. }).then(|| rows_of(shape));
    let name = kernel_name(name, dtype, shape.kv, head_dim, rows);
    // SAFETY: the argument of all three .cu files; every array holds its shape, the kernels check positions and slots, and
    // the workspace holds every part of every row and a counter for every token and head of keys.
    unsafe { launch!(op.gpu, &name, grid; args) }
}

/// The head sizes that there are fast kernels for, in words.
pub(crate) fn fast_head_dims() -> String {
    let sizes = HEAD_DIMS.map(|dim| dim.to_string());
    let (last, others) = sizes.split_last().expect("there are some");
    format!("{} and {last}", others.join(", "))
}

/// A kernel of one of the three files; `rows` are the query heads of a head of keys, where it is compiled for a number.
fn kernel_name(
    file: &str,
    dtype: DType,
    kv: KvFormat,
    head_dim: usize,
    rows: Option<usize>,
) -> String {
    let rows = rows.map_or_else(String::new, |rows| format!("x{rows}"));
    format!("attention_{file}_{dtype}{}_{head_dim}{rows}", suffix(kv))
}

/// The names of all three kernels.
pub(super) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for dtype in [DType::F16, DType::BF16] {
        let wgmma = |dim| kernel_name("wgmma", dtype, KvFormat::Auto, dim, None);
        names.extend(WGMMA_HEAD_DIMS.map(wgmma));
        for kv in KvFormat::ALL {
            for dim in HEAD_DIMS {
                let single = |rows| kernel_name("single", dtype, kv, dim, Some(rows));
                names.extend([QUERIES / 2, QUERIES].map(single));
                names.push(kernel_name("runs", dtype, kv, dim, None));
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(tokens: usize, heads: usize, capacity: usize, queries: Queries) -> Attention {
        Attention {
            tokens,
            heads,
            kv_heads: 8,
            head_dim: 128,
            capacity,
            kv: KvFormat::Auto,
            scale: 1.0,
            queries,
        }
    }

    #[test]
    fn few_tokens_are_cut_into_parts_and_many_are_not() {
        let plan = |tokens, capacity| {
            AttentionKernel::plan(
                &shape(tokens, 32, capacity, Queries::Single),
                DType::BF16,
                &Facts::h100(),
            )
        };
        let single = |parts, blocks| AttentionKernel::Single { parts, blocks };
        assert_eq!(plan(1, 8192), single(64, 32));
        assert_eq!(plan(1, 512), single(4, 4));
        assert_eq!(plan(1, 64), single(1, 1));
        assert_eq!(plan(1, 100_000), single(64, 32));
        // 64 tokens and heads have four places each, 128 two, 256 one.
        assert_eq!(plan(8, 2048), single(16, 4));
        assert_eq!(plan(16, 2048), single(16, 2));
        assert_eq!(plan(32, 2048), single(16, 1));
        assert_eq!(plan(64, 2048), single(16, 1));
        assert_eq!(plan(1000, 2048), single(16, 1));
    }

    #[test]
    fn no_block_of_the_longest_token_is_without_a_part() {
        for tokens in 1..300 {
            for capacity in [1, 128, 129, 1000, 1300, 5000, 70_000] {
                for kv in KvFormat::ALL {
                    let shape = Attention {
                        kv,
                        ..shape(tokens, 32, capacity, Queries::Single)
                    };
                    let plan = AttentionKernel::plan(&shape, DType::BF16, &Facts::h100());
                    let AttentionKernel::Single { parts, blocks } = plan else {
                        panic!("{plan}");
                    };
                    let each = parts.div_ceil(blocks);
                    assert!((blocks - 1) * each < parts, "{tokens} {capacity}: {plan}");
                    assert!(blocks == 1 || tokens * 8 * blocks <= 2 * 132, "{plan}");
                }
            }
        }
    }

    #[test]
    fn every_shape_has_a_kernel() {
        let plan = |shape: &Attention, dtype| AttentionKernel::plan(shape, dtype, &Facts::h100());
        let prompt = shape(100, 32, 100, Queries::Runs);
        assert_eq!(plan(&prompt, DType::F16), AttentionKernel::Wgmma);
        let short = shape(16, 32, 100, Queries::Runs);
        assert_eq!(plan(&short, DType::F16), AttentionKernel::Runs);
        let codes = Attention {
            kv: KvFormat::Int8,
            ..prompt
        };
        assert_eq!(plan(&codes, DType::F16), AttentionKernel::Runs);
        assert_eq!(plan(&prompt, DType::F32), AttentionKernel::Any);
        let odd = Attention {
            head_dim: 80,
            ..prompt
        };
        assert_eq!(plan(&odd, DType::BF16), AttentionKernel::Any);
        // More query heads than a fragment has rows, and than a block has.
        let wide = shape(1, 8 * 20, 100, Queries::Single);
        assert_eq!(plan(&wide, DType::BF16), AttentionKernel::Runs);
        let wider = shape(1, 8 * 65, 100, Queries::Single);
        assert_eq!(plan(&wider, DType::BF16), AttentionKernel::Any);
        let a100 = Facts {
            shared_bytes: 166_912,
            ..Facts::h100()
        };
        let single = shape(1, 32, 512, Queries::Single);
        assert_ne!(
            AttentionKernel::plan(&single, DType::BF16, &a100),
            AttentionKernel::Any
        );
    }
}
