// silu_mul: out[t, i] = silu(gate[t, i]) * up[t, i].
//
//   gate_up [T, 2 * width], gate and up in halves or in eights (common/silu.cuh) · out [T, width]; computed in f32, rounded
//   once.
//
// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
// Kernels: silu_mul_<type>. One block per token. The same followed by rounding to codes is in quantize.cu, and at the end
// of a product in linear_fused.cu.
#include "common/elem.cuh"
#include "common/silu.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

constexpr unsigned MOST_THREADS = 1024; // of a block, where rows are few

template <class T> __device__ void silu_mul(const T* gate_up, T* out, const GateUp& at) {
    follow_predecessor();
    const size_t t = blockIdx.x;
    const T* row = gate_up + t * 2 * at.width;
    for_each_chunk(at.width, blockDim.x, [&](unsigned first) {
        float values[NORM_CHUNK];
        at.load(row, first, values);
        store_chunk(out + t * at.width, first, at.width, values);
    });
}

#define DEFINE(T)                                                                                                      \
    KERNEL_OF(MOST_THREADS, 1, silu_mul_##T, const T* gate_up, T* out, const GateUp at) {                              \
        silu_mul(gate_up, out, at);                                                                                    \
    }
FOR_EACH_ELEM(DEFINE)
