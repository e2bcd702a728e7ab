// Pieces of a register.
#pragma once

#include "../arithmetic.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

inline unsigned computed_anew(unsigned x) { return x; }

inline uint32_t mask_or(uint32_t x, uint32_t mask, uint32_t bits) { return (x & mask) | bits; }

inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    uint32_t y = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t pick = selector >> 4 * i & 15;
        const uint32_t byte = static_cast<uint32_t>(both >> (pick & 7) * 8 & 0xff);
        const uint32_t spread = byte & 0x80 ? 0xff : 0;
        y |= (pick & 8 ? spread : byte) << 8 * i;
    }
    return y;
}

namespace emulator {

// Both halves of a register by an operation on one.
template <class Op> uint32_t by_halves(Op op) {
    return static_cast<uint32_t>(op(0)) | static_cast<uint32_t>(op(16)) << 16;
}

} // namespace emulator

template <class X> struct Pair;

template <> struct Pair<__nv_bfloat16> {
    static uint32_t both(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)) * 0x10001u; }
    static uint32_t subtract(uint32_t a, uint32_t b) {
        return emulator::by_halves([=](int at) { return __hsub(half(a, at), half(b, at)).bits; });
    }
    static uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
        return emulator::by_halves([=](int at) { return __hfma(half(a, at), half(b, at), half(c, at)).bits; });
    }

  private:
    static __nv_bfloat16 half(uint32_t pair, int at) { return {static_cast<unsigned short>(pair >> at)}; }
};

template <> struct Pair<__half> {
    static uint32_t both(float x) { return __half_as_ushort(__float2half_rn(x)) * 0x10001u; }
    static uint32_t subtract(uint32_t a, uint32_t b) {
        return emulator::by_halves([=](int at) { return __hsub(half(a, at), half(b, at)).bits; });
    }
    static uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
        return emulator::by_halves([=](int at) { return __hfma(half(a, at), half(b, at), half(c, at)).bits; });
    }

  private:
    static __half half(uint32_t pair, int at) { return {static_cast<unsigned short>(pair >> at)}; }
};
