// What is read off logits: the most likely token, and the log-probability of a given one. One block per row.
//
// argmax_<type>     x [rows, width] to u32 [rows]: the index of the largest element; of equal ones the lowest. NaN counts
//                   only where there is nothing else, and then the answer is 0xffffffff.
// log_prob_<type>   logits [rows, width] and targets u32 [rows] to f32 [rows]: the logarithm of the softmax at the target,
//                     (x[target] - max x) - log(sum_i exp(x_i - max x))
//                   Exponentials are f32; their sum, its logarithm and the difference are f64, because a sum over a
//                   vocabulary of 10^5 in f32 would lose up to four digits that a perplexity is meant to resolve. A NaN
//                   anywhere makes the result NaN, and so does a target outside the row.
#include "common/best.cuh"
#include "common/elem.cuh"
#include "common/reduce.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

constexpr unsigned THREADS = 1024; // of a block

template <class T>
__device__ void argmax(const T* x, unsigned* out, unsigned width) {
    __shared__ Best partial[WARP];
    follow_predecessor();
    const size_t r = blockIdx.x;
    Best best = {0.0f, NONE};
#pragma unroll 8
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) best = better(best, to_f32(x[r * width + i]), i);
    best = best_of_warp(best);
    if (lane_id() == 0) partial[warp_id()] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned i = 1; i < blockDim.x / WARP; i++) best = better(best, partial[i]);
        out[r] = best.index;
    }
}

template <class T>
__device__ void log_prob(const T* logits, const unsigned* targets, float* out,
                         unsigned width) {
    follow_predecessor();
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

#define DEFINE(T)                                                                                                      \
    KERNEL_OF(THREADS, 1, argmax_##T, const T* x, unsigned* out, unsigned width) { argmax(x, out, width); }            \
    KERNEL_OF(THREADS, 1, log_prob_##T, const T* logits, const unsigned* targets, float* out, unsigned width) {        \
        log_prob(logits, targets, out, width);                                                                         \
    }
FOR_EACH_ELEM(DEFINE)
