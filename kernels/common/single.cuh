// One block's part of causal attention of tokens that are alone in their slot, as attention_single.cu has it: a range of
// the keys of one head of one token.
//
// All query heads of a head of keys are rows of one fragment, so that the cache is read once. The keys come in parts whose
// borders follow from the token's position alone. Within one, each of the four key warps takes every fourth tile of keys,
// from a ring of copies of its own; then the warps' rows become the part's, and the parts are put together one by one, from
// the first on: by the block itself where it has them all, else by the last block of the token to arrive. Who computes a
// part changes none of its bits: a token alone and in any batch gets the same.
//
// Where the arguments say so, queries and keys are turned and the cache is written here too (rope.cu): every block turns
// the queries that it needs, and the one that has the token's own key writes the cache and puts the new vectors into their
// tile, if that was on its way before.
#pragma once

#include "flash.cuh"
#include "last.cuh"

constexpr unsigned KEY_WARPS = 4;    // that take keys
constexpr unsigned LEAST_PART = 128; // keys
constexpr unsigned MOST_PARTS = 64;

// Which part of the work a block has: one of `ranges` ranges of parts, of a head of keys, of a token.
struct RangeOfKeys {
    unsigned range, ranges, kv_head, token;
};

// EIGHTS: of query heads of a head of keys, rounded up.
template <class T, unsigned DIM, class Kv, unsigned EIGHTS, unsigned WARPS = KEY_WARPS> struct Single {
    static_assert(WARPS >= KEY_WARPS, "keys are for some of the block's warps");
    // Blocks with more warps have fewer registers for each.
    static constexpr Queries WHERE = WARPS == KEY_WARPS ? Queries::Held : Queries::Shared;
    using Rows = ::Rows<T, DIM, Kv, EIGHTS, WHERE>;
    static constexpr unsigned HEADS = 8 * EIGHTS;
    static constexpr unsigned THREADS = WARPS * WARP;
    static constexpr unsigned DEPTH = 3;                  // stages of a ring
    static constexpr unsigned KEYS = Kv::CODED ? 32 : 16; // of a warp at a time
    static constexpr unsigned UNIT = KEY_WARPS * KEYS;    // keys of a block at a time
    using Tile = KvTile<T, DIM, Kv, KEYS>;
    using Stored = typename Tile::Stored;

    // A stage that has been taken holds the warp's rows on their way to a part. Behind the rings: the rows that parts are
    // put together in (before that, the queries), the largest score and the sum of each warp's rows and, twice, of those
    // rows, the token's own key, and the turned queries, unless they are held in registers before parts are put together.
    static constexpr unsigned STAGE = Tile::BYTES;
    static constexpr unsigned ROWS = HEADS * DIM * sizeof(float);
    static_assert(STAGE >= ROWS && STAGE % PIECE == 0, "a stage has room for a warp's rows");
    static constexpr unsigned TOGETHER = KEY_WARPS * DEPTH * STAGE;
    static constexpr unsigned TOPS = TOGETHER + ROWS;
    static constexpr unsigned OWN = TOPS + (KEY_WARPS + 2) * HEADS * sizeof(float2);
    static constexpr unsigned TURNED = WHERE == Queries::Held ? TOGETHER : OWN + DIM * sizeof(T);
    static constexpr unsigned TURNED_STRIDE = WHERE == Queries::Held ? DIM : Rows::Q_STRIDE; // elements
    static constexpr unsigned SHARED = WHERE == Queries::Held ? OWN + DIM * sizeof(T) : TURNED + HEADS * TURNED_STRIDE * sizeof(T);
    // Numbers of a row that a part leaves: its elements, the largest score, the sum of weights, and a gap up to whole
    // pieces.
    static constexpr unsigned LEFT = DIM + 4;
    static constexpr unsigned FOUR = 4; // elements of a row that a thread puts together

    const AttentionArgs<T>& args;
    unsigned char* const shared;
    const unsigned range, ranges, kv_head, token;

    __device__ Single(const AttentionArgs<T>& args, unsigned char* shared, const RangeOfKeys& of)
        : args(args), shared(shared), range(of.range), ranges(of.ranges), kv_head(of.kv_head), token(of.token) {}

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
    // Whether this warp is one of those that take keys; the others help before and after.
    static __device__ bool takes_keys() { return WARPS == KEY_WARPS || warp_id() < KEY_WARPS; }

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
        const unsigned each = (parts + ranges - 1) / ranges;
        const unsigned blocks = (parts + each - 1) / each;
        if (range >= blocks) return; // the whole block
        const unsigned first_part = range * each, end_part = min(parts, first_part + each);
        const unsigned begin = first_part * part_keys / UNIT;
        const unsigned end = min((keys + UNIT - 1) / UNIT, end_part * part_keys / UNIT);

        const size_t first_vector = args.vector(args.slot_of[token], kv_head, 0);
        const bool appends = turns() && end_part == parts; // has the token's own key
        unsigned char* ring = shared + warp_id() * DEPTH * STAGE;
        const auto copy = [&](unsigned unit, bool own_is_missing) {
            const unsigned key = unit * UNIT + warp_id() * KEYS;
            if (unit < end && key < keys) {
                unsigned char* stage = ring + (unit - begin) % DEPTH * STAGE;
                const unsigned valid = min(KEYS, keys - key);
                const unsigned but = own_is_missing ? position - key : KEYS;
                Tile::template copy<WARP>(stage, args.cache, first_vector + key, valid, lane_id(), but);
            }
            copies_commit();
        };
        if (takes_keys()) {
            for (unsigned i = 0; i < DEPTH - 1; i++) copy(begin + i, appends); // its vectors are not in the cache yet
        }
        Rows rows;
        const T* projected = args.q + static_cast<size_t>(token) * args.q_stride;
        if constexpr (WHERE == Queries::Held) {
            const T* q = projected + kv_head * group * DIM;
            if (turns()) q = turned(projected, position, first_vector + position, appends);
            rows.load([&](unsigned row) { return row < group ? q + row * DIM : nullptr; });
        } else {
            rows.leave_in_shared(turned(projected, position, first_vector + position, appends), group);
        }
        if (appends && takes_keys() && end - begin < DEPTH) {
            const unsigned key = (end - 1) * UNIT + warp_id() * KEYS;
            unsigned char* stage = ring + (end - 1 - begin) * STAGE;
            if (position - key < KEYS) put_own(stage, position - key, first_vector + position);
        }
        unsigned limits[EIGHTS];
#pragma unroll
        for (unsigned& limit : limits) limit = keys;
        unsigned unit = begin;
#pragma unroll 1
        for (unsigned part = first_part; part < end_part; part++) {
            rows.clear();
            const unsigned end_of_part = min(end, (part + 1) * part_keys / UNIT);
            if (!takes_keys()) unit = end_of_part;
#pragma unroll 1
            for (; unit < end_of_part; unit++) {
                copies_wait<DEPTH - 2>();
                unsigned char* stage = ring + (unit - begin) % DEPTH * STAGE;
                const unsigned key = unit * UNIT + warp_id() * KEYS;
                __syncwarp(); // other lanes' copies have arrived, and all are done with the stage that is filled next
                copy(unit + DEPTH - 1, false);
                if (key < keys) rows.template take<KEYS>(stage, key, limits, args.scale * LOG2_E);
            }
            rows.finish();
            // All key warps have as many units of a part, and with them the same stage.
            end_part_of(rows, (unit - 1 - begin) % DEPTH * STAGE, group, part, first_part, parts, blocks == 1);
        }
        copies_wait<0>();
        if (blocks > 1 && is_last_of(args.arrived + token * args.kv_heads + kv_head, blocks)) put_together(group, parts);
    }

    // The queries of this head of keys, turned, in shared memory. If this block appends, the token's own key and value go
    // into the cache.
    __device__ const T* turned(const T* projected, unsigned position, size_t vector, bool appends) const {
        const unsigned group = args.group();
        T* q = reinterpret_cast<T*>(shared + TURNED);
        for (unsigned i = warp_id(); i < group + (appends ? 2 : 0); i += WARPS) {
            if (i < group) {
                turn_head(projected + (kv_head * group + i) * DIM, q + i * TURNED_STRIDE, args.turn.q_norm, args.turn, position, DIM);
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
            const uint4 bytes = load_raw<uint4>(reinterpret_cast<const unsigned char*>(from) + piece * PIECE);
            store_raw(tile + which * Tile::VALUES + Tile::Shared::place(row, piece), bytes);
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
        const Factors factors = {fast_exp2(all.largest - largest), fast_exp2(later.largest - largest)};
        all = {largest, factors.take(all.sum, later.sum)};
        return factors;
    }

    // Where element d of a row is among rows in shared memory: so that the lanes of a fragment meet different banks.
    static __device__ unsigned at(unsigned row, unsigned d) { return row * DIM + (d ^ row % 4 * 8); }

    // Rows of the warps, which from here on lie in the stages of their rings that begin at `from_ring`, become those of a
    // part, and go where the parts are put together.
    __device__ void end_part_of(const Rows& rows, unsigned from_ring, unsigned group, unsigned part,
                                unsigned first_part, unsigned parts, bool alone) const {
        float* mine = reinterpret_cast<float*>(shared + warp_id() * DEPTH * STAGE + from_ring);
        __syncwarp(); // all lanes are done with the keys and values there
        const unsigned lane = computed_anew(lane_id());
#pragma unroll
        for (unsigned r = 0; r < EIGHTS; r++) {
            const unsigned row = lane / 4 + 8 * r;
            if (row >= group || !takes_keys()) continue;
#pragma unroll
            for (unsigned block = 0; block < DIM / 8; block++) {
                float two[2];
                const unsigned first = rows.neighbours(block, r, lane % 4, two);
                uint2 raw;
                memcpy(&raw, two, sizeof raw);
                store_raw(mine + at(row, first), raw);
            }
            if (lane % 4 == 0) tops()[warp_id() * HEADS + row] = {rows.largest[r], rows.sum[r]};
        }
        __syncthreads(); // all rows are there
        float2* so_far = tops() + KEY_WARPS * HEADS; // of parts put together: what one reads, the next writes
        const unsigned now = (part - first_part) % 2 * HEADS, next = HEADS - now;
#pragma unroll 1
        for (unsigned i = threadIdx.x * FOUR; i < group * DIM; i += THREADS * FOUR) {
            const unsigned row = i / DIM, d = i % DIM;
            Top of_part = {-INFINITY, 0.0f};
            float values[FOUR] = {};
#pragma unroll
            for (unsigned warp = 0; warp < KEY_WARPS; warp++) {
                of_part.largest = fmaxf(of_part.largest, tops()[warp * HEADS + row].x);
            }
#pragma unroll
            for (unsigned warp = 0; warp < KEY_WARPS; warp++) {
                const float2 top = tops()[warp * HEADS + row];
                const float weight = fast_exp2(top.x - of_part.largest);
                const auto* theirs = reinterpret_cast<const float*>(shared + warp * DEPTH * STAGE + from_ring);
                float more[FOUR];
                load_wide(theirs + at(row, d), more);
#pragma unroll
                for (unsigned j = 0; j < FOUR; j++) values[j] = fmaf(more[j], weight, values[j]);
                of_part.sum = fmaf(top.y, weight, of_part.sum);
            }
            if (!alone) {
                float* to = partial(part) + row * LEFT;
                store_four(to + d, values);
                if (d == 0) {
                    to[DIM] = of_part.largest;
                    to[DIM + 1] = of_part.sum;
                }
                continue;
            }
            Top all = of_part;
            if (part > 0) {
                all = {so_far[now + row].x, so_far[now + row].y};
                const Factors factors = take(all, of_part);
                float before[FOUR];
                load_wide(together() + i, before);
#pragma unroll
                for (unsigned j = 0; j < FOUR; j++) values[j] = factors.take(before[j], values[j]);
            }
            if (part + 1 == parts) {
                store_results(row, d, values, all);
                continue;
            }
            store_four(together() + i, values);
            if (d == 0) so_far[next + row] = {all.largest, all.sum};
        }
        __syncthreads(); // the stages are free, and the sums of rows there
    }

    static __device__ void store_four(float* to, const float (&values)[FOUR]) {
        uint4 raw;
        memcpy(&raw, values, sizeof raw);
        store_raw(to, raw);
    }

    // Weighted sums over the sum of weights.
    __device__ void store_results(unsigned row, unsigned d, const float (&values)[FOUR], const Top& all) const {
        const float inverse = 1.0f / all.sum;
        T results[FOUR];
#pragma unroll
        for (unsigned j = 0; j < FOUR; j++) results[j] = from_f32<T>(values[j] * inverse);
        uint2 raw;
        memcpy(&raw, results, sizeof raw);
        store_raw(out(row) + d, raw);
    }

    __device__ float* partial(unsigned part) const {
        const size_t first = (static_cast<size_t>(token) * args.kv_heads + kv_head) * args.most_parts;
        return args.partial + (first + part) * args.group() * LEFT;
    }

    // The results, from parts that all blocks of the token have left. A thread takes four elements of a row and has eight
    // parts of them under way at a time: loads one after another would take longer than the keys.
    __device__ void put_together(unsigned group, unsigned parts) const {
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
            store_results(row, d, values, all);
        }
    }
};
