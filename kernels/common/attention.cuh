// What every attention kernel is told: causal attention of new tokens over the cache, grouped queries.
//
//   q: the first heads * head_dim elements of each row of [T, q_stride] · k_cache, v_cache
//   [slots, kv_heads, capacity, head_dim] · positions, slot_of u32 [T] · out [T, heads * head_dim]
//   out[t, h] = sum_j softmax_j(scale * q[t, h] . k[slot, h / group, j]) * v[slot, h / group, j],  j = 0 ..= position[t]
//
// A position or slot outside the cache gives a row of NaN.
#pragma once

template <class T> struct AttentionArgs {
    const T* q;
    const T* k_cache;
    const T* v_cache;
    const unsigned* positions;
    const unsigned* slot_of;
    T* out;
    float* partial;    // of blocks that share a token; else null
    unsigned* arrived; // how many of them have left their part, zero before and after the launch
    unsigned q_stride;
    unsigned heads;
    unsigned kv_heads;
    unsigned head_dim;
    unsigned slots;
    unsigned capacity;
    unsigned tokens;
    unsigned splits; // parts of the keys of a token, at most
    float scale;

    __device__ unsigned group() const { return heads / kv_heads; }
    __device__ bool is_inside(unsigned token) const { return positions[token] < capacity && slot_of[token] < slots; }
    // Of the cache, in rows of head_dim numbers.
    __device__ size_t row(unsigned slot, unsigned kv_head, unsigned key) const {
        return (static_cast<size_t>(slot) * kv_heads + kv_head) * capacity + key;
    }
};
