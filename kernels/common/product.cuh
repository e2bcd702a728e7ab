// What streaming products share: their argument, and where finished sums go.
#pragma once

#include <ptx/sync.cuh>

#include "stream.cuh"

// out[t, n] (+)= scaled sum (+ bias[n]), in f32, rounded once to out's type.
struct Outcome {
    void* out;             // [tokens, row_stride]
    const void* bias;      // [n], of out's type, or null
    ElemType type;         // of out
    unsigned row_stride;   // elements between the results of two tokens
    unsigned first_column; // where feature 0 goes
    unsigned accumulate;   // not zero: add to what is there

    __device__ void store(unsigned token, unsigned row, float value) const {
        const size_t at = static_cast<size_t>(token) * row_stride + first_column + row;
        if (bias != nullptr) value = __fadd_rn(value, load_elem(bias, type, row));
        if (accumulate != 0) value = __fadd_rn(value, load_elem(out, type, at));
        store_elem(out, type, at, value);
    }
};

struct ProductArgs {
    StreamedWeight weight;
    const void* x;         // [tokens, k]
    const float* x_scales; // [tokens], of codes
    Outcome outcome;
    // Where blocks that share a tile leave their sums, [tiles, splits, tokens of a tile, rows of a tile]; and for each tile how
    // many have, zero before and after the launch.
    float* partial;
    unsigned* arrived;
    unsigned tokens;
    unsigned splits;          // blocks that share the columns of a tile
    unsigned steps_per_split; // of each but perhaps the last

    // A finished sum becomes a result: scales that were left to the end, then the outcome.
    template <class Format> __device__ void finish(unsigned token, unsigned row, typename Format::Sum sum) const {
        float value = static_cast<float>(sum);
        if constexpr (std::is_same_v<typename Format::Sum, int>) {
            value *= x_scales[token] * load_elem(weight.scales, weight.scale_type, row);
        } else if constexpr (Format::ROW_SCALES) {
            value *= load_elem(weight.scales, weight.scale_type, row);
        }
        outcome.store(token, row, value);
    }
};

// Whether this block is the last of those that share `tile` to get here; whatever the others wrote before is then visible
// to all its threads. Makes the counter ready for the next launch.
__device__ inline bool is_last_of_tile(const ProductArgs& args, unsigned tile) {
    __shared__ unsigned last;
    __syncthreads(); // all of this block has written
    if (threadIdx.x == 0) {
        last = count_up(args.arrived + tile) == args.splits - 1;
        if (last) args.arrived[tile] = 0;
    }
    __syncthreads();
    return last != 0;
}
