// Where a linear layer puts its results: a window of columns in rows of a wider matrix, with what is added on the way.
#pragma once

#include "elem.cuh"

template <class T> struct Epilogue {
    T* out;                // [tokens, row_stride]
    const T* bias;         // [n], or null
    unsigned row_stride;   // elements between the results of two tokens
    unsigned first_column; // where feature 0 goes
    unsigned accumulate;   // not zero: add to what is there

    // Stores feature `n` of token `t`: value + bias + what was there, in f32, rounded once.
    __device__ void store(size_t t, unsigned n, float value) const {
        T& target = out[t * row_stride + first_column + n];
        if (bias != nullptr) value = __fadd_rn(value, to_f32(bias[n]));
        if (accumulate != 0) value = __fadd_rn(value, to_f32(target));
        target = from_f32<T>(value);
    }
};
