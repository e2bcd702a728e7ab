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
    // Tokens of one slot side by side, up to `stop`; those of them that are in the cache see `keys` keys at most.
    struct Run {
        unsigned stop, keys;
    };

    // The run that begins at `start`, ending before `end` at the latest. The whole warp takes part, a lane for each token:
    // one after another, waiting for their places would take longer than their keys.
    __device__ Run run_from(unsigned start, unsigned end, unsigned slot) const {
        unsigned stop = start, keys = 0;
        while (stop < end) {
            const unsigned token = stop + lane_id();
            const bool same = token < end && slot_of[token] == slot;
            const unsigned others = ~__ballot_sync(ALL_LANES, same);
            const unsigned count = others == 0 ? WARP : static_cast<unsigned>(__ffs(static_cast<int>(others))) - 1;
            if (lane_id() < count && is_inside(token)) keys = max(keys, positions[token] + 1);
            stop += count;
            if (count < WARP) break;
        }
        return {stop, warp_reduce(keys, [](unsigned a, unsigned b) { return max(a, b); })};
    }

    // Of the cache, in vectors of head_dim numbers.
    __device__ size_t vector(unsigned slot, unsigned kv_head, unsigned key) const {
        return (static_cast<size_t>(slot) * kv_heads + kv_head) * capacity + key;
    }
};

constexpr unsigned QUERIES = 16; // rows of a warp

// The rows of a block that runs of tokens share: the query heads of one head of keys, of neighbouring tokens. blockIdx.x
// counts such tiles from the last one on, for the last tokens of a prompt have the most keys; blockIdx.y heads of keys.
template <unsigned ROWS> struct TileOfTokens {
    const unsigned kv_head;
    const unsigned group;
    const unsigned first, end; // tokens

    template <class T>
    __device__ explicit TileOfTokens(const AttentionArgs<T>& args)
        : kv_head(blockIdx.y), group(args.group()), first((gridDim.x - 1 - blockIdx.x) * (ROWS / group)),
          end(min(args.tokens, first + ROWS / group)) {}

    // The token of a row of this warp; one that is not there for rows that are none.
    __device__ unsigned token_of(unsigned row) const {
        const unsigned all = warp_id() * QUERIES + row;
        return all < ROWS / group * group ? first + all / group : end;
    }
    __device__ size_t head_of(unsigned row) const { return kv_head * group + (warp_id() * QUERIES + row) % group; }
};
