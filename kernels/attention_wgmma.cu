// attention_wgmma: attention_runs.cu of a plain cache by the matrix instructions of compute capability 9.0. Empty for
// others.
//
//   arguments and the formula are in common/attention.cuh
//
// attention_wgmma_<type>_<head size>   up to 128 query heads for each head of keys. blockIdx.x counts tiles of tokens from
//                                      the last one on, blockIdx.y heads of keys.
//
// A block is two groups of four warps with 64 rows each, which are the query heads of neighbouring tokens; both read the
// same keys and values, 64 at a time, from a ring of copies with one barrier for each of them. The values of one tile are
// added up beside the softmax of the next. Rows of a tile with tokens of several slots go through those one after
// another, and see only their own.
//
// Keys are multiplied as they lie, along their elements; values across, along the keys: both in cores of 8 positions by 16
// bytes.
//
// Source: Shah et al., "FlashAttention-3", 2024, section 3.2, for the order of a step.
#include <ptx/copy.cuh>
#include <ptx/exp.cuh>
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>
#include <ptx/wgmma.cuh>

#include "common/attention.cuh"
#include "common/elem.cuh"
#include "common/reduce.cuh"

constexpr unsigned WARPS = 8;
constexpr unsigned THREADS = WARPS * WARP;
constexpr unsigned KEYS = 64; // at a time
constexpr unsigned DEPTH = 4; // stages
constexpr unsigned PIECE = 16;
constexpr unsigned CORE = 8 * PIECE; // bytes

template <class T, unsigned DIM> struct Warpgroups : TileOfTokens<WARPS * QUERIES> {
    static constexpr float LOG2_E = 1.44269504f; // exponentials are powers of two here
    static constexpr unsigned PIECES = DIM * sizeof(T) / PIECE; // of a vector
    static constexpr unsigned ROW_OF_CORES = KEYS / 8 * CORE;    // the same piece of all keys
    static constexpr unsigned VALUES = KEYS * DIM * sizeof(T);   // where they begin in a stage
    static constexpr unsigned STAGE = 2 * VALUES;
    static constexpr unsigned SHARED = DEPTH * STAGE;

    // Lane 4g + t has of rows g and g + 8 of its warp: two of every 8 keys or elements.
    struct State {
        uint32_t q[DIM / 16][4];
        float values[DIM / 2]; // weighted sums
        float largest[2];
        float sum[2]; // of this lane's keys
    };

    const AttentionArgs<T>& args;
    unsigned char* const shared;

    __device__ Warpgroups(const AttentionArgs<T>& args, unsigned char* shared)
        : TileOfTokens<WARPS * QUERIES>(args), args(args), shared(shared) {}

    static __device__ unsigned g() { return lane_id() / 4; }
    static __device__ unsigned t() { return lane_id() % 4; }

    __device__ void run() const {
        State state;
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            const unsigned row = g() + 8 * r, token = token_of(row);
            const T* from = args.q + static_cast<size_t>(token) * args.q_stride + head_of(row) * DIM;
#pragma unroll
            for (unsigned step = 0; step < DIM / 16; step++) {
#pragma unroll
                for (unsigned half = 0; half < 2; half++) {
                    uint32_t pair = 0;
                    if (token < end) pair = load_raw<uint32_t>(from + step * 16 + 8 * half + 2 * t());
                    state.q[step][r + 2 * half] = pair;
                }
            }
            state.largest[r] = -INFINITY;
            state.sum[r] = 0.0f;
        }
#pragma unroll
        for (unsigned i = 0; i < DIM / 2; i++) state.values[i] = 0.0f;

        for (unsigned start = first; start < end;) {
            const unsigned slot = args.slot_of[start];
            const auto [stop, keys] = args.run_from(start, end, slot);
            unsigned limits[2] = {0, 0};
#pragma unroll
            for (unsigned r = 0; r < 2; r++) {
                const unsigned token = token_of(g() + 8 * r);
                if (token >= start && token < stop && args.is_inside(token)) limits[r] = args.positions[token] + 1;
            }
            attend(state, slot, keys, limits);
            start = stop;
        }
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            float sum = state.sum[r];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            const float inverse = 1.0f / sum;
            const unsigned row = g() + 8 * r, token = token_of(row);
            if (token >= end) continue;
            T* out = args.out + (static_cast<size_t>(token) * args.heads + head_of(row)) * DIM;
#pragma unroll
            for (unsigned block = 0; block < DIM / 8; block++) {
                const float* values = state.values + 4 * block + 2 * r;
                const uint32_t pair = pair_of(values[0] * inverse, values[1] * inverse);
                store_raw(out + block * 8 + 2 * t(), pair);
            }
        }
    }

    // Takes the first `keys` keys of a slot.
    __device__ void attend(State& state, unsigned slot, unsigned keys, const unsigned (&limits)[2]) const {
        if (keys == 0) return; // the whole block
        const size_t first_vector = args.vector(slot, kv_head, 0);
        const unsigned tiles = (keys + KEYS - 1) / KEYS;
        const auto copy = [&](unsigned tile) {
            if (tile < tiles) copy_tile(shared + tile % DEPTH * STAGE, first_vector + tile * KEYS, keys - tile * KEYS);
            copies_commit();
        };
        __syncthreads(); // all are done with what was attended to before
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH - 1; i++) copy(i);
        float scores[KEYS / 2];
        float shrink[2];
        uint32_t weights[KEYS / 16][4];
        copies_wait<DEPTH - 2>();
        show_to_products();
        __syncthreads(); // the first keys have arrived
        begin_scores(state, shared, scores);
        warpgroup_wait<0>();
        in_use_until_here(scores);
        soften(state, 0, scores, shrink, limits);
        renew(state, scores, shrink, weights);
