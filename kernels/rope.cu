// rope_append: turns the fused q, k, v projection of new tokens into what attention reads.
//
//   qkv [T, (heads + 2 * kv_heads) * head_dim], in place: heads of q, then of k, then of v
//   q_norm, k_norm, cosines, sines as in common/heads.cuh, where the formula is
//   positions, slots u32 [T] · the cache as in common/kv.cuh
//
// The results stay in qkv, and k and v also go into the cache at (slot, position). A position or slot outside the tables or
// the cache writes no cache and turns its rows into NaN.
// Kernels: rope_append_<type>, and with _int8 and _fp8 behind it for such a cache. One warp per token and head: blockIdx.y
// counts blocks of heads.
#include "common/heads.cuh"
#include "common/kv.cuh"

#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

template <class T> struct RopeArgs {
    T* qkv;
    KvCache cache;
    const unsigned* positions;
    const unsigned* slot_of;
    TurnArgs<T> turn;
    unsigned heads;
    unsigned kv_heads;
    unsigned head_dim;
    unsigned slots;
    unsigned capacity;
};

template <class Kv, class T> __device__ void rope_append(const RopeArgs<T>& args) {
    follow_predecessor();
    const unsigned head = blockIdx.y * (blockDim.x / WARP) + warp_id();
    const unsigned all_heads = args.heads + 2 * args.kv_heads;
    if (head >= all_heads) return; // the whole warp
    const size_t t = blockIdx.x;
    const unsigned position = args.positions[t];
    const unsigned slot = args.slot_of[t];
    const unsigned head_dim = args.head_dim;
    const bool inside = position < args.turn.max_position && position < args.capacity && slot < args.slots;
    T* x = args.qkv + (t * all_heads + head) * head_dim;

    const bool is_q = head < args.heads;
    const bool is_v = head >= args.heads + args.kv_heads;
    if (!is_v) {
        const T* weight = is_q ? args.turn.q_norm : args.turn.k_norm;
        turn_head(x, x, weight, args.turn, inside ? position : args.turn.max_position, head_dim);
        __syncwarp(); // a lane writes other elements to the cache than it has turned
    } else if (!inside) {
        for (unsigned i = lane_id(); i < head_dim; i += WARP) x[i] = from_f32<T>(nanf(""));
    }
    if (!inside || is_q) return; // the whole warp
    const unsigned kv_head = (head - args.heads) % args.kv_heads;
    const size_t vector = (static_cast<size_t>(slot) * args.kv_heads + kv_head) * args.capacity + position;
    write_vector<Kv>(x, args.cache, is_v, vector, head_dim);
}

#define DEFINE(T)                                                                                                      \
    KERNEL(rope_append_##T, const RopeArgs<T> args) { rope_append<PlainKv>(args); }                                    \
    FOR_EACH_CODED_KV(DEFINE_CODED, T)
#define DEFINE_CODED(KV, NAME, T)                                                                                      \
    KERNEL(rope_append_##T##_##NAME, const RopeArgs<T> args) { rope_append<KV>(args); }
FOR_EACH_ELEM(DEFINE)
