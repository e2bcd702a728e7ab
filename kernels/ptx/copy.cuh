// Asynchronous copies from global to shared memory, 16 bytes (or 4) each, both addresses aligned to that. A thread sees
// what its own copies brought once it has waited for their group; other threads see it after a barrier that follows the
// wait.
#pragma once

#include <cstdint>

// How long the caches should keep what is copied.
enum class Keep {
    Short, // read once by this grid: weights
    Long,  // read again by other blocks: activations
};

// `valid` false: the 16 bytes become zeros and `global` is not read.
template <Keep KEEP> __device__ inline void copy16(void* shared, const void* global, bool valid) {
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    if constexpr (KEEP == Keep::Short) {
        // Past the first-level cache. No policy for the second, evict_first say: where the shared address has a uniform
        // part, ptxas 13.0 encodes the copy with wrong registers for it and for the policy, and Hopper takes it for an
        // illegal instruction. tests/cuda_build looks for such code.
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
    }
}

// The same of 4 bytes.
__device__ inline void copy4(void* shared, const void* global, bool valid) {
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(valid ? 4 : 0) : "memory");
}

// Begins to bring the sector at `global` into the second-level cache, for loads that come later. Nothing is waited for.
constexpr unsigned SECTOR = 32; // bytes
__device__ inline void bring_to_cache(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory");
}

// Ends a group of copies; a group may be empty.
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the PENDING latest groups of this thread are under way.
template <int PENDING> __device__ inline void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
