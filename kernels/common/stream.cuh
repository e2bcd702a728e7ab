// Weights [n, k] and activations [tokens, k] as the streaming products read them: straight into the fragments of matrix
// instructions, weights as A (rows are output features), activations as B (columns are tokens).
//
// A product does not care in which order its columns are summed, so each column may stand in any slot of a fragment, as
// long as weights and activations agree. Here lane 4g + t of a warp takes columns of rows g and g + 8 that lie side by
// side in memory: whole 16-byte pieces become fragments as they are, plain and eight-bit weights need no repacking, and
// a library can use the same copy of them.
//
// Work comes in tiles of 16 rows and steps of 64 columns. In a step there are four matrix instructions of 16 columns
// (s = 0 .. 3; two of 32 for codes times codes); slots 2t, 2t+1, 2t+8, 2t+9 hold four neighbouring columns from
//   32 (s / 2) + 8t + 4 (s % 2)    plain weights and nibbles: a group of 32 columns is a whole half of a step
//   16t + 4s                       bytes
#pragma once

#include <ptx/bits.cuh>
#include <ptx/copy.cuh>
#include <ptx/mma.cuh>

#include "codes.cuh"
#include "elem.cuh"
#include "piece.cuh"
#include "reduce.cuh"

constexpr unsigned STEP = 64;  // columns
constexpr unsigned ROWS = 16;  // of a tile
constexpr unsigned BLOCK = 8;  // tokens of a matrix instruction

// A weight matrix in one of the storages below. Every storage has whole tiles: rows after the last are zeros.
struct StreamedWeight {
    const unsigned char* data;
    // [n / 16, groups, 16], in the type that the storage names; of bytes with one scale a row [n], of any type.
    const void* scales;
    const unsigned char* zeros; // as the scales, of nibbles: the code of zero of each group
    unsigned n, k;
    unsigned row_bytes; // from one row to the next, of storages in rows
    unsigned groups;    // of a row
    unsigned group_log; // log2 of the columns of a group; 31 where a group is a whole row
    ElemType scale_type;

    __device__ unsigned tiles() const { return (n + ROWS - 1) / ROWS; }
    __device__ unsigned steps() const { return (k + STEP - 1) / STEP; }
    __device__ unsigned group_of(unsigned step) const { return (step * STEP) >> group_log; }
    // A step holds two groups of 32 columns.
    __device__ bool halves() const { return group_log == 5; }
};

__device__ inline unsigned lane_row() { return lane_id() / 4; }  // g
__device__ inline unsigned lane_quad() { return lane_id() % 4; } // t

// Word `i` of a piece; `i` is known when this is compiled.
__device__ inline uint32_t word(const uint4& piece, unsigned i) {
    return i == 0 ? piece.x : i == 1 ? piece.y : i == 2 ? piece.z : piece.w;
}

// ---------------------------------------------------------------------------------------------------------------------
// Storages. Each says where the pieces lie that a lane copies for a tile and a step, and how they become the fragment of
// the s-th matrix instruction:
//   start(w, tile)     of the lane's first piece of the tile's first step, in bytes from the start of the matrix
//   STEP_BYTES         from there to the next step
//   beside(w, r, i)    from there to piece i of the r-th tile further, the same for all lanes
//   valid(w, step, i)  whether that piece lies within the row: a number of steps that does not change is compared
//   Scale              type of the scales that are multiplied in the course of a row; void where there are none
//   ZEROS              whether each group has a code of zero of its own; in a fragment, `zero` is for rows g and g + 8

// The code of zero of nibbles, in the forms that they are reduced by.
struct NibbleZero {
    uint32_t first, second;
};

// Rows of a 16-bit type, which the activations have too.
template <class T> struct PlainRows {
    using X = T;
    using Sum = float;
    using Scale = void;
    static constexpr unsigned PIECES = 4;
    static constexpr unsigned STEP_BYTES = STEP * sizeof(T);
    static constexpr bool ZEROS = false;
    static constexpr bool ROW_SCALES = false;

    static __device__ size_t start(const StreamedWeight& w, unsigned tile) {
        return static_cast<size_t>(tile * ROWS + lane_row()) * w.row_bytes + lane_quad() * PIECE;
    }
    static __device__ size_t beside(const StreamedWeight& w, unsigned r, unsigned i) {
        return static_cast<size_t>(w.row_bytes) * (r * ROWS + i % 2 * 8) + i / 2 * (STEP_BYTES / 2);
    }
    static __device__ bool valid(const StreamedWeight& w, unsigned step, unsigned i) {
        return step < (w.k + STEP - 1 - i / 2 * (STEP / 2) - lane_quad() * 8) / STEP;
    }

    static __device__ void fragment(const uint4 (&w)[PIECES], unsigned s, const NibbleZero (&)[2], uint32_t (&a)[4]) {
        const unsigned half = s / 2, first = s % 2 * 2;
        a[0] = word(w[2 * half], first);
        a[1] = word(w[2 * half + 1], first);
        a[2] = word(w[2 * half], first + 1);
        a[3] = word(w[2 * half + 1], first + 1);
    }

    static __device__ unsigned chunk(unsigned half, unsigned quad = lane_quad()) { return half * 4 + quad; }
};

