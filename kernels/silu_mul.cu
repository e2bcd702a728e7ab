// silu_mul: out[t, i] = silu(gate[t, i]) * up[t, i], silu(x) = x / (1 + exp(-x)).
//
//   gate_up [T, 2 * width], each row the gate and then the up half · out [T, width]; computed in f32, rounded once.
//
// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
// Kernels: silu_mul_<type>. One block per token.
#include "common/elem.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

template <class T> __device__ void silu_mul(const T* __restrict__ gate_up, T* __restrict__ out, unsigned width) {
    follow_predecessor();
    const size_t t = blockIdx.x;
    const T* gate = gate_up + t * 2 * width;
    const T* up = gate + width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float x = to_f32(gate[i]);
        out[t * width + i] = from_f32<T>(x / (1.0f + expf(-x)) * to_f32(up[i]));
    }
}

#define DEFINE(T)                                                                                                      \
    KERNEL(silu_mul_##T, const T* gate_up, T* out, unsigned width) { silu_mul(gate_up, out, width); }
FOR_EACH_ELEM(DEFINE)
