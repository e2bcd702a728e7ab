// Order between blocks of a grid, and between a grid and the one before it in the stream.
#pragma once

// Adds 1 to a counter that blocks share and gives what it was. All that the calling thread, and the threads that a barrier
// ordered before it, wrote earlier is visible to whoever sees the sum; and what they wrote, to this thread.
__device__ inline unsigned count_up(unsigned* counter) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

// The same where nobody asks what it was.
__device__ inline void arrive_at(unsigned* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

// Waits until such a counter has reached `count`. What those wrote before who have counted themselves is visible to the
// calling thread then, and to the threads that a later barrier orders behind it. Only the last look makes it so: each that
// does empties the first-level cache, which other blocks of the multiprocessor still use.
__device__ inline void wait_for_count(const unsigned* counter, unsigned count) {
    unsigned now;
    do {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    } while (now < count);
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
}

// Waits until the grids that this one was allowed to overlap are done and their writes visible. Weights may be read before
// it; what a kernel computed may not be read (through no `const __restrict__` pointer either, for the order of such loads
// is free), nor anything overwritten that one may still read. Every kernel waits: a grid
// that did not could be done before the one ahead of it, and the next in line would wait for nothing. Does nothing where a
// launch did not ask for overlap, and before compute capability 9.
__device__ inline void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets a dependent grid start as soon as there is room for it; its own wait still covers all of this grid.
__device__ inline void let_successor_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Both, where there is nothing to do ahead of the wait.
__device__ inline void follow_predecessor() {
    let_successor_start();
    wait_for_predecessor();
}

// Writes a word into memory of the host that a thread there watches: at once, and no later than the kernel ends.
__device__ inline void tell_host(unsigned long long* word, unsigned long long value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}