// Rows of bytes; `Code` makes two pairs of numbers of four of them. A scale covers a row and is left to the end (S void),
// or 64 columns or more.
template <class T, template <class> class Code, class S> struct ByteRows {
    using X = T;
    using Sum = float;
    using Scale = S;
    static constexpr unsigned PIECES = 2;
    static constexpr unsigned STEP_BYTES = STEP;
    static constexpr bool ZEROS = false;
    static constexpr bool ROW_SCALES = std::is_void_v<S>;

    static __device__ size_t start(const StreamedWeight& w, unsigned tile) {
        return static_cast<size_t>(tile * ROWS + lane_row()) * w.row_bytes + lane_quad() * PIECE;
    }
    static __device__ size_t beside(const StreamedWeight& w, unsigned r, unsigned i) {
        return static_cast<size_t>(w.row_bytes) * (r * ROWS + i * 8);
    }
    static __device__ bool valid(const StreamedWeight& w, unsigned step, unsigned) {
        return step < (w.k + STEP - 1 - lane_quad() * PIECE) / STEP;
    }

    static __device__ void fragment(const uint4 (&w)[PIECES], unsigned s, const NibbleZero (&)[2], uint32_t (&a)[4]) {
        Code<T>::widen(word(w[0], s), a[0], a[2]);
        Code<T>::widen(word(w[1], s), a[1], a[3]);
    }

    static __device__ unsigned chunk(unsigned half, unsigned quad = lane_quad()) { return quad * 2 + half; }
};

// Nibbles in the order of fragments: for each tile and step 512 bytes, 16 for each lane, a word for each s. Nibble i of a
// word (i < 4) is the first and nibble i + 4 the second number of a[i]. A scale, and a code of zero where it is not 8,
// covers 32 columns or more. Their number in the last step is padded to 64 by any codes.
template <class T, class S, bool OWN_ZEROS> struct NibbleTiles {
    using X = T;
    using Sum = float;
    using Scale = S;
    static constexpr unsigned PIECES = 1;
    static constexpr unsigned STEP_BYTES = WARP * PIECE;
    static constexpr bool ZEROS = OWN_ZEROS;
    static constexpr bool ROW_SCALES = false;

    static __device__ size_t start(const StreamedWeight& w, unsigned tile) {
        return static_cast<size_t>(tile) * w.steps() * STEP_BYTES + lane_id() * PIECE;
    }
    static __device__ size_t beside(const StreamedWeight& w, unsigned r, unsigned) {
        return static_cast<size_t>(w.steps() * r) * STEP_BYTES;
    }
    static __device__ bool valid(const StreamedWeight&, unsigned, unsigned) { return true; }

    static __device__ void fragment(const uint4 (&w)[PIECES], unsigned s, const NibbleZero (&zero)[2],
                                    uint32_t (&a)[4]);
    static __device__ NibbleZero zero(unsigned code);

    static __device__ unsigned chunk(unsigned half, unsigned quad = lane_quad()) { return half * 4 + quad; }
};

// Pairs of nibbles as numbers, less the code of zero.
template <class T> struct Nibbles;

// 128 + u is exact in bf16 and has u in its low bits.
template <> struct Nibbles<bf16> {
    static __device__ NibbleZero zero(unsigned code) { return {0x43004300 + code * 0x10001, 0}; }
    static __device__ void widen(uint32_t nibbles, const NibbleZero (&zero)[2], uint32_t (&a)[4]) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            a[i] = Pair<bf16>::subtract(mask_or(nibbles >> (4 * i), 0x000f000f, 0x43004300), zero[i % 2].first);
        }
    }
};

