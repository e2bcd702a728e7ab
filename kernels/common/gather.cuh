// Rows picked by number; see embed.cu.
#pragma once

#include <type_traits>

#include "elem.cuh"
#include "piece.cuh"

template <class Table, class Out> struct GatherArgs {
    const unsigned* ids; // [count]
    const Table* table;  // [rows, width]
    Out* out;            // [count, width]
    unsigned rows, width;

    // One row of out, by a block. An id outside the table gives NaN.
    __device__ void run(size_t row) const {
        const size_t id = ids[row];
        if constexpr (std::is_same_v<Table, Out>) {
            // Number by number, a row would take as many ways to memory as a thread has numbers.
            if (id < rows && width * sizeof(Out) % PIECE == 0 && is_aligned16(table) && is_aligned16(out)) {
                constexpr unsigned EACH = PIECE / sizeof(Out);
                for (unsigned i = threadIdx.x * EACH; i < width; i += blockDim.x * EACH) {
                    store_raw(out + row * width + i, load_raw<uint4>(table + id * width + i));
                }
                return;
            }
        }
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
            const float value = id < rows ? to_f32(table[id * width + i]) : nanf("");
            out[row * width + i] = from_f32<Out>(value);
        }
    }
};
