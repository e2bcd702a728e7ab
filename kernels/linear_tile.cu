// linear_tile: out[t, n] (+)= sum_k x[t, k] * w[n, k] (+ bias[n]) for tokens enough to share what is read: from about 17
// on.
//
// linear_tile_<weight>_<x>_<rows>x<tokens>   weights and activations as in linear_few.cu; a block computes 128 R rows for
//                                            8 B tokens, or a part of their columns.
//
// A block of tiles (common/block_of_tiles.cuh) with a ring of steps in flight and one barrier a step. Weights become
// fragments once a step, and serve all the tokens of the block. Where blocks share a tile, the last to arrive adds up what
// they left, in a fixed order.
//
// What the loop over steps may take per lane and weight, for every architecture: instructions in its body, and those of
// them that make numbers of codes. Held by tests/cuda_build.
// gate plain_bf16 2x8: 8.2 0.3
// gate int8_bf16 2x8: 5.2 2.3
// gate int4_bf16 2x8: 9.6 2.8
// gate w8a8 2x8: 4.0 0.2
#include <ptx/kernel.cuh>

#include "common/block_of_tiles.cuh"

template <class Format, unsigned R, unsigned B> struct Tile : BlockOfTiles<Format, R, B, Readers::Fragments> {
    using Block = BlockOfTiles<Format, R, B, Readers::Fragments>;
    using typename Block::Scales;
    using typename Block::Sum;
    using typename Block::Tokens;
    using typename Block::X;
    using Block::args, Block::shared, Block::tile, Block::begin, Block::end;
    using Block::EXACT, Block::SCALED, Block::HALVES, Block::INSTRUCTIONS, Block::TILE_BYTES, Block::OWN, Block::STAGE;
    static constexpr unsigned RING = 96 << 10;
    static constexpr unsigned DEPTH = RING / STAGE < 3 ? 3 : RING / STAGE > 6 ? 6 : RING / STAGE;
    static constexpr unsigned SHARED = DEPTH * STAGE > Block::OUT ? DEPTH * STAGE : Block::OUT;

    __device__ Tile(const ProductArgs& args, unsigned char* shared) : Block(args, shared) {}

    // Adds a stage to the sums.
    __device__ void use(const unsigned char* stage, Sum (&sums)[R][B][4]) const {
        const unsigned char* x = stage + WARPS * OWN;
        uint32_t a[R][INSTRUCTIONS][4];
        float scale[R][2][2]; // of each half, for rows g and g + 8
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            this->widen(stage, r, a[r]);
            if constexpr (SCALED) {
#pragma unroll
                for (unsigned i = 0; i < 4; i++) {
                    scale[r][i / 2][i % 2] = Scales::scale(this->scales_of(stage), args.weight, r, i / 2,
                                                           lane_row() + i % 2 * 8);
                }
            }
        }
#pragma unroll
        for (unsigned j = 0; j < B; j++) {
            uint32_t b[INSTRUCTIONS][2];
#pragma unroll
            for (unsigned half = 0; half < HALVES; half++) {
                const unsigned place = Tokens::place(j * BLOCK + lane_row(), Format::chunk(half));
                const uint4 chunk = *reinterpret_cast<const uint4*>(x + place);
#pragma unroll
                for (unsigned i = 0; i < 4; i++) b[2 * half + i / 2][i % 2] = word(chunk, i);
            }
#pragma unroll
            for (unsigned r = 0; r < R; r++) {
                if constexpr (EXACT) {
                    for (unsigned s = 0; s < INSTRUCTIONS; s++) mma_16x8x32(sums[r][j], a[r][s], b[s]);
                } else if constexpr (!SCALED) {
#pragma unroll
                    for (unsigned s = 0; s < INSTRUCTIONS; s++) mma_16x8x16<X>(sums[r][j], a[r][s], b[s]);
                } else {
                    float part[4] = {};
                    mma_16x8x16<X>(part, a[r][0], b[0]);
                    mma_16x8x16<X>(part, a[r][1], b[1]);
                    if (args.weight.halves()) add_scaled(sums[r][j], scale[r][0], part);
                    mma_16x8x16<X>(part, a[r][2], b[2]);
                    mma_16x8x16<X>(part, a[r][3], b[3]);
                    add_scaled(sums[r][j], scale[r][1], part);
                }
            }
        }
    }

    // sum += scale part, and part begins anew.
    static __device__ void add_scaled(float (&sum)[4], const float (&scale)[2], float (&part)[4]) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            sum[i] = fmaf(scale[i / 2], part[i], sum[i]);
            part[i] = 0.0f;
        }
    }

    __device__ void run() const {
        Sum sums[R][B][4] = {};
        auto sources = this->sources();
        // Weights do not depend on what ran before; activations do.
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH - 1; i++) {
            if (begin + i < end) this->copy_weights(shared + i * STAGE, sources, begin + i);
            sources.weights.advance(1);
        }
        this->bring_rows();
        let_successor_start();
        wait_for_predecessor();
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH - 1; i++) {
            if (begin + i < end) this->copy_tokens(shared + i * STAGE, sources, begin + i);
            sources.tokens.advance(1);
            copies_commit();
        }
        unsigned char* filling = shared + (DEPTH - 1) * STAGE;
        unsigned char* using_up = shared;
        const auto next = [this](unsigned char* stage) {
            return stage == shared + (DEPTH - 1) * STAGE ? shared : stage + STAGE;
        };
#pragma unroll 1
        for (unsigned step = begin; step < end; step++) {
            copies_wait<DEPTH - 2>();
            __syncthreads(); // all copies of this stage have arrived, and all are done with the one that is filled next
            const unsigned ahead = step + DEPTH - 1;
            if (ahead < end) {
                this->copy_weights(filling, sources, ahead);
                this->copy_tokens(filling, sources, ahead);
            }
            sources.weights.advance(1);
            sources.tokens.advance(1);
            copies_commit();
            filling = next(filling);
            use(using_up, sums);
            using_up = next(using_up);
        }
        copies_wait<0>();
        __syncthreads(); // the ring is free
        this->finish([&sums](unsigned r, unsigned j, unsigned i) { return sums[r][j][i]; });
    }
};

template <class Format, unsigned R, unsigned B> __device__ void linear_tile(const ProductArgs& args) {
    DYNAMIC_SHARED(shared);
    if (dynamic_shared_bytes() < Tile<Format, R, B>::SHARED) return; // a launch that knows better than this file
    Tile<Format, R, B>(args, shared).run();
}

#define KERNEL_TILE(FORMAT, BLOCKS, R, B)                                                                              \
    KERNEL_OF(THREADS, BLOCKS, linear_tile_##FORMAT##_##R##x##B, const ProductArgs args) {                              \
        linear_tile<FORMAT, R, B>(args);                                                                               \
    }
// Rows and tokens in three sizes: more share what is read of the other, fewer make more blocks of the same matrix.
#define PLAIN(FORMAT) KERNEL_TILE(FORMAT, 2, 1, 4) KERNEL_TILE(FORMAT, 1, 1, 8) KERNEL_TILE(FORMAT, 1, 2, 8)
#define PACKED PLAIN
#define CODES PACKED
#define WIDE_SCALES PACKED
#include "common/storages.cuh"