// 1024 + u and 1024 + 16u are exact in f16, so every other pair needs no shift: its subtraction multiplies by 1/16 too,
// and takes away 64 + zero.
template <> struct Nibbles<f16> {
    static __device__ NibbleZero zero(unsigned code) {
        return {0x64006400 + code * 0x10001, 0xd400d400 + code * 0x100010};
    }
    static __device__ void widen(uint32_t nibbles, const NibbleZero (&zero)[2], uint32_t (&a)[4]) {
#pragma unroll
        for (unsigned i = 0; i < 4; i += 2) {
            const uint32_t shifted = nibbles >> (4 * i);
            a[i] = Pair<f16>::subtract(mask_or(shifted, 0x000f000f, 0x64006400), zero[0].first);
            a[i + 1] = Pair<f16>::multiply_add(mask_or(shifted, 0x00f000f0, 0x64006400), 0x2c002c00, zero[1].second);
        }
    }
};

template <class T, class S, bool Z> __device__ NibbleZero NibbleTiles<T, S, Z>::zero(unsigned code) {
    return Nibbles<T>::zero(code);
}

template <class T, class S, bool Z>
__device__ void NibbleTiles<T, S, Z>::fragment(const uint4 (&w)[PIECES], unsigned s, const NibbleZero (&zero)[2],
                                               uint32_t (&a)[4]) {
    Nibbles<T>::widen(word(w[0], s), zero, a);
}

// Codes times codes: rows of two's complement bytes whose sums with the codes of tokens are exact.
struct CodeRows : ByteRows<signed char, Int8Code, void> {
    using Sum = int;

    // Of the s-th (0, 1) instruction of 32 columns.
    static __device__ void fragment(const uint4 (&w)[PIECES], unsigned s, uint32_t (&a)[4]) {
        a[0] = word(w[0], 2 * s);
        a[1] = word(w[1], 2 * s);
        a[2] = word(w[0], 2 * s + 1);
        a[3] = word(w[1], 2 * s + 1);
    }

    static __device__ unsigned chunk(unsigned, unsigned quad = lane_quad()) { return quad; }
};

// The same where tokens are numbers of type A before they become codes in the same launch (common/fused.cuh).
template <class A> struct CodesOf : CodeRows {
    using Input = A;
};

