// linear_wgmma: out[t, n] (+)= sum_k x[t, k] * w[n, k] (+ bias[n]) for tokens enough to keep the matrix units of compute
// capability 9.0 busy, from about 33 on. Empty for others.
//
// linear_wgmma_<weight>_<x>_<rows>x<tokens>   weights and activations as in linear_few.cu; a block computes 128 R rows for
//                                             8 B tokens, or a part of their columns.
// linear_wgmma_turns_<weight>_<x>_<rows>x<tokens>   the same, to the bit, its two groups of warps in turns
//
// A block of tiles (common/block_of_tiles.cuh). Its two groups of four warps multiply tiles in registers with tokens in
// shared memory, by instructions that run beside the program. While those of a step do, the tokens of the next are arranged
// as the instructions want them, and its weights become fragments. So there is one barrier a step, and a ring that is
// refilled as soon as a step has been taken out of it. Columns stand in the slots of fragments as common/stream.cuh has
// them: the tokens are arranged to match, words of 4 bytes at a time. Where scales change in the course of a row, a group
// of columns is summed up by itself, and scaled once. Where blocks share a tile, the last to arrive adds up what they left,
// in a fixed order.
//
// One barrier a step keeps all warps in the same phase of it, and what they wait for adds up. In turns, the groups are
// half a step apart: between two barriers one multiplies while the other prepares. That is two barriers a step. Which is
// faster is for a clock to say.
//
// What the loop over steps may take per lane and weight: instructions in its body, and those of them that make numbers of
// codes. Held by tests/cuda_build.
// gate int4_bf16 2x8: 4.6 1.7
// gate int4_f16 2x8: 4.8 1.5
// gate int4_bf16 1x16: 8.0 1.7
// gate int8_bf16 2x8: 3.8 2.2
// gate e4m3_bf16 2x8: 5.4 3.0
// gate w8a8 2x8: 1.7 0.2
// gate turns_int4_bf16 2x8: 4.9 1.7
// gate turns_int8_bf16 2x8: 4.0 2.2
// gate turns_w8a8 2x8: 2.0 0.2
#include <ptx/kernel.cuh>
#include <ptx/wgmma.cuh>

#include "common/block_of_tiles.cuh"

