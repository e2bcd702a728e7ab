// rms_norm: y = x / sqrt(mean(x^2) + eps), rounded to the element type, times weight, rounded again.
//
//   x [T, width] · weight [width] · out [T, width], all of one type.
//
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; the first rounding is that of the Hugging
// Face implementations of Llama and Qwen.
// Kernels: rms_norm_<type>. One block of NORM_THREADS per token. The same followed by rounding to codes is in quantize.cu,
// and followed by a product in linear_fused.cu.
#include "common/norm.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

template <class T>
__device__ void rms_norm(const T* x, const T* weight, T* out, unsigned width, float eps) {
    follow_predecessor();
    const T* from = x + static_cast<size_t>(blockIdx.x) * width;
    T* to = out + static_cast<size_t>(blockIdx.x) * width;
    const float inverse = inverse_rms_of_row(from, width, eps);
    for_each_norm_chunk(width, [&](unsigned first) {
        float values[NORM_CHUNK], weights[NORM_CHUNK];
        load_norm_chunk(from, first, width, values);
        load_norm_chunk(weight, first, width, weights);
#pragma unroll
        for (unsigned i = 0; i < NORM_CHUNK; i++) values[i] = normed<T>(values[i], inverse, weights[i]);
        store_chunk(to, first, width, values);
    });
}

#define DEFINE(T)                                                                                                      \
    KERNEL(rms_norm_##T, const T* x, const T* weight, T* out, unsigned width, float eps) {                             \
        rms_norm(x, weight, out, width, eps);                                                                          \
    }
FOR_EACH_ELEM(DEFINE)
