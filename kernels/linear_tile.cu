// linear_tile: out[t, n] (+)= sum_k x[t, k] * w[n, k] (+ bias[n]) for tokens enough to share what is read: from about 17 on.
//
// linear_tile_<weight>_<x>_<rows>x<tokens>   weights and activations as in linear_few.cu; a block computes 128 R rows for
//                                            8 B tokens, or a part of their columns.
//
// Each of the eight warps has R tiles of 16 rows to itself and copies just those, lane by lane, as in linear_few.cu; the
// activations of a step are copied once for the block. A ring of such steps is kept in flight, with one barrier a step.
// Weights become fragments once a step, and serve all the tokens of the block. blockIdx.x counts parts of columns within
// groups of rows, blockIdx.y groups of tokens. Where blocks share a tile, the last to arrive adds up what they left, in a
// fixed order.
//
// What the loop over steps may take per lane and weight, for every architecture: instructions in its body, and those of
// them that make numbers of codes. Held by tests/cuda_build.
// gate plain_bf16 2x8: 8.2 0.3
// gate int8_bf16 2x8: 5.2 2.3
// gate int4_bf16 2x8: 9.6 2.8
// gate w8a8 2x8: 4.0 0.2
#include <ptx/kernel.cuh>

#include "common/product.cuh"

constexpr unsigned WARPS = 8;
constexpr unsigned THREADS = WARPS * WARP;

