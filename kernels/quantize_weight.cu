// quantize_weight: round to nearest, symmetric, in the layouts of common/weight.cuh.
//
//   w [n, k] · scales [n, k / group] of w's type · codes i8 [n, k], or for four bits u8 [n, k / 2]
//   scale = max |w| of the group / 127.5 (7.5 for four bits), rounded to w's type; 1 if that is zero
//   q = clamp(round_half_even(w / scale rounded to w's type), -128, 127) ((-8, 7) for four bits)
//
// The half range is 127.5, not 127: the code of the largest magnitude is then off by half a step whichever its sign.
// A group with a NaN or an infinity gets a scale that is not finite.
// Kernels: quantize_int8_<type>, quantize_int4_<type>. One warp per group.
#include "common/quantize.cuh"
#include "common/reduce.cuh"

// The scale of the `group` weights at `w`; the whole warp takes part.
template <class T> __device__ float group_scale(const T* w, unsigned group, float half_range) {
    float largest = 0.0f;
    for (unsigned i = lane_id(); i < group; i += WARP) largest = MaxOrNan()(largest, fabsf(to_f32(w[i])));
    return scale_for<T>(warp_reduce(largest, MaxOrNan()), half_range);
}

__device__ inline size_t global_warp_id() {
    return static_cast<size_t>(blockIdx.x) * (blockDim.x / WARP) + warp_id();
}

// `groups` counts those of the whole matrix, which lie one after another.
template <class T>
__device__ void quantize_int8(const T* w, signed char* codes, T* scales, size_t groups, unsigned group) {
    const size_t g = global_warp_id();
    if (g >= groups) return; // the whole warp
    w += g * group;
    const float scale = group_scale(w, group, 127.5f);
    for (unsigned i = lane_id(); i < group; i += WARP) {
        const float q = round_to<T>(to_f32(w[i]) / scale);
        codes[g * group + i] = static_cast<signed char>(nearest_code(q, -128, 127));
    }
    if (lane_id() == 0) scales[g] = from_f32<T>(scale);
}

// Each step makes a block of 32 codes, one a lane; lanes 0 to 15 store it.
template <class T>
__device__ void quantize_int4(const T* w, unsigned char* codes, T* scales, size_t groups, unsigned group) {
    const size_t g = global_warp_id();
    if (g >= groups) return; // the whole warp
    w += g * group;
    const float scale = group_scale(w, group, 7.5f);
    for (unsigned block = 0; block < group; block += WARP) {
        const float q = round_to<T>(to_f32(w[block + lane_id()]) / scale);
        const unsigned low = static_cast<unsigned>(nearest_code(q, -8, 7) + 8);
        const unsigned high = __shfl_down_sync(ALL_LANES, low, WARP / 2);
        if (lane_id() < WARP / 2) {
            codes[(g * group + block) / 2 + lane_id()] = static_cast<unsigned char>(low | high << 4);
        }
    }
    if (lane_id() == 0) scales[g] = from_f32<T>(scale);
}

#define KERNEL(T)                                                                                                      \
    extern "C" __global__ void quantize_int8_##T(const T* w, signed char* codes, T* scales, size_t groups,             \
                                                 unsigned group) {                                                     \
        quantize_int8(w, codes, scales, groups, group);                                                                \
    }                                                                                                                  \
    extern "C" __global__ void quantize_int4_##T(const T* w, unsigned char* codes, T* scales, size_t groups,           \
                                                 unsigned group) {                                                     \
        quantize_int4(w, codes, scales, groups, group);                                                                \
    }
FOR_EACH_ELEM(KERNEL)
