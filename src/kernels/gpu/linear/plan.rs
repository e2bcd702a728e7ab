//! How a product is computed on a GPU: a pure choice from shapes and facts.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::geometry::{BLOCK, Family, MOST_FEW, ROWS, STEP, Size, WARPS, partial_sums};
use super::storage::Storage;
use crate::kernels::gpu::driver::Facts;

/// Blocks that a kernel in parts may have for each that the device runs at a time, if a block takes part after part, or one
/// part. More would leave sums for each other without keeping more of the device busy.
const PARTS_PER_RESIDENT_BLOCK: (usize, usize) = (4, 2);
/// Parts that a tile's columns may be cut into.
const SPLITS: [usize; 9] = [1, 2, 3, 4, 6, 8, 12, 16, 24];
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
        /// Whether the two groups of warps of a block multiply and prepare in turns.
        in_turns: bool,
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
                in_turns,
            } => {
                let rows = tiles * WARPS * ROWS;
                let turns = if in_turns { " in turns" } else { "" };
                write!(f, "wgmma {rows}x{tokens}{turns}{}", parts(splits))
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
    /// Tiles of its rows.
    pub(super) fn tiles(&self) -> usize {
        self.n.div_ceil(ROWS)
    }

    /// Groups of `tiles` tiles.
    pub(in crate::kernels::gpu) fn groups(&self, tiles: usize) -> usize {
        self.tiles().div_ceil(tiles)
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
            needed <= facts.shared_bytes && kernel.parts_find_room(self, facts)
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
            2..=BLOCK => BLOCK,
            9..=MOST_FEW => MOST_FEW,
            _ => return Vec::new(),
        };
        self.sized(Family::Few, WARPS, |size| size.tokens == tokens)
    }

    fn tile(&self) -> Vec<LinearKernel> {
        let tokens = match self.tokens {
            ..=BLOCK => return Vec::new(),
            9..=32 => 32,
            _ => 64,
        };
        self.sized(Family::Tile, 4, |size| size.tokens == tokens)
    }

    /// Few tokens leave most of the instructions' columns unused.
    fn wgmma(&self) -> Vec<LinearKernel> {
        let most = match self.tokens {
            ..=16 => return Vec::new(),
            17..=64 => 64,
            _ => usize::MAX,
        };
        [Family::Wgmma, Family::WgmmaInTurns]
            .into_iter()
            .flat_map(|family| self.sized(family, 4, |size| size.tokens <= most))
            .collect()
    }

    /// The kernels of a family in the wished sizes, columns in parts of at least `least` steps.
    fn sized(
        &self,
        family: Family,
        least: usize,
        wished: impl Fn(&Size) -> bool,
    ) -> Vec<LinearKernel> {
        let sizes = family
            .sizes(self.storage)
            .iter()
            .filter(|size| wished(size));
        let with = |&Size { tiles, tokens }: &Size| {
            self.splits(least).map(move |splits| match family {
                Family::Few | Family::Fused => LinearKernel::Few {
                    tiles,
                    tokens,
                    splits,
                },
                Family::Tile => LinearKernel::Tile {
                    tiles,
                    tokens,
                    splits,
                },
                Family::Wgmma | Family::WgmmaInTurns => LinearKernel::Wgmma {
                    tiles,
                    tokens,
                    splits,
                    in_turns: family == Family::WgmmaInTurns,
                },
            })
        };
        sizes.flat_map(with).collect()
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
                let items = self.groups(tiles) * splits;
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
                ..
            } => {
                let groups = self.groups(tiles * WARPS) * self.tokens.div_ceil(tokens);
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
    /// What it is compiled as, if it streams weights.
    pub(super) fn compiled(self) -> Option<(Family, Size)> {
        match self {
            Self::Few { tiles, tokens, .. } => Some((Family::Few, Size { tiles, tokens })),
            Self::Tile { tiles, tokens, .. } => Some((Family::Tile, Size { tiles, tokens })),
            Self::Wgmma {
                tiles,
                tokens,
                in_turns,
                ..
            } => {
                let family = if in_turns {
                    Family::WgmmaInTurns
                } else {
                    Family::Wgmma
                };
                Some((family, Size { tiles, tokens }))
            }
            Self::Library | Self::Dequantized { .. } | Self::Any => None,
        }
    }

    /// Dynamic shared memory of a block.
    pub(super) fn shared_bytes(self, storage: Storage) -> usize {
        self.compiled()
            .map_or(0, |(family, size)| family.shared_bytes(size, storage))
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
        let room = facts.blocks_by_shared_memory(self.shared_bytes(storage));
        room.clamp(1, most)
    }

    /// Blocks of a launch, or pieces of work where blocks take one after another, with columns in one part; and how many
    /// may come of parts for each that the device runs at a time. `None` where columns stay whole.
    fn groups(self, problem: &Problem) -> Option<(usize, usize)> {
        match self {
            Self::Few { tiles, .. } => Some((problem.groups(tiles), PARTS_PER_RESIDENT_BLOCK.0)),
            Self::Tile { tiles, tokens, .. } | Self::Wgmma { tiles, tokens, .. } => {
                let rows = problem.groups(tiles * WARPS);
                let groups = rows.saturating_mul(problem.tokens.div_ceil(tokens));
                Some((groups, PARTS_PER_RESIDENT_BLOCK.1))
            }
            Self::Library | Self::Dequantized { .. } | Self::Any => None,
        }
    }

    /// Parts of the columns.
    pub(super) const fn splits(self) -> usize {
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

    /// Whether columns are whole, or their parts are no more than keep the device busy.
    fn parts_find_room(self, problem: &Problem, facts: &Facts) -> bool {
        let splits = self.splits();
        self.groups(problem).is_none_or(|(groups, each)| {
            splits == 1
                || groups.saturating_mul(splits) <= self.most_blocks(problem.storage, each, facts)
        })
    }

    /// The most of [`Self::workspace`] in up to as many parts as these, for up to as many tokens as `problem` has, if it
    /// may have been chosen for half as many.
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
                let groups = problem.groups(tiles);
                (partial_sums(groups, splits, tokens, tiles), groups)
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
                ..
            } if splits > 1 => {
                let groups = problem.groups(tiles * WARPS) * problem.tokens.div_ceil(tokens);
                let sums = partial_sums(groups, splits, tokens, tiles * WARPS);
                (sums, groups)
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
                let items = problem.groups(tiles) * splits;
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
