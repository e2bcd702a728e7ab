// linear: out[t, n] (+)= sum_k x[t, k] * w[n, k] (+ bias[n]), accumulated in f32.
//
//   x [T, K] · w [N, K] in any storage of common/weight.cuh · out as in common/epilogue.cuh, of x's type or, as before
//   logits, f32.
//
// linear_few_<weight>_<x>_<out>    for a handful of tokens: bound by reading w, so every weight is read once per 8 tokens,
//                                  16 bytes a lane, and scaled in registers. One warp per output feature.
// linear_many_<weight>_<x>_<out>   for many: weights are scaled once into shared memory and used by 64 tokens.
//                                  One block of 256 threads per 64 features x 64 tokens.
// add_bias_<out>                   out[t, n] = bias[n] or += bias[n], to go before a product of another library that adds
//                                  to what is there. One block per token.
#include "common/epilogue.cuh"
#include "common/reduce.cuh"
#include "common/tile.cuh"
#include "common/weight.cuh"

#include <ptx/kernel.cuh>

constexpr unsigned FEW_TOKENS = 8; // of one pass

template <class Weight, class X, class Out>
__device__ void linear_few(const Weight weight, const X* __restrict__ x, const Epilogue<Out> epilogue, unsigned tokens,
                           unsigned features, unsigned k) {
    constexpr unsigned CHUNK = Weight::CHUNK;
    const unsigned n = blockIdx.x * (blockDim.x / WARP) + warp_id();
    const size_t first = static_cast<size_t>(blockIdx.y) * FEW_TOKENS;
    if (n >= features) return; // the whole warp
    const unsigned here = min(FEW_TOKENS, static_cast<unsigned>(tokens - first));
    x += first * k;

    float sums[FEW_TOKENS] = {};
    if (weight.has_chunks() && k * sizeof(X) % 16 == 0 && is_aligned16(x)) {
        // A few activations at a time: those of a whole chunk would not fit into the registers beside the weights.
        constexpr unsigned PER_LOAD = 16 / sizeof(X);
        constexpr unsigned STEP = CHUNK < PER_LOAD ? CHUNK : PER_LOAD;
        for (unsigned col = lane_id() * CHUNK; col < k; col += WARP * CHUNK) {
            float w[CHUNK];
            const float scale = weight.load_chunk(n, col, w);
#pragma unroll
            for (unsigned t = 0; t < FEW_TOKENS; t++) {
                if (t < here) {
                    float part = 0.0f;
#pragma unroll
                    for (unsigned i = 0; i < CHUNK; i += STEP) {
                        float a[STEP];
                        load_wide(x + static_cast<size_t>(t) * k + col + i, a);
#pragma unroll
                        for (unsigned j = 0; j < STEP; j++) part += w[i + j] * a[j];
                    }
                    sums[t] += scale * part;
                }
            }
        }
    } else {
        for (unsigned col = lane_id(); col < k; col += WARP) {
            const float w = weight.at(n, col);
#pragma unroll
            for (unsigned t = 0; t < FEW_TOKENS; t++) {
                if (t < here) sums[t] += w * to_f32(x[static_cast<size_t>(t) * k + col]);
            }
        }
    }

#pragma unroll
    for (unsigned t = 0; t < FEW_TOKENS; t++) {
        if (t < here) {
            const float sum = warp_reduce(sums[t], Sum());
            if (lane_id() == t) epilogue.store(first + t, n, sum);
        }
    }
}

template <class Weight, class X, class Out>
__device__ void linear_many(const Weight weight, const X* __restrict__ x, const Epilogue<Out> epilogue, unsigned tokens,
                            unsigned features, unsigned k) {
    __shared__ float xs[DEPTH][PITCH];
    __shared__ float ws[DEPTH][PITCH];
    const unsigned first_n = blockIdx.x * TILE;
    const size_t first_t = static_cast<size_t>(blockIdx.y) * TILE;

    TileSums<float> sums;
    for (unsigned first_k = 0; first_k < k; first_k += DEPTH) {
        __syncthreads(); // the tiles may still be read from the step before
        for (unsigned i = threadIdx.x; i < TILE * DEPTH; i += blockDim.x) {
            const unsigned row = i / DEPTH;
            const unsigned depth = i % DEPTH;
            const size_t t = first_t + row;
            const unsigned n = first_n + row;
            const unsigned col = first_k + depth;
            xs[depth][row] = t < tokens && col < k ? to_f32(x[t * k + col]) : 0.0f;
            ws[depth][row] = n < features && col < k ? weight.at(n, col) : 0.0f;
        }
        __syncthreads();
        sums.add(xs, ws, [](float x, float w, float sum) { return fmaf(x, w, sum); });
    }
    sums.for_each([&](unsigned row, unsigned column, float sum) {
        const size_t t = first_t + row;
        const unsigned n = first_n + column;
        if (t < tokens && n < features) epilogue.store(t, n, sum);
    });
}

#define DEFINE(X, OUT, NAME, WEIGHT)                                                                                   \
    KERNEL(linear_few_##NAME##_##X##_##OUT, WeightArgs weight, const X* x, Epilogue<OUT> epilogue, unsigned tokens,    \
           unsigned features, unsigned k) {                                                                            \
        linear_few(WEIGHT(weight, k), x, epilogue, tokens, features, k);                                               \
    }                                                                                                                  \
    KERNEL_OF(TILE_THREADS, 1, linear_many_##NAME##_##X##_##OUT, WeightArgs weight, const X* x,                        \
              Epilogue<OUT> epilogue, unsigned tokens, unsigned features, unsigned k) {                                \
        linear_many(WEIGHT(weight, k), x, epilogue, tokens, features, k);                                              \
    }
#define DEFINE_ALL(X, OUT)                                                                                             \
    DEFINE(X, OUT, f32, PlainWeight<f32>)                                                                              \
    DEFINE(X, OUT, f16, PlainWeight<f16>)                                                                              \
    DEFINE(X, OUT, bf16, PlainWeight<bf16>)                                                                            \
    DEFINE(X, OUT, int8, Int8Weight)                                                                                   \
    DEFINE(X, OUT, int4, Int4Weight)
DEFINE_ALL(f32, f32)
DEFINE_ALL(f16, f16)
DEFINE_ALL(f16, f32)
DEFINE_ALL(bf16, bf16)
DEFINE_ALL(bf16, f32)

#define DEFINE_BIAS(T)                                                                                                 \
    KERNEL(add_bias_##T, Epilogue<T> epilogue, unsigned features) {                                                    \
        for (unsigned n = threadIdx.x; n < features; n += blockDim.x) epilogue.store(blockIdx.x, n, 0.0f);             \
    }
FOR_EACH_ELEM(DEFINE_BIAS)
