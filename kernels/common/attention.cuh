// What every attention kernel is told: causal attention of new tokens over the cache, grouped queries.
//
//   q: the first heads * head_dim elements of each row of [T, q_stride] · the cache as in common/kv.cuh
//   positions, slot_of u32 [T] · out [T, heads * head_dim]
//   out[t, h] = sum_j softmax_j(scale * q[t, h] . k[slot, h / group, j]) * v[slot, h / group, j],  j = 0 ..= position[t]
//
// A position or slot outside the cache gives a row of NaN.
#pragma once

#include "heads.cuh"
#include "kv.cuh"

template <class T> struct AttentionArgs {
    const T* q;
    KvCache cache;
    const unsigned* positions;
    const unsigned* slot_of;
    T* out;
    float* partial;    // of parts of a token that several blocks share; else null
    unsigned* arrived; // how many of those blocks have left their parts, zero before and after the launch
    // Of attention_single alone: rows are those of the whole projection, and queries and keys are yet to be turned and the
    // cache to be written, if there are cosines.
    TurnArgs<T> turn;
    unsigned q_stride;
    unsigned heads;
    unsigned kv_heads;
    unsigned head_dim;
    unsigned slots;
    unsigned capacity;
    unsigned tokens;
    unsigned most_parts; // of a token, whatever its position
    float scale;

    __device__ unsigned group() const { return heads / kv_heads; }
    __device__ bool is_inside(unsigned token) const { return positions[token] < capacity && slot_of[token] < slots; }
    // Of the cache, in vectors of head_dim numbers.
    __device__ size_t vector(unsigned slot, unsigned kv_head, unsigned key) const {
        return (static_cast<size_t>(slot) * kv_heads + kv_head) * capacity + key;
    }
};
