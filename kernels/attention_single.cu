// attention_single: causal attention of tokens that are alone in their slot, as in decoding: bound by reading the cache.
//
//   arguments and the formula are in common/attention.cuh
//
// attention_single_<type>_<head size>   up to 16 query heads for each head of keys. blockIdx.x counts parts of the keys,
//                                       blockIdx.y heads of keys, blockIdx.z tokens.
//
// All query heads of a head of keys are rows of one fragment, so that the cache is read once. Each of the four warps takes
// every fourth 16 keys, and keeps a ring of copies of its own in flight. How many parts a token has follows from its
// position, which is read here: a launch serves any length up to what it was planned for. The last block of a token to
// arrive puts the parts together, in their order: the same launch gives the same bits.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/flash.cuh"

constexpr unsigned WARPS = 4;
constexpr unsigned THREADS = WARPS * WARP;
constexpr unsigned KEYS = 16;            // of a warp at a time
constexpr unsigned UNIT = WARPS * KEYS;  // keys of a block at a time
constexpr unsigned DEPTH = 3;            // stages of a ring

template <class T, unsigned DIM> struct Single {
    using Shared = RowsInShared<DIM>;
    static constexpr unsigned TILE = KEYS * Shared::BYTES;
    static constexpr unsigned STAGE = 2 * TILE; // keys, values
    static constexpr unsigned RINGS = WARPS * DEPTH * STAGE;
    static constexpr unsigned MERGED = WARPS * QUERIES * (DIM + 2) * sizeof(float); // in place of the rings
    static constexpr unsigned SHARED = RINGS > MERGED ? RINGS : MERGED;

    const AttentionArgs<T>& args;
    unsigned char* const shared;
    const unsigned split, kv_head, token;

    __device__ Single(const AttentionArgs<T>& args, unsigned char* shared)
        : args(args), shared(shared), split(blockIdx.x), kv_head(blockIdx.y), token(blockIdx.z) {}

    __device__ T* out(unsigned row) const {
        return args.out + (static_cast<size_t>(token) * args.heads + kv_head * args.group() + row) * DIM;
    }

    __device__ void run() const {
        const unsigned group = args.group();
        if (!args.is_inside(token)) { // the whole block
            if (split > 0) return;
            for (unsigned i = threadIdx.x; i < group * DIM; i += THREADS) out(i / DIM)[i % DIM] = from_f32<T>(nanf(""));
            return;
        }
        const unsigned keys = args.positions[token] + 1;
        const unsigned units = (keys + UNIT - 1) / UNIT;
        const unsigned each = (units + args.splits - 1) / args.splits;
        const unsigned parts = (units + each - 1) / each;
        if (split >= parts) return; // the whole block
        const unsigned begin = split * each, end = min(units, begin + each);

        const size_t first_row = args.row(args.slot_of[token], kv_head, 0);
        unsigned char* ring = shared + warp_id() * DEPTH * STAGE;
        const auto copy = [&](unsigned unit) {
            const unsigned key = unit * UNIT + warp_id() * KEYS;
            if (unit < end && key < keys) {
                unsigned char* stage = ring + (unit - begin) % DEPTH * STAGE;
                const unsigned valid = min(KEYS, keys - key);
                const size_t from = (first_row + key) * DIM;
                Shared::template copy<KEYS, WARP>(stage, args.k_cache + from, valid, lane_id());
                Shared::template copy<KEYS, WARP>(stage + TILE, args.v_cache + from, valid, lane_id());
            }
            copies_commit();
        };
        for (unsigned i = 0; i < DEPTH - 1; i++) copy(begin + i);
        Rows<T, DIM> rows;
        const T* q = args.q + static_cast<size_t>(token) * args.q_stride + kv_head * group * DIM;
        rows.load([&](unsigned row) { return row < group ? q + row * DIM : nullptr; });
        const unsigned limits[2] = {keys, keys};
#pragma unroll 1
        for (unsigned unit = begin; unit < end; unit++) {
            copies_wait<DEPTH - 2>();
            __syncwarp(); // other lanes' copies have arrived, and all are done with the stage that is filled next
            copy(unit + DEPTH - 1);
            const unsigned key = unit * UNIT + warp_id() * KEYS;
            if (key < keys) {
                const unsigned char* stage = ring + (unit - begin) % DEPTH * STAGE;
                rows.template take<KEYS>(stage, stage + TILE, key, limits, args.scale * LOG2_E);
            }
        }
        rows.finish();
        copies_wait<0>();
        merge(rows, group, parts);
    }

    // The warps' rows become results, or this block's part of them: for each row DIM sums of values, the largest score, the
    // sum of weights.
    __device__ void merge(const Rows<T, DIM>& rows, unsigned group, unsigned parts) const {
        float* all = reinterpret_cast<float*>(shared);
        __syncthreads(); // the rings are free
        const auto row_of_warp = [&](unsigned warp, unsigned row) { return all + (warp * QUERIES + row) * (DIM + 2); };
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            float* mine = row_of_warp(warp_id(), rows.g() + 8 * r);
#pragma unroll
            for (unsigned block = 0; block < DIM / 8; block++) {
                mine[block * 8 + 2 * rows.t()] = rows.values[block][2 * r];
                mine[block * 8 + 2 * rows.t() + 1] = rows.values[block][2 * r + 1];
            }
            if (rows.t() == 0) {
                mine[DIM] = rows.largest[r];
                mine[DIM + 1] = rows.sum[r];
            }
        }
        __syncthreads(); // all rows are there
        if (parts == 1) {
            for (unsigned i = threadIdx.x; i < group * DIM; i += THREADS) {
                const Merged merged = together(i / DIM, i % DIM, WARPS, row_of_warp);
                out(i / DIM)[i % DIM] = from_f32<T>(merged.value / merged.sum);
            }
            return;
        }
        const size_t first = (static_cast<size_t>(token) * args.kv_heads + kv_head) * args.splits;
        const auto part_at = [&](unsigned part, unsigned row) {
            return args.partial + ((first + part) * QUERIES + row) * (DIM + 2);
        };
        for (unsigned i = threadIdx.x; i < group * DIM; i += THREADS) {
            const Merged merged = together(i / DIM, i % DIM, WARPS, row_of_warp);
            float* mine = part_at(split, i / DIM);
            mine[i % DIM] = merged.value;
            if (i % DIM == 0) {
                mine[DIM] = merged.largest;
                mine[DIM + 1] = merged.sum;
            }
        }
        if (!is_last(parts)) return; // the whole block
        for (unsigned i = threadIdx.x; i < group * DIM; i += THREADS) {
            const Merged merged = together(i / DIM, i % DIM, parts, part_at);
            out(i / DIM)[i % DIM] = from_f32<T>(merged.value / merged.sum);
        }
    }

    struct Merged {
        float value, largest, sum;
    };

    // Element d of a row over `count` parts, where `at(part, row)` is; relative to the largest score of all.
    template <class At> static __device__ Merged together(unsigned row, unsigned d, unsigned count, At at) {
        Merged merged = {0.0f, -INFINITY, 0.0f};
        for (unsigned part = 0; part < count; part++) merged.largest = fmaxf(merged.largest, at(part, row)[DIM]);
        for (unsigned part = 0; part < count; part++) {
            const float* from = at(part, row);
            const float weight = exp2f(from[DIM] - merged.largest);
            merged.value += weight * from[d];
            merged.sum += weight * from[DIM + 1];
        }
        return merged;
    }

    // Whether this block is the last of its token and head; what the others wrote before is then visible to all its threads.
    __device__ bool is_last(unsigned parts) const {
        __shared__ unsigned last;
        unsigned* counter = args.arrived + token * args.kv_heads + kv_head;
        __syncthreads(); // all of this block has written
        if (threadIdx.x == 0) {
            last = count_up(counter) == parts - 1;
            if (last) *counter = 0;
        }
        __syncthreads();
        return last != 0;
    }
};

template <class T, unsigned DIM> __device__ void attention_single(const AttentionArgs<T>& args) {
    DYNAMIC_SHARED(shared);
    let_successor_start();
    wait_for_predecessor();
    if (dynamic_shared_bytes() < Single<T, DIM>::SHARED) return; // a launch that knows better than this file
    Single<T, DIM>(args, shared).run();
}

#define DEFINE(T, DIM)                                                                                                 \
    KERNEL_OF(THREADS, 2, attention_single_##T##_##DIM, const AttentionArgs<T> args) { attention_single<T, DIM>(args); }
DEFINE(f16, 64)
DEFINE(f16, 96)
DEFINE(f16, 128)
DEFINE(bf16, 64)
DEFINE(bf16, 96)
DEFINE(bf16, 128)
