//! What the streaming kernels are made like: tiles, blocks, rings, and the sizes that each family is compiled in. Constants
//! and formulas are those of the `.cu` and `.cuh` files; plans, launches, needs and names are made of these alone.

use super::storage::Storage;

/// Rows of a tile.
pub(super) const ROWS: usize = 16;
/// Columns of a step.
pub(super) const STEP: usize = 64;
/// Warps of a block of every kernel that streams.
pub(in crate::kernels::gpu) const WARPS: usize = 8;
/// Threads of a block of every kernel that streams.
pub(in crate::kernels::gpu) const THREADS: u32 = 256;
/// Tokens of a matrix instruction: columns that it has room for.
pub(super) const BLOCK: usize = 8;
/// The most tokens that `linear_few.cu` takes.
pub(super) const MOST_FEW: usize = 16;
/// The most tokens that `linear_fused.cu` takes.
pub(super) const MOST_FUSED: usize = BLOCK;
/// Numbers between the sums of one token and those of the next, beside the sums: against bank conflicts.
const GAP: usize = 4;
/// Bytes of a sum.
const SUM_BYTES: usize = 4;
/// Sums of tokens and tiles that the warps of a block of few tokens add up at once.
const SUMS_AT_ONCE: usize = 32;

/// What a kernel that streams is compiled as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `linear_few.cu`.
    Few,
    /// `linear_fused.cu`.
    Fused,
    /// `linear_tile.cu`.
    Tile,
    /// `linear_wgmma.cu`, its two groups of warps beside each other.
    Wgmma,
    /// The same in turns.
    WgmmaInTurns,
}

/// A size that a family is compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels::gpu) struct Size {
    /// Tiles of 16 rows that a block has in hand, or a warp of it where it is of many tokens.
    pub(in crate::kernels::gpu) tiles: usize,
    /// Tokens of a block: 1, or a multiple of [`BLOCK`].
    pub(in crate::kernels::gpu) tokens: usize,
}

impl Size {
    const fn new(tiles: usize, tokens: usize) -> Self {
        Self { tiles, tokens }
    }
}

impl Family {
    /// Every size that there is of it for weights in this storage.
    pub(super) fn sizes(self, storage: Storage) -> &'static [Size] {
        const FEW_PLAIN: &[Size] = &[
            Size::new(1, 1),
            Size::new(2, 1),
            Size::new(1, 8),
            Size::new(2, 8),
            Size::new(1, 16),
            Size::new(2, 16),
        ];
        const FEW_PACKED: &[Size] = &[
            Size::new(1, 1),
            Size::new(2, 1),
            Size::new(4, 1),
            Size::new(1, 8),
            Size::new(2, 8),
            Size::new(4, 8),
            Size::new(2, 16),
            Size::new(4, 16),
        ];
        const FUSED_WIDE: &[Size] = &[Size::new(1, 1), Size::new(2, 1), Size::new(2, 8)];
        const FUSED_NARROW: &[Size] = &[Size::new(2, 1), Size::new(4, 1), Size::new(2, 8)];
        const TILE: &[Size] = &[Size::new(1, 32), Size::new(1, 64), Size::new(2, 64)];
        const WGMMA: &[Size] = &[Size::new(2, 64), Size::new(1, 128)];
        const WGMMA_IN_TURNS: &[Size] = &[Size::new(2, 64)];
        match (self, storage) {
            (Self::Few, Storage::Plain(_)) => FEW_PLAIN,
            (Self::Few, _) => FEW_PACKED,
            (Self::Fused, Storage::Plain(_) | Storage::Codes) => FUSED_WIDE,
            (Self::Fused, _) => FUSED_NARROW,
            (Self::Tile, _) => TILE,
            // Plain weights are the library's.
            (Self::Wgmma | Self::WgmmaInTurns, Storage::Plain(_)) => &[],
            (Self::Wgmma, _) => WGMMA,
            (Self::WgmmaInTurns, _) => WGMMA_IN_TURNS,
        }
    }

    /// The kernel of a size, for weights and inputs that kernels call `pair`.
    pub(super) fn kernel_name(self, pair: &str, size: Size) -> String {
        let family = match self {
            Self::Few => "few",
            Self::Fused => "fused",
            Self::Tile => "tile",
            Self::Wgmma => "wgmma",
            Self::WgmmaInTurns => "wgmma_turns",
        };
        // A single token is a kernel of its own, named as no block of tokens.
        let (tiles, blocks_of_tokens) = (size.tiles, size.tokens / BLOCK);
        format!("linear_{family}_{pair}_{tiles}x{blocks_of_tokens}")
    }

    /// Dynamic shared memory of a block: `SHARED` of the `.cu` files, of a fused one without what it makes of its input.
    pub(super) fn shared_bytes(self, size: Size, storage: Storage) -> usize {
        let Size { tiles, tokens } = size;
        let weights = tiles * storage.tile_bytes() + storage.scale_bytes(tiles);
        let inputs = tokens * STEP * storage.bytes_of_input();
        // Sums take the memory of the ring when that is done, rows side by side.
        let out = tokens * (WARPS * tiles * ROWS + GAP) * SUM_BYTES;
        match self {
            Self::Few | Self::Fused => {
                // Inputs that are made in a block lie outside its rings.
                let inputs = if self == Self::Few { inputs } else { 0 };
                let ring = if tokens <= BLOCK { 12 << 10 } else { 24 << 10 };
                let stage = weights + inputs;
                WARPS * depth(ring, stage, 8) * stage + sums_bytes(size)
            }
            Self::Tile => {
                let stage = WARPS * weights + inputs;
                (depth(96 << 10, stage, 6) * stage).max(out)
            }
            Self::Wgmma | Self::WgmmaInTurns => {
                let stage = WARPS * weights + inputs;
                (depth(128 << 10, stage, 6) * stage + 2 * inputs).max(out)
            }
        }
    }
}

