// attention_single: causal attention of tokens that are alone in their slot, as in decoding: bound by reading the cache.
//
//   arguments and the formula are in common/attention.cuh
//
// attention_single_<type>[_int8|_fp8]_<head size>x<heads>   up to 8 or 16 query heads for each head of keys. blockIdx.x
//                                                           counts ranges of parts of the keys, blockIdx.y heads of keys,
//                                                           blockIdx.z tokens.
//
// How: common/single.cuh.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/single.cuh"

template <class T, unsigned DIM, class Kv, unsigned EIGHTS> __device__ void attention_single(const AttentionArgs<T>& args) {
    DYNAMIC_SHARED(shared);
    follow_predecessor();
    using Block = Single<T, DIM, Kv, EIGHTS>;
    if (dynamic_shared_bytes() < Block::SHARED) return; // a launch that knows better than this file
    Block(args, shared, {blockIdx.x, gridDim.x, blockIdx.y, blockIdx.z}).run();
}

#define DEFINE_KV(KV, NAME, T, DIM)                                                                                    \
    KERNEL_OF(KEY_WARPS* WARP, 2, attention_single_##T##NAME##_##DIM##x8, const AttentionArgs<T> args) {                \
        attention_single<T, DIM, KV, 1>(args);                                                                         \
    }                                                                                                                  \
    KERNEL_OF(KEY_WARPS* WARP, 2, attention_single_##T##NAME##_##DIM##x16, const AttentionArgs<T> args) {               \
        attention_single<T, DIM, KV, 2>(args);                                                                         \
    }
#define DEFINE_CODED(KV, NAME, T, DIM) DEFINE_KV(KV, _##NAME, T, DIM)
#define DEFINE(T, DIM)                                                                                                 \
    DEFINE_KV(PlainKv, , T, DIM)                                                                                       \
    FOR_EACH_CODED_KV(DEFINE_CODED, T, DIM)
DEFINE(f16, 64)
DEFINE(f16, 96)
DEFINE(f16, 128)
DEFINE(bf16, 64)
DEFINE(bf16, 96)
DEFINE(bf16, 128)
