// The two steps of an RMS norm, shared by norm.cu and the per-head norm of rope.cu.
#pragma once

#include "elem.cuh"

// 1 / sqrt(mean square + eps), from the sum of `width` squares.
__device__ inline float inverse_rms(float sum_of_squares, unsigned width, float eps) {
    return 1.0f / sqrtf(sum_of_squares / static_cast<float>(width) + eps);
}

// x * inverse rounded to T, times weight; the caller rounds the product.
template <class T> __device__ float normed(float x, float inverse, float weight) {
    return round_to<T>(x * inverse) * weight;
}
