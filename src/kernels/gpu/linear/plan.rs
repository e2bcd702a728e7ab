//! How a product is computed on a GPU: a pure choice from shapes and facts.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::storage::Storage;
use crate::kernels::gpu::driver::Facts;

/// Rows of a tile.
pub(in crate::kernels::gpu) const ROWS: usize = 16;
/// Columns of a step.
pub(super) const STEP: usize = 64;
/// Warps of a block of every kernel that streams.
pub(super) const WARPS: usize = 8;
/// Threads of a block of every kernel that streams.
pub(super) const THREADS: u32 = 256;
/// Tokens of a matrix instruction.
const BLOCK: usize = 8;
/// The most tokens that `linear_few.cu` takes.
pub(super) const STREAMED_FEW: usize = 16;
/// Blocks that a kernel in parts may have for each place on the device, if a block takes part after part, or one part. More
/// would leave sums for each other without filling more places.
const PARTS_PER_PLACE: (usize, usize) = (4, 2);
/// Parts that a tile's columns may be cut into.
const SPLITS: [usize; 9] = [1, 2, 3, 4, 6, 8, 12, 16, 24];
/// Shared memory that a multiprocessor keeps back for every block.
const RESERVED: usize = 1 << 10;
/// Bytes of dequantised weights at a time: what stays in the second-level cache beside what the product reads and writes.
const PIECE_BYTES: usize = 16 << 20;

/// One way to compute a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinearKernel {
    /// `linear_few.cu`: for up to 16 tokens; blocks as many as fit go through the tiles.
    Few {
        /// Tiles of 16 rows that a block has in hand.
        tiles: usize,
        /// Tokens that the kernel is made for: 1, 8 or 16.
        tokens: usize,
        /// Parts of the columns.
        splits: usize,
    },
    /// `linear_tile.cu`: for tokens that share what is read; a block per group of tiles, of tokens, and part of columns.
    Tile {
        /// Tiles of 16 rows that a warp has in hand; a block has eight times as many.
        tiles: usize,
        /// Tokens of a block.
        tokens: usize,
        /// Parts of the columns.
        splits: usize,
    },
    /// `linear_wgmma.cu`: as [`Self::Tile`], by the matrix instructions of compute capability 9.0.
    Wgmma {
        /// Tiles of 16 rows that a warp has in hand.
        tiles: usize,
        /// Tokens of a block.
        tokens: usize,
        /// Parts of the columns.
        splits: usize,
    },
    /// The device's library: plain weights, or codes times codes.
    Library,
    /// The library, on weights dequantised this many tiles of 16 rows at a time.
    Dequantized {
        /// Tiles at a time.
        tiles: usize,
    },
    /// `linear_any.cu` or `linear_any_w8a8.cu`: any shape and type, and none of them fast.
    Any,
}

impl fmt::Display for LinearKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = |splits: usize| {
            if splits == 1 {
                String::new()
            } else {
                format!(" in {splits} parts")
            }
        };
        match *self {
            Self::Few {
                tiles,
                tokens,
                splits,
            } => write!(f, "few {}x{tokens}{}", tiles * ROWS, parts(splits)),
            Self::Tile {
                tiles,
                tokens,
                splits,
            } => {
                let rows = tiles * WARPS * ROWS;
                write!(f, "tile {rows}x{tokens}{}", parts(splits))
            }
            Self::Wgmma {
                tiles,
                tokens,
                splits,
            } => {
                let rows = tiles * WARPS * ROWS;
                write!(f, "wgmma {rows}x{tokens}{}", parts(splits))
            }
            Self::Library => f.write_str("library"),
            Self::Dequantized { tiles } => write!(f, "library, {} rows dequantized", tiles * ROWS),
            Self::Any => f.write_str("any"),
        }
    }
}

/// A product as plans see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::kernels::gpu) struct Problem {
    pub(in crate::kernels::gpu) storage: Storage,
    pub(in crate::kernels::gpu) n: usize,
    pub(in crate::kernels::gpu) k: usize,
    pub(in crate::kernels::gpu) tokens: usize,
}

impl Problem {
    fn tiles(&self) -> usize {
        self.n.div_ceil(ROWS)
    }

    fn steps(&self) -> usize {
        self.k.div_ceil(STEP)
    }

