// linear_wgmma: out[t, n] (+)= sum_k x[t, k] * w[n, k] (+ bias[n]) for tokens enough to keep the matrix units of compute
// capability 9.0 busy, from about 33 on. Empty for others.
//
// linear_wgmma_<weight>_<x>_<rows>x<tokens>   weights and activations as in linear_few.cu; a block computes 128 R rows for
//                                             8 B tokens, or a part of their columns.
//
// A block of tiles (common/block_of_tiles.cuh). Its two groups of four warps multiply tiles in registers with tokens in
// shared memory, by instructions that run beside the program. While those of a step do, the tokens of the next are arranged
// as the instructions want them, and its weights become fragments. So there is one barrier a step, and a ring that is refilled
// as soon as a step has been taken out of it. Columns stand in the slots of fragments as common/stream.cuh has them: the
// tokens are arranged to match, words of 4 bytes at a time. Where scales change in the course of a row, a group of columns
// is summed up by itself, and scaled once. Where blocks share a tile, the last to arrive adds up what they left, in a fixed
// order.
//
// What the loop over steps may take per lane and weight: instructions in its body, and those of them that make numbers of
// codes. Held by tests/cuda_build.
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

    // Tokens of a step as the instructions want them: for each instruction two halves of its columns, 16 bytes of each token.
    static constexpr unsigned CORES = TOKENS * PIECE;
    static constexpr unsigned ARRANGED = 2 * INSTRUCTIONS * CORES;
    static constexpr unsigned RING = 128 << 10;
    static constexpr unsigned DEPTH = RING / STAGE < 3 ? 3 : RING / STAGE > 6 ? 6 : RING / STAGE;
    static constexpr unsigned IN = DEPTH * STAGE + 2 * ARRANGED;
    static constexpr unsigned SHARED = IN > Block::OUT ? IN : Block::OUT;

    // What a warp needs of a step beside the tokens.
    struct Fragments {
        uint32_t a[R][INSTRUCTIONS][4];
        float scale[R][2][2]; // of each half, for rows g and g + 8
    };

    __device__ Warpgroups(const ProductArgs& args, unsigned char* shared) : Block(args, shared) {}

    __device__ unsigned char* stage(unsigned step) const { return shared + (step - begin) % DEPTH * STAGE; }
    __device__ unsigned char* arranged(unsigned step) const {
        return shared + DEPTH * STAGE + (step - begin) % 2 * ARRANGED;
    }

    // The tokens of a step from its stage to where the instructions read them. The four chunks of a token that make two
    // instructions' columns hold a word for each lane of a quad; the instructions want the words of a quad side by side.
    __device__ void arrange(unsigned step) const {
        const unsigned char* from = stage(step) + WARPS * OWN;
        unsigned char* to = arranged(step);
#pragma unroll
        for (unsigned first = 0; first < TOKENS * HALVES; first += THREADS) {
            const unsigned token = (first + threadIdx.x) % TOKENS, half = (first + threadIdx.x) / TOKENS;
            if (half >= HALVES) break;
            uint4 chunk[4];
#pragma unroll
            for (unsigned quad = 0; quad < 4; quad++) {
                chunk[quad] = *reinterpret_cast<const uint4*>(from + Tokens::place(token, Format::chunk(half, quad)));
            }
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const uint4 words = {word(chunk[0], i), word(chunk[1], i), word(chunk[2], i), word(chunk[3], i)};
                *reinterpret_cast<uint4*>(to + (4 * half + i) * CORES + token * PIECE) = words;
            }
        }
        show_to_products();
    }

    __device__ void widen_all(unsigned step, Fragments& fragments) const {
        const unsigned char* own = stage(step) + warp_id() * OWN;
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            this->widen(own, r, fragments.a[r]);
            if constexpr (SCALED) {
#pragma unroll
                for (unsigned i = 0; i < 4; i++) {
                    fragments.scale[r][i / 2][i % 2] =
                        Scales::scale(own + R * TILE_BYTES, args.weight, r, i / 2, lane_row() + i % 2 * 8);
                }
            }
        }
    }

    // Begins the products of the instructions FIRST .. LAST of a step.
    template <unsigned FIRST, unsigned LAST>
    __device__ void multiply(unsigned step, const Fragments& fragments, Sum (&sums)[R][NUMBERS], bool add) const {
        warpgroup_fence();
#pragma unroll
        for (unsigned s = FIRST; s <= LAST; s++) {
            const SharedTokens b = SharedTokens::at(arranged(step) + 2 * s * CORES, CORES, BLOCK * PIECE);
#pragma unroll
            for (unsigned r = 0; r < R; r++) {
                if constexpr (EXACT) warpgroup_mma_s8(sums[r], fragments.a[r][s], b, add || s > FIRST);
                else warpgroup_mma<X>(sums[r], fragments.a[r][s], b, add || s > FIRST);
            }
        }
        warpgroup_commit();
    }

    // Waits for the products into `sums`.
    __device__ void wait(Sum (&sums)[R][NUMBERS], Fragments& fragments) const {
        warpgroup_wait<0>();
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            in_use_until_here(sums[r]);
#pragma unroll
            for (unsigned s = 0; s < INSTRUCTIONS; s++) in_use_until_here(fragments.a[r][s]);
        }
    }

    // sums += scale part
    __device__ void add_scaled(Sum (&sums)[R][NUMBERS], const Fragments& fragments, unsigned half,
                               const Sum (&part)[R][NUMBERS]) const {
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
#pragma unroll
            for (unsigned i = 0; i < NUMBERS; i++) {
                sums[r][i] = fmaf(fragments.scale[r][half][i / 2 % 2], part[r][i], sums[r][i]);
            }
        }
    }

    // The products of a step, of which `now` are the fragments; beside them the next is made ready, in `next`.
    __device__ void take(unsigned step, Source<Format>& source, Fragments& now, Fragments& next, Sum (&sums)[R][NUMBERS],
                         Sum (&part)[R][NUMBERS]) const {
        copies_wait<DEPTH - 2>();
        __syncthreads(); // the next step has arrived, this one is arranged, and all are done with the one before
        if (step + DEPTH < end) {
            this->copy_weights(stage(step), source, step + DEPTH);
            this->copy_tokens(stage(step), step + DEPTH);
        }
        source.advance(1);
        copies_commit();
        const auto prepare = [&] {
            if (step + 1 < end) {
                arrange(step + 1);
                widen_all(step + 1, next);
            }
        };
        if constexpr (!SCALED) {
            multiply<0, INSTRUCTIONS - 1>(step, now, sums, true);
            prepare();
            wait(sums, now);
        } else if (args.weight.halves()) {
            multiply<0, 1>(step, now, part, false);
            wait(part, now);
            add_scaled(sums, now, 0, part);
            multiply<2, 3>(step, now, part, false);
            prepare();
            wait(part, now);
            add_scaled(sums, now, 1, part);
        } else {
            const unsigned group = args.weight.group_of(step);
            const bool begins = step == begin || args.weight.group_of(step - 1) != group;
            const bool ends = step + 1 == end || args.weight.group_of(step + 1) != group;
            multiply<0, 3>(step, now, part, !begins);
            prepare();
            wait(part, now);
            if (ends) add_scaled(sums, now, 1, part);
        }
    }

    __device__ void run() const {
        Sum sums[R][NUMBERS] = {};
        Sum part[R][NUMBERS] = {};
        Source<Format> source(args.weight, tile, begin);
        // Weights do not depend on what ran before; activations do.
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH; i++) {
            if (begin + i < end) this->copy_weights(stage(begin + i), source, begin + i);
            source.advance(1);
        }
        let_successor_start();
        wait_for_predecessor();
