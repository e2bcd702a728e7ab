// The largest of many numbers and where it is. The order in which they are looked at does not matter.
#pragma once

#include "reduce.cuh"

constexpr unsigned NONE = 0xffffffffu;

struct Best {
    float value;
    unsigned index; // NONE before any number was seen

    // Whether this one goes before `other`: larger, or of equals the one with the lower index. NONE is the largest index,
    // and any number goes before it.
    __device__ bool beats(const Best& other) const {
        if (other.index == NONE || index == NONE) return index < other.index;
        return value > other.value || (value == other.value && index < other.index);
    }
};

__device__ inline Best better(const Best& a, const Best& b) { return b.beats(a) ? b : a; }

// `best` and a number more; NaN is no number.
__device__ inline Best better(const Best& best, float value, unsigned index) {
    return isnan(value) ? best : better(best, {value, index});
}

// The best of a warp, for every lane.
__device__ inline Best best_of_warp(Best best) {
#pragma unroll
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        best = better(best, Best{__shfl_xor_sync(ALL_LANES, best.value, distance),
                                 __shfl_xor_sync(ALL_LANES, best.index, distance)});
    }
    return best;
}
