//! Attention by matrix instructions: which of its kernels a shape gets, and their launches.

use std::fmt;

use super::attention::AttentionArgs;
use super::driver::{Facts, Grid};
use super::launch::{Op, launch};
use super::workspace::Scratch;
use crate::error::Result;
use crate::kernels::attention::{Attention, Queries};
use crate::scheme::DType;

/// Threads of a block of either kernel.
const THREADS: u32 = 128;
/// Warps of a block.
const WARPS: usize = 4;
/// Rows of queries of a warp.
const QUERIES: usize = 16;
/// Keys of a block of `attention_single.cu` at a time.
const UNIT: usize = 64;
/// Stages of a ring of `attention_single.cu`, and of `attention_runs.cu`.
const DEPTHS: (usize, usize) = (3, 2);
/// Head sizes that both are compiled for.
const HEAD_DIMS: [usize; 3] = [64, 96, 128];
/// The most parts that a token's keys are cut into.
const MOST_SPLITS: usize = 64;
/// Parts are not made smaller than this many keys: putting them together costs as much as reading some more.
const LEAST_KEYS: usize = 2 * UNIT;

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionKernel {
    /// `attention_single.cu`: tokens that are alone in their slot, the keys of each in up to this many parts.
    Single {
        /// Parts of a token that has as many keys as the cache can hold.
        splits: usize,
    },
    /// `attention_runs.cu`: tiles of neighbouring tokens.
    Runs,
    /// `attention.cu`: any type and head, and not fast.
    Any,
}

impl fmt::Display for AttentionKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single { splits: 1 } => f.write_str("single, whole"),
            Self::Single { splits } => write!(f, "single in up to {splits} parts"),
            Self::Runs => f.write_str("runs of tokens, 64 rows"),
            Self::Any => f.write_str("any, a block per token and head"),
        }
    }
}

impl AttentionKernel {
    /// The kernel for a shape, on a device of which these are the facts.
    pub(super) fn plan(shape: &Attention, dtype: DType, facts: &Facts) -> Self {
        let group = shape.heads.checked_div(shape.kv_heads).unwrap_or(0);
        let kernel = match shape.queries {
            Queries::Single if group <= QUERIES => Self::Single {
                splits: splits(shape, facts),
            },
            Queries::Single | Queries::Runs => Self::Runs,
        };
        let fits = dtype != DType::F32
            && HEAD_DIMS.contains(&shape.head_dim)
            && (1..=WARPS * QUERIES).contains(&group)
            && kernel.shared_bytes(shape.head_dim) <= facts.shared_bytes;
        if fits { kernel } else { Self::Any }
    }

    /// Dynamic shared memory of a block: `SHARED` of the `.cu` files.
    fn shared_bytes(self, head_dim: usize) -> usize {
        let row = 2 * head_dim;
        match self {
            Self::Single { .. } => {
                let rings = WARPS * DEPTHS.0 * 2 * (UNIT / WARPS) * row;
                rings.max(WARPS * QUERIES * (head_dim + 2) * 4)
            }
            Self::Runs => DEPTHS.1 * 2 * 64 * row,
            Self::Any => 0,
        }
    }
}

/// Parts of the keys of a token: as many as give every multiprocessor two blocks.
fn splits(shape: &Attention, facts: &Facts) -> usize {
    let whole = (shape.tokens * shape.kv_heads).max(1);
    let wanted = (2 * facts.multiprocessors).div_ceil(whole);
    wanted.clamp(1, shape.capacity.div_ceil(LEAST_KEYS).clamp(1, MOST_SPLITS))
}

/// Runs `kernel`, which is one of the two; `args` are complete but for the workspace.
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
    let (name, blocks) = match kernel {
        AttentionKernel::Single { splits } => {
            if splits > 1 {
                let shared = tokens * kv_heads;
                let parts = shared * splits * QUERIES * (head_dim + 2);
                args.splits = op.dim("splits", splits)?;
                args.partial = op.gpu.scratch(Scratch::Partial, parts * 4)?;
                args.arrived = op.gpu.scratch(Scratch::Counters, shared * 4)?;
            }
            ("single", [splits, kv_heads, tokens])
        }
        AttentionKernel::Runs => {
            let tokens_of_tile = WARPS * QUERIES * kv_heads / heads;
            ("runs", [tokens.div_ceil(tokens_of_tile), kv_heads, 1])
        }
        AttentionKernel::Any => return Err(op.bug("there is no matrix instruction in it")),
    };
    let grid = Grid {
        blocks: [
            op.dim("blocks along x", blocks[0])?,
            op.dim("blocks along y", blocks[1])?,
            op.dim("blocks along z", blocks[2])?,
        ],
        shared_bytes: op.dim("shared memory", kernel.shared_bytes(head_dim))?,
        ..op.grid(1, 1, THREADS)?
    };
    let name = format!("attention_{name}_{dtype}_{head_dim}");
    // SAFETY: the argument of both .cu files; every array holds its shape, the kernels check positions and slots, and the
    // workspace holds a part of every block and a counter for every token and head of keys.
    unsafe { launch!(op.gpu, &name, grid; args) }
}

/// The names of both kernels.
pub(super) fn names() -> Vec<String> {
    let kinds = ["single", "runs"].into_iter();
    let types =
        kinds.flat_map(|kind| ["f16", "bf16"].map(|dtype| format!("attention_{kind}_{dtype}")));
    types
        .flat_map(|name| HEAD_DIMS.map(|dim| format!("{name}_{dim}")))
        .collect()
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
        assert_eq!(plan(1, 8192), AttentionKernel::Single { splits: 33 });
        assert_eq!(plan(1, 512), AttentionKernel::Single { splits: 4 });
        assert_eq!(plan(1, 64), AttentionKernel::Single { splits: 1 });
        assert_eq!(plan(8, 2048), AttentionKernel::Single { splits: 5 });
        assert_eq!(plan(64, 2048), AttentionKernel::Single { splits: 1 });
    }

    #[test]
    fn every_shape_has_a_kernel() {
        let plan = |shape: &Attention, dtype| AttentionKernel::plan(shape, dtype, &Facts::h100());
        let prompt = shape(100, 32, 100, Queries::Runs);
        assert_eq!(plan(&prompt, DType::F16), AttentionKernel::Runs);
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
