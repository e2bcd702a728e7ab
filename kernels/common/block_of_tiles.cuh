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
    const unsigned pieces_at;   // of the lane, in a stage

    // blockIdx.x counts parts of columns within groups of rows, blockIdx.y groups of tokens.
    __device__ BlockOfTiles(const ProductArgs& args, unsigned char* shared)
        : args(args), shared(shared), group(blockIdx.x / args.splits), split(blockIdx.x % args.splits),
          tile((group * WARPS + warp_id()) * R),
          here(tile < args.weight.tiles() ? min(R, args.weight.tiles() - tile) : 0), first_token(blockIdx.y * TOKENS),
          tokens(min(TOKENS, args.tokens - first_token)), begin(split * args.steps_per_split),
          end(min(args.weight.steps(), begin + args.steps_per_split)),
          pieces_at(warp_id() * OWN + lane_id() * PIECE) {}

    // Where a thread copies from, moved along from step to step. Addresses are kept: to compute them anew took more
    // instructions than all else but the numbers of codes.
    struct Sources {
        Source<Format> weights;
        typename Scales::Source scales;
        typename Tokens::template Source<THREADS> tokens;
    };

    // From the first step on.
    __device__ Sources sources() const {
        const X* x = static_cast<const X*>(args.x) + static_cast<size_t>(first_token) * args.weight.k;
        return {{args.weight, tile, begin},
                {args.weight, tile, here, begin},
                {x, tokens, args.weight.k, begin, threadIdx.x}};
    }

    __device__ void copy_weights(unsigned char* stage, const Sources& sources, unsigned step) const {
        const Source<Format>& source = sources.weights;
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            if (r < here) source.copy(stage + pieces_at + r * TILE_BYTES, args.weight, r, step);
        }
        unsigned char* scales = stage + warp_id() * OWN + R * TILE_BYTES;
        // Where there are zeros too, registers are more wanted for other things than these addresses.
        if constexpr (Format::ZEROS) typename Scales::Source(args.weight, tile, here, step).copy(scales, args.weight, step);
        else sources.scales.copy(scales, args.weight, step);
    }

    // Scales of rows and the bias, a tile for each thread.
    __device__ void bring_rows() const {
        const unsigned mine = group * WARPS * R + threadIdx.x;
        if (threadIdx.x < WARPS * R && mine < args.weight.tiles()) args.template bring_rows<Format>(mine);
    }

    __device__ void copy_tokens(unsigned char* stage, const Sources& sources, unsigned step) const {
        sources.tokens.template copy<TOKENS>(stage + WARPS * OWN, step);
    }

    // The fragments of a tile and a step.
    __device__ void widen(const unsigned char* stage, unsigned r, uint32_t (&a)[INSTRUCTIONS][4]) const {
        uint4 w[Format::PIECES];
#pragma unroll
        for (unsigned i = 0; i < Format::PIECES; i++) {
            w[i] = *reinterpret_cast<const uint4*>(stage + pieces_at + r * TILE_BYTES + i * WARP * PIECE);
        }
        if constexpr (EXACT) {
            for (unsigned s = 0; s < INSTRUCTIONS; s++) Format::fragment(w, s, a[s]);
        } else {
            NibbleZero zero[2] = {};
            if constexpr (Format::PIECES == 1) zero[0] = zero[1] = Format::zero(8);
#pragma unroll
            for (unsigned s = 0; s < INSTRUCTIONS; s++) {
                if constexpr (Format::ZEROS) {
                    const unsigned char* scales = scales_of(stage);
                    zero[0] = Format::zero(Scales::zero(scales, args.weight, r, s / 2, lane_row()));
                    zero[1] = Format::zero(Scales::zero(scales, args.weight, r, s / 2, lane_row() + 8));
                }
                Format::fragment(w, s, zero, a[s]);
            }
        }
    }

    // Those of the warp's tiles and a step.
    __device__ const unsigned char* scales_of(const unsigned char* stage) const {
        return stage + warp_id() * OWN + R * TILE_BYTES;
    }

    // The sums become results, or this block's part of them. `sum_at(r, j, i)` is number i of the fragment of the warp's
    // r-th tile and the tokens 8 j and on.
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
        if (args.splits > 1) {
#pragma unroll 1
            for (unsigned i = threadIdx.x * FOUR; i < PART; i += THREADS * FOUR) {
                *reinterpret_cast<uint4*>(parts + split * PART + i) =
                    *reinterpret_cast<const uint4*>(out + i / ALL_ROWS * PITCH + i % ALL_ROWS);
            }
            if (!is_last_of_tile(args, shared_tile)) return;
        }
        give(out, parts);
    }

    // Gives the results: of the block's sums, or where blocks share a tile, of what they left, added up in their order. A
    // thread has the same four rows for every token, and sixteen loads of parts under way at a time: one after another,
    // they would take longer than the product.
    __device__ void give(const Sum* out, const Sum* parts) const {
        constexpr unsigned AT_ONCE = 4, PASS = THREADS * FOUR, ROUND = PASS * AT_ONCE;
        static_assert(PART % ROUND == 0 && PASS % ALL_ROWS == 0, "every thread has as many tokens, and the same rows");
        const OutcomeOfRows<FOUR> rows(args.outcome, group * ALL_ROWS + threadIdx.x * FOUR % ALL_ROWS, args.weight.n);
        float scale[FOUR] = {}; // left to the end
        if constexpr (Format::ROW_SCALES) {
#pragma unroll
            for (unsigned i = 0; i < FOUR; i++) {
                if (i < rows.count) scale[i] = load_elem(args.weight.scales, args.weight.scale_type, rows.row + i);
            }
        }
#pragma unroll 1
        for (unsigned first = threadIdx.x * FOUR; first / ALL_ROWS < tokens; first += ROUND) {
            Sum sums[AT_ONCE][FOUR] = {};
            if (args.splits == 1) {
#pragma unroll
                for (unsigned u = 0; u < AT_ONCE; u++) {
                    const unsigned i = first + u * PASS;
                    const uint4 raw = load_raw<uint4>(out + i / ALL_ROWS * PITCH + i % ALL_ROWS);
                    memcpy(sums[u], &raw, sizeof raw);
                }
            } else {
#pragma unroll 4
                for (unsigned s = 0; s < args.splits; s++) {
#pragma unroll
                    for (unsigned u = 0; u < AT_ONCE; u++) {
                        const Sum* from = parts + s * PART + first + u * PASS;
                        const uint4 raw = __ldcg(reinterpret_cast<const uint4*>(from));
                        Sum four[FOUR];
                        memcpy(four, &raw, sizeof four);
#pragma unroll
                        for (unsigned i = 0; i < FOUR; i++) sums[u][i] += four[i];
                    }
                }
            }
            constexpr unsigned APART = PASS / ALL_ROWS;
            const unsigned token = first / ALL_ROWS;
            float values[AT_ONCE][FOUR];
#pragma unroll
            for (unsigned u = 0; u < AT_ONCE; u++) {
                float of_token = 1.0f;
                if (EXACT && token + u * APART < tokens) of_token = args.x_scales[first_token + token + u * APART];
#pragma unroll
                for (unsigned i = 0; i < FOUR; i++) {
                    values[u][i] = static_cast<float>(sums[u][i]);
                    if constexpr (EXACT) values[u][i] *= of_token * scale[i];
                    else if constexpr (Format::ROW_SCALES) values[u][i] *= scale[i];
                }
            }
            rows.store(first_token + token, APART, first_token + tokens, values);
        }
    }
};
