// A product of 1 to 16 tokens, bound by reading the weights: what linear_few.cu and linear_fused.cu share.
//
// A block takes tiles of 16 R rows, or parts of their columns, one after another: blocks are as many as fit on the device
// at once. Its eight warps share the steps of a tile in turn, and each keeps a ring of asynchronous copies in flight that
// reaches into the next tile. A lane copies the very pieces of the weights that it will use, so that the ring needs no
// barrier but the warp's own. Sums of the warps meet in shared memory at the end of a tile. Where blocks share a tile, the
// last to arrive adds up what they left, in a fixed order: the same launch gives the same bits.
//
// A single token is a kind of its own (0 blocks of tokens): its numbers are read by all lanes at once, and seven of eight
// columns of the matrix instructions are not used.
//
// Tokens come through the ring beside the weights; or, where they are normed first (common/fused.cuh), lie in shared memory
// as a whole.
#pragma once

#include "fused.cuh"

constexpr unsigned WARPS = 8;
static_assert(WARPS * WARP == NORM_THREADS, "rows are normed by the threads of a block");

// What tokens are before they become codes; nothing where they do not, or are codes already.
template <class Format, class = void> struct InputOfFormat {
    using Type = f32;
};
template <class Format> struct InputOfFormat<Format, std::void_t<typename Format::Input>> {
    using Type = typename Format::Input;
};
template <class Format> using InputOf = typename InputOfFormat<Format>::Type;

constexpr unsigned NORM_BYTES = STEP * 2; // of a step, of the weight of a norm

// Bytes of a warp's ring. Two blocks of up to 8 tokens fit on a multiprocessor; of up to 16, and of several that are normed
// first, there is one. Less for a single token, so that the next launch would fit beside this one, cost more than it
// brought: on an H200 a product of one token took a quarter longer than of eight.
constexpr unsigned ring_of(unsigned token_blocks) { return (token_blocks < 2 ? 12 : 24) << 10; }

