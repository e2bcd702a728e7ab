// Pieces of a register: the three-input logic unit, the byte permuter, and arithmetic on two 16-bit numbers at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// x, as if nobody knew what it is: what is computed of it is computed here, and no register holds it from before a loop.
__device__ inline unsigned computed_anew(unsigned x) {
    asm volatile("" : "+r"(x));
    return x;
}

// (x & mask) | bits, one instruction.
__device__ inline uint32_t mask_or(uint32_t x, uint32_t mask, uint32_t bits) {
    uint32_t y;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(bits));
    return y;
}

// Four bytes picked from the eight of (low, high) by the nibbles of `selector`, 0 being the lowest byte of `low`.
// Bit 3 of a nibble spreads the sign of its byte over the result's byte.
__device__ inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t y;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(low), "r"(high), "r"(selector));
    return y;
}

// Two X in a register, the first in the low half; every result is rounded once, half to even.
template <class X> struct Pair;

template <> struct Pair<__nv_bfloat16> {
    static __device__ uint32_t both(float x) {
        const uint32_t half = __bfloat16_as_ushort(__float2bfloat16_rn(x));
        return half | half << 16;
    }
    static __device__ uint32_t subtract(uint32_t a, uint32_t b) {
        uint32_t y;
        asm("{.reg .b32 minus_one; mov.b32 minus_one, 0xbf80bf80; fma.rn.bf16x2 %0, %2, minus_one, %1;}"
            : "=r"(y)
            : "r"(a), "r"(b));
        return y;
    }
    static __device__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
        uint32_t y;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
        return y;
    }
};

template <> struct Pair<__half> {
    static __device__ uint32_t both(float x) {
        const uint32_t half = __half_as_ushort(__float2half_rn(x));
        return half | half << 16;
    }
    static __device__ uint32_t subtract(uint32_t a, uint32_t b) {
        uint32_t y;
        asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
        return y;
    }
    static __device__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
        uint32_t y;
        asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
        return y;
    }
};
