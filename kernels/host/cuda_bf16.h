// bfloat16, the upper half of an f32: the part of CUDA's header that kernels use.
#pragma once

#include "rounding.h"
#include "vectors.h"

struct __nv_bfloat16 {
    unsigned short bits;
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline short __bfloat16_as_short(__nv_bfloat16 x) { return static_cast<short>(x.bits); }
inline __nv_bfloat16 __short_as_bfloat16(short bits) { return {static_cast<unsigned short>(bits)}; }

inline float __bfloat162float(__nv_bfloat16 x) {
    return emulator::bits_as<float>(static_cast<uint32_t>(x.bits) << 16);
}

inline __nv_bfloat16 __double2bfloat16(double x) {
    return {emulator::round_to_16_bits<emulator::Bfloat16Format>(x)};
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __double2bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __double2bfloat16(x); }
inline __nv_bfloat16 __int2bfloat16_rn(int x) { return __double2bfloat16(x); }
inline __nv_bfloat16 __uint2bfloat16_rn(unsigned x) { return __double2bfloat16(x); }

// Arithmetic, rounded once.
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    const double sum = emulator::multiply_add_odd(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c));
    return __double2bfloat16(sum);
}
inline __nv_bfloat16 __hadd(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __double2bfloat16(emulator::multiply_add_odd(__bfloat162float(a), 1.0, __bfloat162float(b)));
}
inline __nv_bfloat16 __hsub(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __double2bfloat16(emulator::multiply_add_odd(__bfloat162float(b), -1.0, __bfloat162float(a)));
}
inline __nv_bfloat16 __hmul(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __double2bfloat16(static_cast<double>(__bfloat162float(a)) * __bfloat162float(b));
}
inline __nv_bfloat16 __hneg(__nv_bfloat16 x) { return {static_cast<unsigned short>(x.bits ^ 0x8000)}; }
inline __nv_bfloat16 __habs(__nv_bfloat16 x) { return {static_cast<unsigned short>(x.bits & 0x7fff)}; }
inline bool __hisnan(__nv_bfloat16 x) { return (x.bits & 0x7fff) > 0x7f80; }

inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __bfloat162bfloat162(__float2bfloat16_rn(x)); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
