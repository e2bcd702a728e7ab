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
#include "common/nearest.cuh"
#include "common/norm.cuh"
#include "common/silu.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

constexpr unsigned MOST_THREADS = 1024; // of a block, where rows are few

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
    const float scale = group_scale(w, group, HALF_RANGE_8);
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
    const float scale = group_scale(w, group, HALF_RANGE_4);
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

// The row of this block to codes and a scale. load(first, values) gives the row's numbers from `first` on, zeros past its
// end; it is asked for all twice.
template <class Load>
__device__ void quantize_row(Load load, signed char* codes, float* scales, unsigned width) {
    codes += static_cast<size_t>(blockIdx.x) * width;
    float largest = 0.0f;
    for_each_chunk(width, blockDim.x, [&](unsigned first) {
        float values[NORM_CHUNK];
        load(first, values);
#pragma unroll
        for (unsigned i = 0; i < NORM_CHUNK; i++) largest = MaxOrNan()(largest, fabsf(values[i]));
    });
    const float scale = scale_for<f32>(block_reduce(largest, MaxOrNan()), HALF_RANGE_8);
    for_each_chunk(width, blockDim.x, [&](unsigned first) {
        float values[NORM_CHUNK];
        load(first, values);
        signed char rounded[NORM_CHUNK];
#pragma unroll
        for (unsigned i = 0; i < NORM_CHUNK; i++) {
            rounded[i] = static_cast<signed char>(nearest_code(values[i] / scale, -128, 127));
        }
        if (width % NORM_CHUNK == 0) {
            uint2 raw;
            memcpy(&raw, rounded, sizeof raw);
            *reinterpret_cast<uint2*>(codes + first) = raw;
        } else {
            for (unsigned i = 0; i < NORM_CHUNK && first + i < width; i++) codes[first + i] = rounded[i];
        }
    });
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

template <class T>
__device__ void quantize_act(const T* x, signed char* codes, float* scales, unsigned width) {
    follow_predecessor();
    const T* row = x + static_cast<size_t>(blockIdx.x) * width;
    const auto load = [=](unsigned first, float (&values)[NORM_CHUNK]) { load_norm_chunk(row, first, width, values); };
    quantize_row(load, codes, scales, width);
}

template <class T>
__device__ void rms_norm_quantize(const T* x, const T* weight, signed char* codes,
                                  float* scales, unsigned width, float eps) {
    follow_predecessor();
    const T* row = x + static_cast<size_t>(blockIdx.x) * width;
    const float inverse = inverse_rms_of_row(row, width, eps);
    const auto load = [=](unsigned first, float (&values)[NORM_CHUNK]) {
        float weights[NORM_CHUNK];
        load_norm_chunk(row, first, width, values);
        load_norm_chunk(weight, first, width, weights);
#pragma unroll
        for (unsigned i = 0; i < NORM_CHUNK; i++) values[i] = round_to<T>(normed<T>(values[i], inverse, weights[i]));
    };
    quantize_row(load, codes, scales, width);
}

template <class T>
__device__ void silu_mul_quantize(const T* gate_up, signed char* codes, float* scales, const GateUp& at) {
    follow_predecessor();
    const T* row = gate_up + static_cast<size_t>(blockIdx.x) * 2 * at.width;
    const auto load = [&](unsigned first, float (&values)[NORM_CHUNK]) {
        at.load(row, first, values);
#pragma unroll
        for (unsigned i = 0; i < NORM_CHUNK; i++) values[i] = round_to<T>(values[i]);
    };
    quantize_row(load, codes, scales, at.width);
}

#define DEFINE(T)                                                                                                      \
    KERNEL(quantize_int8_##T, const T* w, signed char* codes, T* scales, size_t groups, unsigned group) {              \
        quantize_int8(w, codes, scales, groups, group);                                                                \
    }                                                                                                                  \
    KERNEL(quantize_int4_##T, const T* w, unsigned char* codes, T* scales, size_t groups, unsigned group) {            \
        quantize_int4(w, codes, scales, groups, group);                                                                \
    }                                                                                                                  \
    KERNEL_OF(MOST_THREADS, 1, quantize_act_##T, const T* x, signed char* codes, float* scales, unsigned width) {      \
        quantize_act(x, codes, scales, width);                                                                         \
    }                                                                                                                  \
    KERNEL(rms_norm_quantize_##T, const T* x, const T* weight, signed char* codes, float* scales, unsigned width,      \
           float eps) {                                                                                                \
        rms_norm_quantize(x, weight, codes, scales, width, eps);                                                       \
    }                                                                                                                  \
    KERNEL_OF(MOST_THREADS, 1, silu_mul_quantize_##T, const T* gate_up, signed char* codes, float* scales,             \
              const GateUp at) {                                                                                       \
        silu_mul_quantize(gate_up, codes, scales, at);                                                                 \
    }
FOR_EACH_ELEM(DEFINE)
