// Reductions over the threads of a warp or a block. Every thread gets the result, and its order of additions depends on
// the block size alone: the same launch gives the same bits.
#pragma once

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline unsigned lane_id() { return threadIdx.x % WARP; }
__device__ inline unsigned warp_id() { return threadIdx.x / WARP; }

struct Sum {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};

// The larger one, NaN if either is: a bad value must not vanish in a reduction.
struct MaxOrNan {
    __device__ float operator()(float a, float b) const { return a < b || b != b ? b : a; }
};

// Combines one value of every lane; all lanes of the warp take part.
template <class Op, class T> __device__ T warp_reduce(T value, Op op) {
#pragma unroll
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        value = op(value, __shfl_xor_sync(ALL_LANES, value, distance));
    }
    return value;
}

// Combines one value of every thread; all threads of the block take part. blockDim.x is a multiple of 32, at most 1024.
template <class Op, class T> __device__ T block_reduce(T value, Op op) {
    __shared__ T partial[WARP];
    value = warp_reduce(value, op);
    __syncthreads(); // `partial` may still be read from the call before
    if (lane_id() == 0) partial[warp_id()] = value;
    __syncthreads();
    T total = partial[0];
    for (unsigned i = 1; i < blockDim.x / WARP; i++) total = op(total, partial[i]);
    return total;
}
