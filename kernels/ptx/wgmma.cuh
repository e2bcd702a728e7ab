// Matrix products of a warpgroup, which are 128 threads (four warps whose first has a number divisible by four): weights in
// registers times tokens in shared memory. They run beside the program: d must not be read, and d, a and the shared memory
// must not be written, before the wait that covers their group.
//
//   d [64, N] (+)= a [64, K] b [K, N]      K = 16 of 16-bit numbers, 32 of bytes; N tokens
//
// Warp w of the four has rows 16 w .. 16 w + 15 of a and d; within, fragments lie as in <ptx/mma.cuh>: a as A, and
// d[4 j + i] as d[i] of the tokens 8 j .. 8 j + 7.
//
// Nothing of it exists before compute capability 9.0: WARPGROUP_PRODUCTS says whether it does, and a kernel whose body
// depends on it is empty elsewhere.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool WARPGROUP_PRODUCTS = true;
#else
constexpr bool WARPGROUP_PRODUCTS = false;
#endif

// b in shared memory, as cores of 8 tokens by 16 bytes, 128 bytes side by side, token by token.
struct SharedTokens {
    uint64_t descriptor;

    // `start` is aligned to 16 bytes. `next_core` bytes from the first 16 bytes of K to the second, `next_tokens` bytes
    // from 8 tokens to the next.
    static __device__ SharedTokens at(const void* start, unsigned next_core, unsigned next_tokens) {
        const uint64_t address = static_cast<unsigned>(__cvta_generic_to_shared(start));
        return {(address & 0x3ffff) >> 4 | static_cast<uint64_t>(next_core >> 4) << 16 |
                static_cast<uint64_t>(next_tokens >> 4) << 32};
    }

    // The same of numbers that lie across, for warpgroup_mma_across: cores of 8 numbers of K by 16 bytes of tokens.
    // `next_core` bytes from the first 8 of K to the second, `next_tokens` from 16 bytes of tokens to the next.
    static __device__ SharedTokens across(const void* start, unsigned next_core, unsigned next_tokens) {
        return at(start, next_core, next_tokens);
    }

