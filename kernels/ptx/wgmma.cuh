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

    // `start` is aligned to 16 bytes. `next_core` bytes from the first 16 bytes of K to the second, `next_tokens` bytes from
    // 8 tokens to the next.
    static __device__ SharedTokens at(const void* start, unsigned next_core, unsigned next_tokens) {
        const uint64_t address = static_cast<unsigned>(__cvta_generic_to_shared(start));
        return {(address & 0x3ffff) >> 4 | static_cast<uint64_t>(next_core >> 4) << 16 |
                static_cast<uint64_t>(next_tokens >> 4) << 32};
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

template <>
__device__ inline void warpgroup_mma<__nv_bfloat16>(float (&d)[32], const uint32_t (&a)[4], SharedTokens b, bool add) {
    PTX_90("{ .reg .pred p; setp.ne.b32 p, %37, 0; "
           "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
           "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
           "%27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
           : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
             "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
             "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
             "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor), "r"(static_cast<int>(add)));
}

template <>
__device__ inline void warpgroup_mma<__half>(float (&d)[32], const uint32_t (&a)[4], SharedTokens b, bool add) {
    PTX_90("{ .reg .pred p; setp.ne.b32 p, %37, 0; "
           "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
           "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
           "%27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
           : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
             "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
             "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
             "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor), "r"(static_cast<int>(add)));
}

template <>
__device__ inline void warpgroup_mma<__nv_bfloat16>(float (&d)[64], const uint32_t (&a)[4], SharedTokens b, bool add) {
    PTX_90("{ .reg .pred p; setp.ne.b32 p, %69, 0; "
           "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
           "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
           "%27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, "
           "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, "
           "%63}, {%64, %65, %66, %67}, %68, p, 1, 1, 0; }"
           : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
             "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
             "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
             "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
             "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
             "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
             "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
             "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor), "r"(static_cast<int>(add)));
}

template <>
__device__ inline void warpgroup_mma<__half>(float (&d)[64], const uint32_t (&a)[4], SharedTokens b, bool add) {
    PTX_90("{ .reg .pred p; setp.ne.b32 p, %69, 0; "
           "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
           "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
           "%27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, "
           "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, "
           "%63}, {%64, %65, %66, %67}, %68, p, 1, 1, 0; }"
           : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
             "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
             "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
             "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
             "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
             "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
             "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
             "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor), "r"(static_cast<int>(add)));
}

// The same of signed bytes, exact.
__device__ inline void warpgroup_mma_s8(int (&d)[32], const uint32_t (&a)[4], SharedTokens b, bool add) {
    PTX_90("{ .reg .pred p; setp.ne.b32 p, %37, 0; "
           "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
           "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "
           "%28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p; }"
           : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]),
             "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]),
             "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
             "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31])
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor), "r"(static_cast<int>(add)));
}

__device__ inline void warpgroup_mma_s8(int (&d)[64], const uint32_t (&a)[4], SharedTokens b, bool add) {
    PTX_90("{ .reg .pred p; setp.ne.b32 p, %69, 0; "
           "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
           "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "
           "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
           "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
           "{%64, %65, %66, %67}, %68, p; }"
           : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]),
             "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]),
             "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
             "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]),
             "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]),
             "+r"(d[40]), "+r"(d[41]), "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]),
             "+r"(d[48]), "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
             "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor), "r"(static_cast<int>(add)));
}

#undef PTX_90
