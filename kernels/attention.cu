// attention: the arguments and the formula are in common/attention.cuh; any type and head size, and not fast.
//
// The softmax runs online in f32: the largest score so far, the sum of exponentials relative to it, and the weighted sum
// of values, all rescaled when a larger score comes.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
// Kernels: attention_<type>, and with _int8 and _fp8 behind it for such a cache. One block of 4 warps per token and head;
// each warp takes every fourth key.
#include "common/attention.cuh"
#include "common/elem.cuh"
#include "common/reduce.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

constexpr unsigned WARPS = 4;
constexpr unsigned MAX_HEAD_DIM = 256;
constexpr unsigned PER_LANE = MAX_HEAD_DIM / WARP;

// Softmax over the scores seen so far. A lane holds elements lane, lane + 32, ... of the weighted sum of values.
struct OnlineSoftmax {
    float largest = -INFINITY;
    float sum = 0.0f;
    float values[PER_LANE] = {};
};

template <class Kv, class T> __device__ void attention(const AttentionArgs<T>& args) {
    follow_predecessor();
    __shared__ float all_values[WARPS][MAX_HEAD_DIM];
    __shared__ float all_largest[WARPS];
    __shared__ float all_sums[WARPS];
    const size_t t = blockIdx.x;
    const unsigned head = blockIdx.y;
    const unsigned position = args.positions[t];
    const unsigned slot = args.slot_of[t];
    const unsigned head_dim = args.head_dim;
    T* out = args.out + (t * args.heads + head) * head_dim;
    if (!args.is_inside(t)) { // the whole block
        for (unsigned d = threadIdx.x; d < head_dim; d += blockDim.x) out[d] = from_f32<T>(nanf(""));
        return;
    }

    const size_t first = args.vector(slot, head / args.group(), 0);
    const auto key = [&](size_t j, unsigned d) {
        return cached_number<Kv, T>(args.cache.k, args.cache.k_scales, first + j, head_dim, d);
    };
    const auto value = [&](size_t j, unsigned d) {
        return cached_number<Kv, T>(args.cache.v, args.cache.v_scales, first + j, head_dim, d);
    };
    const T* q_row = args.q + t * args.q_stride + head * head_dim;
    float q[PER_LANE];
#pragma unroll
    for (unsigned i = 0; i < PER_LANE; i++) {
        const unsigned d = lane_id() + i * WARP;
        q[i] = d < head_dim ? to_f32(q_row[d]) : 0.0f;
    }

    OnlineSoftmax state;
    for (size_t j = warp_id(); j <= position; j += WARPS) {
        float part = 0.0f;
#pragma unroll
        for (unsigned i = 0; i < PER_LANE; i++) {
            const unsigned d = lane_id() + i * WARP;
            if (d < head_dim) part += q[i] * key(j, d);
        }
        const float score = args.scale * warp_reduce(part, Sum());
        const float largest = fmaxf(state.largest, score);
        const float shrink = expf(state.largest - largest);
        const float weight = expf(score - largest);
        state.largest = largest;
        state.sum = state.sum * shrink + weight;
#pragma unroll
        for (unsigned i = 0; i < PER_LANE; i++) {
            const unsigned d = lane_id() + i * WARP;
            if (d < head_dim) state.values[i] = state.values[i] * shrink + weight * value(j, d);
        }
    }

    if (lane_id() == 0) {
        all_largest[warp_id()] = state.largest;
        all_sums[warp_id()] = state.sum;
    }
#pragma unroll
    for (unsigned i = 0; i < PER_LANE; i++) {
        const unsigned d = lane_id() + i * WARP;
        if (d < head_dim) all_values[warp_id()][d] = state.values[i];
    }
    __syncthreads();
    // Key 0 belongs to warp 0, so that the largest score is finite even where other warps had no key.
    float largest = all_largest[0];
    for (unsigned w = 1; w < WARPS; w++) largest = fmaxf(largest, all_largest[w]);
    float sum = 0.0f;
    for (unsigned w = 0; w < WARPS; w++) sum += all_sums[w] * expf(all_largest[w] - largest);
    for (unsigned d = threadIdx.x; d < head_dim; d += blockDim.x) {
        float total = 0.0f;
        for (unsigned w = 0; w < WARPS; w++) total += all_values[w][d] * expf(all_largest[w] - largest);
        out[d] = from_f32<T>(total / sum);
    }
}

#define DEFINE(T)                                                                                                      \
    KERNEL_OF(WARPS * WARP, 1, attention_##T, const AttentionArgs<T> args) { attention<PlainKv>(args); }               \
    FOR_EACH_CODED_KV(DEFINE_CODED, T)
#define DEFINE_CODED(KV, NAME, T)                                                                                      \
    KERNEL_OF(WARPS * WARP, 1, attention_##T##_##NAME, const AttentionArgs<T> args) { attention<KV>(args); }
FOR_EACH_ELEM(DEFINE)
