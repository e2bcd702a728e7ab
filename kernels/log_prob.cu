// log_prob: the logarithm of the softmax of each row at its target.
//
//   logits [R, width] · targets u32 [R] · out f32 [R]
//   out = (x[target] - max x) - log(sum_i exp(x_i - max x))
//
// Exponentials are f32; their sum, its logarithm and the difference are f64, because a sum over a vocabulary of 10^5 in
// f32 would lose up to four digits that a perplexity is meant to resolve. A NaN anywhere makes the result NaN, and so
// does a target outside the row.
// Kernels: log_prob_<type>. One block per row.
#include "common/elem.cuh"
#include "common/reduce.cuh"

template <class T>
__device__ void log_prob(const T* __restrict__ logits, const unsigned* __restrict__ targets, float* __restrict__ out,
                         unsigned width) {
    const T* x = logits + static_cast<size_t>(blockIdx.x) * width;
    float largest = -INFINITY;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) largest = MaxOrNan()(largest, to_f32(x[i]));
    largest = block_reduce(largest, MaxOrNan());

    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) sum += expf(to_f32(x[i]) - largest);
    sum = block_reduce(sum, Sum());

    if (threadIdx.x == 0) {
        const unsigned target = targets[blockIdx.x];
        const float value = target < width ? to_f32(x[target]) : nanf("");
        out[blockIdx.x] = static_cast<float>(static_cast<double>(value) - largest - log(sum));
    }
}

#define KERNEL(T)                                                                                                      \
    extern "C" __global__ void log_prob_##T(const T* logits, const unsigned* targets, float* out, unsigned width) {    \
        log_prob(logits, targets, out, width);                                                                         \
    }
FOR_EACH_ELEM(KERNEL)
