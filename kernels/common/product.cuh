// What streaming products share: their argument.
#pragma once

#include "last.cuh"
#include "outcome.cuh"
#include "stream.cuh"

struct ProductArgs {
    StreamedWeight weight;
    const void* x;         // [tokens, k]
    const float* x_scales; // [tokens], of codes
    Outcome outcome;
    // Where blocks that share a tile leave their sums, [tiles, splits, tokens of a tile, rows of a tile]; and for each tile
    // how many have, zero before and after the launch.
    float* partial;
    unsigned* arrived;
    unsigned tokens;
    unsigned splits;          // blocks that share the columns of a tile
    unsigned steps_per_split; // of each but perhaps the last

    // A finished sum with the scales that were left to the end.
    template <class Format> __device__ float scaled(unsigned token, unsigned row, typename Format::Sum sum) const {
        float value = static_cast<float>(sum);
        if constexpr (std::is_same_v<typename Format::Sum, int>) {
            value = scaled_exact(sum, x_scales[token], row);
        } else if constexpr (Format::ROW_SCALES) {
            value *= load_elem(weight.scales, weight.scale_type, row);
        }
        return value;
    }

    // The same of codes times codes, with the scale of the token.
    __device__ float scaled_exact(int sum, float x_scale, unsigned row) const {
        return static_cast<float>(sum) * (x_scale * load_elem(weight.scales, weight.scale_type, row));
    }

    // Begins to bring near what the rows of a tile have to themselves, scales that are left to the end and bias: they are
    // read when the sums are done, and nothing is under way then that would hide the way to memory. Neither depends on what
    // ran before.
    template <class Format> __device__ void bring_rows(unsigned tile) const {
        if constexpr (Format::ROW_SCALES) bring_tile(weight.scales, weight.scale_type, tile);
        if (outcome.bias != nullptr) bring_tile(outcome.bias, outcome.type, tile);
    }

    __device__ void bring_tile(const void* rows, ElemType type, unsigned tile) const {
        const unsigned size = bytes_of(type), per_sector = SECTOR / size;
        for (unsigned row = tile * ROWS; row < min(weight.n, (tile + 1) * ROWS); row += per_sector) {
            bring_to_cache(static_cast<const unsigned char*>(rows) + static_cast<size_t>(row) * size);
        }
    }
};

// Whether this block is the last of those that share `tile`.
__device__ inline bool is_last_of_tile(const ProductArgs& args, unsigned tile) {
    return is_last_of(args.arrived + tile, args.splits);
}
