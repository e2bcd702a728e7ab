// embed: out[t, :] = table[tokens[t], :].
//
//   tokens u32 [T] · table [vocab, width] · out [T, width]; table and out may differ in type.
//
// A token outside the vocabulary gives a row of NaN, which the check of the logits then finds.
// Kernels: embed_<table>_<out>. One block per token.
#include "common/elem.cuh"

template <class Table, class Out>
__device__ void embed(const unsigned* tokens, const Table* table, Out* out, unsigned vocab, unsigned width) {
    const size_t t = blockIdx.x;
    const size_t token = tokens[t];
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = token < vocab ? to_f32(table[token * width + i]) : nanf("");
        out[t * width + i] = from_f32<Out>(value);
    }
}

#define KERNEL(OUT, TABLE)                                                                                             \
    extern "C" __global__ void embed_##TABLE##_##OUT(const unsigned* tokens, const TABLE* table, OUT* out,             \
                                                     unsigned vocab, unsigned width) {                                 \
        embed(tokens, table, out, vocab, width);                                                                       \
    }
FOR_EACH_ELEM(KERNEL, f32)
FOR_EACH_ELEM(KERNEL, f16)
FOR_EACH_ELEM(KERNEL, bf16)
