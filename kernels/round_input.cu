// round_input: a product's input rounded to eight bits and back, out = s * q(x / s), rounded once to its own type.
//
//   x and out [T, width] of one type · columns that share a scale · fixed: the scale, or 0 where it is found: the largest
//   magnitude over 127.5 for integers, over 448 for E4M3; 1 for zeros.
//
// Quotients are clamped to the range of the codes and rounded to the nearest, half to even. Source of the formulas:
// compressed-tensors, quantization/utils/helpers.py. A NaN makes everything that shares its scale NaN.
// Kernels: round_input_<number>_<type>. One block per token; a warp per scale unless one covers the whole row.
#include "common/elem.cuh"
#include "common/reduce.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

struct Int8Input {
    static constexpr float HALF_RANGE = 127.5f;
    static __device__ float nearest(float x) {
        // A conversion to an integer would make a number out of NaN.
        return x != x ? x : static_cast<float>(max(-128, min(127, __float2int_rn(x))));
    }
};

struct E4m3Input {
    static constexpr float HALF_RANGE = 448.0f;
    static __device__ float nearest(float x) {
        const float magnitude = fabsf(x);
        if (x != x) return x;
        if (magnitude >= 448.0f) return x < 0.0f ? -448.0f : 448.0f;
        // Adding a number whose last bit is worth a step of the result rounds to it: 2^-9 below 2^-6, else an eighth of the
        // power of two below.
        const unsigned exponent = max(__float_as_uint(magnitude) >> 23, 127u - 6u);
        const float rounder = __uint_as_float((exponent + 20u) << 23);
        const float rounded = __fadd_rn(__fadd_rn(magnitude, rounder), -rounder);
        return __uint_as_float(__float_as_uint(rounded) | (__float_as_uint(x) & 0x80000000u));
    }
};

template <class Number> __device__ float scale_of(float largest) {
    const float scale = largest / Number::HALF_RANGE;
    return largest == 0.0f ? 1.0f : scale;
}

// `count` numbers by `threads` threads, of which this is number `thread`.
template <class Number, class T>
__device__ void round_all(const T* x, T* out, unsigned count, unsigned thread, unsigned threads, float scale) {
    for (unsigned i = thread; i < count; i += threads) {
        out[i] = from_f32<T>(__fmul_rn(Number::nearest(to_f32(x[i]) / scale), scale));
    }
}

template <class T> __device__ float largest_of(const T* x, unsigned count, unsigned thread, unsigned threads) {
    float largest = 0.0f;
    for (unsigned i = thread; i < count; i += threads) largest = MaxOrNan()(largest, fabsf(to_f32(x[i])));
    return largest;
}

template <class Number, class T>
__device__ void round_input(const T* x, T* out, unsigned width, unsigned columns,
                            float fixed) {
    follow_predecessor();
    x += static_cast<size_t>(blockIdx.x) * width;
    out += static_cast<size_t>(blockIdx.x) * width;
    if (fixed != 0.0f) return round_all<Number>(x, out, width, threadIdx.x, blockDim.x, fixed);
    if (columns >= width) {
        const float largest = block_reduce(largest_of(x, width, threadIdx.x, blockDim.x), MaxOrNan());
        return round_all<Number>(x, out, width, threadIdx.x, blockDim.x, scale_of<Number>(largest));
    }
    for (unsigned first = warp_id() * columns; first < width; first += blockDim.x / WARP * columns) {
        const unsigned count = min(columns, width - first);
        const float largest = warp_reduce(largest_of(x + first, count, lane_id(), WARP), MaxOrNan());
        round_all<Number>(x + first, out + first, count, lane_id(), WARP, scale_of<Number>(largest));
    }
}

#define DEFINE(T)                                                                                                      \
    KERNEL(round_input_int8_##T, const T* x, T* out, unsigned width, unsigned columns, float fixed) {                   \
        round_input<Int8Input>(x, out, width, columns, fixed);                                                         \
    }                                                                                                                  \
    KERNEL(round_input_e4m3_##T, const T* x, T* out, unsigned width, unsigned columns, float fixed) {                   \
        round_input<E4m3Input>(x, out, width, columns, fixed);                                                         \
    }
FOR_EACH_ELEM(DEFINE)