    /// Every kernel that computes this, the one that should be fastest first. Never empty: weights that are streamed
    /// have a kernel for any number of tokens.
    pub(super) fn candidates(&self, facts: &Facts) -> Vec<LinearKernel> {
        let mut found = self.few();
        found.extend(self.tile());
        if facts.has_wgmma() {
            found.extend(self.wgmma());
        }
        if self.tokens > BLOCK {
            found.extend(self.library());
        }
        found.retain(|kernel| {
            let needed = kernel.shared_bytes(self.storage);
            needed <= facts.shared_bytes && kernel.parts_fill_places(self, facts)
        });
        let mut found: Vec<_> = found
            .into_iter()
            .map(|kernel| (self.predicted(kernel, facts), kernel))
            .collect();
        found.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        found.into_iter().map(|(_, kernel)| kernel).collect()
    }

    /// Every kernel for more tokens than few that cuts columns into the most parts, for up to as many tokens as these.
    pub(super) fn tiled_in_parts(&self) -> impl Iterator<Item = LinearKernel> + use<> {
        let splits = self.splits(4).last().unwrap_or(1);
        let problem = *self;
        [32, 64, usize::MAX]
            .into_iter()
            .flat_map(move |tokens| {
                let here = Self {
                    tokens: problem.tokens.min(tokens),
                    ..problem
                };
                here.tile().into_iter().chain(here.wgmma())
            })
            .map(move |kernel| kernel.in_parts(splits))
    }

    /// The library's way, whatever the number of tokens.
    pub(super) fn library(&self) -> Option<LinearKernel> {
        match self.storage {
            Storage::Plain(_) => Some(LinearKernel::Library),
            // The matrix instructions of libraries for bytes want whole 16-byte rows on both sides.
            Storage::Codes => (self.n.is_multiple_of(16) && self.k.is_multiple_of(16))
                .then_some(LinearKernel::Library),
            _ => {
                let tile_bytes = ROWS * self.k * 2;
                let tiles = (PIECE_BYTES / tile_bytes.max(1)).clamp(1, self.tiles());
                Some(LinearKernel::Dequantized { tiles })
            }
        }
    }

    fn few(&self) -> Vec<LinearKernel> {
        let tokens = match self.tokens {
            1 => 1,
            2..=8 => 8,
            9..=16 => 16,
            _ => return Vec::new(),
        };
        let sizes: &[usize] = match (self.storage, tokens) {
            (Storage::Plain(_), _) => &[1, 2],
            (_, 16) => &[2, 4],
            _ => &[1, 2, 4],
        };
        let with = |&tiles: &usize| {
            self.splits(WARPS).map(move |splits| LinearKernel::Few {
                tiles,
                tokens,
                splits,
            })
        };
        sizes.iter().flat_map(with).collect()
    }

    fn tile(&self) -> Vec<LinearKernel> {
        // (tiles of a warp, tokens of a block), as compiled.
        let sizes: &[(usize, usize)] = match self.tokens {
            ..=8 => &[],
            9..=32 => &[(1, 32)],
            _ => &[(1, 64), (2, 64)],
        };
        let with = |&(tiles, tokens): &(usize, usize)| {
            self.splits(4).map(move |splits| LinearKernel::Tile {
                tiles,
                tokens,
                splits,
            })
        };
        sizes.iter().flat_map(with).collect()
    }

    /// Plain weights are the library's, and few tokens leave most of the instructions' columns unused.
    fn wgmma(&self) -> Vec<LinearKernel> {
        // (tiles of a warp, tokens of a block), as compiled.
        let sizes: &[(usize, usize)] = match (self.storage, self.tokens) {
            (Storage::Plain(_), _) | (_, ..=16) => &[],
            (_, ..=64) => &[(2, 64)],
            _ => &[(2, 64), (1, 128)],
        };
        let with = |&(tiles, tokens): &(usize, usize)| {
            self.splits(4).map(move |splits| LinearKernel::Wgmma {
                tiles,
                tokens,
                splits,
            })
        };
        sizes.iter().flat_map(with).collect()
    }

