// RMS norm: its two steps for one number, shared with the per-head norm of rope.cu; and the order in which a block of
// NORM_THREADS threads sums the squares of a row, shared by every kernel that norms rows, so that all give the same bits.
#pragma once

#include "elem.cuh"
#include "reduce.cuh"

// 1 / sqrt(mean square + eps), from the sum of `width` squares.
__device__ inline float inverse_rms(float sum_of_squares, unsigned width, float eps) {
    return 1.0f / sqrtf(sum_of_squares / static_cast<float>(width) + eps);
}

// x * inverse rounded to T, times weight; the caller rounds the product.
template <class T> __device__ float normed(float x, float inverse, float weight) {
    return round_to<T>(x * inverse) * weight;
}

constexpr unsigned NORM_THREADS = 256;
constexpr unsigned NORM_CHUNK = 8; // neighbours that a thread takes at a time

// Each of `threads` threads takes every so manieth chunk of a row: body(first column of the chunk).
template <class Body> __device__ inline void for_each_chunk(unsigned width, unsigned threads, Body body) {
    for (unsigned first = threadIdx.x * NORM_CHUNK; first < width; first += threads * NORM_CHUNK) body(first);
}

// The same by NORM_THREADS.
template <class Body> __device__ inline void for_each_norm_chunk(unsigned width, Body body) {
    for_each_chunk(width, NORM_THREADS, body);
}

// The same of several rows, where chunks are loaded: use(row, first column, load(row, first column)), in order. Several
// loads, AT_ONCE of them, are under way at a time: one after another, each would take as long as memory takes to answer.
template <unsigned AT_ONCE, class Load, class Use>
__device__ inline void for_each_loaded_chunk(unsigned rows, unsigned width, Load load, Use use) {
    struct Place {
        unsigned row, first;
        __device__ void advance(unsigned width) {
            first += NORM_THREADS * NORM_CHUNK;
            if (first < width) return;
            first = threadIdx.x * NORM_CHUNK;
            row++;
        }
    };
    Place loaded = {0, threadIdx.x * NORM_CHUNK};
    if (loaded.first >= width) return;
    Place used = loaded;
#pragma unroll 1
    while (used.row < rows) {
        uint4 raw[AT_ONCE];
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            if (loaded.row < rows) raw[i] = load(loaded.row, loaded.first);
            loaded.advance(width);
        }
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            if (used.row < rows) use(used.row, used.first, raw[i]);
            used.advance(width);
        }
    }
}

// A chunk of a row; zeros past its end.
template <class T>
__device__ inline void load_norm_chunk(const T* row, unsigned first, unsigned width, float (&values)[NORM_CHUNK]) {
    if (first + NORM_CHUNK <= width && is_aligned16(row + first)) {
        load_wide(row + first, values);
    } else {
#pragma unroll
        for (unsigned i = 0; i < NORM_CHUNK; i++) values[i] = first + i < width ? to_f32(row[first + i]) : 0.0f;
    }
}

// Stores a chunk of a row, as far as the row goes.
template <class T>
__device__ inline void store_chunk(T* row, unsigned first, unsigned width, const float (&values)[NORM_CHUNK]) {
    if (first + NORM_CHUNK <= width && is_aligned16(row + first)) {
        T rounded[NORM_CHUNK];
#pragma unroll
        for (unsigned i = 0; i < NORM_CHUNK; i++) rounded[i] = from_f32<T>(values[i]);
        uint4 raw[sizeof rounded / sizeof(uint4)];
        memcpy(raw, rounded, sizeof rounded);
#pragma unroll
        for (unsigned i = 0; i < sizeof rounded / sizeof(uint4); i++) reinterpret_cast<uint4*>(row + first)[i] = raw[i];
    } else {
#pragma unroll
        for (unsigned i = 0; i < NORM_CHUNK; i++) {
            if (first + i < width) row[first + i] = from_f32<T>(values[i]);
        }
    }
}

// `sum` and the squares of a chunk, in order.
__device__ inline float add_squares(float sum, const float (&values)[NORM_CHUNK]) {
#pragma unroll
    for (unsigned i = 0; i < NORM_CHUNK; i++) sum = fmaf(values[i], values[i], sum);
    return sum;
}

// The inverse root mean square of a row, by the whole block.
template <class T> __device__ float inverse_rms_of_row(const T* row, unsigned width, float eps) {
    float squares = 0.0f;
    for_each_norm_chunk(width, [&](unsigned first) {
        float values[NORM_CHUNK];
        load_norm_chunk(row, first, width, values);
        squares = add_squares(squares, values);
    });
    return inverse_rms(block_reduce(squares, Sum()), width, eps);
}