// Where a lane's pieces of a tile and step lie, moved along from step to step.
template <class Format> struct Source {
    const unsigned char* at;

    __device__ Source(const StreamedWeight& w, unsigned tile, unsigned step)
        : at(w.data + Format::start(w, tile) + static_cast<size_t>(step) * Format::STEP_BYTES) {}

    __device__ void advance(unsigned steps) { at += steps * Format::STEP_BYTES; }

    // Copies the pieces of the r-th tile from here on; `to` is the lane's place for the first.
    __device__ void copy(unsigned char* to, const StreamedWeight& w, unsigned r, unsigned step) const {
#pragma unroll
        for (unsigned i = 0; i < Format::PIECES; i++) {
            copy16<Keep::Short>(to + i * WARP * PIECE, at + Format::beside(w, r, i), Format::valid(w, step, i));
        }
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Activations of a step: for each token, in shared memory, its 64 numbers in chunks of 16 bytes. Chunks are swapped about
// so that the eight lanes that read at a time hit different banks.

// Who reads eight chunks at a time: lanes of a fragment, of two tokens; or lanes with a token each.
enum class Readers { Fragments, Tokens };

template <class X, Readers READERS = Readers::Fragments> struct StepOfTokens {
    static constexpr unsigned PER_CHUNK = PIECE / sizeof(X);
    static constexpr unsigned CHUNKS = STEP / PER_CHUNK; // of a token: 8 of 16-bit numbers, 4 of codes
    static constexpr unsigned BYTES = CHUNKS * PIECE;    // of a token

    static __device__ unsigned place(unsigned token, unsigned chunk) {
        const unsigned swap = READERS == Readers::Tokens ? token * CHUNKS / 8 % CHUNKS : CHUNKS == 8 ? token % 2 * 5 : 0;
        return token * BYTES + (chunk ^ swap) * PIECE;
    }

    // Copies the tokens 0 .. tokens of x [tokens, k], as many as TOKENS at most, by thread `me` of THREADS.
    template <unsigned TOKENS, unsigned THREADS>
    static __device__ void copy(unsigned char* to, const X* x, unsigned tokens, unsigned k, unsigned step, unsigned me) {
        static_assert(THREADS % CHUNKS == 0, "a thread keeps to its chunk");
        const unsigned chunk = me % CHUNKS;
        const unsigned column = step * STEP + chunk * PER_CHUNK;
        const bool valid = column < k;
#pragma unroll
        for (unsigned first = 0; first < TOKENS; first += THREADS / CHUNKS) {
            const unsigned token = first + me / CHUNKS;
            if (token < TOKENS && token < tokens) {
                const X* from = x + static_cast<size_t>(token) * k + column;
                copy16<Keep::Long>(to + place(token, chunk), from, valid);
            }
        }
    }

    // The same for one step after another by threads that belong to a block: what does not change from step to step is
    // kept.
    template <unsigned THREADS> struct Source {
        static constexpr unsigned PER_ROUND = THREADS / CHUNKS; // tokens
        // place(token + PER_ROUND, chunk) is as much further on for every token and chunk.
        static_assert(PER_ROUND % 8 == 0);
        const X* at;    // the thread's chunk of its first token
        unsigned to;    // where it goes
        unsigned there; // tokens from its first on
        unsigned steps; // whose chunk lies within the row
        unsigned k;

        __device__ Source(const X* x, unsigned tokens, unsigned k, unsigned step, unsigned me)
            : at(x + static_cast<size_t>(me / CHUNKS) * k + step * STEP + me % CHUNKS * PER_CHUNK),
              to(place(me / CHUNKS, me % CHUNKS)), there(me / CHUNKS < tokens ? tokens - me / CHUNKS : 0),
              steps((k + STEP - 1 - me % CHUNKS * PER_CHUNK) / STEP), k(k) {}

        __device__ void advance(unsigned steps) { at += steps * STEP; }

        // Up to TOKENS of them.
        template <unsigned TOKENS> __device__ void copy(unsigned char* stage, unsigned step) const {
#pragma unroll
            for (unsigned first = 0; first < TOKENS; first += PER_ROUND) {
                if (first < there) {
                    const X* from = at + static_cast<size_t>(k) * first;
                    copy16<Keep::Long>(stage + to + first * BYTES, from, step < steps);
                }
            }
        }
    };
};

// The sums of a tile with BLOCKS blocks of tokens take in half a step (columns 32 half .. 32 half + 31 of plain weights
// and nibbles). `x` holds each block's chunk of that half.
template <class Format, unsigned BLOCKS>
__device__ inline void add_half(float (&sums)[BLOCKS][4], const uint4 (&w)[Format::PIECES], const uint4 (&x)[BLOCKS],
                                unsigned half, const NibbleZero (&zero)[2]) {
#pragma unroll
    for (unsigned i = 0; i < 2; i++) {
        uint32_t a[4];
        Format::fragment(w, 2 * half + i, zero, a);
#pragma unroll
        for (unsigned j = 0; j < BLOCKS; j++) {
            const uint32_t b[2] = {word(x[j], 2 * i), word(x[j], 2 * i + 1)};
            mma_16x8x16<typename Format::X>(sums[j], a, b);
        }
    }
}

// Codes times codes: one chunk of each block is a whole step.
template <unsigned BLOCKS>
__device__ inline void add_step(int (&sums)[BLOCKS][4], const uint4 (&w)[CodeRows::PIECES], const uint4 (&x)[BLOCKS]) {
#pragma unroll
    for (unsigned i = 0; i < 2; i++) {
        uint32_t a[4];
        CodeRows::fragment(w, i, a);
#pragma unroll
        for (unsigned j = 0; j < BLOCKS; j++) {
            const uint32_t b[2] = {word(x[j], 2 * i), word(x[j], 2 * i + 1)};
            mma_16x8x32(sums[j], a, b);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Scales and zeros of R tiles and a step, in shared memory beside the codes: those of the step's group or two halves.

template <class Format, unsigned R> struct StepScales {
    using Scale = std::conditional_t<std::is_void_v<typename Format::Scale>, float, typename Format::Scale>;
    static constexpr unsigned PIECES = ROWS * sizeof(Scale) / PIECE; // of a tile's scales for one group
    static constexpr unsigned ALL_SCALES = R * 2 * PIECES * PIECE;
    static constexpr unsigned ALL_ZEROS = Format::ZEROS ? R * 2 * ROWS : 0;
    static constexpr unsigned BYTES = std::is_void_v<typename Format::Scale> ? 0 : ALL_SCALES + ALL_ZEROS;
    static_assert(R * 2 * PIECES <= WARP, "a copy for each lane");

    // What a lane copies of scales, or of zeros, that take N pieces for each tile and group: from `group` on.
    template <unsigned N> struct Part {
        const unsigned char* at;
        unsigned piece; // of a tile's for all groups of a step

        __device__ Part(const void* from, const StreamedWeight& w, unsigned tile, unsigned here, unsigned group) {
            const unsigned halves = w.halves() ? 2 : 1;
            const unsigned r = lane_id() / (N * halves);
            piece = r < here ? lane_id() % (N * halves) : NOT_HERE;
            const size_t first = (static_cast<size_t>(tile + r) * w.groups + group) * N + lane_id() % (N * halves);
            at = static_cast<const unsigned char*>(from) + first * PIECE;
        }

        // Those of a step so many groups further on, `there` of whose groups exist.
        __device__ void copy(unsigned char* to, unsigned further, unsigned there) const {
            if (piece == NOT_HERE) return;
            copy16<Keep::Short>(to + lane_id() * PIECE, at + static_cast<size_t>(further) * (N * PIECE), piece < N * there);
        }
    };
    static constexpr unsigned NOT_HERE = ~0u;

    // Where what belongs to the `here` tiles from `tile` on lies, from a step on; the whole warp takes part.
    struct Source {
        const unsigned group; // of that step
        const Part<PIECES> scales;
        const Part<1> zeros;

        __device__ Source(const StreamedWeight& w, unsigned tile, unsigned here, unsigned step)
            : group(w.group_of(step)), scales(w.scales, w, tile, here, group), zeros(w.zeros, w, tile, here, group) {}

        __device__ void copy(unsigned char* to, const StreamedWeight& w, unsigned step) const {
            if constexpr (BYTES > 0) {
                const unsigned now = w.group_of(step);
                // The last step's second half, and so its group, may lie past the end of the row.
                const unsigned there = min(w.halves() ? 2 : 1, w.groups - now);
                scales.copy(to, now - group, there);
                if constexpr (Format::ZEROS) zeros.copy(to + ALL_SCALES, now - group, there);
            }
        }
    };

    // Of row `row` of the r-th tile, in a half of the step.
    static __device__ float scale(const unsigned char* from, const StreamedWeight& w, unsigned r, unsigned half,
                                  unsigned row) {
        const unsigned group = w.halves() ? 2 * r + half : r;
        return to_f32(reinterpret_cast<const Scale*>(from)[group * ROWS + row]);
    }
    static __device__ unsigned zero(const unsigned char* from, const StreamedWeight& w, unsigned r, unsigned half,
                                    unsigned row) {
        const unsigned group = w.halves() ? 2 * r + half : r;
        return from[ALL_SCALES + group * ROWS + row];
    }
};

// sums += scale (w x) of the r-th tile and one step.
template <class Format, unsigned R, unsigned BLOCKS>
__device__ inline void add_tile(typename Format::Sum (&sums)[BLOCKS][4], const unsigned char* pieces,
                                const unsigned char* scales, unsigned r, const StreamedWeight& weight,
                                const uint4 (&x)[2][BLOCKS]) {
    using Scales = StepScales<Format, R>;
    uint4 w[Format::PIECES];
#pragma unroll
    for (unsigned i = 0; i < Format::PIECES; i++) {
        w[i] = *reinterpret_cast<const uint4*>(pieces + (i * WARP + lane_id()) * PIECE);
    }
    if constexpr (std::is_same_v<typename Format::Sum, int>) {
        add_step<BLOCKS>(sums, w, x[0]);
    } else if constexpr (std::is_void_v<typename Format::Scale>) {
        const NibbleZero none[2] = {};
        add_half<Format, BLOCKS>(sums, w, x[0], 0, none);
        add_half<Format, BLOCKS>(sums, w, x[1], 1, none);
    } else {
        float part[BLOCKS][4] = {};
        NibbleZero zero[2] = {};
        if constexpr (Format::PIECES == 1) zero[0] = zero[1] = Format::zero(8);
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            if constexpr (Format::ZEROS) {
                if (half == 0 || weight.halves()) {
                    zero[0] = Format::zero(Scales::zero(scales, weight, r, half, lane_row()));
                    zero[1] = Format::zero(Scales::zero(scales, weight, r, half, lane_row() + 8));
                }
            }
            add_half<Format, BLOCKS>(part, w, x[half], half, zero);
            if (half == 1 || weight.halves()) {
                const float low = Scales::scale(scales, weight, r, half, lane_row());
                const float high = Scales::scale(scales, weight, r, half, lane_row() + 8);
#pragma unroll
                for (unsigned j = 0; j < BLOCKS; j++) {
#pragma unroll
                    for (unsigned i = 0; i < 4; i++) {
                        sums[j][i] = fmaf(i < 2 ? low : high, part[j][i], sums[j][i]);
                        part[j][i] = 0.0f;
                    }
                }
            }
        }
    }
}