    /// Ways to cut the columns into parts of at least `least` steps, no two the same.
    fn splits(&self, least: usize) -> impl Iterator<Item = usize> + use<> {
        let steps = self.steps();
        SPLITS.into_iter().filter(move |&splits| {
            let each = steps.div_ceil(splits);
            splits == 1 || (each >= least && steps.div_ceil(each) == splits)
        })
    }

    /// A rough time in seconds, to sort candidates by: bytes through memory and second-level cache and arithmetic at the
    /// rates of an H100, stretched by blocks that have no work in the last round, and what starting and adding up cost.
    pub(super) fn predicted(&self, kernel: LinearKernel, facts: &Facts) -> f64 {
        const MEMORY: f64 = 3.0e12;
        const CACHE: f64 = 5.5e12;
        const FLOPS: f64 = 400e12;
        const WGMMA_FLOPS: f64 = 550e12;
        const LIBRARY_FLOPS: f64 = 700e12;
        const ADDING_UP: f64 = 1.0e-6;
        let (n, k, m) = (self.n as f64, self.k as f64, self.tokens as f64);
        let weights = n * self.storage.bytes_of_row(self.k) as f64;
        let x_bytes = m * k * self.storage.bytes_of_input() as f64;
        let (blocks, rows, at_once, tokens, splits) = match kernel {
            LinearKernel::Few {
                tiles,
                tokens,
                splits,
            } => {
                let items = self.tiles().div_ceil(tiles) * splits;
                let slots = kernel.blocks_per_multiprocessor(self.storage, facts);
                (items, tiles * ROWS, slots, tokens, splits)
            }
            LinearKernel::Tile {
                tiles,
                tokens,
                splits,
            }
            | LinearKernel::Wgmma {
                tiles,
                tokens,
                splits,
            } => {
                let groups = self.tiles().div_ceil(tiles * WARPS) * self.tokens.div_ceil(tokens);
                let slots = kernel.blocks_per_multiprocessor(self.storage, facts);
                (groups * splits, tiles * WARPS * ROWS, slots, tokens, splits)
            }
            LinearKernel::Library => {
                return (weights + x_bytes) / (0.85 * MEMORY) + 2.0 * n * k * m / LIBRARY_FLOPS;
            }
            LinearKernel::Dequantized { .. } => {
                let plain = 2.0 * n * k;
                return weights / MEMORY
                    + 2.0 * plain / CACHE
                    + 2.0 * n * k * m / LIBRARY_FLOPS
                    + 4e-6;
            }
            LinearKernel::Any => return f64::INFINITY,
        };
        let slots = facts.multiprocessors.max(1) * at_once;
        let rounds = blocks.div_ceil(slots);
        let idle = (rounds * slots) as f64 / blocks as f64;
        // A block that waits alone gets more of the memory's rate: half of the idle time is made up for.
        let stretch = 0.5 + 0.5 * idle;
        let groups_of_tokens = self.tokens.div_ceil(tokens) as f64;
        let readers = n / rows as f64;
        let partial = if splits > 1 {
            2.0 * 4.0 * n * m * splits as f64
        } else {
            0.0
        };
        let through_cache = weights * groups_of_tokens + x_bytes * readers + partial;
        let padded = m.max((tokens as f64) * groups_of_tokens);
        let flops = match kernel {
            LinearKernel::Wgmma { .. } => WGMMA_FLOPS,
            _ => FLOPS,
        };
        let work = 2.0 * n * k * padded / flops;
        let time = (weights / MEMORY).max(through_cache / CACHE).max(work);
        time * stretch + if splits > 1 { ADDING_UP } else { 0.0 }
    }
}