template <class Format, unsigned R, unsigned B> struct Tile {
    using X = typename Format::X;
    using Sum = typename Format::Sum;
    using Tokens = StepOfTokens<X>;
    using Scales = StepScales<Format, R>;
    static constexpr bool EXACT = std::is_same_v<Sum, int>;
    static constexpr bool SCALED = Scales::BYTES > 0; // in the course of a row
    static constexpr unsigned HALVES = EXACT ? 1 : 2; // chunks of a lane in a step
    static constexpr unsigned TOKENS = BLOCK * B;
    static constexpr unsigned ALL_ROWS = WARPS * R * ROWS;
    static constexpr unsigned INSTRUCTIONS = EXACT ? 2 : 4; // of a tile, a block of tokens and a step

    // A stage of the ring: what each warp has to itself, then the activations.
    static constexpr unsigned TILE_BYTES = Format::PIECES * WARP * PIECE;
    static constexpr unsigned OWN = R * TILE_BYTES + Scales::BYTES;
    static constexpr unsigned STAGE = WARPS * OWN + TOKENS * Tokens::BYTES;
    static constexpr unsigned RING = 96 << 10;
    static constexpr unsigned DEPTH = RING / STAGE < 3 ? 3 : RING / STAGE > 6 ? 6 : RING / STAGE;
    // Sums on their way out, in place of the ring.
    static constexpr unsigned PITCH = ALL_ROWS + 4;
    static constexpr unsigned OUT = TOKENS * PITCH * sizeof(Sum);
    static constexpr unsigned SHARED = DEPTH * STAGE > OUT ? DEPTH * STAGE : OUT;

    const ProductArgs& args;
    unsigned char* const shared;
    const unsigned group;       // of rows
    const unsigned split;       // part of the columns
    const unsigned tile;        // the warp's first
    const unsigned here;        // tiles of the warp that exist
    const unsigned first_token;
    const unsigned tokens;      // of the block that exist

    __device__ Tile(const ProductArgs& args, unsigned char* shared)
        : args(args), shared(shared), group(blockIdx.x / args.splits), split(blockIdx.x % args.splits),
          tile((group * WARPS + warp_id()) * R),
          here(tile < args.weight.tiles() ? min(R, args.weight.tiles() - tile) : 0), first_token(blockIdx.y * TOKENS),
          tokens(min(TOKENS, args.tokens - first_token)) {}

    __device__ void copy_weights(unsigned char* stage, const Source<Format>& source, unsigned step) const {
        unsigned char* own = stage + warp_id() * OWN;
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            if (r < here) source.copy(own + r * TILE_BYTES, args.weight, r, step);
        }
        Scales::copy(own + R * TILE_BYTES, args.weight, tile, here, step);
    }

    __device__ void copy_tokens(unsigned char* stage, unsigned step) const {
        const X* x = static_cast<const X*>(args.x) + static_cast<size_t>(first_token) * args.weight.k;
        Tokens::template copy<TOKENS, THREADS>(stage + WARPS * OWN, x, tokens, args.weight.k, step, threadIdx.x);
    }

    // The fragments of a tile and a step.
    __device__ void widen(const unsigned char* own, unsigned r, uint32_t (&a)[INSTRUCTIONS][4]) const {
        uint4 w[Format::PIECES];
#pragma unroll
        for (unsigned i = 0; i < Format::PIECES; i++) {
            w[i] = *reinterpret_cast<const uint4*>(own + r * TILE_BYTES + (i * WARP + lane_id()) * PIECE);
        }
        if constexpr (EXACT) {
            for (unsigned s = 0; s < INSTRUCTIONS; s++) Format::fragment(w, s, a[s]);
        } else {
            NibbleZero zero[2] = {};
            if constexpr (Format::PIECES == 1) zero[0] = zero[1] = Format::zero(8);
#pragma unroll
            for (unsigned s = 0; s < INSTRUCTIONS; s++) {
                if constexpr (Format::ZEROS) {
                    const unsigned char* scales = own + R * TILE_BYTES;
                    zero[0] = Format::zero(Scales::zero(scales, args.weight, r, s / 2, lane_row()));
                    zero[1] = Format::zero(Scales::zero(scales, args.weight, r, s / 2, lane_row() + 8));
                }
                Format::fragment(w, s, zero, a[s]);
            }
        }
    }

    // Adds a stage to the sums.
    __device__ void use(const unsigned char* stage, Sum (&sums)[R][B][4]) const {
        const unsigned char* own = stage + warp_id() * OWN;
        const unsigned char* x = stage + WARPS * OWN;
        uint32_t a[R][INSTRUCTIONS][4];
        float scale[R][2][2]; // of each half, for rows g and g + 8
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            widen(own, r, a[r]);
            if constexpr (SCALED) {
#pragma unroll
                for (unsigned i = 0; i < 4; i++) {
                    scale[r][i / 2][i % 2] = Scales::scale(own + R * TILE_BYTES, args.weight, r, i / 2,
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
        const unsigned begin = split * args.steps_per_split;
        const unsigned end = min(args.weight.steps(), begin + args.steps_per_split);
        Source<Format> source(args.weight, tile, begin);
        // Weights do not depend on what ran before; activations do.
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH - 1; i++) {
            if (begin + i < end) copy_weights(shared + i * STAGE, source, begin + i);
            source.advance(1);
        }
        let_successor_start();
        wait_for_predecessor();
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH - 1; i++) {
            if (begin + i < end) copy_tokens(shared + i * STAGE, begin + i);
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
                copy_weights(filling, source, ahead);
                copy_tokens(filling, ahead);
            }
            source.advance(1);
            copies_commit();
            filling = next(filling);
            use(using_up, sums);
            using_up = next(using_up);
        }
        copies_wait<0>();
        __syncthreads(); // the ring is free
        finish(sums);
    }

    // The sums become results, or this block's part of them.
    __device__ void finish(const Sum (&sums)[R][B][4]) const {
        Sum* out = reinterpret_cast<Sum*>(shared);
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
#pragma unroll
            for (unsigned j = 0; j < B; j++) {
#pragma unroll
                for (unsigned i = 0; i < 4; i++) {
                    const unsigned token = j * BLOCK + lane_quad() * 2 + i % 2;
                    const unsigned row = (warp_id() * R + r) * ROWS + lane_row() + i / 2 * 8;
                    out[token * PITCH + row] = sums[r][j][i];
                }
            }
        }
        __syncthreads();
        const size_t part = static_cast<size_t>(TOKENS) * ALL_ROWS;
        const unsigned shared_tile = blockIdx.y * (gridDim.x / args.splits) + group;
        Sum* parts = reinterpret_cast<Sum*>(args.partial) + shared_tile * args.splits * part;
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < part; i += THREADS) {
            const Sum sum = out[i / ALL_ROWS * PITCH + i % ALL_ROWS];
            if (args.splits > 1) {
                parts[split * part + i] = sum;
            } else {
                store(i, sum);
            }
        }
        if (args.splits > 1 && is_last_of_tile(args, shared_tile)) {
#pragma unroll 1
            for (unsigned i = threadIdx.x; i < part; i += THREADS) {
                Sum sum = 0;
#pragma unroll 4
                for (unsigned s = 0; s < args.splits; s++) sum += __ldcg(parts + s * part + i);
                store(i, sum);
            }
        }
    }

    __device__ void store(unsigned i, Sum sum) const {
        const unsigned token = i / ALL_ROWS, row = group * ALL_ROWS + i % ALL_ROWS;
        if (token < tokens && row < args.weight.n) args.finish<Format>(first_token + token, row, sum);
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
#include "common/storages.cuh"
