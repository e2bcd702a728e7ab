// linear_any: out[t, n] (+)= sum_k x[t, k] * w[n, k] (+ bias[n]), accumulated in f32, for every shape and type that the
// streaming products do not take: f32, and rows that are no multiples of 16 bytes.
//
//   x [T, K] · w [N, K] in any storage of common/weight.cuh · out as in common/outcome.cuh
//
// linear_any_few_<weight>_<x>    for a handful of tokens: every weight is read once per 8 tokens, 16 bytes a lane, and
//                                scaled in registers. One warp per output feature.
// linear_any_many_<weight>_<x>   for many: weights are scaled once into shared memory and used by 64 tokens.
//                                One block of 256 threads per 64 features x 64 tokens.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/outcome.cuh"
#include "common/reduce.cuh"
#include "common/tile.cuh"
#include "common/weight.cuh"

constexpr unsigned FEW_TOKENS = 8; // of one pass

template <class Weight, class X>
__device__ void linear_any_few(const Weight weight, const X* x, const Outcome outcome, unsigned tokens,
                                unsigned features, unsigned k) {
    follow_predecessor();
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
            if (lane_id() == t) outcome.store(first + t, n, sum);
        }
    }
}

template <class Weight, class X>
__device__ void linear_any_many(const Weight weight, const X* x, const Outcome outcome, unsigned tokens,
                                unsigned features, unsigned k) {
    follow_predecessor();
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
        if (t < tokens && n < features) outcome.store(t, n, sum);
    });
}

#define DEFINE(X, NAME, WEIGHT)                                                                                        \
    KERNEL(linear_any_few_##NAME##_##X, const WeightArgs weight, const X* x, Outcome outcome, unsigned tokens,          \
           unsigned features, unsigned k) {                                                                            \
        linear_any_few(WEIGHT(weight, k), x, outcome, tokens, features, k);                                            \
    }                                                                                                                  \
    KERNEL_OF(TILE_THREADS, 1, linear_any_many_##NAME##_##X, const WeightArgs weight, const X* x, Outcome outcome,      \
              unsigned tokens, unsigned features, unsigned k) {                                                        \
        linear_any_many(WEIGHT(weight, k), x, outcome, tokens, features, k);                                           \
    }
#define DEFINE_ALL(X)                                                                                                  \
    DEFINE(X, f32, PlainWeight<f32>)                                                                                   \
    DEFINE(X, f16, PlainWeight<f16>)                                                                                   \
    DEFINE(X, bf16, PlainWeight<bf16>)                                                                                 \
    DEFINE(X, int8, Int8Weight)                                                                                        \
    DEFINE(X, e4m3, E4m3Weight)                                                                                        \
    DEFINE(X, int4, Int4Weight)
FOR_EACH_ELEM(DEFINE_ALL)