impl LinearKernel {
    /// Dynamic shared memory of a block: `SHARED` of the `.cu` files.
    pub(super) fn shared_bytes(self, storage: Storage) -> usize {
        match self {
            Self::Few { tiles, tokens, .. } => {
                let stage = tiles * storage.tile_bytes()
                    + storage.scale_bytes(tiles)
                    + tokens * STEP * storage.bytes_of_input();
                let ring = if tokens <= 8 { 12 << 10 } else { 24 << 10 };
                let depth = (ring / stage).clamp(3, 8);
                let at_once = if tokens * tiles <= 32 {
                    tiles
                } else {
                    32 / tokens
                };
                let sums = tokens * (at_once * ROWS + 4) * 4;
                WARPS * (depth * stage + sums)
            }
            Self::Tile { tiles, tokens, .. } => {
                let own = tiles * storage.tile_bytes() + storage.scale_bytes(tiles);
                let stage = WARPS * own + tokens * STEP * storage.bytes_of_input();
                let depth = ((96 << 10) / stage).clamp(3, 6);
                let out = tokens * (WARPS * tiles * ROWS + 4) * 4;
                (depth * stage).max(out)
            }
            Self::Wgmma { tiles, tokens, .. } => {
                let own = tiles * storage.tile_bytes() + storage.scale_bytes(tiles);
                let x = tokens * STEP * storage.bytes_of_input();
                let stage = WARPS * own + x;
                let depth = ((128 << 10) / stage).clamp(3, 6);
                let out = tokens * (WARPS * tiles * ROWS + 4) * 4;
                (depth * stage + 2 * x).max(out)
            }
            Self::Library | Self::Dequantized { .. } | Self::Any => 0,
        }
    }

    /// How many of its blocks a multiprocessor runs at a time.
    pub(super) fn blocks_per_multiprocessor(self, storage: Storage, facts: &Facts) -> usize {
        // By registers, as the launch bounds of the kernels have it.
        let most = match self {
            Self::Few { tokens, .. } if tokens <= 8 => 2,
            Self::Tile {
                tiles: 1,
                tokens: 32,
                ..
            } => 2,
            _ => 1,
        };
        // A multiprocessor has a little more than its largest block may have.
        let all = facts.shared_bytes + RESERVED;
        let each = self.shared_bytes(storage) + RESERVED;
        (all / each).clamp(1, most)
    }

    /// Blocks of a launch, or pieces of work where blocks take one after another, with columns in one part; and how many may
    /// come of parts for each place on the device. `None` where columns stay whole.
    fn groups(self, problem: &Problem) -> Option<(usize, usize)> {
        match self {
            Self::Few { tiles, .. } => Some((problem.tiles().div_ceil(tiles), PARTS_PER_PLACE.0)),
            Self::Tile { tiles, tokens, .. } | Self::Wgmma { tiles, tokens, .. } => {
                let rows = problem.tiles().div_ceil(tiles * WARPS);
                let groups = rows.saturating_mul(problem.tokens.div_ceil(tokens));
                Some((groups, PARTS_PER_PLACE.1))
            }
            Self::Library | Self::Dequantized { .. } | Self::Any => None,
        }
    }

    const fn splits(self) -> usize {
        match self {
            Self::Few { splits, .. } | Self::Tile { splits, .. } | Self::Wgmma { splits, .. } => {
                splits
            }
            Self::Library | Self::Dequantized { .. } | Self::Any => 1,
        }
    }

    /// The same with columns in so many parts.
    const fn in_parts(mut self, parts: usize) -> Self {
        if let Self::Few { splits, .. } | Self::Tile { splits, .. } | Self::Wgmma { splits, .. } =
            &mut self
        {
            *splits = parts;
        }
        self
    }

    /// The most blocks that cutting columns may lead to.
    fn most_blocks(self, storage: Storage, each: usize, facts: &Facts) -> usize {
        facts.multiprocessors.max(1) * self.blocks_per_multiprocessor(storage, facts) * each
    }

    /// Whether columns are whole, or their parts find places on the device.
    fn parts_fill_places(self, problem: &Problem, facts: &Facts) -> bool {
        let splits = self.splits();
        self.groups(problem).is_none_or(|(groups, each)| {
            splits == 1
                || groups.saturating_mul(splits) <= self.most_blocks(problem.storage, each, facts)
        })
    }

    /// The most of [`Self::workspace`] in up to as many parts as these, for up to as many tokens as `problem` has, if it may
    /// have been chosen for half as many.
    pub(super) fn most_workspace(self, problem: &Problem, facts: &Facts) -> (usize, usize) {
        let (
            Self::Tile { tiles, tokens, .. } | Self::Wgmma { tiles, tokens, .. },
            Some((groups, each)),
        ) = (self, self.groups(problem))
        else {
            return (0, 0);
        };
        if self.splits() == 1 {
            return (0, 0);
        }
        let most = 2 * self.most_blocks(problem.storage, each, facts);
        let blocks = groups.saturating_mul(self.splits()).min(most);
        (blocks * tokens * tiles * WARPS * ROWS, blocks / 2)
    }

