// Symmetric rounding to the nearest code; the formulas and their source are in quantize.cu.
#pragma once

#include "elem.cuh"

constexpr float HALF_RANGE_8 = 127.5f; // of eight bits
constexpr float HALF_RANGE_4 = 7.5f;   // of four

// The scale of values up to `largest` in magnitude, in the precision of T; 1 where it would be zero.
template <class T> __device__ float scale_for(float largest, float half_range) {
    const float scale = round_to<T>(largest / half_range);
    return scale == 0.0f ? 1.0f : scale;
}

// The integer nearest to `x` (half to even) within [low, high].
__device__ inline int nearest_code(float x, int low, int high) {
    return max(low, min(high, __float2int_rn(x)));
}
