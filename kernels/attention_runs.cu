// attention_runs: causal attention of tokens that stand in runs, one after another in the same slot, as in prompts: bound
// by arithmetic.
//
//   arguments and the formula are in common/attention.cuh
//
// attention_runs_<type>[_int8|_fp8]_<head size>   up to 64 query heads for each head of keys. blockIdx.x counts tiles of
//                                                 tokens from the last one on, blockIdx.y heads of keys.
//
// A tile of up to 64 rows, which are the query heads of neighbouring tokens, shares keys and values: 64 at a time, the next
// under way meanwhile. Each of the four warps has 16 of the rows. A tile with tokens of several slots goes through them one
// after another, and a row sees only its own. The last tiles of a prompt have the most keys, and start first.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/flash.cuh"

constexpr unsigned WARPS = 4;
constexpr unsigned THREADS = WARPS * WARP;
constexpr unsigned ALL_QUERIES = WARPS * QUERIES;
constexpr unsigned KEYS = 64; // at a time
constexpr unsigned DEPTH = 2; // stages

template <class T, unsigned DIM, class Kv> struct Runs : TileOfTokens<ALL_QUERIES> {
    using Tile = KvTile<T, DIM, Kv, KEYS>;
    static constexpr unsigned STAGE = Tile::BYTES;
    static constexpr unsigned SHARED = DEPTH * STAGE;

    const AttentionArgs<T>& args;
    unsigned char* const shared;

    __device__ Runs(const AttentionArgs<T>& args, unsigned char* shared)
        : TileOfTokens<ALL_QUERIES>(args), args(args), shared(shared) {}

    __device__ void run() const {
        Rows<T, DIM, Kv> rows;
        rows.clear();
        rows.load([&](unsigned row) -> const T* {
            const unsigned token = token_of(row);
            return token < end ? args.q + static_cast<size_t>(token) * args.q_stride + head_of(row) * DIM : nullptr;
        });
        for (unsigned start = first; start < end;) {
            const unsigned slot = args.slot_of[start];
            const auto [stop, keys] = args.run_from(start, end, slot);
            unsigned limits[2] = {0, 0};
#pragma unroll
            for (unsigned r = 0; r < 2; r++) {
                const unsigned token = token_of(rows.g() + 8 * r);
                if (token >= start && token < stop && args.is_inside(token)) limits[r] = args.positions[token] + 1;
            }
            attend(rows, slot, keys, limits);
            start = stop;
        }
        rows.finish();
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            const unsigned row = rows.g() + 8 * r, token = token_of(row);
            if (token >= end) continue;
            T* out = args.out + (static_cast<size_t>(token) * args.heads + head_of(row)) * DIM;
            const float inverse = 1.0f / rows.sum[r];
#pragma unroll
            for (unsigned block = 0; block < DIM / 8; block++) {
                const float(&values)[4] = rows.values[block];
                if constexpr (Kv::CODED) {
                    if (block % 2 == 1) continue;
                    // This block and the next have every other of four neighbours.
                    const float(&between)[4] = rows.values[block + 1];
                    const uint2 four = {rows.pair_of(values[2 * r] * inverse, between[2 * r] * inverse),
                                        rows.pair_of(values[2 * r + 1] * inverse, between[2 * r + 1] * inverse)};
                    store_raw(out + rows.element(block, 0), four);
                } else {
                    const uint32_t pair = rows.pair_of(values[2 * r] * inverse, values[2 * r + 1] * inverse);
                    store_raw(out + rows.element(block, 0), pair);
                }
            }
        }
    }

    // Takes the first `keys` keys of a slot.
    __device__ void attend(Rows<T, DIM, Kv>& rows, unsigned slot, unsigned keys, const unsigned (&limits)[2]) const {
        if (keys == 0) return; // the whole block
        const size_t first_vector = args.vector(slot, kv_head, 0);
        const auto copy = [&](unsigned key, unsigned stage) {
            if (key < keys) {
                unsigned char* to = shared + stage * STAGE;
                Tile::template copy<THREADS>(to, args.cache, first_vector + key, min(KEYS, keys - key), threadIdx.x);
            }
            copies_commit();
        };
        // The most keys that a row of this warp sees.
        unsigned most = max(limits[0], limits[1]);
#pragma unroll
        for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
            most = max(most, __shfl_xor_sync(ALL_LANES, most, distance));
        }
        copy(0, 0);
        unsigned stage = 0;
#pragma unroll 1
        for (unsigned key = 0; key < keys; key += KEYS) {
            copy(key + KEYS, 1 - stage);
            copies_wait<1>();
            __syncthreads(); // everybody's copies of these keys have arrived
            if (key < most) {
                rows.template take<KEYS>(shared + stage * STAGE, key, limits, args.scale * LOG2_E);
            }
            __syncthreads(); // all are done with these keys
            stage = 1 - stage;
        }
        copies_wait<0>();
    }
};

template <class T, unsigned DIM, class Kv> __device__ void attention_runs(const AttentionArgs<T>& args) {
    DYNAMIC_SHARED(shared);
    follow_predecessor();
    if (dynamic_shared_bytes() < Runs<T, DIM, Kv>::SHARED) return; // a launch that knows better than this file
    Runs<T, DIM, Kv>(args, shared).run();
}

#define DEFINE(T, DIM)                                                                                                 \
    KERNEL_OF(THREADS, 2, attention_runs_##T##_##DIM, const AttentionArgs<T> args) {                                   \
        attention_runs<T, DIM, PlainKv>(args);                                                                         \
    }                                                                                                                  \
    FOR_EACH_CODED_KV(DEFINE_CODED, T, DIM)
#define DEFINE_CODED(KV, NAME, T, DIM)                                                                                 \
    KERNEL_OF(THREADS, 2, attention_runs_##T##_##NAME##_##DIM, const AttentionArgs<T> args) {                          \
        attention_runs<T, DIM, KV>(args);                                                                              \
    }
DEFINE(f16, 64)
DEFINE(f16, 96)
DEFINE(f16, 128)
DEFINE(bf16, 64)
DEFINE(bf16, 96)
DEFINE(bf16, 128)
