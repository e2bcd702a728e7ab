// repack: packed weights from the order of src/scheme/packed/codes.rs to that in which products stream them
// (common/stream.cuh, NibbleTiles).
//
// repack_int4       codes [n, k / 2] in rows, blocks of 32 as in common/weight.cuh, to tiles. Rows and columns past the
//                   end get the code 8. One thread per 32-bit word of the result.
// repack_scales_<from>_<to>   scales [n / rows_per_scale, groups] to [n / 16, groups, 16]; rows past the end get zero. One
//                   thread per number of the result.
// repack_zeros      the same of codes of zero, bytes; rows past the end get 8.
// pair_rows_<bytes> rows of the matrix [gate; up] to eight of each in turn (common/silu.cuh): out [2 * half, units] of
// units
//                   of that many bytes, from a matrix where `rows_per_source` rows share one. One thread per unit.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/stream.cuh"

// The unsigned code of one weight in rows.
__device__ inline unsigned nibble_at(const unsigned char* codes, size_t row, unsigned column, unsigned k) {
    const unsigned in_block = column % 32;
    const unsigned pair = codes[(row * k + column - in_block) / 2 + in_block % 16];
    return in_block < 16 ? pair & 15u : pair >> 4;
}

KERNEL(repack_int4, const unsigned char* codes, uint32_t* words, unsigned n, unsigned k) {
    follow_predecessor();
    const size_t tiles = (n + ROWS - 1) / ROWS, steps = (k + STEP - 1) / STEP;
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= tiles * steps * WARP * 4) return;
    const unsigned s = i % 4, lane = i / 4 % WARP;
    const unsigned step = i / (4 * WARP) % steps;
    const size_t tile = i / (4 * WARP) / steps;
    const unsigned first = step * STEP + 32 * (s / 2) + 8 * (lane % 4) + 4 * (s % 2);
    uint32_t word = 0;
    for (unsigned nibble = 0; nibble < 8; nibble++) {
        // Number nibble / 4 of a[nibble % 4], whose odd ones are of row g + 8 and whose last two are of columns 2 and 3.
        const unsigned pair = nibble % 4;
        const size_t row = tile * ROWS + lane / 4 + pair % 2 * 8;
        const unsigned column = first + pair / 2 * 2 + nibble / 4;
        const uint32_t code = row < n && column < k ? nibble_at(codes, row, column, k) : 8;
        word |= code << (4 * nibble);
    }
    words[i] = word;
}

// Element `i` of [n / 16, groups, 16], as a place in [n / rows_per_scale, groups]; false where there is none.
__device__ inline bool source_of_scale(size_t i, unsigned n, unsigned groups, unsigned rows_per_scale, size_t& from) {
    const size_t row = i / (ROWS * groups) * ROWS + i % ROWS;
    from = row / rows_per_scale * groups + i / ROWS % groups;
    return row < n;
}

template <class From, class To>
__device__ void repack_scales(const From* scales, To* out, unsigned n, unsigned groups, unsigned rows_per_scale) {
    follow_predecessor();
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(n + ROWS - 1) / ROWS * ROWS * groups) return;
    size_t from;
    const bool there = source_of_scale(i, n, groups, rows_per_scale, from);
    out[i] = from_f32<To>(there ? to_f32(scales[from]) : 0.0f);
}

#define SCALES(FROM, TO)                                                                                               \
    KERNEL(repack_scales_##FROM##_##TO, const FROM* scales, TO* out, unsigned n, unsigned groups,                      \
           unsigned rows_per_scale) {                                                                                  \
        repack_scales(scales, out, n, groups, rows_per_scale);                                                         \
    }
SCALES(f32, f32)
SCALES(f16, f16)
SCALES(f16, f32)
SCALES(bf16, bf16)
SCALES(bf16, f32)

KERNEL(repack_zeros, const unsigned char* zeros, unsigned char* out, unsigned n, unsigned groups,
       unsigned rows_per_scale) {
    follow_predecessor();
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(n + ROWS - 1) / ROWS * ROWS * groups) return;
    size_t from;
    const bool there = source_of_scale(i, n, groups, rows_per_scale, from);
    out[i] = there ? zeros[from] : 8;
}

template <class Unit>
__device__ void pair_rows(const Unit* from, Unit* out, unsigned half, unsigned units, unsigned rows_per_source) {
    follow_predecessor();
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const unsigned row = i / units;
    if (row >= 2 * half) return;
    const unsigned in_pair = row % 16;
    const unsigned source = row / 16 * 8 + in_pair % 8 + (in_pair < 8 ? 0 : half);
    out[i] = from[static_cast<size_t>(source / rows_per_source) * units + i % units];
}

#define PAIR_ROWS(BYTES, UNIT)                                                                                         \
    KERNEL(pair_rows_##BYTES, const UNIT* from, UNIT* out, unsigned half, unsigned units, unsigned rows_per_source) {  \
        pair_rows(from, out, half, units, rows_per_source);                                                            \
    }
PAIR_ROWS(1, unsigned char)
PAIR_ROWS(4, unsigned)