template <class Format, unsigned R, unsigned B> struct Warpgroups : BlockOfTiles<Format, R, B, Readers::Tokens> {
    using Block = BlockOfTiles<Format, R, B, Readers::Tokens>;
    using typename Block::Scales;
    using typename Block::Sum;
    using typename Block::Tokens;
    using typename Block::X;
    using Block::args, Block::shared, Block::tile, Block::begin, Block::end;
    using Block::EXACT, Block::SCALED, Block::HALVES, Block::INSTRUCTIONS, Block::TILE_BYTES, Block::OWN, Block::STAGE;
    static constexpr unsigned TOKENS = Block::TOKENS;
    static constexpr unsigned NUMBERS = 4 * B; // of a lane, of the sums of a tile

    // Tokens of a step as the instructions want them: for each instruction two halves of its columns, 16 bytes of each
    // token.
    static constexpr unsigned CORES = TOKENS * PIECE;
    static constexpr unsigned ARRANGED = 2 * INSTRUCTIONS * CORES;
    static constexpr unsigned RING = 128 << 10;
    static constexpr unsigned DEPTH = RING / STAGE < 3 ? 3 : RING / STAGE > 6 ? 6 : RING / STAGE;
    static constexpr unsigned IN = DEPTH * STAGE + 2 * ARRANGED;
    static constexpr unsigned SHARED = IN > Block::OUT ? IN : Block::OUT;

    // What a warp needs of a step beside the tokens. APART: each half of the step has scales of its own.
    template <bool APART> struct Fragments {
        uint32_t a[R][INSTRUCTIONS][4];
        float scale[R][APART ? 2 : 1][2]; // for rows g and g + 8
    };

    unsigned char* const tokens_at; // where they are arranged, for even steps and then for odd ones

    __device__ Warpgroups(const ProductArgs& args, unsigned char* shared)
        : Block(args, shared), tokens_at(shared + DEPTH * STAGE) {}

    __device__ unsigned char* next(unsigned char* stage) const {
        return stage == shared + (DEPTH - 1) * STAGE ? shared : stage + STAGE;
    }

    // The tokens of a step from its stage to where the instructions read them. The four chunks of a token that make two
    // instructions' columns hold a word for each lane of a quad; the instructions want the words of a quad side by side.
    // Where tokens are few, threads share the words of a chunk, so that all have as much to do. Eight of them have eight
    // tokens, the next eight the next words of these: neither loads nor stores meet in a bank.
    static constexpr unsigned SHARED_BY = THREADS / (TOKENS * HALVES);
    static constexpr unsigned WORDS = 4 / SHARED_BY;
    static_assert(SHARED_BY * WORDS == 4 && TOKENS * HALVES * SHARED_BY == THREADS, "every thread has as much to do");
    using Words = std::conditional_t<WORDS == 4, uint4, std::conditional_t<WORDS == 2, uint2, uint32_t>>;

    // What a thread has of it.
    struct Share {
        unsigned from[4]; // in a stage, its words of the chunk of each lane of a quad
        unsigned to;      // in the arranged tokens

        __device__ explicit Share(unsigned me) {
            const unsigned share = me / 8 % SHARED_BY, row = me / (8 * SHARED_BY) * 8 + me % 8;
            const unsigned token = row % TOKENS, half = row / TOKENS;
#pragma unroll
            for (unsigned quad = 0; quad < 4; quad++) {
                from[quad] = WARPS * OWN + Tokens::place(token, Format::chunk(half, quad)) + share * sizeof(Words);
            }
            to = (4 * half + share * WORDS) * CORES + token * PIECE;
        }
    };

    __device__ void arrange(const Share& share, const unsigned char* stage, unsigned odd) const {
        unsigned char* to = tokens_at + odd * ARRANGED + share.to;
        uint32_t words[4][WORDS];
#pragma unroll
        for (unsigned quad = 0; quad < 4; quad++) {
            const Words raw = load_raw<Words>(stage + share.from[quad]);
            memcpy(words[quad], &raw, sizeof raw);
        }
#pragma unroll
        for (unsigned i = 0; i < WORDS; i++) {
            const uint4 of_quad = {words[0][i], words[1][i], words[2][i], words[3][i]};
            store_raw(to + i * CORES, of_quad);
        }
        show_to_products();
    }

    template <bool APART> __device__ void widen_all(const unsigned char* stage, Fragments<APART>& fragments) const {
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            this->widen(stage, r, fragments.a[r]);
            if constexpr (SCALED) {
#pragma unroll
                for (unsigned i = 0; i < (APART ? 4 : 2); i++) {
                    fragments.scale[r][i / 2][i % 2] =
                        Scales::scale(this->scales_of(stage), args.weight, r, i / 2, lane_row() + i % 2 * 8);
                }
            }
        }
    }

    // Begins the products of the instructions FIRST .. LAST of a step.
    template <unsigned FIRST, unsigned LAST, bool APART>
    __device__ void multiply(SharedTokens b, const Fragments<APART>& fragments, Sum (&sums)[R][NUMBERS], bool add) const {
        warpgroup_fence();
#pragma unroll
        for (unsigned s = FIRST; s <= LAST; s++) {
#pragma unroll
            for (unsigned r = 0; r < R; r++) {
                const SharedTokens columns = b.plus(2 * s * CORES);
                if constexpr (EXACT) warpgroup_mma_s8(sums[r], fragments.a[r][s], columns, add || s > FIRST);
                else warpgroup_mma<X>(sums[r], fragments.a[r][s], columns, add || s > FIRST);
            }
        }
        warpgroup_commit();
    }

    // Waits for the products into `sums`.
    template <bool APART> __device__ void wait(Sum (&sums)[R][NUMBERS], Fragments<APART>& fragments) const {
        warpgroup_wait<0>();
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            in_use_until_here(sums[r]);
#pragma unroll
            for (unsigned s = 0; s < INSTRUCTIONS; s++) in_use_until_here(fragments.a[r][s]);
        }
    }

    // sums += scale part
    template <bool APART>
    __device__ void add_scaled(Sum (&sums)[R][NUMBERS], const Fragments<APART>& fragments, unsigned half,
                               const Sum (&part)[R][NUMBERS]) const {
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
#pragma unroll
            for (unsigned i = 0; i < NUMBERS; i++) {
                sums[r][i] = fmaf(fragments.scale[r][half][i / 2 % 2], part[r][i], sums[r][i]);
            }
        }
    }

    // Where the program is.
    struct Cursor {
        unsigned step;
        unsigned char* stage; // of the step, and soon of one further on
        typename Block::Sources sources; // of that
        Share share;
        bool begins;           // a group of columns
    };

    // The products of a step, of which `now` are the fragments; beside them the next is made ready, in `next_up`.
    template <unsigned ODD, bool APART>
    __device__ void take(Cursor& at, SharedTokens b, Fragments<APART>& now, Fragments<APART>& next_up,
                         Sum (&sums)[R][NUMBERS], Sum (&part)[R][NUMBERS]) const {
        copies_wait<DEPTH - 2>();
        __syncthreads(); // the next step has arrived, this one is arranged, and all are done with the one before
        if (at.step + DEPTH < end) {
            this->copy_weights(at.stage, at.sources, at.step + DEPTH);
            this->copy_tokens(at.stage, at.sources, at.step + DEPTH);
        }
        at.sources.weights.advance(1);
        at.sources.tokens.advance(1);
        copies_commit();
        at.stage = next(at.stage);
        at.step++;
        products(at, b, now, sums, part, [&] {
            if (at.step < end) {
                arrange(at.share, at.stage, 1 - ODD);
                widen_all(at.stage, next_up);
            }
        });
    }

    // The products of the step before `at`, and beside them what `prepare` does.
    template <bool APART, class Prepare>
    __device__ void products(Cursor& at, SharedTokens b, Fragments<APART>& now, Sum (&sums)[R][NUMBERS],
                             Sum (&part)[R][NUMBERS], Prepare prepare) const {
        if constexpr (!SCALED) {
            multiply<0, INSTRUCTIONS - 1>(b, now, sums, true);
            prepare();
            wait(sums, now);
        } else if constexpr (APART) {
            multiply<0, 1>(b, now, part, false);
            wait(part, now);
            add_scaled(sums, now, 0, part);
            multiply<2, 3>(b, now, part, false);
            prepare();
            wait(part, now);
            add_scaled(sums, now, 1, part);
        } else {
            multiply<0, 3>(b, now, part, !at.begins);
            prepare();
            wait(part, now);
            at.begins = at.step == end || args.weight.group_of(at.step) != args.weight.group_of(at.step - 1);
            if (at.begins) add_scaled(sums, now, 0, part);
        }
    }

    // Groups of copies that may be under way at the end of a step, of as many as the ring holds and one for each step but
    // the first: what is two steps further on has to have arrived.
    static constexpr unsigned IN_TURNS_PENDING = DEPTH - 3;

    // A step of a group of warps that takes turns with the other: between two barriers one makes its fragments of a step
    // and refills the ring, while the other's products keep the matrix units busy. `second` is 1 for the group that
    // multiplies a step half a step after the other; of tokens it arranges its share a step ahead, so that the other finds
    // them all.
    template <unsigned ODD, bool APART>
    __device__ void take_turn(Cursor& at, unsigned second, SharedTokens b, Fragments<APART>& fragments,
                              Sum (&sums)[R][NUMBERS], Sum (&part)[R][NUMBERS]) const {
        if (at.step > begin) {
            const unsigned ahead = at.step - 1 + DEPTH;
            if (ahead < end) {
                unsigned char* done = at.stage == shared ? shared + (DEPTH - 1) * STAGE : at.stage - STAGE;
                this->copy_weights(done, at.sources, ahead);
                this->copy_tokens(done, at.sources, ahead);
            }
            at.sources.weights.advance(1);
            at.sources.tokens.advance(1);
            copies_commit();
        }
        if (at.step + second < end) arrange(at.share, second != 0 ? next(at.stage) : at.stage, (ODD + second) % 2);
        widen_all(at.stage, fragments);
        __syncthreads(); // the step is arranged, and the other group's products are done
        at.stage = next(at.stage);
        at.step++;
        products(at, b, fragments, sums, part, [] {});
        copies_wait<IN_TURNS_PENDING>();
        __syncthreads(); // the step after the next has arrived, and the other group is ready for its products
    }

    template <bool APART> __device__ void run_in_turns() const {
        Sum sums[R][NUMBERS] = {};
        Sum part[R][NUMBERS] = {};
        Cursor at = {begin, shared, this->sources(), Share(threadIdx.x), true};
        begin_copying(at);
        Fragments<APART> fragments;
        copies_wait<IN_TURNS_PENDING + 1>();
        __syncthreads(); // the first two steps have arrived
        const unsigned second = __shfl_sync(0xffffffffu, warp_id() / 4, 0);
        if (second != 0) {
            arrange(at.share, shared, 0);
            __syncthreads(); // the first step is arranged
        }
        const SharedTokens of_even = SharedTokens::at(tokens_at, CORES, BLOCK * PIECE), of_odd = of_even.plus(ARRANGED);
#pragma unroll 1
        while (at.step < end) {
            take_turn<0>(at, second, of_even, fragments, sums, part);
            if (at.step < end) take_turn<1>(at, second, of_odd, fragments, sums, part);
        }
        if (second == 0) __syncthreads(); // the other group's last products are done
        copies_wait<0>();
        __syncthreads(); // nothing is on its way to the ring
        this->finish([&sums](unsigned r, unsigned j, unsigned i) { return sums[r][4 * j + i]; });
    }

    // Begins to copy as many steps as the ring holds; `at` is the first, and its sources are then of the one after those.
    __device__ void begin_copying(Cursor& at) const {
        // Weights do not depend on what ran before; activations do.
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH; i++) {
            if (begin + i < end) this->copy_weights(shared + i * STAGE, at.sources, begin + i);
            at.sources.weights.advance(1);
        }
        this->bring_rows();
        let_successor_start();
        wait_for_predecessor();
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH; i++) {
            if (begin + i < end) this->copy_tokens(shared + i * STAGE, at.sources, begin + i);
            at.sources.tokens.advance(1);
            copies_commit();
        }
    }

    template <bool APART, bool IN_TURNS> __device__ void run() const {
        if constexpr (IN_TURNS) return run_in_turns<APART>();
        Sum sums[R][NUMBERS] = {};
        Sum part[R][NUMBERS] = {};
        Cursor at = {begin, shared, this->sources(), Share(threadIdx.x), true};
        begin_copying(at);
        Fragments<APART> even, odd;
        copies_wait<DEPTH - 1>();
        __syncthreads(); // the first step has arrived
        arrange(at.share, shared, 0);
        widen_all(shared, even);
        const SharedTokens of_even = SharedTokens::at(tokens_at, CORES, BLOCK * PIECE), of_odd = of_even.plus(ARRANGED);
#pragma unroll 1
        while (at.step < end) {
            take<0>(at, of_even, even, odd, sums, part);
            if (at.step < end) take<1>(at, of_odd, odd, even, sums, part);
        }
        copies_wait<0>();
        __syncthreads(); // the ring is free
        this->finish([&sums](unsigned r, unsigned j, unsigned i) { return sums[r][4 * j + i]; });
    }
};

