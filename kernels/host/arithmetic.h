// Arithmetic of single numbers. What CUDA rounds once is rounded once here; what it only approximates is better here.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <math.h>

namespace emulator {

// The bits of `x` as a To.
template <class To, class From> To bits_as(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &x, sizeof to);
    return to;
}

// The integer `x` as a To: the nearest one that To has where it is out of range, 0 for NaN.
template <class To> To saturate(double x) {
    using Limits = std::numeric_limits<To>;
    if (x != x) return 0;
    if (x <= Limits::min()) return Limits::min();
    if (x >= Limits::max()) return Limits::max();
    return static_cast<To>(x);
}

} // namespace emulator

// min and max of the types, and the mixtures of types, that CUDA has them for.
#define MIN_MAX(A, B, RESULT)                                                                                          \
    inline RESULT min(A a, B b) { return static_cast<RESULT>(a) < static_cast<RESULT>(b) ? a : b; }                    \
    inline RESULT max(A a, B b) { return static_cast<RESULT>(a) > static_cast<RESULT>(b) ? a : b; }
MIN_MAX(int, int, int)
MIN_MAX(unsigned, unsigned, unsigned)
MIN_MAX(int, unsigned, unsigned)
MIN_MAX(unsigned, int, unsigned)
MIN_MAX(long, long, long)
MIN_MAX(unsigned long, unsigned long, unsigned long)
MIN_MAX(long, unsigned long, unsigned long)
MIN_MAX(unsigned long, long, unsigned long)
MIN_MAX(long long, long long, long long)
MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
MIN_MAX(long long, unsigned long long, unsigned long long)
MIN_MAX(unsigned long long, long long, unsigned long long)
#undef MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Bits of a number.
inline int __float_as_int(float x) { return emulator::bits_as<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::bits_as<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return emulator::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator::bits_as<double>(x); }

// f32, rounded to nearest even, never contracted.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// f32, approximated by a GPU.
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }

// Between integers and f32: to nearest even, towards zero, down, up.
inline int __float2int_rn(float x) { return emulator::saturate<int>(nearbyint(x)); }
inline int __float2int_rz(float x) { return emulator::saturate<int>(trunc(x)); }
inline int __float2int_rd(float x) { return emulator::saturate<int>(floor(x)); }
inline int __float2int_ru(float x) { return emulator::saturate<int>(ceil(x)); }
inline unsigned __float2uint_rn(float x) { return emulator::saturate<unsigned>(nearbyint(x)); }
inline unsigned __float2uint_rz(float x) { return emulator::saturate<unsigned>(trunc(x)); }
inline unsigned __float2uint_rd(float x) { return emulator::saturate<unsigned>(floor(x)); }
inline unsigned __float2uint_ru(float x) { return emulator::saturate<unsigned>(ceil(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

// Integers.
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    const unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
    return static_cast<unsigned>(both << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    const unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
    return static_cast<unsigned>(both >> (shift & 31));
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
    unsigned y = 0;
    for (int i = 0; i < 4; i++) y |= static_cast<unsigned>(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return y;
}

// c + the sum of four products of bytes, modulo 2^32.
inline int __dp4a(int a, int b, int c) {
    unsigned sum = static_cast<unsigned>(c);
    for (int i = 0; i < 4; i++) {
        sum += static_cast<unsigned>(static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i));
    }
    return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) c += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
    return c;
}
