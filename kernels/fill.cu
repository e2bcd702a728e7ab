// fill: whole arrays of made-up values, for models of true shape without a checkpoint.
//
// fill_uniform_<type>    out[i] = amplitude * (2 * u - 1), u = (mix(stream + i * C) >> 40) * 2^-24: uniform in
//                        [-amplitude, amplitude), the same for one stream wherever it is computed
// fill_constant_<type>   out[i] = value
//
// mix is the finaliser of SplitMix64 and C its increment. Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom
// Number Generators", 2014, with the constants of Vigna's splitmix64.c.
// Threads stride over the array; any grid will do.
#include "common/elem.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

__device__ inline unsigned long long mix(unsigned long long z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// Calls store(i) for this thread's share of 0 .. count.
template <class Store> __device__ void for_each_index(size_t count, Store store) {
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) store(i);
}

template <class T> __device__ void fill_uniform(T* out, size_t count, unsigned long long stream, float amplitude) {
    follow_predecessor();
    for_each_index(count, [=](size_t i) {
        const unsigned long long bits = mix(stream + i * 0x9E3779B97F4A7C15ull) >> 40;
        const float u = static_cast<float>(bits) * 0x1p-24f; // exact
        out[i] = from_f32<T>(amplitude * (2.0f * u - 1.0f));
    });
}

template <class T> __device__ void fill_constant(T* out, size_t count, float value) {
    follow_predecessor();
    for_each_index(count, [=](size_t i) { out[i] = from_f32<T>(value); });
}

#define DEFINE(T)                                                                                                      \
    KERNEL(fill_uniform_##T, T* out, size_t count, unsigned long long stream, float amplitude) {                       \
        fill_uniform(out, count, stream, amplitude);                                                                   \
    }                                                                                                                  \
    KERNEL(fill_constant_##T, T* out, size_t count, float value) { fill_constant(out, count, value); }
FOR_EACH_ELEM(DEFINE)
