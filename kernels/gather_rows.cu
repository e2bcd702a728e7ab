// gather_rows: out[r, :] = x[rows[r], :].
//
//   x [T, width] · rows u32 [R] · out [R, width], all of one type.
//
// A row that x does not have becomes NaN.
// Kernels: gather_rows_<type>. One block per row of out.
#include "common/elem.cuh"

template <class T>
__device__ void gather_rows(const T* __restrict__ x, const unsigned* __restrict__ rows, T* __restrict__ out,
                            unsigned tokens, unsigned width) {
    const size_t r = blockIdx.x;
    const size_t row = rows[r];
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        out[r * width + i] = row < tokens ? x[row * width + i] : from_f32<T>(nanf(""));
    }
}

#define KERNEL(T)                                                                                                      \
    extern "C" __global__ void gather_rows_##T(const T* x, const unsigned* rows, T* out, unsigned tokens,              \
                                               unsigned width) {                                                       \
        gather_rows(x, rows, out, tokens, width);                                                                      \
    }
FOR_EACH_ELEM(KERNEL)
