// Sixteen rows of queries of one warp against keys and values in shared memory, by matrix instructions: scores, an online
// softmax, weighted sums of values. Used by attention_single.cu and attention_runs.cu.
//
// Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao, "FlashAttention-2", 2023.
#pragma once

#include <ptx/copy.cuh>
#include <ptx/mma.cuh>

#include "attention.cuh"
#include "elem.cuh"
#include "reduce.cuh"

constexpr unsigned QUERIES = 16; // rows of a warp
constexpr unsigned PIECE = 16;   // bytes of a copy

constexpr float LOG2_E = 1.44269504f; // exponentials are powers of two here

// Rows of DIM numbers in shared memory, in pieces that are swapped about so that eight rows' pieces of the same columns lie
// in different banks.
template <unsigned DIM> struct RowsInShared {
    static constexpr unsigned PIECES = DIM * 2 / PIECE; // of a row
    static constexpr unsigned BYTES = DIM * 2;          // of a row

    static __device__ unsigned place(unsigned row, unsigned piece) {
        const unsigned swap = PIECES % 8 == 0 ? row % 8 : row / 2 % 4;
        return (row * PIECES + (piece ^ swap)) * PIECE;
    }

    // Copies rows 0 .. ROWS of `from`, of which the first `valid` exist, by thread `me` of THREADS; zeros for the others.
    template <unsigned ROWS, unsigned THREADS>
    static __device__ void copy(unsigned char* to, const void* from, unsigned valid, unsigned me) {
        static_assert(ROWS * PIECES % THREADS == 0, "every thread copies as much");
        const auto* bytes = static_cast<const unsigned char*>(from);
#pragma unroll
        for (unsigned first = 0; first < ROWS * PIECES; first += THREADS) {
            const unsigned row = (first + me) / PIECES, piece = (first + me) % PIECES;
            const bool exists = row < valid;
            copy16<Keep::Long>(to + place(row, piece), exists ? bytes + row * BYTES + piece * PIECE : bytes, exists);
        }
    }
};

// Lane 4g + t has of rows g and g + 8: elements 2t, 2t+1, 2t+8, 2t+9 of every 16 of the queries, 2t, 2t+1 of every 8 of the
// sums.
template <class T, unsigned DIM> struct Rows {
    using Shared = RowsInShared<DIM>;
    static constexpr unsigned STEPS = DIM / 16;

    uint32_t q[STEPS][4];
    float values[DIM / 8][4] = {}; // weighted sums
    float largest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {}; // of this lane's keys

    static __device__ unsigned g() { return lane_id() / 4; }
    static __device__ unsigned t() { return lane_id() % 4; }

    // `row(r)` gives the queries of row r, or null where there is none.
    template <class RowOf> __device__ void load(RowOf row) {
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            const T* from = row(g() + 8 * r);
#pragma unroll
            for (unsigned step = 0; step < STEPS; step++) {
#pragma unroll
                for (unsigned half = 0; half < 2; half++) {
                    uint32_t pair = 0;
                    if (from != nullptr) memcpy(&pair, from + step * 16 + half * 8 + 2 * t(), sizeof pair);
                    q[step][r + 2 * half] = pair;
                }
            }
        }
    }

    // Takes KEYS keys, the first of which has the number `first`; row g sees those below limits[0], row g + 8 below limits[1].
    template <unsigned KEYS>
    __device__ void take(const unsigned char* keys, const unsigned char* values_at, unsigned first,
                         const unsigned (&limits)[2], float scale) {
        static_assert(KEYS % 16 == 0, "whole fragments");
        constexpr unsigned BLOCKS = KEYS / 8;
        float scores[BLOCKS][4] = {};
        // As load_matrices wants it: lane l gives row l % 8 of matrix l / 8.
        const unsigned matrix = lane_id() / 8, row = lane_id() % 8;
#pragma unroll
        for (unsigned step = 0; step < STEPS; step++) {
#pragma unroll
            for (unsigned pair = 0; pair < BLOCKS / 2; pair++) {
                uint32_t k[4]; // keys 0-7 columns 0-7, the same keys columns 8-15, keys 8-15 likewise
                load_matrices(k, keys + Shared::place(pair * 16 + matrix / 2 * 8 + row, step * 2 + matrix % 2));
                mma_16x8x16<T>(scores[2 * pair], q[step], {k[0], k[1]});
                mma_16x8x16<T>(scores[2 * pair + 1], q[step], {k[2], k[3]});
            }
        }
        float shrink[2];
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            float most = largest[r];
#pragma unroll
            for (unsigned block = 0; block < BLOCKS; block++) {
#pragma unroll
                for (unsigned i = 0; i < 2; i++) {
                    float& score = scores[block][2 * r + i];
                    score = first + block * 8 + 2 * t() + i < limits[r] ? score * scale : -INFINITY;
                    most = fmaxf(most, score);
                }
            }
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            // A row that has seen no key yet: all of its weights are to be zero, not the exponential of a NaN.
            const float from = most == -INFINITY ? 0.0f : most;
            shrink[r] = exp2f(largest[r] - from);
            largest[r] = most;
            sum[r] *= shrink[r];
#pragma unroll
            for (unsigned block = 0; block < BLOCKS; block++) {
#pragma unroll
                for (unsigned i = 0; i < 2; i++) {
                    float& score = scores[block][2 * r + i];
                    // Rounded as the products will see it, so that the weights add up to one.
                    score = round_to<T>(exp2f(score - from));
                    sum[r] += score;
                }
            }
        }
#pragma unroll
        for (unsigned block = 0; block < DIM / 8; block++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) values[block][i] *= shrink[i / 2];
        }
#pragma unroll
        for (unsigned step = 0; step < KEYS / 16; step++) {
            const uint32_t weights[4] = {
                pair_of(scores[2 * step][0], scores[2 * step][1]), pair_of(scores[2 * step][2], scores[2 * step][3]),
                pair_of(scores[2 * step + 1][0], scores[2 * step + 1][1]),
                pair_of(scores[2 * step + 1][2], scores[2 * step + 1][3])};
#pragma unroll
            for (unsigned pair = 0; pair < DIM / 16; pair++) {
                uint32_t v[4]; // keys 0-7 columns 0-7, keys 8-15 of the same columns, columns 8-15 likewise
                load_transposed(v, values_at + Shared::place(step * 16 + matrix % 2 * 8 + row, pair * 2 + matrix / 2));
                mma_16x8x16<T>(values[2 * pair], weights, {v[0], v[1]});
                mma_16x8x16<T>(values[2 * pair + 1], weights, {v[2], v[3]});
            }
        }
    }

    // The sums of all keys of a row that this warp has seen, for every lane of its quad.
    __device__ void finish() {
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 1);
            sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 2);
        }
    }

    static __device__ uint32_t pair_of(float low, float high) {
        const T pair[2] = {from_f32<T>(low), from_f32<T>(high)};
        uint32_t word;
        memcpy(&word, pair, sizeof word);
        return word;
    }
};
