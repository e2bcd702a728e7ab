// Sixteen rows of queries of one warp against keys and values in shared memory, by matrix instructions: scores, an online
// softmax, weighted sums of values. Used by attention_single.cu and attention_runs.cu.
//
// Bytes of a cache become pairs of T in registers, exactly; their scales meet scores and weights, one number for each key.
// Where four bytes side by side become two pairs, a lane has other columns of a fragment than it has of plain numbers; it
// is only said which, for a sum does not care for its order.
//
// Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao, "FlashAttention-2", 2023.
#pragma once

#include <ptx/copy.cuh>
#include <ptx/exp.cuh>
#include <ptx/mma.cuh>

#include "attention.cuh"
#include "elem.cuh"
#include "piece.cuh"
#include "reduce.cuh"

constexpr float LOG2_E = 1.44269504f; // exponentials are powers of two here

// Rows of so many bytes in shared memory, in pieces that are swapped about so that eight rows' pieces of the same columns
// lie in different banks.
template <unsigned ROW_BYTES> struct RowsInShared {
    static constexpr unsigned PIECES = ROW_BYTES / PIECE; // of a row

    static __device__ unsigned place(unsigned row, unsigned piece) {
        const unsigned swap = PIECES % 8 == 0 ? row % 8 : PIECES % 4 == 0 ? row / 2 % 4 : row / 4 % 2;
        return (row * PIECES + (piece ^ swap)) * PIECE;
    }

    // The place of piece `first` + 2 `two`, of a row `rows` (a multiple of eight) further on, from the `place` of piece
    // `first` (0 or 1) of `row`. One instruction where `two` and `rows` are known: no register has to hold every place.
    static __device__ unsigned place_from(unsigned place, unsigned row, unsigned first, unsigned rows, unsigned two) {
        if constexpr ((PIECES & (PIECES - 1)) == 0) {
            return (place ^ two * 2 * PIECE) + rows * ROW_BYTES;
        } else {
            return RowsInShared::place(row + rows, first + two * 2);
        }
    }

    // Copies rows 0 .. ROWS of `from`, of which the first `valid` exist, by thread `me` of THREADS; zeros for the others,
    // but leaves row `but` alone.
    template <unsigned ROWS, unsigned THREADS>
    static __device__ void copy(unsigned char* to, const void* from, unsigned valid, unsigned me, unsigned but = ROWS) {
        static_assert(ROWS * PIECES % THREADS == 0, "every thread copies as much");
        const auto* bytes = static_cast<const unsigned char*>(from);
#pragma unroll
        for (unsigned first = 0; first < ROWS * PIECES; first += THREADS) {
            const unsigned row = (first + me) / PIECES, piece = (first + me) % PIECES;
            const bool exists = row < valid;
            if (row == but) continue;
            copy16<Keep::Long>(to + place(row, piece), exists ? bytes + row * ROW_BYTES + piece * PIECE : bytes, exists);
        }
    }
};

// Keys and values of KEYS positions in shared memory, as the cache holds them, and their scales where it has them.
template <class T, unsigned DIM, class Kv, unsigned KEYS> struct KvTile {
    using Stored = typename Kv::template Stored<T>;
    using Shared = RowsInShared<DIM * sizeof(Stored)>;
    static constexpr unsigned VALUES = KEYS * DIM * sizeof(Stored); // where they begin
    static constexpr unsigned SCALES = 2 * VALUES;                  // of keys, then of values
    static constexpr unsigned BYTES = SCALES + (Kv::CODED ? 2 * KEYS * sizeof(float) : 0);

    static __device__ float* scales(unsigned char* tile) { return reinterpret_cast<float*>(tile + SCALES); }

    // Starts copies of the vectors from `first` on, of which `valid` exist; zeros for the others, but leaves those of key
    // `but` alone.
    template <unsigned THREADS>
    static __device__ void copy(unsigned char* tile, const KvCache& cache, size_t first, unsigned valid, unsigned me,
                                unsigned but = KEYS) {
        const auto* k = static_cast<const Stored*>(cache.k) + first * DIM;
        const auto* v = static_cast<const Stored*>(cache.v) + first * DIM;
        Shared::template copy<KEYS, THREADS>(tile, k, valid, me, but);
        Shared::template copy<KEYS, THREADS>(tile + VALUES, v, valid, me, but);
        if constexpr (Kv::CODED) {
#pragma unroll
            for (unsigned i = 0; i < 2 * KEYS; i += THREADS) {
                const unsigned at = i + me, key = at % KEYS;
                const float* from = (at < KEYS ? cache.k_scales : cache.v_scales) + first;
                if (key == but) continue;
                copy4(scales(tile) + at, key < valid ? from + key : from, key < valid);
            }
        }
    }
};