    // The same so many bytes further on, a multiple of 16.
    __device__ SharedTokens plus(unsigned bytes) const { return {descriptor + (bytes >> 4)}; }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PTX_90(...) asm volatile(__VA_ARGS__)
#else
#define PTX_90(...)
#endif

// What this thread has written to registers is there for the products that follow. Before the first, and whenever one of
// their registers has been written since.
__device__ inline void warpgroup_fence() { PTX_90("wgmma.fence.sync.aligned;" ::: "memory"); }

// What this thread has written to shared memory is there for products that follow a barrier.
__device__ inline void show_to_products() { PTX_90("fence.proxy.async.shared::cta;" ::: "memory"); }

// Ends a group of products.
__device__ inline void warpgroup_commit() { PTX_90("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most the PENDING latest groups are under way.
template <int PENDING> __device__ inline void warpgroup_wait() {
    PTX_90("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from using registers of products for something else before this point, or reading them earlier.
template <unsigned N> __device__ inline void in_use_until_here(float (&r)[N]) {
#pragma unroll
    for (unsigned i = 0; i < N; i++) asm volatile("" : "+f"(r[i])::"memory");
}
template <unsigned N> __device__ inline void in_use_until_here(int (&r)[N]) {
#pragma unroll
    for (unsigned i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}
template <unsigned N> __device__ inline void in_use_until_here(uint32_t (&r)[N]) {
#pragma unroll
    for (unsigned i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}

// d = a b, plus d where `add` says so.
template <class X>
__device__ void warpgroup_mma(float (&d)[32], const uint32_t (&a)[4], SharedTokens b, bool add);
template <class X>
__device__ void warpgroup_mma(float (&d)[64], const uint32_t (&a)[4], SharedTokens b, bool add);

// The registers of d with N / 2 of them, as the instruction and as its constraints name them; then a, b and the predicate.
#define D_32                                                                                                           \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "                                \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define D_32_AS(how)                                                                                                   \
    how(d[0]), how(d[1]), how(d[2]), how(d[3]), how(d[4]), how(d[5]), how(d[6]), how(d[7]),                            \
    how(d[8]), how(d[9]), how(d[10]), how(d[11]), how(d[12]), how(d[13]), how(d[14]), how(d[15]),                      \
    how(d[16]), how(d[17]), how(d[18]), how(d[19]), how(d[20]), how(d[21]), how(d[22]), how(d[23]),                    \
    how(d[24]), how(d[25]), how(d[26]), how(d[27]), how(d[28]), how(d[29]), how(d[30]), how(d[31])
#define A_B_ADD_32 "{%32, %33, %34, %35}, %36, p"
#define D_64                                                                                                           \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "                                \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, "                            \
    "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "                            \
    "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define D_64_AS(how)                                                                                                   \
    how(d[0]), how(d[1]), how(d[2]), how(d[3]), how(d[4]), how(d[5]), how(d[6]), how(d[7]),                            \
    how(d[8]), how(d[9]), how(d[10]), how(d[11]), how(d[12]), how(d[13]), how(d[14]), how(d[15]),                      \
    how(d[16]), how(d[17]), how(d[18]), how(d[19]), how(d[20]), how(d[21]), how(d[22]), how(d[23]),                    \
    how(d[24]), how(d[25]), how(d[26]), how(d[27]), how(d[28]), how(d[29]), how(d[30]), how(d[31]),                    \
    how(d[32]), how(d[33]), how(d[34]), how(d[35]), how(d[36]), how(d[37]), how(d[38]), how(d[39]),                    \
    how(d[40]), how(d[41]), how(d[42]), how(d[43]), how(d[44]), how(d[45]), how(d[46]), how(d[47]),                    \
    how(d[48]), how(d[49]), how(d[50]), how(d[51]), how(d[52]), how(d[53]), how(d[54]), how(d[55]),                    \
    how(d[56]), how(d[57]), how(d[58]), how(d[59]), how(d[60]), how(d[61]), how(d[62]), how(d[63])
#define A_B_ADD_64 "{%64, %65, %66, %67}, %68, p"
#define WARPGROUP_MMA(REGISTERS, INSTRUCTION, AS, REST, ADD)                                                           \
    PTX_90("{ .reg .pred p; setp.ne.b32 p, " ADD ", 0; wgmma.mma_async.sync.aligned." INSTRUCTION " " D_##REGISTERS ", " \
           A_B_ADD_##REGISTERS REST "; }"                                                                              \
           : D_##REGISTERS##_AS(AS)                                                                                    \
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor), "r"(static_cast<int>(add)))
#define AS_FLOAT(x) "+f"(x)
#define AS_INT(x) "+r"(x)

template <>
__device__ inline void warpgroup_mma<__nv_bfloat16>(float (&d)[32], const uint32_t (&a)[4], SharedTokens b, bool add) {
    WARPGROUP_MMA(32, "m64n64k16.f32.bf16.bf16", AS_FLOAT, ", 1, 1, 0", "%37");
}

template <>
__device__ inline void warpgroup_mma<__half>(float (&d)[32], const uint32_t (&a)[4], SharedTokens b, bool add) {
    WARPGROUP_MMA(32, "m64n64k16.f32.f16.f16", AS_FLOAT, ", 1, 1, 0", "%37");
}

template <>
__device__ inline void warpgroup_mma<__nv_bfloat16>(float (&d)[64], const uint32_t (&a)[4], SharedTokens b, bool add) {
    WARPGROUP_MMA(64, "m64n128k16.f32.bf16.bf16", AS_FLOAT, ", 1, 1, 0", "%69");
}

template <>
__device__ inline void warpgroup_mma<__half>(float (&d)[64], const uint32_t (&a)[4], SharedTokens b, bool add) {
    WARPGROUP_MMA(64, "m64n128k16.f32.f16.f16", AS_FLOAT, ", 1, 1, 0", "%69");
}

// d = a b, plus d where `add` says so, of b that lies across.
template <class X>
__device__ void warpgroup_mma_across(float (&d)[32], const uint32_t (&a)[4], SharedTokens b, bool add);
template <class X>
__device__ void warpgroup_mma_across(float (&d)[64], const uint32_t (&a)[4], SharedTokens b, bool add);

template <>
__device__ inline void warpgroup_mma_across<__nv_bfloat16>(float (&d)[32], const uint32_t (&a)[4], SharedTokens b,
                                                           bool add) {
    WARPGROUP_MMA(32, "m64n64k16.f32.bf16.bf16", AS_FLOAT, ", 1, 1, 1", "%37");
}

template <>
__device__ inline void warpgroup_mma_across<__half>(float (&d)[32], const uint32_t (&a)[4], SharedTokens b, bool add) {
    WARPGROUP_MMA(32, "m64n64k16.f32.f16.f16", AS_FLOAT, ", 1, 1, 1", "%37");
}

template <>
__device__ inline void warpgroup_mma_across<__nv_bfloat16>(float (&d)[64], const uint32_t (&a)[4], SharedTokens b,
                                                           bool add) {
    WARPGROUP_MMA(64, "m64n128k16.f32.bf16.bf16", AS_FLOAT, ", 1, 1, 1", "%69");
}

template <>
__device__ inline void warpgroup_mma_across<__half>(float (&d)[64], const uint32_t (&a)[4], SharedTokens b, bool add) {
    WARPGROUP_MMA(64, "m64n128k16.f32.f16.f16", AS_FLOAT, ", 1, 1, 1", "%69");
}

// The same of signed bytes, exact.
__device__ inline void warpgroup_mma_s8(int (&d)[32], const uint32_t (&a)[4], SharedTokens b, bool add) {
    WARPGROUP_MMA(32, "m64n64k32.s32.s8.s8", AS_INT, "", "%37");
}
__device__ inline void warpgroup_mma_s8(int (&d)[64], const uint32_t (&a)[4], SharedTokens b, bool add) {
    WARPGROUP_MMA(64, "m64n128k32.s32.s8.s8", AS_INT, "", "%69");
}

#undef PTX_90
#undef WARPGROUP_MMA
#undef AS_FLOAT
#undef AS_INT
#undef D_32
#undef D_32_AS
#undef A_B_ADD_32
#undef D_64
#undef D_64_AS
#undef A_B_ADD_64
