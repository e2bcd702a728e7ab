// rms_norm: y = x / sqrt(mean(x^2) + eps), rounded to the element type, times weight, rounded again.
//
//   x [T, width] · weight [width] · out [T, width], all of one type.
//
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; the first rounding is that of the Hugging
// Face implementations of Llama and Qwen.
// Kernels: rms_norm_<type>. One block per token.
#include "common/norm.cuh"
#include "common/reduce.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

template <class T>
__device__ void rms_norm(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ out, unsigned width,
                         float eps) {
    follow_predecessor();
    const size_t row = static_cast<size_t>(blockIdx.x) * width;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = to_f32(x[row + i]);
        squares += value * value;
    }
    const float inverse = inverse_rms(block_reduce(squares, Sum()), width, eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        out[row + i] = from_f32<T>(normed<T>(to_f32(x[row + i]), inverse, to_f32(weight[i])));
    }
}

#define DEFINE(T)                                                                                                      \
    KERNEL(rms_norm_##T, const T* x, const T* weight, T* out, unsigned width, float eps) {                             \
        rms_norm(x, weight, out, width, eps);                                                                          \
    }
FOR_EACH_ELEM(DEFINE)
