// linear_fused: the product of linear_few.cu for up to 8 tokens with what goes before and after it, in one launch.
//
//   out[t, n] (+)= sum_k norm(x)[t, k] * w[n, k] (+ bias[n])        norm as in norm.cu
//   out[t, i] = silu(gate) * up of the rows that common/silu.cuh names, as in silu_mul.cu
//   picked[t] = the n of the largest out[t, n], as argmax of sample.cu has it; out is not stored
//
// linear_fused_<weight>_<x>_<rows>x<tokens>   weights and x as in linear_few.cu. Of w8a8, x are numbers which become codes
//                                             as in quantize.cu, and there need not be a norm before that.
//
// Every block norms all tokens into its own shared memory (common/fused.cuh), while its weights are already on their way.
// That costs less than a launch where tokens are few. Sums are rounded where separate launches round them and taken in
// their order, so the bits are theirs.
//
// What the loop over steps may take per lane and weight, as in linear_few.cu. Held by tests/cuda_build.
// gate plain_bf16 2x0: 3.7 0.2
// gate int8_bf16 4x0: 3.8 2.2
// gate int4_bf16 4x0: 4.1 1.8
// gate int4_f16 4x0: 4.0 1.8
#include <ptx/kernel.cuh>

#include "common/few.cuh"

template <class Format, unsigned R, unsigned TOKEN_BLOCKS> __device__ void linear_fused(const FusedArgs& job) {
    DYNAMIC_SHARED(shared);
    using Block = Few<Format, R, TOKEN_BLOCKS, FusedArgs>;
    const unsigned steps = job.product.weight.steps();
    const unsigned prepared = Block::Prepared::bytes(job.product.tokens, steps) + steps * NORM_BYTES;
    if (dynamic_shared_bytes() < Block::SHARED + prepared) return; // a launch that knows better than this file
    Block(job, Block::Room::packed(shared, steps), blockIdx.x, gridDim.x).run();
}

#define KERNEL_FUSED(FORMAT, R, TOKEN_BLOCKS)                                                                          \
    KERNEL_OF(WARPS* WARP, 2, linear_fused_##FORMAT##_##R##x##TOKEN_BLOCKS, const FusedArgs job) {                      \
        linear_fused<FORMAT, R, TOKEN_BLOCKS>(job);                                                                    \
    }
// Tiles at a time for one token, and for 8.
#define PLAIN(FORMAT) KERNEL_FUSED(FORMAT, 1, 0) KERNEL_FUSED(FORMAT, 2, 0) KERNEL_FUSED(FORMAT, 2, 1)
#define PACKED(FORMAT) KERNEL_FUSED(FORMAT, 2, 0) KERNEL_FUSED(FORMAT, 4, 0) KERNEL_FUSED(FORMAT, 2, 1)
using w8a8_bf16 = CodesOf<bf16>;
using w8a8_f16 = CodesOf<f16>;
#define CODES(FORMAT) PLAIN(FORMAT##_bf16) PLAIN(FORMAT##_f16)
#define WIDE_SCALES PACKED
#include "common/storages.cuh"
