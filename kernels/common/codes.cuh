// Bytes as numbers: two's complement, and FP8 E4M3 (OCP 8-bit floating point: sign, four bits of exponent with bias 7,
// three of mantissa, +-448 at most). One at a time, and four at a time into pairs of a 16-bit type, where all are exact.
#pragma once

#include <ptx/bits.cuh>

#include "elem.cuh"

struct Int8Number {
    static __device__ float number(unsigned char code, int zero) {
        return static_cast<float>(static_cast<signed char>(code) - zero);
    }
};

// Exponent and mantissa in the place where f32 has them, and 2^120 to mend the bias. NaN codes never get here.
struct E4m3Number {
    static __device__ float number(unsigned char code, int) {
        const float magnitude = __uint_as_float((code & 0x7fu) << 20) * 0x1p120f;
        return code & 0x80u ? -magnitude : magnitude;
    }
};

// Four codes of a word as pairs: `widen` gives the first two and the last two, `widen_strided` bytes 0 and 2, and 1 and 3.
template <class T> struct Int8Code;

template <> struct Int8Code<bf16> {
    // bf16 keeps seven bits after the leading one, so 128 + the low seven bits of a code are exact; from that goes 128,
    // or 256 where the sign bit is set, which is the same bits with the sign on top.
    static __device__ void widen(uint32_t codes, uint32_t& low, uint32_t& high) {
        low = pair(permute_bytes(codes, 0, 0x4140));
        high = pair(permute_bytes(codes, 0, 0x4342));
    }
    static __device__ void widen_strided(uint32_t codes, uint32_t& even, uint32_t& odd) {
        even = pair(codes);
        odd = pair(codes >> 8);
    }
    // The codes in the lower byte of each half; the upper ones may hold anything.
    static __device__ uint32_t pair(uint32_t q) {
        return Pair<bf16>::subtract(mask_or(q, 0x007f007f, 0x43004300), mask_or(q, 0x00800080, 0x43004300));
    }
};

template <> struct Int8Code<f16> {
    // 1024 + (q + 128) has the unsigned code in its low byte.
    static __device__ void widen(uint32_t codes, uint32_t& low, uint32_t& high) {
        const uint32_t u = codes ^ 0x80808080;
        low = Pair<f16>::subtract(permute_bytes(u, 0x64646464, 0x4140), 0x64806480);
        high = Pair<f16>::subtract(permute_bytes(u, 0x64646464, 0x4342), 0x64806480);
    }
    static __device__ void widen_strided(uint32_t codes, uint32_t& even, uint32_t& odd) {
        const uint32_t u = codes ^ 0x80808080;
        even = Pair<f16>::subtract(permute_bytes(u, 0x64646464, 0x4240), 0x64806480);
        odd = Pair<f16>::subtract(permute_bytes(u, 0x64646464, 0x4341), 0x64806480);
    }
};

// FP8 E4M3: exponent and mantissa go where T has them, and a power of two mends the bias. Exact, subnormals too; the two
// codes of NaN never get here: a weight that has them is refused when it is loaded, and the cache's are never written.
template <class T> struct E4m3Code;

template <> struct E4m3Code<bf16> {
    static __device__ void widen(uint32_t codes, uint32_t& low, uint32_t& high) {
        low = pair(permute_bytes(codes, 0, 0x1404));
        high = pair(permute_bytes(codes, 0, 0x3424));
    }
    static __device__ void widen_strided(uint32_t codes, uint32_t& even, uint32_t& odd) {
        even = pair(codes << 8);
        odd = pair(codes);
    }
    // The codes in the upper byte of each half; the lower ones may hold anything. 0x7b80 is 2^120.
    static __device__ uint32_t pair(uint32_t q) {
        const uint32_t bits = mask_or(q >> 4, 0x07f007f0, q & 0x80008000);
        return Pair<bf16>::multiply_add(bits, 0x7b807b80, 0x80008000);
    }
};

template <> struct E4m3Code<f16> {
    static __device__ void widen(uint32_t codes, uint32_t& low, uint32_t& high) {
        low = pair(permute_bytes(codes, 0, 0x1404));
        high = pair(permute_bytes(codes, 0, 0x3424));
    }
    static __device__ void widen_strided(uint32_t codes, uint32_t& even, uint32_t& odd) {
        even = pair(codes << 8);
        odd = pair(codes);
    }
    // As above. 0x5c00 is 2^8.
    static __device__ uint32_t pair(uint32_t q) {
        const uint32_t bits = mask_or(q >> 1, 0x3f803f80, q & 0x80008000);
        return Pair<f16>::multiply_add(bits, 0x5c005c00, 0x80008000);
    }
};

// The code of E4M3 nearest to `x`, half to even, of the largest magnitude beyond it; never one of the two of NaN.
__device__ inline unsigned char nearest_e4m3(float x) {
    const unsigned sign = __float_as_uint(x) >> 24 & 0x80u;
    const float magnitude = fminf(fabsf(x), 448.0f); // a NaN becomes 448
    // Below 2^-6 the codes count steps of 2^-9; the next one after them is 2^-6 itself.
    if (magnitude < 0x1p-6f) return static_cast<unsigned char>(sign | __float2uint_rn(magnitude * 512.0f));
    const unsigned bits = __float_as_uint(magnitude);
    // Half a step less one, and one more where the last bit that stays is odd; then the exponent's bias, 127 - 7.
    const unsigned rounded = bits + 0x7ffffu + (bits >> 20 & 1u);
    return static_cast<unsigned char>(sign | ((rounded >> 20) - (120u << 3)));
}
