// What closes a step of decoding; see advance.cu.
#pragma once

#include <ptx/sync.cuh>

struct AdvanceArgs {
    const unsigned* picked; // [rows]
    unsigned* tokens;       // [first + rows], as positions
    unsigned* positions;
    unsigned* steps;          // [1]
    unsigned long long* told; // [slots, width] in the host's memory
    unsigned first, rows, width, slots;
    unsigned ends; // not zero: the step is over

    // By one block.
    __device__ void run() const {
        const unsigned step = *steps;
        __syncthreads();
        unsigned long long* const line = told + static_cast<size_t>(step % slots) * width + first;
        for (unsigned r = threadIdx.x; r < rows; r += blockDim.x) {
            const unsigned token = picked[r];
            tokens[first + r] = token;
            positions[first + r] += 1;
            tell_host(&line[r], static_cast<unsigned long long>(step + 1) << 32 | token);
        }
        if (threadIdx.x == 0 && ends != 0) *steps = step + 1;
    }
};
