// What the cache holds of a head at a position: its numbers as they are, or bytes q and one scale s, x = s * q.
//
//   plain   numbers of the activations' type
//   int8    q in -127 ... 127, s = max |x| / 127
//   fp8     q of E4M3,         s = max |x| / 448
//
//   k, v [slots, kv_heads, capacity, head_dim] · k_scales, v_scales f32 [slots, kv_heads, capacity]
//   q is x / s rounded to nearest, half to even; all zero where s is.
//
// Scales are f32: the range of every activation, no rounding of their own, and 4 bytes beside 64 or more. A vector with a
// NaN or an infinity gets a scale that is not finite, so that it stays visible.
#pragma once

#include "codes.cuh"
#include "elem.cuh"
#include "reduce.cuh"

struct KvCache {
    void* k;
    void* v;
    float* k_scales; // null of a plain cache
    float* v_scales;

    __device__ void* vectors(bool values) const { return values ? v : k; }
    __device__ float* scales(bool values) const { return values ? v_scales : k_scales; }
};

struct PlainKv {
    static constexpr bool CODED = false;
    template <class T> using Stored = T;
};

struct Int8Kv : Int8Number {
    static constexpr bool CODED = true;
    static constexpr float LARGEST = 127.0f;
    template <class T> using Stored = unsigned char;
    template <class T> using Code = Int8Code<T>;
    static __device__ unsigned char code(float x) {
        return static_cast<unsigned char>(max(-127, min(127, __float2int_rn(x))));
    }
};

struct Fp8Kv : E4m3Number {
    static constexpr bool CODED = true;
    static constexpr float LARGEST = 448.0f;
    template <class T> using Stored = unsigned char;
    template <class T> using Code = E4m3Code<T>;
    static __device__ unsigned char code(float x) { return nearest_e4m3(x); }
};

// Expands M(format, name, ...) for the formats with bytes; `name` is part of a kernel's name.
#define FOR_EACH_CODED_KV(M, ...) M(Int8Kv, int8, ##__VA_ARGS__) M(Fp8Kv, fp8, ##__VA_ARGS__)

// Element `d` of a vector.
template <class Kv, class T>
__device__ float cached_number(const void* cache, const float* scales, size_t vector, unsigned head_dim, unsigned d) {
    const auto stored = static_cast<const typename Kv::template Stored<T>*>(cache)[vector * head_dim + d];
    if constexpr (Kv::CODED) return Kv::number(stored, 0) * scales[vector];
    else return to_f32(stored);
}

// Writes the `head_dim` numbers at `x` as a vector of keys or values; the whole warp takes part.
template <class Kv, class T>
__device__ void write_vector(const T* x, const KvCache& cache, bool values, size_t vector, unsigned head_dim) {
    auto* to = static_cast<typename Kv::template Stored<T>*>(cache.vectors(values)) + vector * head_dim;
    if constexpr (Kv::CODED) {
        float largest = 0.0f;
        for (unsigned i = lane_id(); i < head_dim; i += WARP) largest = MaxOrNan()(largest, fabsf(to_f32(x[i])));
        const float scale = warp_reduce(largest, MaxOrNan()) / Kv::LARGEST;
        for (unsigned i = lane_id(); i < head_dim; i += WARP) {
            to[i] = Kv::code(scale == 0.0f ? 0.0f : to_f32(x[i]) / scale);
        }
        if (lane_id() == 0) cache.scales(values)[vector] = scale;
    } else {
        for (unsigned i = lane_id(); i < head_dim; i += WARP) to[i] = x[i];
    }
}
