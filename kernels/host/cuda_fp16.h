// Half precision (IEEE binary16): the part of CUDA's header that kernels use.
#pragma once

#include "rounding.h"
#include "vectors.h"

struct __half {
    unsigned short bits;
};

struct alignas(4) __half2 {
    __half x, y;
};

using half = __half;
using half2 = __half2;

inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline short __half_as_short(__half x) { return static_cast<short>(x.bits); }
inline __half __short_as_half(short bits) { return {static_cast<unsigned short>(bits)}; }

inline float __half2float(__half x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
    // As an f32 of the same fraction, whose exponent is off by the difference of the biases; exact for subnormals too.
    const float scaled = emulator::bits_as<float>(magnitude) * 0x1p112f;
    const uint32_t special = magnitude >= 0x7c00u << 13 ? 0x7f800000u : 0;
    return emulator::bits_as<float>(emulator::bits_as<uint32_t>(scaled) | special | sign);
}

inline __half __double2half(double x) { return {emulator::round_to_16_bits<emulator::HalfFormat>(x)}; }
inline __half __float2half_rn(float x) { return __double2half(x); }
inline __half __float2half(float x) { return __double2half(x); }
inline __half __int2half_rn(int x) { return __double2half(x); }
inline __half __uint2half_rn(unsigned x) { return __double2half(x); }

// Arithmetic, rounded once.
inline __half __hadd(__half a, __half b) { return __float2half_rn(__half2float(a) + __half2float(b)); }
inline __half __hsub(__half a, __half b) { return __float2half_rn(__half2float(a) - __half2float(b)); }
inline __half __hmul(__half a, __half b) { return __float2half_rn(__half2float(a) * __half2float(b)); }
inline __half __hfma(__half a, __half b, __half c) {
    return __double2half(emulator::multiply_add_odd(__half2float(a), __half2float(b), __half2float(c)));
}
inline __half __hneg(__half x) { return {static_cast<unsigned short>(x.bits ^ 0x8000)}; }
inline __half __habs(__half x) { return {static_cast<unsigned short>(x.bits & 0x7fff)}; }
inline bool __hisnan(__half x) { return (x.bits & 0x7fff) > 0x7c00; }

inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline __half2 __float2half2_rn(float x) { return __half2half2(__float2half_rn(x)); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }
inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
