// stream: plain traffic, for ceilings: how fast memory is read and copied at best, and what a launch alone takes.
//
//   read_direct_<loads>    x u32 [count] to out u32 [blocks]: each thread keeps that many loads of 16 bytes in flight
//   read_staged_<stages>   the same by asynchronous copies to shared memory, that many of 16 bytes in flight per thread
//   copy_words             x u32 [count] to out u32 [count]: four loads of 16 bytes in flight per thread
//   nothing                does nothing
//   nothing_overlapping    waits for the grid before it and lets the next one start
//
// An element of `out` of a reader is the exclusive or of all words that its block has read, so that no load can be left
// out, and that of all elements is the exclusive or of x. Threads stride over the array; any grid of blocks of 256 threads
// will do. x and out are aligned to 16 bytes.
#include <ptx/copy.cuh>
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include <cstdint>

#include "common/reduce.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned WORDS = 4; // of a load

struct Xor {
    __device__ unsigned operator()(unsigned a, unsigned b) const { return a ^ b; }
};

// This thread among all of the grid, and how many there are.
__device__ inline size_t first_place() { return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline size_t places() { return static_cast<size_t>(gridDim.x) * blockDim.x; }

__device__ inline unsigned folded(const uint4& v) { return v.x ^ v.y ^ v.z ^ v.w; }

// What is left of an array after its whole loads, one word per thread.
__device__ inline unsigned rest(const unsigned* __restrict__ x, size_t count) {
    const size_t i = count / WORDS * WORDS + first_place();
    return i < count ? x[i] : 0;
}

template <unsigned LOADS>
__device__ void read_direct(const unsigned* __restrict__ x, size_t count, unsigned* __restrict__ out) {
    follow_predecessor();
    const uint4* const loads = reinterpret_cast<const uint4*>(x);
    const size_t end = count / WORDS, step = places();
    unsigned found = rest(x, count);
    size_t i = first_place();
    for (; i + (LOADS - 1) * step < end; i += LOADS * step) {
        uint4 v[LOADS];
#pragma unroll
        for (unsigned j = 0; j < LOADS; j++) v[j] = loads[i + j * step];
#pragma unroll
        for (unsigned j = 0; j < LOADS; j++) found ^= folded(v[j]);
    }
    for (; i < end; i += step) found ^= folded(loads[i]);
    found = block_reduce(found, Xor());
    if (threadIdx.x == 0) out[blockIdx.x] = found;
}

template <unsigned STAGES>
__device__ void read_staged(const unsigned* __restrict__ x, size_t count, unsigned* __restrict__ out) {
    follow_predecessor();
    DYNAMIC_SHARED(shared);
    // A thread copies only what it reads itself, so its own wait is enough.
    uint4* const ring = reinterpret_cast<uint4*>(shared) + threadIdx.x;
    const uint4* const loads = reinterpret_cast<const uint4*>(x);
    const size_t end = count / WORDS, step = places();
    const auto start = [&](unsigned stage, size_t i) {
        // One past the end copies zeros, which change nothing.
        copy16<Keep::Short>(ring + stage * THREADS, loads + (i < end ? i : 0), i < end);
        copies_commit();
    };
    size_t i = first_place();
#pragma unroll
    for (unsigned stage = 0; stage < STAGES; stage++) start(stage, i + stage * step);
    unsigned found = rest(x, count);
    for (; i < end; i += STAGES * step) {
#pragma unroll
        for (unsigned stage = 0; stage < STAGES; stage++) {
            copies_wait<STAGES - 1>();
            found ^= folded(ring[stage * THREADS]);
            start(stage, i + (STAGES + stage) * step);
        }
    }
    copies_wait<0>();
    found = block_reduce(found, Xor());
    if (threadIdx.x == 0) out[blockIdx.x] = found;
}

// `blocks` of each fit on a multiprocessor at once.
#define READER(loads, blocks)                                                                                          \
    KERNEL_OF(THREADS, blocks, read_direct_##loads, const unsigned* x, size_t count, unsigned* out) {                  \
        read_direct<loads>(x, count, out);                                                                             \
    }
READER(1, 8)
READER(2, 8)
READER(4, 6)
READER(8, 4)

#define STAGED_READER(stages)                                                                                          \
    KERNEL_OF(THREADS, 4, read_staged_##stages, const unsigned* x, size_t count, unsigned* out) {                      \
        read_staged<stages>(x, count, out);                                                                            \
    }
STAGED_READER(4)
STAGED_READER(8)

KERNEL_OF(THREADS, 1, copy_words, const unsigned* x, size_t count, unsigned* out) {
    follow_predecessor();
    constexpr unsigned LOADS = 4;
    const uint4* const from = reinterpret_cast<const uint4*>(x);
    uint4* const to = reinterpret_cast<uint4*>(out);
    const size_t end = count / WORDS, step = places();
    size_t i = first_place();
    for (; i + (LOADS - 1) * step < end; i += LOADS * step) {
        uint4 v[LOADS];
#pragma unroll
        for (unsigned j = 0; j < LOADS; j++) v[j] = from[i + j * step];
#pragma unroll
        for (unsigned j = 0; j < LOADS; j++) to[i + j * step] = v[j];
    }
    for (; i < end; i += step) to[i] = from[i];
    const size_t last = end * WORDS + first_place();
    if (last < count) out[last] = x[last];
}

KERNEL_OF(THREADS, 1, nothing, unsigned) {}

KERNEL_OF(THREADS, 1, nothing_overlapping, unsigned) {
    wait_for_predecessor();
    let_successor_start();
}
