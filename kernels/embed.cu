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
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/elem.cuh"
#include "common/gather.cuh"

#define GATHER_ARGS(OUT, TABLE) GatherArgs<TABLE, OUT>
#define DEFINE(OUT, TABLE)                                                                                             \
    KERNEL(gather_##TABLE##_##OUT, const GATHER_ARGS(OUT, TABLE) args) {                                                \
        follow_predecessor();                                                                                          \
        args.run(blockIdx.x);                                                                                          \
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