// `Job` is ProductArgs, or FusedArgs for a product with what goes before and after it.
template <class Format, unsigned R, unsigned TOKEN_BLOCKS, class Job, unsigned RING = ring_of(TOKEN_BLOCKS)> struct Few {
    using X = typename Format::X;
    using Sum = typename Format::Sum;
    using Tokens = StepOfTokens<X>;
    using Scales = StepScales<Format, R>;
    static constexpr bool FUSED = std::is_same_v<Job, FusedArgs>;
    static constexpr bool EXACT = std::is_same_v<Sum, int>;
    using Prepared = std::conditional_t<EXACT, CodedTokens<InputOf<Format>>, NormedTokens<X>>; // where it is fused
    static constexpr unsigned BLOCKS = TOKEN_BLOCKS == 0 ? 1 : TOKEN_BLOCKS; // of matrix instructions
    static constexpr unsigned TOKENS = TOKEN_BLOCKS == 0 ? 1 : BLOCK * TOKEN_BLOCKS;
    static constexpr unsigned HALVES = EXACT ? 1 : 2; // chunks of a lane in a step

    // A stage of the ring: codes, scales, activations.
    static constexpr unsigned TILE_BYTES = Format::PIECES * WARP * PIECE;
    static constexpr unsigned SCALES_AT = R * TILE_BYTES;
    static constexpr unsigned TOKENS_AT = SCALES_AT + Scales::BYTES;
    static constexpr unsigned STAGE = TOKENS_AT + (FUSED ? 0 : TOKENS * Tokens::BYTES);
    static constexpr unsigned DEPTH = RING / STAGE < 3 ? 3 : RING / STAGE > 8 ? 8 : RING / STAGE;

    // Sums of the warps for as many tiles as fit, rows side by side with a gap against bank conflicts.
    static constexpr unsigned AT_ONCE = TOKENS * R <= 32 ? R : 32 / TOKENS;
    static constexpr unsigned PITCH = AT_ONCE * ROWS + 4;
    static constexpr unsigned SUMS = WARPS * TOKENS * PITCH * sizeof(Sum);
    static constexpr unsigned RINGS = WARPS * DEPTH * STAGE;
    static constexpr unsigned SHARED = RINGS + SUMS; // and what Prepared and the weight of a norm take
    static_assert(R % AT_ONCE == 0, "tiles are added up in equal parts");
    static_assert(!FUSED || AT_ONCE == R, "a thread that picks keeps to its token");

    // Where a block has what in its shared memory.
    struct Room {
        unsigned char* rings; // of all warps
        unsigned of_ring;     // bytes from one warp's to the next
        unsigned char* sums;
        unsigned char* norm;     // the weight of a norm
        unsigned char* prepared; // what Prepared takes

        // One behind the other.
        static __device__ Room packed(unsigned char* shared, unsigned steps) {
            return {shared, DEPTH * STAGE, shared + RINGS, shared + SHARED, shared + SHARED + steps * NORM_BYTES};
        }
    };

    const Job& job;
    const ProductArgs& args;
    const StreamedWeight weight; // a copy, which the compiler need not read again after every copy to shared memory
    const Room room;
    unsigned char* const ring;
    Sum* const warp_sums;
    const unsigned items; // groups of R tiles, or parts of their columns
    const unsigned me, blocks; // which block this one is of those that have items

    __device__ Few(const Job& job, const Room& room, unsigned me, unsigned blocks)
        : job(job), args(product_of(job)), weight(args.weight), room(room), ring(room.rings + warp_id() * room.of_ring),
          warp_sums(reinterpret_cast<Sum*>(room.sums)), items((weight.tiles() + R - 1) / R * args.splits), me(me),
          blocks(min(blocks, items)) {}

    // The steps of an item that this warp takes are `first`, then every eighth before `end`.
    __device__ unsigned first(unsigned item) const { return item % args.splits * args.steps_per_split + warp_id(); }
    __device__ unsigned end(unsigned item) const {
        return min(weight.steps(), (item % args.splits + 1) * args.steps_per_split);
    }

    // Where copying has got to.
    struct Cursor {
        unsigned item, step, end, tile;
        Source<Format> source;
    };

    __device__ Cursor begin(unsigned item) const {
        const unsigned tile = item / args.splits * R;
        const unsigned step = first(item);
        return {item, step, end(item), tile, Source<Format>(weight, tile, step)};
    }

    // On to a step that this warp has to do; item >= items when there is none.
    __device__ void settle(Cursor& at) const {
        while (at.step >= at.end) {
            const unsigned item = at.item + blocks;
            if (item >= items) {
                at.item = items;
                break;
            }
            at = begin(item);
        }
    }

    __device__ void advance(Cursor& at) const {
        at.step += WARPS;
        at.source.advance(WARPS);
        settle(at);
    }

    __device__ void copy_weights(unsigned char* stage, const Cursor& at) const {
        const unsigned here = min(R, weight.tiles() - at.tile);
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            if (r < here) at.source.copy(stage + r * TILE_BYTES + lane_id() * PIECE, weight, r, at.step);
        }
        typename Scales::Source(weight, at.tile, here, at.step).copy(stage + SCALES_AT, weight, at.step);
    }

    __device__ void copy_tokens(unsigned char* stage, const Cursor& at) const {
        Tokens::template copy<TOKENS, WARP>(stage + TOKENS_AT, static_cast<const X*>(args.x), args.tokens, weight.k,
                                            at.step, lane_id());
    }

    __device__ Prepared prepared() const { return {room.prepared, room.norm, weight.steps(), args.tokens}; }

    // Adds a stage to the sums; `tokens` is where those of the step lie, `there` how many there is room for.
    __device__ void use(const unsigned char* stage, const unsigned char* tokens, unsigned there,
                        Sum (&sums)[R][BLOCKS][4]) const {
        uint4 x[2][BLOCKS];
#pragma unroll
        for (unsigned half = 0; half < HALVES; half++) {
#pragma unroll
            for (unsigned j = 0; j < BLOCKS; j++) {
                // Columns of tokens that are not there get what happens to lie in memory; no other column sees it.
                unsigned token = TOKEN_BLOCKS == 0 ? 0 : j * BLOCK + lane_row();
                if constexpr (FUSED) token = min(token, there - 1);
                const unsigned place = Tokens::place(token, Format::chunk(half));
                x[half][j] = *reinterpret_cast<const uint4*>(tokens + place);
            }
        }
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            add_tile<Format, R, BLOCKS>(sums[r], stage + r * TILE_BYTES, stage + SCALES_AT, r, weight, x);
        }
    }

    // A launch of its own.
    __device__ void run() const {
        if (me >= items) return;
        const Cursor copied = begin_copying();
        let_successor_start();
        wait_for_predecessor();
        compute(copied, [] {});
        copies_wait<0>();
    }

    // The first step that this warp has to do.
    __device__ Cursor start() const {
        Cursor first = begin(me);
        settle(first);
        return first;
    }

    // Begins to copy the weights of the first steps, and that of the norm: they do not depend on what ran before, as
    // activations do. Where the copying has got to. Tokens that come through the ring still have to.
    __device__ Cursor begin_copying() const {
        Cursor copying = start();
        if constexpr (FUSED) {
            copy_norm_weight<typename Prepared::Input>(room.norm, job.norm, weight.k);
            copies_commit();
        }
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH - 1; i++) {
            if (copying.item < items) {
                copy_weights(ring + i * STAGE, copying);
                advance(copying);
            }
            if constexpr (FUSED) copies_commit();
        }
        bring_rows();
        return copying;
    }

    // What the rows of this block's items have to themselves, a tile for each thread at a time.
    __device__ void bring_rows() const {
        for (unsigned i = threadIdx.x;; i += WARPS * WARP) {
            const unsigned item = me + i / R * blocks;
            if (item >= items) break;
            const unsigned tile = item / args.splits * R + i % R;
            if (tile < weight.tiles()) args.template bring_rows<Format>(tile);
        }
    }

    // Where begin_copying got to.
    __device__ Cursor copied() const {
        Cursor copying = start();
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH - 1; i++) {
            if (copying.item < items) advance(copying);
        }
        return copying;
    }

    // All of it but that beginning, for a block that has items. `ring_is_free` is called by each warp when it has used the
    // last of its weights, before it meets the others.
    template <class RingIsFree> __device__ void compute(Cursor copying, RingIsFree ring_is_free) const {
        Sum sums[R][BLOCKS][4] = {};
        Best best = {0.0f, NONE};
        if constexpr (FUSED) {
            copies_wait<DEPTH - 1>(); // the weight of the norm, which each thread copied for itself
            prepared().template fill<TOKENS>(job, reinterpret_cast<float*>(warp_sums));
        } else {
            copying = start();
#pragma unroll 1
            for (unsigned i = 0; i < DEPTH - 1; i++) {
                if (copying.item < items) {
                    copy_tokens(ring + i * STAGE, copying);
                    advance(copying);
                }
                copies_commit();
            }
        }

        unsigned char* filling = ring + (DEPTH - 1) * STAGE;
        unsigned char* using_up = ring;
        const auto next = [this](unsigned char* stage) {
            return stage == ring + (DEPTH - 1) * STAGE ? ring : stage + STAGE;
        };
#pragma unroll 1
        for (unsigned item = me; item < items; item += blocks) {
            const unsigned last = end(item);
#pragma unroll 1
            for (unsigned step = first(item); step < last; step += WARPS) {
                copies_wait<DEPTH - 2>();
                __syncwarp(); // other lanes' copies have arrived, and all are done with the stage that is filled next
                if (copying.item < items) {
                    copy_weights(filling, copying);
                    if constexpr (!FUSED) copy_tokens(filling, copying);
                    advance(copying);
                }
                copies_commit();
                filling = next(filling);
                if constexpr (FUSED) {
                    use(using_up, prepared().of_step(step), args.tokens, sums);
                } else {
                    use(using_up, using_up + TOKENS_AT, TOKENS, sums);
                }
                using_up = next(using_up);
            }
            finish_item(item, sums, best, ring_is_free);
        }
        if constexpr (FUSED) {
            if (job.then == THEN_PICK) pick<R * ROWS>(job, best, room.rings, me, blocks);
        }
    }

    // The warps' sums become results, or this block's part of them; and start anew.
    template <class RingIsFree>
    __device__ void finish_item(unsigned item, Sum (&sums)[R][BLOCKS][4], Best& best, RingIsFree ring_is_free) const {
        const unsigned tile = item / args.splits;
        // [tokens, rows] of this block's part.
        const size_t part = static_cast<size_t>(TOKENS) * R * ROWS;
#pragma unroll
        for (unsigned first = 0; first < R; first += AT_ONCE) {
            if (item != me || first > 0) __syncthreads(); // the sums of the tiles before have been read
#pragma unroll
            for (unsigned r = 0; r < AT_ONCE; r++) {
#pragma unroll
                for (unsigned j = 0; j < BLOCKS; j++) {
#pragma unroll
                    for (unsigned i = 0; i < 4; i++) {
                        const unsigned token = j * BLOCK + lane_quad() * 2 + i % 2;
                        const unsigned row = r * ROWS + lane_row() + i / 2 * 8;
                        if (token < TOKENS) warp_sums[(warp_id() * TOKENS + token) * PITCH + row] = sums[first + r][j][i];
                        sums[first + r][j][i] = 0;
                    }
                }
            }
            if (first + AT_ONCE == R && item + blocks >= items) ring_is_free();
            __syncthreads();
            const auto sum_of = [this](unsigned token, unsigned row) {
                Sum sum = 0;
#pragma unroll
                for (unsigned w = 0; w < WARPS; w++) sum += warp_sums[(w * TOKENS + token) * PITCH + row];
                return sum;
            };
            if (args.splits > 1) {
#pragma unroll 1
                for (unsigned i = threadIdx.x; i < TOKENS * AT_ONCE * ROWS; i += WARPS * WARP) {
                    const unsigned token = i / (AT_ONCE * ROWS), row = i % (AT_ONCE * ROWS);
                    args.partial[item * part + token * R * ROWS + first * ROWS + row] = as_float(sum_of(token, row));
                }
            } else {
                finish<AT_ONCE * ROWS>((tile * R + first) * ROWS, sum_of, best);
            }
        }
        if (args.splits > 1 && is_last_of_tile(args, tile)) {
            const float* parts = args.partial + tile * args.splits * part;
            const auto sum_of = [&](unsigned token, unsigned row) {
                Sum sum = 0;
#pragma unroll 4
                for (unsigned s = 0; s < args.splits; s++) {
                    sum += as_sum(__ldcg(parts + s * part + token * R * ROWS + row));
                }
                return sum;
            };
            finish<R * ROWS>(tile * R * ROWS, sum_of, best);
        }
    }

    // The rows first .. first + COUNT of all tokens get their sums, sum_of(token, row from `first` on).
    template <unsigned COUNT, class SumOf> __device__ void finish(unsigned first, SumOf sum_of, Best& best) const {
        const auto scaled = [&](unsigned token, unsigned row) {
            if constexpr (FUSED && EXACT) {
                return args.scaled_exact(sum_of(token, row), prepared().scales()[token], first + row);
            } else {
                return args.scaled<Format>(token, first + row, sum_of(token, row));
            }
        };
        if constexpr (FUSED) {
            if (job.then == THEN_GATE) return gate<COUNT>(args, first, scaled);
            if (job.then == THEN_PICK) return look<TOKENS, COUNT>(args, first, scaled, best);
        }
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < TOKENS * COUNT; i += WARPS * WARP) {
            const unsigned token = i / COUNT, row = i % COUNT;
            if (token < args.tokens && first + row < args.weight.n) {
                args.outcome.store(token, first + row, scaled(token, row));
            }
        }
    }

    // Exact sums lie in the workspace as they are.
    static __device__ float as_float(float sum) { return sum; }
    static __device__ float as_float(int sum) { return __int_as_float(sum); }
    static __device__ Sum as_sum(float stored) {
        if constexpr (EXACT) {
            return __float_as_int(stored);
        } else {
            return stored;
        }
    }
};
