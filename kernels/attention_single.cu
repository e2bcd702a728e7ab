// attention_single: causal attention of tokens that are alone in their slot, as in decoding: bound by reading the cache.
//
//   arguments and the formula are in common/attention.cuh
//
// attention_single_<type>[_int8|_fp8]_<head size>   up to 16 query heads for each head of keys. blockIdx.x counts ranges of
//                                                   parts of the keys, blockIdx.y heads of keys, blockIdx.z tokens.
//
// All query heads of a head of keys are rows of one fragment, so that the cache is read once. The keys come in parts whose
// borders follow from the token's position alone. Within one, each of the four warps takes every fourth tile of keys, from
// a ring of copies of its own; then the warps' rows become the part's, and the parts are put together one by one, from the
// first on: by the block itself where it has them all, else by the last block of the token to arrive. Who computes a part
// changes none of its bits: a token alone and in any batch gets the same.
//
// Where the arguments say so, queries and keys are turned and the cache is written here too (rope.cu): every block turns
// the queries that it needs, and the one that has the token's own key writes the cache and puts the new vectors into its
// tile.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/flash.cuh"

constexpr unsigned WARPS = 4;
constexpr unsigned THREADS = WARPS * WARP;
constexpr unsigned DEPTH = 3;        // stages of a ring
constexpr unsigned LEAST_PART = 128; // keys
constexpr unsigned MOST_PARTS = 64;

