// rope_append: turns the fused q, k, v projection of new tokens into what attention reads.
//
//   qkv [T, (heads + 2 * kv_heads) * head_dim], in place: heads of q, then of k, then of v
//   q_norm, k_norm [head_dim] or null · cosines, sines f32 [max_position, head_dim / 2]
//   positions, slots u32 [T] · k_cache, v_cache [slots, kv_heads, capacity, head_dim]
//
// q and k: the RMS norm of each head where its weights are given (Qwen3), then rotary embedding, halves paired:
//   y[i] = x[i] * cos - x[i + half] * sin,  y[i + half] = x[i + half] * cos + x[i] * sin
// The results stay in qkv, and k and v also go into the cache at (slot, position).
//
// Sources: Su et al., "RoFormer", 2021, in the pairing of GPT-NeoX; the per-head norm is that of the Qwen3 report, 2025.
// A position or slot outside the tables or the cache writes no cache and turns its rows into NaN.
// Kernels: rope_append_<type>. One warp per token and head: blockIdx.y counts blocks of heads.
#include "common/norm.cuh"
#include "common/reduce.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

template <class T> struct RopeArgs {
    T* qkv;
    const T* q_norm;
    const T* k_norm;
    const float* cosines;
    const float* sines;
    const unsigned* positions;
    const unsigned* slot_of;
    T* k_cache;
    T* v_cache;
    unsigned heads;
    unsigned kv_heads;
    unsigned head_dim;
    unsigned max_position;
    unsigned slots;
    unsigned capacity;
    float eps;
};

template <class T> __device__ void rope_append(const RopeArgs<T>& args) {
    follow_predecessor();
    const unsigned head = blockIdx.y * (blockDim.x / WARP) + warp_id();
    const unsigned all_heads = args.heads + 2 * args.kv_heads;
    if (head >= all_heads) return; // the whole warp
    const size_t t = blockIdx.x;
    const unsigned position = args.positions[t];
    const unsigned slot = args.slot_of[t];
    const bool inside = position < args.max_position && position < args.capacity && slot < args.slots;
    const unsigned half = args.head_dim / 2;
    T* x = args.qkv + (t * all_heads + head) * args.head_dim;

    // Where this head goes in its cache; null for q.
    const bool is_q = head < args.heads;
    const bool is_v = head >= args.heads + args.kv_heads;
    T* cached = nullptr;
    if (inside && !is_q) {
        const unsigned kv_head = (head - args.heads) % args.kv_heads;
        const size_t row = (static_cast<size_t>(slot) * args.kv_heads + kv_head) * args.capacity + position;
        cached = (is_v ? args.v_cache : args.k_cache) + row * args.head_dim;
    }
    if (is_v) {
        for (unsigned i = lane_id(); i < args.head_dim; i += WARP) {
            if (inside) cached[i] = x[i];
            else x[i] = from_f32<T>(nanf(""));
        }
        return;
    }

    const T* weight = is_q ? args.q_norm : args.k_norm;
    float inverse = 1.0f;
    if (weight != nullptr) {
        float squares = 0.0f;
        for (unsigned i = lane_id(); i < args.head_dim; i += WARP) {
            const float value = to_f32(x[i]);
            squares += value * value;
        }
        inverse = inverse_rms(warp_reduce(squares, Sum()), args.head_dim, args.eps);
    }
    const auto normed_at = [&](unsigned i) {
        const float value = to_f32(x[i]);
        return weight == nullptr ? value : round_to<T>(normed<T>(value, inverse, to_f32(weight[i])));
    };
    // A lane reads and writes the same two elements, so that working in place is safe.
    for (unsigned i = lane_id(); i < half; i += WARP) {
        const float a = normed_at(i);
        const float b = normed_at(i + half);
        const size_t entry = static_cast<size_t>(position) * half + i;
        const float c = inside ? args.cosines[entry] : nanf("");
        const float s = inside ? args.sines[entry] : nanf("");
        const T first = from_f32<T>(__fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)));
        const T second = from_f32<T>(__fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
        x[i] = first;
        x[i + half] = second;
        if (cached != nullptr) {
            cached[i] = first;
            cached[i + half] = second;
        }
    }
}

#define DEFINE(T)                                                                                                      \
    KERNEL(rope_append_##T, RopeArgs<T> args) { rope_append(args); }
FOR_EACH_ELEM(DEFINE)