    /// f32 numbers that blocks leave for the last of a tile to add up, and counters of such tiles.
    pub(super) fn workspace(self, problem: &Problem) -> (usize, usize) {
        match self {
            Self::Few {
                tiles,
                tokens,
                splits,
            } if splits > 1 => {
                let groups = problem.tiles().div_ceil(tiles);
                (groups * splits * tokens * tiles * ROWS, groups)
            }
            Self::Tile {
                tiles,
                tokens,
                splits,
            }
            | Self::Wgmma {
                tiles,
                tokens,
                splits,
            } if splits > 1 => {
                let groups =
                    problem.tiles().div_ceil(tiles * WARPS) * problem.tokens.div_ceil(tokens);
                (groups * splits * tokens * tiles * WARPS * ROWS, groups)
            }
            _ => (0, 0),
        }
    }
}

/// The largest number of tokens that is planned for as `tokens` are: powers of two but for the smallest, so that a plan
/// that was found once serves its neighbours.
pub(super) fn bucket(tokens: usize) -> usize {
    match tokens {
        0..=1 => 1,
        2..=8 => 8,
        _ => tokens.next_power_of_two(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scheme::DType;

    fn problem(storage: Storage, n: usize, k: usize, tokens: usize) -> Problem {
        Problem {
            storage,
            n,
            k,
            tokens,
        }
    }

    #[test]
    fn one_token_keeps_the_whole_device_busy() {
        for storage in Storage::all() {
            for (n, k) in [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336)] {
                let problem = problem(storage, n, k, 1);
                let plan = problem.candidates(&Facts::h100())[0];
                let LinearKernel::Few { tiles, splits, .. } = plan else {
                    panic!("{storage:?} [{n}, {k}]: {plan}");
                };
                let items = problem.tiles().div_ceil(tiles) * splits;
                let slots = 132 * plan.blocks_per_multiprocessor(storage, &Facts::h100());
                // Less than half of the device waiting for the other half.
                assert!(
                    items * 2 > slots.min(132 * 2),
                    "{storage:?} [{n}, {k}]: {plan} has {items} items for {slots} places"
                );
            }
        }
    }

    #[test]
    fn many_tokens_go_to_the_library_and_few_do_not() {
        let packed = Storage::Int4 {
            zeros: false,
            wide_scales: false,
            x: DType::BF16,
        };
        let first =
            |storage, tokens| problem(storage, 4096, 4096, tokens).candidates(&Facts::h100())[0];
        assert!(matches!(first(packed, 4), LinearKernel::Few { .. }));
        assert!(matches!(
            first(packed, 2048),
            LinearKernel::Dequantized { .. }
        ));
        assert_eq!(
            first(Storage::Plain(DType::BF16), 2048),
            LinearKernel::Library
        );
        assert_eq!(first(Storage::Codes, 2048), LinearKernel::Library);
    }

    #[test]
    fn a_small_gpu_gets_kernels_that_fit() {
        let a100 = Facts {
            compute_capability: (8, 0),
            multiprocessors: 108,
            shared_bytes: 166_912,
            ..Facts::h100()
        };
        for storage in Storage::all() {
            for tokens in [1, 5, 13, 30, 64, 500] {
                for plan in problem(storage, 4096, 4096, tokens).candidates(&a100) {
                    assert!(plan.shared_bytes(storage) <= 166_912, "{plan}");
                    assert!(!matches!(plan, LinearKernel::Wgmma { .. }), "{plan}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn there_is_always_a_way_and_its_parts_cover_the_columns(
            n in 1_usize..5000, k8 in 1_usize..600, tokens in 1_usize..300
        ) {
            for storage in Storage::all() {
                let problem = problem(storage, n, k8 * 32, tokens);
                let all = problem.candidates(&Facts::h100());
                prop_assert!(!all.is_empty());
                for plan in all {
                    if let LinearKernel::Few { splits, .. }
                    | LinearKernel::Tile { splits, .. }
                    | LinearKernel::Wgmma { splits, .. } = plan
                    {
                        let steps = problem.steps();
                        let each = steps.div_ceil(splits);
                        prop_assert!((splits - 1) * each < steps && splits * each >= steps);
                    }
                }
            }
        }
    }
}
