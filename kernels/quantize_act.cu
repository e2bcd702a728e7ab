// quantize_act: eight bits per activation, symmetric, one scale per token.
//
//   x [T, K] · codes i8 [T, K] · scales f32 [T]
//   scale = max |x| / 127.5 (1 for a row of zeros), q = clamp(round_half_even(x / scale), -128, 127)
//
// A row with a NaN or an infinity gets a scale that is not finite, so that it stays visible in the product.
// Kernels: quantize_act_<type>. One block per token.
#include "common/quantize.cuh"
#include "common/reduce.cuh"

template <class T>
__device__ void quantize_act(const T* __restrict__ x, signed char* __restrict__ codes, float* __restrict__ scales,
                             unsigned k) {
    const size_t row = static_cast<size_t>(blockIdx.x) * k;
    float largest = 0.0f;
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        largest = MaxOrNan()(largest, fabsf(to_f32(x[row + i])));
    }
    const float scale = scale_for<f32>(block_reduce(largest, MaxOrNan()), 127.5f);
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        codes[row + i] = static_cast<signed char>(nearest_code(to_f32(x[row + i]) / scale, -128, 127));
    }
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

#define KERNEL(T)                                                                                                      \
    extern "C" __global__ void quantize_act_##T(const T* x, signed char* codes, float* scales, unsigned k) {           \
        quantize_act(x, codes, scales, k);                                                                             \
    }
FOR_EACH_ELEM(KERNEL)
