// Rounding to 16-bit floating-point types, by the bits.
#pragma once

#include "arithmetic.h"

#include <cstdint>

namespace emulator {

// A binary format of 16 bits: a sign, an exponent, FRACTION bits of fraction; MIN_EXPONENT is that of the smallest
// normal number, INFINITE the bits of infinity.
template <int FRACTION_BITS, int SMALLEST_EXPONENT, uint16_t INFINITY_BITS> struct Format {
    static constexpr int FRACTION = FRACTION_BITS;
    static constexpr int MIN_EXPONENT = SMALLEST_EXPONENT;
    static constexpr uint16_t INFINITE = INFINITY_BITS;
};
using HalfFormat = Format<10, -14, 0x7c00>;
using Bfloat16Format = Format<7, -126, 0x7f80>;
constexpr uint16_t NAN_BITS = 0x7fff; // the NaN that a GPU gives

// The bits of `x` rounded once, half to even.
template <class To> uint16_t round_to_16_bits(double x) {
    const uint64_t bits = bits_as<uint64_t>(x);
    const uint16_t sign = static_cast<uint16_t>(bits >> 63 << 15);
    const uint64_t magnitude = bits & ~(uint64_t(1) << 63);
    if (magnitude > uint64_t(0x7ff) << 52) return NAN_BITS;
    const int exponent = static_cast<int>(magnitude >> 52) - 1023;
    const int below = exponent < To::MIN_EXPONENT ? To::MIN_EXPONENT - exponent : 0;
    const int shift = 52 - To::FRACTION + below;
    if (shift > 54) return sign; // less than half of the smallest number; f64's own subnormals are too
    const uint64_t significand = (magnitude & ((uint64_t(1) << 52) - 1)) | uint64_t(1) << 52;
    const uint64_t rest = significand & ((uint64_t(1) << shift) - 1);
    const uint64_t half = uint64_t(1) << (shift - 1);
    uint64_t result = significand >> shift;
    result += rest > half || (rest == half && (result & 1) != 0);
    // Where rounding carries into the next exponent, the addition does too.
    if (below == 0) result += static_cast<uint64_t>(exponent - To::MIN_EXPONENT) << To::FRACTION;
    return static_cast<uint16_t>(sign | (result < To::INFINITE ? result : To::INFINITE));
}

// a * b + c in f64, where a * b is exact in it, such that rounding the result to 16 bits rounds the exact sum once:
// where the sum is inexact its last bit is odd, so that it never looks like a tie.
// Source: Boldo and Melquiond, "Emulation of a FMA and Correctly Rounded Sums: Proved Algorithms Using Rounding to
// Odd", IEEE Transactions on Computers 57(4), 2008; the error of the sum is Knuth's.
inline double multiply_add_odd(double a, double b, double c) {
    const double product = a * b;
    const double sum = product + c;
    if (!(fabs(sum) < INFINITY)) return sum;
    const double c_part = sum - product;
    const double error = (product - (sum - c_part)) + (c - c_part);
    const uint64_t bits = bits_as<uint64_t>(sum);
    if (error == 0 || (bits & 1) != 0) return sum;
    return bits_as<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

} // namespace emulator
