// Rows picked by number; see embed.cu.
#pragma once

#include "elem.cuh"

template <class Table, class Out> struct GatherArgs {
    const unsigned* ids; // [count]
    const Table* table;  // [rows, width]
    Out* out;            // [count, width]
    unsigned rows, width;

    // One row of out, by a block. An id outside the table gives NaN.
    __device__ void run(size_t row) const {
        const size_t id = ids[row];
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
            const float value = id < rows ? to_f32(table[id * width + i]) : nanf("");
            out[row * width + i] = from_f32<Out>(value);
        }
    }
};