/// Stages of a ring of about so many bytes: at least three, and `most` at most.
fn depth(ring: usize, stage: usize, most: usize) -> usize {
    (ring / stage).clamp(3, most)
}

/// Shared memory for the sums of the warps of a block of few tokens: `SUMS` of `common/few.cuh`.
pub(in crate::kernels::gpu) fn sums_bytes(size: Size) -> usize {
    let Size { tiles, tokens } = size;
    let at_once = if tokens * tiles <= SUMS_AT_ONCE {
        tiles
    } else {
        SUMS_AT_ONCE / tokens
    };
    WARPS * tokens * (at_once * ROWS + GAP) * SUM_BYTES
}

/// f32 numbers that blocks leave for the last of each of `groups` groups of tiles to add up: of `tokens` tokens and `tiles`
/// tiles from each of `splits` parts; none where columns are whole.
pub(in crate::kernels::gpu) const fn partial_sums(
    groups: usize,
    splits: usize,
    tokens: usize,
    tiles: usize,
) -> usize {
    if splits > 1 {
        groups * splits * tokens * tiles * ROWS
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::DType;

    const PLAIN: Storage = Storage::Plain(DType::BF16);
    const INT4: Storage = Storage::Int4 {
        zeros: false,
        wide_scales: false,
        x: DType::BF16,
    };

    #[test]
    fn kernels_are_named_after_their_tiles_and_blocks_of_tokens() {
        let names = |family: Family, storage: Storage| -> Vec<String> {
            let sizes = family.sizes(storage).iter();
            sizes.map(|&size| family.kernel_name("w", size)).collect()
        };
        assert_eq!(
            names(Family::Tile, PLAIN),
            [
                "linear_tile_w_1x4",
                "linear_tile_w_1x8",
                "linear_tile_w_2x8"
            ]
        );
        assert_eq!(
            names(Family::Wgmma, INT4),
            ["linear_wgmma_w_2x8", "linear_wgmma_w_1x16"]
        );
        assert_eq!(
            names(Family::WgmmaInTurns, INT4),
            ["linear_wgmma_turns_w_2x8"]
        );
        assert!(names(Family::Wgmma, PLAIN).is_empty());
        assert_eq!(
            names(Family::Fused, Storage::Codes),
            [
                "linear_fused_w_1x0",
                "linear_fused_w_2x0",
                "linear_fused_w_2x1"
            ]
        );
        assert_eq!(names(Family::Few, PLAIN)[4], "linear_few_w_1x2");
    }

    #[test]
    fn blocks_have_the_shared_memory_that_their_kernels_lay_out() {
        // By hand from common/few.cuh: a stage of one tile of 16 x 64 numbers and one token of 64, five of them in 12 KiB.
        let few = Family::Few.shared_bytes(Size::new(1, 1), PLAIN);
        assert_eq!(few, 8 * (5 * (2048 + 128) + (16 + 4) * 4));
        // As fused, tokens lie elsewhere: six stages.
        let fused = Family::Fused.shared_bytes(Size::new(1, 1), PLAIN);
        assert_eq!(fused, 8 * (6 * 2048 + (16 + 4) * 4));
        // Sixteen tokens add up two tiles at once, in rings of 24 KiB: nibbles and two groups' scales of four tiles.
        let stage = 4 * 512 + 4 * 2 * 16 * 2 + 16 * 128;
        let few = Family::Few.shared_bytes(Size::new(4, 16), INT4);
        assert_eq!(
            few,
            8 * (((24 << 10) / stage) * stage + 16 * (2 * 16 + 4) * 4)
        );
    }

    #[test]
    fn only_parts_leave_sums() {
        assert_eq!(partial_sums(10, 1, 8, 2), 0);
        assert_eq!(partial_sums(10, 3, 8, 2), 10 * 3 * 8 * 2 * 16);
    }
}
