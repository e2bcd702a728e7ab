// How blocks that share a piece of work find the last of them.
#pragma once

#include <ptx/sync.cuh>

// Whether this block is the last of `blocks` to count itself here; whatever the others wrote before is then visible to all
// its threads. Makes the counter ready for the next launch.
__device__ inline bool is_last_of(unsigned* counter, unsigned blocks) {
    __shared__ unsigned last;
    __syncthreads(); // all of this block has written
    if (threadIdx.x == 0) {
        last = count_up(counter) == blocks - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    return last != 0;
}