template <class T, unsigned DIM, class Kv> struct Single {
    static constexpr unsigned KEYS = Kv::CODED ? 32 : 16; // of a warp at a time
    static constexpr unsigned UNIT = WARPS * KEYS;        // keys of a block at a time
    using Tile = KvTile<T, DIM, Kv, KEYS>;
    using Stored = typename Tile::Stored;

    // A stage that has been taken holds the warp's rows on their way to a part. Behind the rings: the rows that parts are
    // put together in (before that, the queries), the largest score and the sum of each warp's rows and, twice, of those
    // rows, and the token's own key.
    static constexpr unsigned STAGE = Tile::BYTES;
    static constexpr unsigned ROWS = QUERIES * DIM * sizeof(float);
    static_assert(STAGE >= ROWS && STAGE % PIECE == 0, "a stage has room for a warp's rows");
    static constexpr unsigned TOGETHER = WARPS * DEPTH * STAGE;
    static constexpr unsigned TOPS = TOGETHER + ROWS;
    static constexpr unsigned OWN = TOPS + (WARPS + 2) * QUERIES * sizeof(float2);
    static constexpr unsigned SHARED = OWN + DIM * sizeof(T);
    // Numbers of a row that a part leaves: its elements, the largest score, the sum of weights, and a gap up to whole pieces.
    static constexpr unsigned LEFT = DIM + 4;

    const AttentionArgs<T>& args;
    unsigned char* const shared;
    const unsigned range, kv_head, token;

    __device__ Single(const AttentionArgs<T>& args, unsigned char* shared)
        : args(args), shared(shared), range(blockIdx.x), kv_head(blockIdx.y), token(blockIdx.z) {}

    // Keys of a part of a token that sees so many: more than the least only where there would be too many parts.
    static __device__ unsigned part_of(unsigned keys) {
        unsigned part = LEAST_PART;
        while (part < (keys + MOST_PARTS - 1) / MOST_PARTS) part *= 2;
        return part;
    }

    __device__ T* out(unsigned row) const {
        return args.out + (static_cast<size_t>(token) * args.heads + kv_head * args.group() + row) * DIM;
    }
    __device__ float* together() const { return reinterpret_cast<float*>(shared + TOGETHER); }
    __device__ float2* tops() const { return reinterpret_cast<float2*>(shared + TOPS); }
    __device__ bool turns() const { return args.turn.cosines != nullptr; }

    __device__ void run() const {
        const unsigned group = args.group();
        if (!args.is_inside(token) || (turns() && args.positions[token] >= args.turn.max_position)) { // the whole block
            if (range > 0) return;
            for (unsigned i = threadIdx.x; i < group * DIM; i += THREADS) out(i / DIM)[i % DIM] = from_f32<T>(nanf(""));
            return;
        }
        const unsigned position = args.positions[token];
        const unsigned keys = position + 1;
        const unsigned part_keys = part_of(keys);
        const unsigned parts = (keys + part_keys - 1) / part_keys;
        const unsigned each = (parts + gridDim.x - 1) / gridDim.x;
        const unsigned blocks = (parts + each - 1) / each;
        if (range >= blocks) return; // the whole block
        const unsigned first_part = range * each, end_part = min(parts, first_part + each);
        const unsigned begin = first_part * part_keys / UNIT;
        const unsigned end = min((keys + UNIT - 1) / UNIT, end_part * part_keys / UNIT);

        const size_t first_vector = args.vector(args.slot_of[token], kv_head, 0);
        const bool appends = turns() && end_part == parts; // has the token's own key
        unsigned char* ring = shared + warp_id() * DEPTH * STAGE;
        const auto copy = [&](unsigned unit) {
            const unsigned key = unit * UNIT + warp_id() * KEYS;
            if (unit < end && key < keys) {
                unsigned char* stage = ring + (unit - begin) % DEPTH * STAGE;
                const unsigned valid = min(KEYS, keys - key);
                const unsigned but = appends ? position - key : KEYS; // its vectors are not in the cache yet
                Tile::template copy<WARP>(stage, args.cache, first_vector + key, valid, lane_id(), but);
            }
            copies_commit();
        };
        for (unsigned i = 0; i < DEPTH - 1; i++) copy(begin + i);
        Rows<T, DIM, Kv> rows;
        const T* projected = args.q + static_cast<size_t>(token) * args.q_stride;
        const T* q = projected + kv_head * group * DIM;
        if (turns()) q = turned(projected, position, first_vector + position, appends);
        rows.load([&](unsigned row) { return row < group ? q + row * DIM : nullptr; });
        const unsigned limits[2] = {keys, keys};
        unsigned unit = begin;
#pragma unroll 1
        for (unsigned part = first_part; part < end_part; part++) {
            rows.clear();
            const unsigned end_of_part = min(end, (part + 1) * part_keys / UNIT);
            unsigned char* stage = ring;
#pragma unroll 1
            for (; unit < end_of_part; unit++) {
                copies_wait<DEPTH - 2>();
                stage = ring + (unit - begin) % DEPTH * STAGE;
                const unsigned key = unit * UNIT + warp_id() * KEYS;
                if (appends && position - key < KEYS) put_own(stage, position - key, first_vector + position);
                __syncwarp(); // other lanes' copies have arrived, and all are done with the stage that is filled next
                copy(unit + DEPTH - 1);
                if (key < keys) rows.template take<KEYS>(stage, key, limits, args.scale * LOG2_E);
            }
            rows.finish();
            end_part_of(rows, stage, group, part, first_part, parts, blocks == 1);
        }
        copies_wait<0>();
        if (blocks > 1 && is_last(blocks)) put_together(group, parts);
    }

    // The queries of this head of keys, turned, in shared memory. If this block appends, the token's own key and value go into
    // the cache.
    __device__ const T* turned(const T* projected, unsigned position, size_t vector, bool appends) const {
        const unsigned group = args.group();
        T* q = reinterpret_cast<T*>(shared + TOGETHER);
        for (unsigned i = warp_id(); i < group + (appends ? 2 : 0); i += WARPS) {
            if (i < group) {
                turn_head(projected + (kv_head * group + i) * DIM, q + i * DIM, args.turn.q_norm, args.turn, position, DIM);
                continue;
            }
            const T* x = projected + (args.heads + kv_head) * DIM;
            if (i > group) {
                write_vector<Kv>(x + args.kv_heads * DIM, args.cache, true, vector, DIM);
                continue;
            }
            T* key = reinterpret_cast<T*>(shared + OWN);
            turn_head(x, key, args.turn.k_norm, args.turn, position, DIM);
            __syncwarp(); // a lane writes other elements to the cache than it has turned
            write_vector<Kv>(key, args.cache, false, vector, DIM);
        }
        __syncthreads(); // the queries are there, and what was written to the cache can be read
        return q;
    }

    // The vectors of the token's own key, from the cache where this block has just written them, into row `row` of a tile.
    __device__ void put_own(unsigned char* tile, unsigned row, size_t vector) const {
        for (unsigned i = lane_id(); i < 2 * Tile::Shared::PIECES; i += WARP) {
            const unsigned which = i / Tile::Shared::PIECES, piece = i % Tile::Shared::PIECES;
            const auto* from = static_cast<const Stored*>(args.cache.vectors(which == 1)) + vector * DIM;
            uint4 bytes;
            memcpy(&bytes, reinterpret_cast<const unsigned char*>(from) + piece * PIECE, sizeof bytes);
            memcpy(tile + which * Tile::VALUES + Tile::Shared::place(row, piece), &bytes, sizeof bytes);
        }
        if constexpr (Kv::CODED) {
            if (lane_id() < 2) Tile::scales(tile)[lane_id() * KEYS + row] = args.cache.scales(lane_id() == 1)[vector];
        }
    }

    // A row, as far as keys have been seen: the largest score, the sum of weights. With it goes the weighted sum of every
    // element.
    struct Top {
        float largest, sum;
    };

    // What weighted sums are multiplied by when later keys are taken.
    struct Factors {
        float so_far, later;

        __device__ float take(float value, float later_value) const { return fmaf(later_value, later, value * so_far); }
    };

    // Takes what later keys have come to.
    static __device__ Factors take(Top& all, const Top& later) {
        const float largest = fmaxf(all.largest, later.largest);
        const Factors factors = {exp2f(all.largest - largest), exp2f(later.largest - largest)};
        all = {largest, factors.take(all.sum, later.sum)};
        return factors;
    }

    // Where element d of a row is among rows in shared memory: so that the lanes of a fragment meet different banks.
    static __device__ unsigned at(unsigned row, unsigned d) { return row * DIM + (d ^ row % 4 * 8); }

    // Rows of the warps, which lie in `stage` from here on, become those of a part, and go where the parts are put together.
    __device__ void end_part_of(const Rows<T, DIM, Kv>& rows, unsigned char* stage, unsigned group, unsigned part,
                                unsigned first_part, unsigned parts, bool alone) const {
        float* mine = reinterpret_cast<float*>(stage);
        __syncwarp(); // all lanes are done with the keys and values there
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            const unsigned row = rows.g() + 8 * r;
            if (row >= group) continue;
#pragma unroll
            for (unsigned block = 0; block < DIM / 8; block++) {
#pragma unroll
                for (unsigned i = 0; i < 2; i++) mine[at(row, rows.element(block, i))] = rows.values[block][2 * r + i];
            }
            if (rows.t() == 0) tops()[warp_id() * QUERIES + row] = {rows.largest[r], rows.sum[r]};
        }
        __syncthreads(); // all rows are there
        // All warps have as many units of a part, and with them the same stage.
        const unsigned from_ring = static_cast<unsigned>(stage - shared) - warp_id() * DEPTH * STAGE;
        float2* so_far = tops() + WARPS * QUERIES; // of parts put together: what one reads, the next writes
        const unsigned now = (part - first_part) % 2 * QUERIES, next = QUERIES - now;
        for (unsigned i = threadIdx.x; i < group * DIM; i += THREADS) {
            const unsigned row = i / DIM, d = i % DIM;
            Top of_part = {-INFINITY, 0.0f};
            float value = 0.0f;
#pragma unroll
            for (unsigned warp = 0; warp < WARPS; warp++) {
                of_part.largest = fmaxf(of_part.largest, tops()[warp * QUERIES + row].x);
            }
#pragma unroll
            for (unsigned warp = 0; warp < WARPS; warp++) {
                const float2 top = tops()[warp * QUERIES + row];
                const float weight = exp2f(top.x - of_part.largest);
                const auto* theirs = reinterpret_cast<const float*>(shared + warp * DEPTH * STAGE + from_ring);
                value = fmaf(theirs[at(row, d)], weight, value);
                of_part.sum = fmaf(top.y, weight, of_part.sum);
            }
            if (!alone) {
                float* to = partial(part) + row * LEFT;
                to[d] = value;
                if (d == 0) {
                    to[DIM] = of_part.largest;
                    to[DIM + 1] = of_part.sum;
                }
                continue;
            }
            Top all = of_part;
            if (part > 0) {
                all = {so_far[now + row].x, so_far[now + row].y};
                value = take(all, of_part).take(together()[i], value);
            }
            if (part + 1 == parts) {
                out(row)[d] = from_f32<T>(value / all.sum);
                continue;
            }
            together()[i] = value;
            if (d == 0) so_far[next + row] = {all.largest, all.sum};
        }
        __syncthreads(); // the stages are free, and the sums of rows there
    }

    __device__ float* partial(unsigned part) const {
        const size_t first = (static_cast<size_t>(token) * args.kv_heads + kv_head) * args.most_parts;
        return args.partial + (first + part) * args.group() * LEFT;
    }

    // The results, from parts that all blocks of the token have left. A thread takes four elements of a row and has eight
    // parts of them under way at a time: loads one after another would take longer than the keys.
    __device__ void put_together(unsigned group, unsigned parts) const {
        constexpr unsigned FOUR = 4;
#pragma unroll 1
        for (unsigned i = threadIdx.x * FOUR; i < group * DIM; i += THREADS * FOUR) {
            const unsigned row = i / DIM, d = i % DIM;
            const auto read = [&](unsigned part, float (&values)[FOUR]) -> Top {
                const float* from = partial(part) + row * LEFT;
                const uint4 four = __ldcg(reinterpret_cast<const uint4*>(from + d));
                memcpy(values, &four, sizeof values);
                return {__ldcg(from + DIM), __ldcg(from + DIM + 1)};
            };
            float values[FOUR];
            Top all = read(0, values);
#pragma unroll 8
            for (unsigned part = 1; part < parts; part++) {
                float later_values[FOUR];
                const Top later = read(part, later_values);
                const Factors factors = take(all, later);
#pragma unroll
                for (unsigned j = 0; j < FOUR; j++) values[j] = factors.take(values[j], later_values[j]);
            }
#pragma unroll
            for (unsigned j = 0; j < FOUR; j++) out(row)[d + j] = from_f32<T>(values[j] / all.sum);
        }
    }

    // Whether this block is the last of its token and head; what the others wrote before is then visible to all its threads.
    __device__ bool is_last(unsigned blocks) const {
        __shared__ unsigned last;
        unsigned* counter = args.arrived + token * args.kv_heads + kv_head;
        __syncthreads(); // all of this block has written
        if (threadIdx.x == 0) {
            last = count_up(counter) == blocks - 1;
            if (last) *counter = 0;
        }
        __syncthreads();
        return last != 0;
    }
};

template <class T, unsigned DIM, class Kv> __device__ void attention_single(const AttentionArgs<T>& args) {
    DYNAMIC_SHARED(shared);
    follow_predecessor();
    if (dynamic_shared_bytes() < Single<T, DIM, Kv>::SHARED) return; // a launch that knows better than this file
    Single<T, DIM, Kv>(args, shared).run();
}

#define DEFINE(T, DIM)                                                                                                 \
    KERNEL_OF(THREADS, 2, attention_single_##T##_##DIM, const AttentionArgs<T> args) {                                 \
        attention_single<T, DIM, PlainKv>(args);                                                                       \
    }                                                                                                                  \
    FOR_EACH_CODED_KV(DEFINE_CODED, T, DIM)
#define DEFINE_CODED(KV, NAME, T, DIM)                                                                                 \
    KERNEL_OF(THREADS, 2, attention_single_##T##_##NAME##_##DIM, const AttentionArgs<T> args) {                        \
        attention_single<T, DIM, KV>(args);                                                                            \
    }
DEFINE(f16, 64)
DEFINE(f16, 96)
DEFINE(f16, 128)
DEFINE(bf16, 64)
DEFINE(bf16, 96)
DEFINE(bf16, 128)
