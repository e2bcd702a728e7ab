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

    // The result of a token and a feature.
    __device__ void store(unsigned token, unsigned row, float value) const {
        const size_t at = static_cast<size_t>(token) * row_stride + first_column + row;
        value = biased(row, value);
        if (accumulate != 0) value = __fadd_rn(value, load_elem(out, type, at));
        store_elem(out, type, at, value);
    }
};

// The same of N features side by side, from `row` on, for one thread that gives the results of many tokens: what features
// have to themselves is read once, and results go by words where out is aligned for them.
template <unsigned N> struct OutcomeOfRows {
    const Outcome& outcome;
    const unsigned row, count; // the first feature, and how many of N there are
    float bias[N];

    __device__ OutcomeOfRows(const Outcome& outcome, unsigned row, unsigned features)
        : outcome(outcome), row(row), count(row < features ? min(N, features - row) : 0) {
#pragma unroll
        for (unsigned i = 0; i < N; i++) {
            bias[i] = outcome.bias != nullptr && i < count ? load_elem(outcome.bias, outcome.type, row + i) : 0.0f;
        }
    }

    // Of the tokens `first`, `first + apart` and so on before `end`, U at most; `values` are their scaled sums. All loads
    // are under way together.
    template <unsigned U>
    __device__ void store(unsigned first, unsigned apart, unsigned end, float (&values)[U][N]) const {
        if (outcome.bias != nullptr) {
#pragma unroll
            for (unsigned u = 0; u < U; u++) {
#pragma unroll
                for (unsigned i = 0; i < N; i++) values[u][i] = __fadd_rn(values[u][i], bias[i]);
            }
        }
        switch (outcome.type) {
            case ELEM_F16: return store_as<f16>(first, apart, end, values);
            case ELEM_BF16: return store_as<bf16>(first, apart, end, values);
            default: return store_as<f32>(first, apart, end, values);
        }
    }

    template <class T, unsigned U>
    __device__ void store_as(unsigned first, unsigned apart, unsigned end, float (&values)[U][N]) const {
        using Raw = std::conditional_t<N * sizeof(T) == 8, uint2, uint4>;
        static_assert(sizeof(Raw) == N * sizeof(T), "the features of a token are a word");
        T* const out = static_cast<T*>(outcome.out) + outcome.first_column + row;
        const bool whole = count == N && outcome.row_stride % N == 0 && reinterpret_cast<size_t>(out) % sizeof(Raw) == 0;
        const auto at = [&](unsigned u) { return out + static_cast<size_t>(first + u * apart) * outcome.row_stride; };
        if (outcome.accumulate != 0) {
            T there[U][N] = {};
#pragma unroll
            for (unsigned u = 0; u < U; u++) {
                if (first + u * apart >= end) continue;
                if (whole) {
                    const Raw raw = load_raw<Raw>(at(u));
                    memcpy(there[u], &raw, sizeof raw);
                } else {
#pragma unroll
                    for (unsigned i = 0; i < N; i++) {
                        if (i < count) there[u][i] = at(u)[i];
                    }
                }
            }
#pragma unroll
            for (unsigned u = 0; u < U; u++) {
#pragma unroll
                for (unsigned i = 0; i < N; i++) values[u][i] = __fadd_rn(values[u][i], to_f32(there[u][i]));
            }
        }
#pragma unroll
        for (unsigned u = 0; u < U; u++) {
            if (first + u * apart >= end) continue;
            T rounded[N];
#pragma unroll
            for (unsigned i = 0; i < N; i++) rounded[i] = from_f32<T>(values[u][i]);
            if (whole) {
                Raw raw;
                memcpy(&raw, rounded, sizeof raw);
                store_raw(at(u), raw);
            } else {
#pragma unroll
                for (unsigned i = 0; i < N; i++) {
                    if (i < count) at(u)[i] = rounded[i];
                }
            }
        }
    }
};
