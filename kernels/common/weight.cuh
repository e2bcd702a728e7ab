// Weight matrices [n, k] as a linear layer reads them, one row per output feature, whatever their storage.
//
// Each kind offers `at(row, col)`, one weight in f32, and, for `CHUNK` weights that fill 16 bytes, `load_chunk`, which
// gives them before scaling and returns their scale. Chunks may be used where `has_chunks()` says so.
// The layouts are those of src/scheme/packed.rs.
#pragma once

#include "elem.cuh"

// How a kernel is told where a matrix lies. Plain weights have no scales.
struct WeightArgs {
    const void* data;
    const void* scales; // [n, k / group]
    ElemType scale_type;
    unsigned group; // weights of a row that share a scale
};

// f32, f16 or bf16.
template <class T> struct PlainWeight {
    static constexpr unsigned CHUNK = 16 / sizeof(T);
    const T* data;
    unsigned k;

    __device__ PlainWeight(const WeightArgs& args, unsigned k) : data(static_cast<const T*>(args.data)), k(k) {}

    __device__ bool has_chunks() const { return k % CHUNK == 0 && is_aligned16(data); }

    __device__ float load_chunk(size_t row, unsigned col, float (&w)[CHUNK]) const {
        load_wide(data + row * k + col, w);
        return 1.0f;
    }

    __device__ float at(size_t row, unsigned col) const { return to_f32(data[row * k + col]); }
};

// Scales of a quantised matrix.
struct GroupScales {
    const void* data;
    ElemType type;
    unsigned group;
    unsigned groups; // of a row

    __device__ GroupScales(const WeightArgs& args, unsigned k)
        : data(args.scales), type(args.scale_type), group(args.group), groups(k / args.group) {}

    __device__ float at(size_t row, unsigned col) const { return load_elem(data, type, row * groups + col / group); }
};

// Signed bytes: w = s * q.
struct Int8Weight {
    static constexpr unsigned CHUNK = 16;
    const signed char* codes;
    unsigned k;
    GroupScales scales;

    __device__ Int8Weight(const WeightArgs& args, unsigned k)
        : codes(static_cast<const signed char*>(args.data)), k(k), scales(args, k) {}

    __device__ bool has_chunks() const {
        return k % CHUNK == 0 && scales.group % CHUNK == 0 && is_aligned16(codes);
    }

    __device__ float load_chunk(size_t row, unsigned col, float (&w)[CHUNK]) const {
        const uint4 raw = *reinterpret_cast<const uint4*>(codes + row * k + col);
        signed char q[CHUNK];
        memcpy(q, &raw, sizeof raw);
#pragma unroll
        for (unsigned i = 0; i < CHUNK; i++) w[i] = static_cast<float>(q[i]);
        return scales.at(row, col);
    }

    __device__ float at(size_t row, unsigned col) const {
        return scales.at(row, col) * static_cast<float>(codes[row * k + col]);
    }
};

// Nibbles u: w = s * (u - 8). A block of 32 weights takes 16 bytes; byte i holds weight i in its low half and weight
// i + 16 in its high one. k and the group are multiples of 32.
struct Int4Weight {
    static constexpr unsigned CHUNK = 32;
    const unsigned char* codes;
    unsigned k;
    GroupScales scales;

    __device__ Int4Weight(const WeightArgs& args, unsigned k)
        : codes(static_cast<const unsigned char*>(args.data)), k(k), scales(args, k) {}

    __device__ bool has_chunks() const { return is_aligned16(codes); }

    __device__ float load_chunk(size_t row, unsigned col, float (&w)[CHUNK]) const {
        const uint4 raw = *reinterpret_cast<const uint4*>(codes + (row * k + col) / 2);
        unsigned char pairs[CHUNK / 2];
        memcpy(pairs, &raw, sizeof raw);
#pragma unroll
        for (unsigned i = 0; i < CHUNK / 2; i++) {
            w[i] = static_cast<float>(static_cast<int>(pairs[i] & 15u) - 8);
            w[i + CHUNK / 2] = static_cast<float>(static_cast<int>(pairs[i] >> 4) - 8);
        }
        return scales.at(row, col);
    }

    __device__ float at(size_t row, unsigned col) const {
        const unsigned in_block = col % CHUNK;
        const unsigned pair = codes[(row * k + col - in_block) / 2 + in_block % (CHUNK / 2)];
        const unsigned u = in_block < CHUNK / 2 ? pair & 15u : pair >> 4;
        return scales.at(row, col) * static_cast<float>(static_cast<int>(u) - 8);
    }
};