// Where the queries are while keys are taken.
enum class Queries { Held, Shared };

// Lane 4g + t has of row g, and of row g + 8 where there are two EIGHTS of rows: four of every 16 elements of the queries,
// two of every 8 of the sums.
template <class T, unsigned DIM, class Kv, unsigned EIGHTS = 2, Queries WHERE = Queries::Held> struct Rows {
    static_assert(EIGHTS == 1 || EIGHTS == 2, "a fragment has sixteen rows");
    static constexpr unsigned STEPS = DIM / 16;
    // What weights are multiplied by beside the scales of values, lest small ones vanish where numbers are not below 6e-8;
    // the largest activation over 127, times this, is a number.
    static constexpr float LIFT = Kv::CODED && std::is_same_v<T, f16> ? 64.0f : 1.0f;

    // Elements from one row of queries in shared memory to the next, so that the lanes of a fragment meet different banks.
    static constexpr unsigned Q_STRIDE = DIM + 8;

    // Those of the lane; or where the rows are in shared memory, and how many.
    uint32_t q[WHERE == Queries::Held ? STEPS : 1][2 * EIGHTS];
    const T* q_shared;
    unsigned q_rows;
    float values[DIM / 8][2 * EIGHTS]; // weighted sums
    float largest[EIGHTS];
    float sum[EIGHTS]; // of this lane's keys

    static __device__ unsigned g() { return lane_id() / 4; }
    static __device__ unsigned t() { return lane_id() % 4; }

    // As if no key had been seen.
    __device__ void clear() {
#pragma unroll
        for (unsigned block = 0; block < DIM / 8; block++) {
#pragma unroll
            for (unsigned i = 0; i < 2 * EIGHTS; i++) values[block][i] = 0.0f;
        }
#pragma unroll
        for (unsigned r = 0; r < EIGHTS; r++) {
            largest[r] = -INFINITY;
            sum[r] = 0.0f;
        }
    }

    // Where elements 2 half and 2 half + 1 of the lane's four of a step of 16 are.
    static __device__ unsigned column(unsigned step, unsigned half) {
        return step * 16 + (Kv::CODED ? 4 * t() + 2 * half : 2 * t() + 8 * half);
    }

    // Which element of a row values[block][i] or [i + 2] is a sum of, i < 2.
    static __device__ unsigned element(unsigned block, unsigned i) {
        return Kv::CODED ? block / 2 * 16 + 4 * t() + 2 * i + block % 2 : block * 8 + 2 * t() + i;
    }

    // Of row g + 8 r, two sums that lie side by side, those of lane 4g + `t`; which element the first of them is. Once for
    // each `block`.
    __device__ unsigned neighbours(unsigned block, unsigned r, unsigned t, float (&two)[2]) const {
        if constexpr (Kv::CODED) {
            const unsigned even = block / 2 * 2, i = block % 2;
            two[0] = values[even][2 * r + i];
            two[1] = values[even + 1][2 * r + i];
            return block / 2 * 16 + 4 * t + 2 * i;
        } else {
            two[0] = values[block][2 * r];
            two[1] = values[block][2 * r + 1];
            return block * 8 + 2 * t;
        }
    }

    // `row(r)` gives the queries of row r, or null where there is none.
    template <class RowOf> __device__ void load(RowOf row) {
#pragma unroll
        for (unsigned step = 0; step < STEPS; step++) load_step(q[step], step, row);
    }

    // Those of a step of 16 elements.
    template <class RowOf> __device__ void load_step(uint32_t (&a)[2 * EIGHTS], unsigned step, RowOf row) const {
#pragma unroll
        for (unsigned r = 0; r < EIGHTS; r++) {
            const T* from = row(g() + 8 * r);
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
                a[r + EIGHTS * half] = from == nullptr ? 0 : load_raw<uint32_t>(from + column(step, half));
            }
        }
    }

    // They stay in shared memory, `rows` rows from `from` on.
    __device__ void leave_in_shared(const T* from, unsigned rows) {
        q_shared = from;
        q_rows = rows;
    }

    // Takes a tile of KEYS keys, the first of which has the number `first`; row g + 8 r sees those
    // below limits[r].
    template <unsigned KEYS>
    __device__ void take(unsigned char* tile, unsigned first, const unsigned (&limits)[EIGHTS], float scale) {
        static_assert(KEYS % 16 == 0, "whole fragments");
        using Tile = KvTile<T, DIM, Kv, KEYS>;
        using Shared = typename Tile::Shared;
        constexpr unsigned BLOCKS = KEYS / 8;
        float scores[BLOCKS][2 * EIGHTS] = {};
        // As load_matrices wants it: lane l gives row l % 8 of matrix l / 8.
        const unsigned matrix = lane_id() / 8, row = lane_id() % 8;
        const unsigned key_row = matrix / 2 * 8 + row, key_first = matrix % 2;
        const unsigned key_place = Shared::place(key_row, key_first);
        const unsigned value_row = matrix % 2 * 8 + row, value_first = matrix / 2;
        const unsigned value_place = Shared::place(value_row, value_first);
#pragma unroll
        for (unsigned two = 0; two < Shared::PIECES / 2; two++) {
#pragma unroll
            for (unsigned pair = 0; pair < BLOCKS / 2; pair++) {
                uint32_t k[4]; // keys 0-7 of a piece, the same keys of the next piece, keys 8-15 likewise
                load_matrices(k, tile + Shared::place_from(key_place, key_row, key_first, pair * 16, two));
#pragma unroll
                for (unsigned i = 0; i < 2; i++) add_scores(scores[2 * pair + i], two, {k[2 * i], k[2 * i + 1]});
            }
        }
        const float* scales = Tile::scales(tile);
        float shrink[EIGHTS];
#pragma unroll
        for (unsigned r = 0; r < EIGHTS; r++) {
            float most = largest[r];
#pragma unroll
            for (unsigned block = 0; block < BLOCKS; block++) {
#pragma unroll
                for (unsigned i = 0; i < 2; i++) {
                    const unsigned key = block * 8 + 2 * t() + i;
                    const float factor = Kv::CODED ? scale * scales[key] : scale;
                    float& score = scores[block][2 * r + i];
                    score = first + key < limits[r] ? score * factor : -INFINITY;
                    most = fmaxf(most, score);
                }
            }
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            // A row that has seen no key yet: all of its weights are to be zero, not the exponential of a NaN.
            const float from = most == -INFINITY ? 0.0f : most;
            shrink[r] = fast_exp2(largest[r] - from);
            largest[r] = most;
            sum[r] *= shrink[r];
#pragma unroll
            for (unsigned block = 0; block < BLOCKS; block++) {
#pragma unroll
                for (unsigned i = 0; i < 2; i++) {
                    float& score = scores[block][2 * r + i];
                    const float weight = fast_exp2(score - from);
                    if constexpr (Kv::CODED) {
                        sum[r] += weight;
                        score = weight * (LIFT * scales[KEYS + block * 8 + 2 * t() + i]);
                    } else {
                        // Rounded as the products will see it, so that the weights add up to one.
                        score = round_to<T>(weight);
                        sum[r] += score;
                    }
                }
            }
        }
#pragma unroll
        for (unsigned block = 0; block < DIM / 8; block++) {
#pragma unroll
            for (unsigned i = 0; i < 2 * EIGHTS; i++) values[block][i] *= shrink[i / 2];
        }
#pragma unroll
        for (unsigned step = 0; step < KEYS / 16; step++) {
            uint32_t weights[2 * EIGHTS];
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
#pragma unroll
                for (unsigned r = 0; r < EIGHTS; r++) {
                    const float(&of_keys)[2 * EIGHTS] = scores[2 * step + i];
                    weights[EIGHTS * i + r] = pair_of(of_keys[2 * r], of_keys[2 * r + 1]);
                }
            }
#pragma unroll
            for (unsigned two = 0; two < Shared::PIECES / 2; two++) {
                uint32_t v[4]; // keys 0-7 of a piece, keys 8-15 of the same, of the next piece likewise
                const unsigned place = Shared::place_from(value_place, value_row, value_first, step * 16, two);
                load_transposed(v, tile + Tile::VALUES + place);
#pragma unroll
                for (unsigned i = 0; i < 2; i++) add_values(weights, two * 2 + i, {v[2 * i], v[2 * i + 1]});
            }
        }
    }

    // The sums of all keys of a row that this warp has seen, for every lane of its quad.
    __device__ void finish() {
#pragma unroll
        for (unsigned r = 0; r < EIGHTS; r++) {
            sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 1);
            sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 2);
            sum[r] *= LIFT;
        }
    }

    static __device__ uint32_t pair_of(float low, float high) {
        const T pair[2] = {from_f32<T>(low), from_f32<T>(high)};
        uint32_t word;
        memcpy(&word, pair, sizeof word);
        return word;
    }

  private:
    // Two pieces of eight keys.
    __device__ void add_scores(float (&d)[2 * EIGHTS], unsigned two, const uint32_t (&k)[2]) const {
        if constexpr (Kv::CODED) {
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
                uint32_t low, high;
                Kv::template Code<T>::widen(k[i], low, high);
                multiply_queries(d, two * 2 + i, {low, high});
            }
        } else {
            multiply_queries(d, two, k);
        }
    }

    // A piece of sixteen keys.
    __device__ void add_values(const uint32_t (&weights)[2 * EIGHTS], unsigned piece, const uint32_t (&v)[2]) {
        if constexpr (Kv::CODED) {
            uint32_t even[2], odd[2];
#pragma unroll
            for (unsigned i = 0; i < 2; i++) Kv::template Code<T>::widen_strided(v[i], even[i], odd[i]);
            multiply(values[piece * 2], weights, even);
            multiply(values[piece * 2 + 1], weights, odd);
        } else {
            multiply(values[piece], weights, v);
        }
    }

    __device__ void multiply_queries(float (&d)[2 * EIGHTS], unsigned step, const uint32_t (&k)[2]) const {
        if constexpr (WHERE == Queries::Held) {
            multiply(d, q[step], k);
        } else {
            uint32_t a[2 * EIGHTS];
            load_step(a, step, [this](unsigned row) { return row < q_rows ? q_shared + row * Q_STRIDE : nullptr; });
            multiply(d, a, k);
        }
    }

    // d += a b; rows that there are none of are zeros, and nobody keeps what they come to.
    static __device__ void multiply(float (&d)[2 * EIGHTS], const uint32_t (&a)[2 * EIGHTS], const uint32_t (&b)[2]) {
        if constexpr (EIGHTS == 2) {
            mma_16x8x16<T>(d, a, b);
        } else {
            float all[4] = {d[0], d[1], 0.0f, 0.0f};
            mma_16x8x16<T>(all, {a[0], 0, a[1], 0}, b);
            d[0] = all[0];
            d[1] = all[1];
        }
    }
};
