// linear_few: out[t, n] (+)= sum_k x[t, k] * w[n, k] (+ bias[n]) for 1 to 16 tokens, bound by reading the weights.
//
// linear_few_<weight>_<x>_<rows>x<tokens>   weight plain, int8, e4m3, int4 with x f16 or bf16; w8a8 with codes of x.
//
// How: common/few.cuh.
//
// What the loop over steps may take per lane and weight, for every architecture: instructions in its body, which has the
// change to the next tile in it, and those of them that make numbers of codes. Held by tests/cuda_build.
// gate plain_bf16 2x0: 3.7 0.2
// gate int8_bf16 4x0: 3.8 2.2
// gate int8_f16 4x0: 3.4 1.8
// gate e4m3_bf16 4x0: 4.2 2.7
// gate int4_bf16 4x0: 4.1 1.8
// gate int4_f16 4x0: 4.0 1.8
// gate int4_bf16 4x2: 4.4 1.7
// gate w8a8 4x0: 1.9 0.1
#include <ptx/kernel.cuh>

#include "common/few.cuh"

template <class Format, unsigned R, unsigned TOKEN_BLOCKS> __device__ void linear_few(const ProductArgs& args) {
    DYNAMIC_SHARED(shared);
    using Block = Few<Format, R, TOKEN_BLOCKS, ProductArgs>;
    if (dynamic_shared_bytes() < Block::SHARED) return; // a launch that knows better than this file
    Block(args, Block::Room::packed(shared, 0), blockIdx.x, gridDim.x).run();
}

#define KERNEL_FEW(FORMAT, R, TOKEN_BLOCKS)                                                                            \
    KERNEL_OF(WARPS* WARP, TOKEN_BLOCKS < 2 ? 2 : 1, linear_few_##FORMAT##_##R##x##TOKEN_BLOCKS,                        \
              const ProductArgs args) {                                                                                \
        linear_few<FORMAT, R, TOKEN_BLOCKS>(args);                                                                     \
    }
// Tiles at a time for one token, for 8, and for 16. More share what is read of the activations and done for a step; fewer
// make more blocks of the same matrix.
#define PLAIN(FORMAT)                                                                                                  \
    KERNEL_FEW(FORMAT, 1, 0) KERNEL_FEW(FORMAT, 2, 0)                                                                  \
    KERNEL_FEW(FORMAT, 1, 1) KERNEL_FEW(FORMAT, 2, 1)                                                                  \
    KERNEL_FEW(FORMAT, 1, 2) KERNEL_FEW(FORMAT, 2, 2)
#define PACKED(FORMAT)                                                                                                 \
    KERNEL_FEW(FORMAT, 1, 0) KERNEL_FEW(FORMAT, 2, 0) KERNEL_FEW(FORMAT, 4, 0)                                         \
    KERNEL_FEW(FORMAT, 1, 1) KERNEL_FEW(FORMAT, 2, 1) KERNEL_FEW(FORMAT, 4, 1)                                         \
    KERNEL_FEW(FORMAT, 2, 2) KERNEL_FEW(FORMAT, 4, 2)
#define CODES PACKED
#define WIDE_SCALES PACKED
#include "common/storages.cuh"