#pragma unroll 1
        for (unsigned tile = 0; tile + 1 < tiles; tile++) {
            copies_wait<DEPTH - 3>();
            show_to_products();
            __syncthreads(); // the next keys have arrived, and all are done with the values before these
            copy(tile + DEPTH - 1);
            begin_scores(state, shared + (tile + 1) % DEPTH * STAGE, scores);
            begin_values(state, shared + tile % DEPTH * STAGE, weights);
            warpgroup_wait<1>();
            in_use_until_here(scores);
            soften(state, (tile + 1) * KEYS, scores, shrink, limits);
            warpgroup_wait<0>();
            in_use_until_here(state.values);
#pragma unroll
            for (unsigned step = 0; step < KEYS / 16; step++) in_use_until_here(weights[step]);
            renew(state, scores, shrink, weights);
        }
        begin_values(state, shared + (tiles - 1) % DEPTH * STAGE, weights);
        warpgroup_wait<0>();
        in_use_until_here(state.values);
        copies_wait<0>();
    }

    // Begins the products of the queries with the keys of a stage.
    __device__ void begin_scores(State& state, const unsigned char* stage, float (&scores)[KEYS / 2]) const {
        const SharedTokens keys = SharedTokens::at(stage, ROW_OF_CORES, CORE);
        warpgroup_fence();
#pragma unroll
        for (unsigned step = 0; step < DIM / 16; step++) {
            warpgroup_mma<T>(scores, state.q[step], keys.plus(2 * step * ROW_OF_CORES), step > 0);
        }
        warpgroup_commit();
    }

    // Begins to add the values of a stage, by their weights.
    __device__ void begin_values(State& state, const unsigned char* stage, const uint32_t (&weights)[KEYS / 16][4]) const {
        const SharedTokens values = SharedTokens::across(stage + VALUES, CORE, ROW_OF_CORES);
        warpgroup_fence();
#pragma unroll
        for (unsigned step = 0; step < KEYS / 16; step++) {
            warpgroup_mma_across<T>(state.values, weights[step], values.plus(2 * step * CORE), true);
        }
        warpgroup_commit();
    }

    // Scores of the keys from `first` on become weights, in f32, and `shrink` what earlier sums are to be multiplied by.
    // Row g sees the keys below limits[0], row g + 8 those below limits[1].
    __device__ void soften(State& state, unsigned first, float (&scores)[KEYS / 2], float (&shrink)[2],
                           const unsigned (&limits)[2]) const {
        if (!__all_sync(ALL_LANES, min(limits[0], limits[1]) >= first + KEYS)) {
#pragma unroll
            for (unsigned i = 0; i < KEYS / 2; i++) {
                const unsigned key = i / 4 * 8 + 2 * t() + i % 2;
                if (first + key >= limits[i / 2 % 2]) scores[i] = -INFINITY;
            }
        }
        const float scale = args.scale * LOG2_E;
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            float most = -INFINITY;
#pragma unroll
            for (unsigned i = 0; i < KEYS / 4; i++) most = fmaxf(most, scores[i / 2 * 4 + 2 * r + i % 2]);
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            const float largest = fmaxf(state.largest[r], most * scale);
            // A row that has seen no key yet: all of its weights are to be zero, not the exponential of a NaN.
            const float from = largest == -INFINITY ? 0.0f : largest;
            shrink[r] = fast_exp2(state.largest[r] - from);
            state.largest[r] = largest;
            float sum = 0.0f;
#pragma unroll
            for (unsigned i = 0; i < KEYS / 4; i++) {
                float& score = scores[i / 2 * 4 + 2 * r + i % 2];
                score = fast_exp2(fmaf(score, scale, -from));
                sum += score;
            }
            state.sum[r] = fmaf(state.sum[r], shrink[r], sum);
        }
    }

    // Makes weights what products want, and what was summed before fit. No product may be under way.
    static __device__ void renew(State& state, const float (&scores)[KEYS / 2], const float (&shrink)[2],
                                 uint32_t (&weights)[KEYS / 16][4]) {
#pragma unroll
        for (unsigned i = 0; i < DIM / 2; i++) state.values[i] *= shrink[i / 2 % 2];
#pragma unroll
        for (unsigned step = 0; step < KEYS / 16; step++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const float* pair = scores + 8 * step + 2 * i;
                weights[step][i] = pair_of(pair[0], pair[1]);
            }
        }
    }

    // Starts copies of the keys and values from `vector` on, of which `there` exist; zeros for the others. Eight threads
    // side by side fill a core, so that no two write to one bank at a time.
    __device__ void copy_tile(unsigned char* stage, size_t vector, unsigned there) const {
        const auto* k = static_cast<const unsigned char*>(args.cache.k) + vector * DIM * sizeof(T);
        const auto* v = static_cast<const unsigned char*>(args.cache.v) + vector * DIM * sizeof(T);
        constexpr unsigned SIDE = 4; // pieces of a key that neighbours copy
        static_assert(PIECES % SIDE == 0 && KEYS * PIECES % THREADS == 0, "every thread copies as much");
#pragma unroll
        for (unsigned i = 0; i < KEYS * PIECES / THREADS; i++) {
            const unsigned all = i * THREADS + threadIdx.x, far = all / (8 * SIDE);
            const unsigned key = far % (KEYS / 8) * 8 + all % 8;
            const unsigned piece = far / (KEYS / 8) * SIDE + all / 8 % SIDE;
            const bool exists = key < there;
            const size_t from = exists ? (static_cast<size_t>(key) * PIECES + piece) * PIECE : 0;
            unsigned char* to = stage + piece * ROW_OF_CORES + key / 8 * CORE + key % 8 * PIECE;
            copy16<Keep::Long>(to, k + from, exists);
            copy16<Keep::Long>(to + VALUES, v + from, exists);
        }
    }

    static __device__ uint32_t pair_of(float low, float high) {
        const T pair[2] = {from_f32<T>(low), from_f32<T>(high)};
        uint32_t word;
        memcpy(&word, pair, sizeof word);
        return word;
    }
};

template <class T, unsigned DIM> __device__ void attention_wgmma(const AttentionArgs<T>& args) {
    if constexpr (WARPGROUP_PRODUCTS) {
        DYNAMIC_SHARED(shared);
        follow_predecessor();
        if (dynamic_shared_bytes() < Warpgroups<T, DIM>::SHARED) return; // a launch that knows better than this file
        Warpgroups<T, DIM>(args, shared).run();
    }
}

#define DEFINE(T, DIM)                                                                                                 \
    KERNEL_OF(THREADS, 1, attention_wgmma_##T##_##DIM, const AttentionArgs<T> args) {                                  \
        attention_wgmma<T, DIM>(args);                                                                                 \
    }
DEFINE(f16, 64)
DEFINE(f16, 128)
DEFINE(bf16, 64)
DEFINE(bf16, 128)
