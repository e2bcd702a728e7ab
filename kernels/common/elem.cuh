// Element types of activations, plain weights and scales, under the names that src/scheme/dtype.rs gives them.
// Arithmetic is done in f32: values are widened on load and rounded once, half to even, on store.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

using f32 = float;
using f16 = __half;
using bf16 = __nv_bfloat16;

// Expands M(name, ...) for every element type; `name` is both the C++ type and the end of a kernel's name.
#define FOR_EACH_ELEM(M, ...) M(f32, ##__VA_ARGS__) M(f16, ##__VA_ARGS__) M(bf16, ##__VA_ARGS__)

__device__ inline float to_f32(f32 x) { return x; }
__device__ inline float to_f32(f16 x) { return __half2float(x); }
__device__ inline float to_f32(bf16 x) { return __bfloat162float(x); }

template <class T> __device__ T from_f32(float x);
template <> __device__ inline f32 from_f32<f32>(float x) { return x; }
template <> __device__ inline f16 from_f32<f16>(float x) { return __float2half_rn(x); }
template <> __device__ inline bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }

// Rounds to T and widens back.
template <class T> __device__ float round_to(float x) { return to_f32(from_f32<T>(x)); }

// An element type that is known at run time; the values are part of the launch code's contract.
enum ElemType : unsigned { ELEM_F32 = 0, ELEM_F16 = 1, ELEM_BF16 = 2 };

__device__ inline unsigned bytes_of(ElemType type) { return type == ELEM_F32 ? 4 : 2; }

// Element `i` of an array whose type is known at run time. The branch is the same for a whole grid.
__device__ inline float load_elem(const void* data, ElemType type, size_t i) {
    switch (type) {
        case ELEM_F16: return to_f32(static_cast<const f16*>(data)[i]);
        case ELEM_BF16: return to_f32(static_cast<const bf16*>(data)[i]);
        default: return static_cast<const f32*>(data)[i];
    }
}

// Rounds to an element type that is known at run time and stores.
__device__ inline void store_elem(void* data, ElemType type, size_t i, float value) {
    switch (type) {
        case ELEM_F16: static_cast<f16*>(data)[i] = from_f32<f16>(value); break;
        case ELEM_BF16: static_cast<bf16*>(data)[i] = from_f32<bf16>(value); break;
        default: static_cast<f32*>(data)[i] = value;
    }
}

// Rounds to an element type that is known at run time and widens back.
__device__ inline float round_to_elem(ElemType type, float value) {
    switch (type) {
        case ELEM_F16: return round_to<f16>(value);
        case ELEM_BF16: return round_to<bf16>(value);
        default: return value;
    }
}

// Whether 16-byte loads may start at `p`.
__device__ inline bool is_aligned16(const void* p) { return reinterpret_cast<size_t>(p) % 16 == 0; }

// Neighbours as one word, from and to where that is aligned to its size. A memcpy would go byte by byte: it cannot know.
template <class Raw, class T> __device__ inline Raw load_raw(const T* p) { return *reinterpret_cast<const Raw*>(p); }
template <class T, class Raw> __device__ inline void store_raw(T* p, const Raw& raw) { *reinterpret_cast<Raw*>(p) = raw; }

// Loads N consecutive elements by loads of 16 bytes (8 where all of them take no more) and widens them. `p` is aligned to
// the width of the loads.
template <unsigned N, class T> __device__ void load_wide(const T* p, float (&values)[N]) {
    using Raw = std::conditional_t<N * sizeof(T) == 8, uint2, uint4>;
    constexpr unsigned PER_LOAD = sizeof(Raw) / sizeof(T);
    static_assert(N % PER_LOAD == 0, "whole loads only");
#pragma unroll
    for (unsigned i = 0; i < N; i += PER_LOAD) {
        const Raw raw = *reinterpret_cast<const Raw*>(p + i);
        T elems[PER_LOAD];
        memcpy(elems, &raw, sizeof raw);
#pragma unroll
        for (unsigned j = 0; j < PER_LOAD; j++) values[i + j] = to_f32(elems[j]);
    }
}
