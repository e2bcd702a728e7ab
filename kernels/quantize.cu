// Symmetric rounding to nearest (RTN) of weights, and of a product's input token by token.
//
// quantize_int8_<type>   w [groups, group] to scales [groups] of w's type and codes i8 [groups, group]
// quantize_int4_<type>   the same with codes u8 [groups, group / 2] in the layout of common/weight.cuh; group a multiple
//                        of 32
//   scale = max |w| of the group / 127.5 (7.5 for four bits), rounded to w's type; 1 if that is zero
//   q = clamp(round_half_even(w / scale rounded to w's type), -128, 127) ((-8, 7) for four bits)
//   The groups of a matrix [n, k] lie one after another. One warp per group.
//
// quantize_act_<type>    x [T, width] to scales f32 [T] and codes i8 [T, width]
//   scale = max |x| / 127.5 (1 for a row of zeros), q = clamp(round_half_even(x / scale), -128, 127)
//   One block per token.
//
// rms_norm_quantize_<type>   x [T, width] normed as in norm.cu, and then the same: one block of NORM_THREADS per token
// silu_mul_quantize_<type>   gate_up [T, 2 * width] gated as in silu_mul.cu, and then the same
//   Numbers are rounded to the type before they become codes, so the codes are those of two launches.
//
// The half range is 127.5, not 127: the code of the largest magnitude is then off by half a step whichever its sign.
// Source of the formulas: compressed-tensors, quantization/utils/helpers.py. A group or row with a NaN or an infinity
// gets a scale that is not finite, so that it stays visible in the product.
#include "common/norm.cuh"
#include "common/silu.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

// The scale of values up to `largest` in magnitude, in the precision of T; 1 where it would be zero.
template <class T> __device__ float scale_for(float largest, float half_range) {
    const float scale = round_to<T>(largest / half_range);
    return scale == 0.0f ? 1.0f : scale;
}

// The integer nearest to `x` (half to even) within [low, high].
__device__ inline int nearest_code(float x, int low, int high) {
    return max(low, min(high, __float2int_rn(x)));
}

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
    follow_predecessor();
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
    follow_predecessor();
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

// The row of this block to codes and a scale. number(i) is the row's i-th number; it is asked for twice.
template <class Number>
__device__ void quantize_row(Number number, signed char* __restrict__ codes, float* __restrict__ scales, unsigned width) {
    codes += static_cast<size_t>(blockIdx.x) * width;
    float largest = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) largest = MaxOrNan()(largest, fabsf(number(i)));
    const float scale = scale_for<f32>(block_reduce(largest, MaxOrNan()), 127.5f);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        codes[i] = static_cast<signed char>(nearest_code(number(i) / scale, -128, 127));
    }
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

template <class T>
__device__ void quantize_act(const T* x, signed char* codes, float* scales, unsigned width) {
    follow_predecessor();
    const T* row = x + static_cast<size_t>(blockIdx.x) * width;
    quantize_row([row](unsigned i) { return to_f32(row[i]); }, codes, scales, width);
}

template <class T>
__device__ void rms_norm_quantize(const T* x, const T* __restrict__ weight, signed char* codes,
                                  float* scales, unsigned width, float eps) {
    follow_predecessor();
    const T* row = x + static_cast<size_t>(blockIdx.x) * width;
    const float inverse = inverse_rms_of_row(row, width, eps);
    const auto number = [=](unsigned i) { return round_to<T>(normed<T>(to_f32(row[i]), inverse, to_f32(weight[i]))); };
    quantize_row(number, codes, scales, width);
}

template <class T>
__device__ void silu_mul_quantize(const T* gate_up, signed char* codes, float* scales, const GateUp& at) {
    follow_predecessor();
    const T* row = gate_up + static_cast<size_t>(blockIdx.x) * 2 * at.width;
    const auto number = [&](unsigned i) {
        return round_to<T>(silu_mul_of(to_f32(row[at.gate(i)]), to_f32(row[at.up(i)])));
    };
    quantize_row(number, codes, scales, at.width);
}

#define DEFINE(T)                                                                                                      \
    KERNEL(quantize_int8_##T, const T* w, signed char* codes, T* scales, size_t groups, unsigned group) {              \
        quantize_int8(w, codes, scales, groups, group);                                                                \
    }                                                                                                                  \
    KERNEL(quantize_int4_##T, const T* w, unsigned char* codes, T* scales, size_t groups, unsigned group) {            \
        quantize_int4(w, codes, scales, groups, group);                                                                \
    }                                                                                                                  \
    KERNEL(quantize_act_##T, const T* x, signed char* codes, float* scales, unsigned width) {                          \
        quantize_act(x, codes, scales, width);                                                                         \
    }                                                                                                                  \
    KERNEL(rms_norm_quantize_##T, const T* x, const T* weight, signed char* codes, float* scales, unsigned width,      \
           float eps) {                                                                                                \
        rms_norm_quantize(x, weight, codes, scales, width, eps);                                                       \
    }                                                                                                                  \
    KERNEL(silu_mul_quantize_##T, const T* gate_up, signed char* codes, float* scales, const GateUp at) {              \
        silu_mul_quantize(gate_up, codes, scales, at);                                                                 \
    }
FOR_EACH_ELEM(DEFINE)
