// A block that computes 128 R rows for 8 B tokens, or a part of their columns, in steps that its eight warps take together:
// each warp has R tiles of 16 rows to itself and copies just those, lane by lane; the activations of a step are copied once
// for the block. What linear_tile.cu and linear_wgmma.cu share: how copies come in, and how sums go out.
#pragma once

#include "product.cuh"

constexpr unsigned WARPS = 8;
constexpr unsigned THREADS = WARPS * WARP;

template <class Format, unsigned R, unsigned B, Readers READERS> struct BlockOfTiles {
    using X = typename Format::X;
    using Sum = typename Format::Sum;
    using Tokens = StepOfTokens<X, READERS>;
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
    // Sums on their way out, in place of the ring.
    static constexpr unsigned PITCH = ALL_ROWS + 4;
    static constexpr unsigned OUT = TOKENS * PITCH * sizeof(Sum);
    // Sums of a block, as they go to others: token by token, four at a time.
    static constexpr unsigned PART = TOKENS * ALL_ROWS;
    static constexpr unsigned FOUR = PIECE / sizeof(Sum);
    static_assert(FOUR == 4 && PITCH % FOUR == 0, "sums of four bytes in whole pieces");

    const ProductArgs& args;
    unsigned char* const shared;
    const unsigned group;       // of rows
    const unsigned split;       // part of the columns
    const unsigned tile;        // the warp's first
    const unsigned here;        // tiles of the warp that exist
    const unsigned first_token;
    const unsigned tokens;      // of the block that exist
    const unsigned begin, end;  // steps

    // blockIdx.x counts parts of columns within groups of rows, blockIdx.y groups of tokens.
    __device__ BlockOfTiles(const ProductArgs& args, unsigned char* shared)
        : args(args), shared(shared), group(blockIdx.x / args.splits), split(blockIdx.x % args.splits),
          tile((group * WARPS + warp_id()) * R),
          here(tile < args.weight.tiles() ? min(R, args.weight.tiles() - tile) : 0), first_token(blockIdx.y * TOKENS),
          tokens(min(TOKENS, args.tokens - first_token)), begin(split * args.steps_per_split),
          end(min(args.weight.steps(), begin + args.steps_per_split)) {}

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

    // The sums become results, or this block's part of them. `sum_at(r, j, i)` is number i of the fragment of the warp's r-th
    // tile and the tokens 8 j and on.
    template <class SumAt> __device__ void finish(SumAt sum_at) const {
        Sum* out = reinterpret_cast<Sum*>(shared);
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
#pragma unroll
            for (unsigned j = 0; j < B; j++) {
#pragma unroll
                for (unsigned i = 0; i < 4; i++) {
                    const unsigned token = j * BLOCK + lane_quad() * 2 + i % 2;
                    const unsigned row = (warp_id() * R + r) * ROWS + lane_row() + i / 2 * 8;
                    out[token * PITCH + row] = sum_at(r, j, i);
                }
            }
        }
        __syncthreads();
        const unsigned shared_tile = blockIdx.y * (gridDim.x / args.splits) + group;
        Sum* parts = reinterpret_cast<Sum*>(args.partial) + static_cast<size_t>(shared_tile) * args.splits * PART;
        if (args.splits == 1) {
#pragma unroll 1
            for (unsigned i = threadIdx.x; i < PART; i += THREADS) store(i, out[i / ALL_ROWS * PITCH + i % ALL_ROWS]);
            return;
        }
#pragma unroll 1
        for (unsigned i = threadIdx.x * FOUR; i < PART; i += THREADS * FOUR) {
            *reinterpret_cast<uint4*>(parts + split * PART + i) =
                *reinterpret_cast<const uint4*>(out + i / ALL_ROWS * PITCH + i % ALL_ROWS);
        }
        if (is_last_of_tile(args, shared_tile)) add_up(parts);
    }

    // Adds up what the blocks of a tile left, in their order. A thread has sixteen loads under way at a time: one after another,
    // they would take longer than the product.
    __device__ void add_up(const Sum* parts) const {
        constexpr unsigned AT_ONCE = 4, ROUND = THREADS * FOUR * AT_ONCE;
        static_assert(PART % ROUND == 0, "every thread adds up as much");
#pragma unroll 1
        for (unsigned first = threadIdx.x * FOUR; first < PART; first += ROUND) {
            Sum sums[AT_ONCE][FOUR] = {};
#pragma unroll 4
            for (unsigned s = 0; s < args.splits; s++) {
#pragma unroll
                for (unsigned u = 0; u < AT_ONCE; u++) {
                    const Sum* from = parts + s * PART + first + u * THREADS * FOUR;
                    const uint4 raw = __ldcg(reinterpret_cast<const uint4*>(from));
                    Sum four[FOUR];
                    memcpy(four, &raw, sizeof four);
#pragma unroll
                    for (unsigned i = 0; i < FOUR; i++) sums[u][i] += four[i];
                }
            }
#pragma unroll
            for (unsigned u = 0; u < AT_ONCE; u++) {
#pragma unroll
                for (unsigned i = 0; i < FOUR; i++) store(first + u * THREADS * FOUR + i, sums[u][i]);
            }
        }
    }

    __device__ void store(unsigned i, Sum sum) const {
        const unsigned token = i / ALL_ROWS, row = group * ALL_ROWS + i % ALL_ROWS;
        if (token < tokens && row < args.weight.n) args.finish<Format>(first_token + token, row, sum);
    }
};
