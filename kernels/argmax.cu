// argmax: the index of the largest element of each row; of equal ones the lowest. NaN counts only where there is nothing
// else, and then the answer is 0xffffffff.
//
//   x [R, width] · out u32 [R]
//
// Kernels: argmax_<type>. One block per row.
#include "common/elem.cuh"
#include "common/reduce.cuh"

constexpr unsigned NONE = 0xffffffffu;

struct Best {
    float value;
    unsigned index; // NONE before any number was seen

    // Whether this one goes before `other`. NONE is the largest index, and any number goes before it.
    __device__ bool beats(const Best& other) const {
        if (other.index == NONE || index == NONE) return index < other.index;
        return value > other.value || (value == other.value && index < other.index);
    }
};

__device__ inline Best better(const Best& a, const Best& b) { return b.beats(a) ? b : a; }

template <class T>
__device__ void argmax(const T* __restrict__ x, unsigned* __restrict__ out, unsigned width) {
    __shared__ Best partial[WARP];
    const size_t r = blockIdx.x;
    Best best = {0.0f, NONE};
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = to_f32(x[r * width + i]);
        if (!isnan(value)) best = better(best, {value, i});
    }
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        best = better(best, {__shfl_xor_sync(ALL_LANES, best.value, distance),
                             __shfl_xor_sync(ALL_LANES, best.index, distance)});
    }
    if (lane_id() == 0) partial[warp_id()] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned i = 1; i < blockDim.x / WARP; i++) best = better(best, partial[i]);
        out[r] = best.index;
    }
}

#define KERNEL(T)                                                                                                      \
    extern "C" __global__ void argmax_##T(const T* x, unsigned* out, unsigned width) { argmax(x, out, width); }
FOR_EACH_ELEM(KERNEL)