#pragma unroll 1
        for (unsigned i = 0; i < DEPTH; i++) {
            if (begin + i < end) this->copy_tokens(stage(begin + i), begin + i);
            copies_commit();
        }
        Fragments even, odd;
        copies_wait<DEPTH - 1>();
        __syncthreads(); // the first step has arrived
        arrange(begin);
        widen_all(begin, even);
#pragma unroll 1
        for (unsigned step = begin; step < end; step += 2) {
            take(step, source, even, odd, sums, part);
            if (step + 1 < end) take(step + 1, source, odd, even, sums, part);
        }
        copies_wait<0>();
        __syncthreads(); // the ring is free
        this->finish([&sums](unsigned r, unsigned j, unsigned i) { return sums[r][4 * j + i]; });
    }
};

template <class Format, unsigned R, unsigned B> __device__ void linear_wgmma(const ProductArgs& args) {
    if constexpr (WARPGROUP_PRODUCTS) {
        DYNAMIC_SHARED(shared);
        if (dynamic_shared_bytes() < Warpgroups<Format, R, B>::SHARED) return; // a launch that knows better than this file
        Warpgroups<Format, R, B>(args, shared).run();
    }
}

#define KERNEL_WGMMA(FORMAT, R, B)                                                                                     \
    KERNEL_OF(THREADS, 1, linear_wgmma_##FORMAT##_##R##x##B, const ProductArgs args) {                                  \
        linear_wgmma<FORMAT, R, B>(args);                                                                              \
    }
// Plain weights are left to the library.
#define PLAIN(FORMAT)
#define PACKED(FORMAT) KERNEL_WGMMA(FORMAT, 2, 8) KERNEL_WGMMA(FORMAT, 1, 16)
#define CODES PACKED
#include "common/storages.cuh"