template <class Format, unsigned R, unsigned B, bool IN_TURNS> __device__ void linear_wgmma(const ProductArgs& args) {
    if constexpr (WARPGROUP_PRODUCTS) {
        DYNAMIC_SHARED(shared);
        if (dynamic_shared_bytes() < Warpgroups<Format, R, B>::SHARED) return; // a launch that knows better than this file
        const Warpgroups<Format, R, B> block(args, shared);
        if constexpr (Warpgroups<Format, R, B>::SCALED) {
            if (args.weight.halves()) return block.template run<true, IN_TURNS>();
        }
        block.template run<false, IN_TURNS>();
    }
}

#define KERNEL_WGMMA(FORMAT, R, B)                                                                                     \
    KERNEL_OF(THREADS, 1, linear_wgmma_##FORMAT##_##R##x##B, const ProductArgs args) {                                  \
        linear_wgmma<FORMAT, R, B, false>(args);                                                                       \
    }
#define KERNEL_IN_TURNS(FORMAT, R, B)                                                                                  \
    KERNEL_OF(THREADS, 1, linear_wgmma_turns_##FORMAT##_##R##x##B, const ProductArgs args) {                            \
        linear_wgmma<FORMAT, R, B, true>(args);                                                                        \
    }
// Plain weights are left to the library.
#define PLAIN(FORMAT)
#define PACKED(FORMAT) KERNEL_WGMMA(FORMAT, 2, 8) KERNEL_WGMMA(FORMAT, 1, 16) KERNEL_IN_TURNS(FORMAT, 2, 8)
#define CODES PACKED
#define WIDE_SCALES PACKED
#include "common/storages.cuh"
