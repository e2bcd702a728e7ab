// Weight matrices [n, k] as the product for any shape and type reads them: one row per output feature, in the layouts of
// src/scheme/packed.
//
// Each kind offers `at(row, column)`, one weight in f32, and, for `CHUNK` weights that fill 16 bytes, `load_chunk`, which
// gives them before scaling and returns their scale. Chunks may be used where `has_chunks()` says so.
#pragma once

#include "codes.cuh"
#include "elem.cuh"

// How a kernel is told where a matrix lies. Plain weights have no scales.
struct WeightArgs {
    const void* data;
    const void* scales;       // [n / scale_rows, k / group], both rounded up
    const signed char* zeros; // as the scales: the code of zero of each group; or null
    const void* offsets;      // as the scales: what is added to the weights of a group, instead of zeros; or null
    const float* book;        // [16]: the number that each nibble names, instead of itself less its zero; or null
    ElemType scale_type;
    ElemType offset_type;
    unsigned group;      // weights of a row that share a scale
    unsigned scale_rows; // rows that share their scales
};

// f32, f16 or bf16.
template <class T> struct PlainWeight {
    static constexpr unsigned CHUNK = 16 / sizeof(T);
    const T* data;
    unsigned k;

    __device__ PlainWeight(const WeightArgs& args, unsigned k) : data(static_cast<const T*>(args.data)), k(k) {}

    __device__ bool has_chunks() const { return k % CHUNK == 0 && is_aligned16(data); }

    __device__ float load_chunk(size_t row, unsigned column, float (&w)[CHUNK]) const {
        load_wide(data + row * k + column, w);
        return 1.0f;
    }

    __device__ float at(size_t row, unsigned column) const { return to_f32(data[row * k + column]); }
};

// What belongs to the groups of a quantised matrix.
struct Groups {
    const WeightArgs& args;
    unsigned in_row;

    __device__ Groups(const WeightArgs& args, unsigned k) : args(args), in_row((k + args.group - 1) / args.group) {}

    __device__ size_t of(size_t row, unsigned column) const {
        return row / args.scale_rows * in_row + column / args.group;
    }
    __device__ float scale(size_t group) const { return load_elem(args.scales, args.scale_type, group); }
    __device__ int zero(size_t group, int otherwise) const { return args.zeros == nullptr ? otherwise : args.zeros[group]; }
};

// Bytes: w = s * (q - z), or, of FP8 E4M3, w = s * q.
template <class Code> struct ByteWeight {
    static constexpr unsigned CHUNK = 16;
    const unsigned char* codes;
    unsigned k;
    Groups groups;

    __device__ ByteWeight(const WeightArgs& args, unsigned k)
        : codes(static_cast<const unsigned char*>(args.data)), k(k), groups(args, k) {}

    __device__ bool has_chunks() const {
        return k % CHUNK == 0 && (groups.args.group % CHUNK == 0 || groups.args.group >= k) && is_aligned16(codes);
    }

    __device__ float load_chunk(size_t row, unsigned column, float (&w)[CHUNK]) const {
        const uint4 raw = *reinterpret_cast<const uint4*>(codes + row * k + column);
        unsigned char q[CHUNK];
        memcpy(q, &raw, sizeof raw);
        const size_t group = groups.of(row, column);
        const int zero = groups.zero(group, 0);
#pragma unroll
        for (unsigned i = 0; i < CHUNK; i++) w[i] = Code::number(q[i], zero);
        return groups.scale(group);
    }

    __device__ float at(size_t row, unsigned column) const {
        const size_t group = groups.of(row, column);
        return groups.scale(group) * Code::number(codes[row * k + column], groups.zero(group, 0));
    }
};

using Int8Weight = ByteWeight<Int8Number>;
using E4m3Weight = ByteWeight<E4m3Number>;

// Nibbles u: w = s * (u - z), 8 for z unless it is given; or w = s * u + b; or w = s * book[u]. A block of 32 weights takes
// 16 bytes; byte i holds weight i in its low half and weight i + 16 in its high one. k and the group are multiples of 32,
// or the group is the row.
struct Int4Weight {
    static constexpr unsigned CHUNK = 32;
    const unsigned char* codes;
    unsigned k;
    Groups groups;

    __device__ Int4Weight(const WeightArgs& args, unsigned k)
        : codes(static_cast<const unsigned char*>(args.data)), k(k), groups(args, k) {}

    __device__ bool has_chunks() const { return is_aligned16(codes); }

    __device__ float load_chunk(size_t row, unsigned column, float (&w)[CHUNK]) const {
        const uint4 raw = *reinterpret_cast<const uint4*>(codes + (row * k + column) / 2);
        unsigned char pairs[CHUNK / 2];
        memcpy(pairs, &raw, sizeof raw);
        const size_t group = groups.of(row, column);
        const int zero = groups.zero(group, 8);
        const float scale = groups.scale(group);
        if (groups.args.book != nullptr || groups.args.offsets != nullptr) {
#pragma unroll
            for (unsigned i = 0; i < CHUNK / 2; i++) {
                w[i] = unlike_integers(pairs[i] & 15u, scale, group);
                w[i + CHUNK / 2] = unlike_integers(pairs[i] >> 4, scale, group);
            }
            return 1.0f;
        }
#pragma unroll
        for (unsigned i = 0; i < CHUNK / 2; i++) {
            w[i] = static_cast<float>(static_cast<int>(pairs[i] & 15u) - zero);
            w[i + CHUNK / 2] = static_cast<float>(static_cast<int>(pairs[i] >> 4) - zero);
        }
        return scale;
    }

    // A weight whose levels are a codebook or have an offset, rounded after the product and after the sum.
    __device__ float unlike_integers(unsigned u, float scale, size_t group) const {
        if (groups.args.book != nullptr) return __fmul_rn(scale, groups.args.book[u]);
        const float offset = load_elem(groups.args.offsets, groups.args.offset_type, group);
        return __fadd_rn(__fmul_rn(scale, static_cast<float>(u)), offset);
    }

    __device__ float at(size_t row, unsigned column) const {
        const unsigned in_block = column % CHUNK;
        const unsigned pair = codes[(row * k + column - in_block) / 2 + in_block % (CHUNK / 2)];
        const int u = in_block < CHUNK / 2 ? pair & 15u : pair >> 4;
        const size_t group = groups.of(row, column);
        const float scale = groups.scale(group);
        if (groups.args.book != nullptr || groups.args.offsets != nullptr) return unlike_integers(u, scale, group);
        return scale * static_cast<float>(u - groups.zero(group, 8));
    }
};
