// Where a product puts its results, and what is added on the way.
#pragma once

#include "elem.cuh"

// out[t, n] (+)= scaled sum (+ bias[n]), in f32, rounded once to out's type.
struct Outcome {
    void* out;             // [tokens, row_stride]
    const void* bias;      // [n], of out's type, or null
    ElemType type;         // of out
    unsigned row_stride;   // elements between the results of two tokens
    unsigned first_column; // where feature 0 goes
    unsigned accumulate;   // not zero: add to what is there

    // A sum with what belongs to its feature.
    __device__ float biased(unsigned row, float value) const {
        return bias == nullptr ? value : __fadd_rn(value, load_elem(bias, type, row));
    }

    __device__ void store(unsigned token, unsigned row, float value) const {
        const size_t at = static_cast<size_t>(token) * row_stride + first_column + row;
        value = biased(row, value);
        if (accumulate != 0) value = __fadd_rn(value, load_elem(out, type, at));
        store_elem(out, type, at, value);
    }
};
