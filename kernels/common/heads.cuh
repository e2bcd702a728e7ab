// One head of queries or keys on its way from the projection to attention: the RMS norm of the head where its weights are
// given (Qwen3), then rotary embedding, halves paired:
//   y[i] = x[i] * cos - x[i + half] * sin,  y[i + half] = x[i + half] * cos + x[i] * sin
// Sources: Su et al., "RoFormer", 2021, in the pairing of GPT-NeoX; the per-head norm is that of the Qwen3 report, 2025.
#pragma once

#include "norm.cuh"
#include "reduce.cuh"

template <class T> struct TurnArgs {
    const T* q_norm; // [head_dim] or null
    const T* k_norm;
    const float* cosines; // f32 [max_position, head_dim / 2]
    const float* sines;
    unsigned max_position;
    float eps;
};

// Turns the head at `x` into the one at `to`, which may be the same; the whole warp takes part, and sees the result after
// it has met. A position beyond the tables gives NaN. `weight` is that of the norm, or null.
template <class T>
__device__ void turn_head(const T* x, T* to, const T* weight, const TurnArgs<T>& args, unsigned position,
                          unsigned head_dim) {
    const unsigned half = head_dim / 2;
    const bool inside = position < args.max_position;
    float inverse = 1.0f;
    if (weight != nullptr) {
        float squares = 0.0f;
        for (unsigned i = lane_id(); i < head_dim; i += WARP) {
            const float value = to_f32(x[i]);
            squares = fmaf(value, value, squares);
        }
        inverse = inverse_rms(warp_reduce(squares, Sum()), head_dim, args.eps);
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
        to[i] = from_f32<T>(__fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)));
        to[i + half] = from_f32<T>(__fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
    }
}
