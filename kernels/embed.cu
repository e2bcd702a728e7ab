// gather: rows picked by number, as the embedding of tokens and the last hidden states of prompts are:
// out[i, :] = table[ids[i], :].
//
//   ids u32 [count] · table [rows, width] · out [count, width]; table and out may differ in type.
//
// An id outside the table gives a row of NaN, which the check of the logits then finds.
// gather_<table>_<out>. One block per row of out.
//
// permute_columns: out[t, j] = x[t, order[j]], for weights whose columns stand in another order than their input.
//
//   x and out [count / width, width] of elements of <bytes> bytes · order u32 [width], each below width; another number
//   leaves its column as it was.
//
// permute_columns_<bytes>. One thread per element.
#include "common/elem.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

template <class Table, class Out>
__device__ void gather(const unsigned* ids, const Table* table, Out* __restrict__ out,
                       unsigned rows, unsigned width) {
    follow_predecessor();
    const size_t row = blockIdx.x;
    const size_t id = ids[row];
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = id < rows ? to_f32(table[id * width + i]) : nanf("");
        out[row * width + i] = from_f32<Out>(value);
    }
}

#define DEFINE(OUT, TABLE)                                                                                             \
    KERNEL(gather_##TABLE##_##OUT, const unsigned* ids, const TABLE* table, OUT* out, unsigned rows, unsigned width) { \
        gather(ids, table, out, rows, width);                                                                          \
    }
FOR_EACH_ELEM(DEFINE, f32)
FOR_EACH_ELEM(DEFINE, f16)
FOR_EACH_ELEM(DEFINE, bf16)

template <class T>
__device__ void permute_columns(const T* x, const unsigned* order, T* out, size_t count, unsigned width) {
    follow_predecessor();
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const unsigned from = order[i % width];
    if (from < width) out[i] = x[i / width * width + from];
}

#define DEFINE_PERMUTE(BYTES, T)                                                                                       \
    KERNEL(permute_columns_##BYTES, const T* x, const unsigned* order, T* out, size_t count, unsigned width) {          \
        permute_columns(x, order, out, count, width);                                                                  \
    }
DEFINE_PERMUTE(1, unsigned char)
DEFINE_PERMUTE(2, unsigned short)
DEFINE_PERMUTE(4, unsigned)
