// What a product by a library leaves to do: it knows no bias along this dimension, and its sums of codes have no scales.
//
// add_bias      out[t, n] = bias[n] or += bias[n], to go before a product that adds to what is there
// scale_codes   out[t, n] (+)= sums[t, n] * xs[t] * ws[n] (+ bias[n]): exact sums i32 [T, N], xs f32 [T], ws [N]
//
// One block per token.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/outcome.cuh"

KERNEL(add_bias, Outcome outcome, unsigned features) {
    follow_predecessor();
    for (unsigned n = threadIdx.x; n < features; n += blockDim.x) outcome.store(blockIdx.x, n, 0.0f);
}

KERNEL(scale_codes, const int* sums, const float* x_scales, const void* w_scales, ElemType scale_type, Outcome outcome,
       unsigned features) {
    follow_predecessor();
    const float x_scale = x_scales[blockIdx.x];
    for (unsigned n = threadIdx.x; n < features; n += blockDim.x) {
        const float sum = static_cast<float>(sums[static_cast<size_t>(blockIdx.x) * features + n]);
        outcome.store(blockIdx.x, n, sum * (x_scale * load_elem(w_scales, scale_type, n)));
    }
}
