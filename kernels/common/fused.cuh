// What a product of few tokens does in the same launch: before it the norm of its input and its rounding to codes, after it
// the gated activation or the choice of the largest result.
#pragma once

#include "product.cuh"

#include "best.cuh"
#include "nearest.cuh"
#include "norm.cuh"
#include "silu.cuh"

// What becomes of the results; the values are part of the launch code's contract.
enum Then : unsigned {
    THEN_STORE = 0, // they are stored, or added to what is there
    THEN_GATE = 1,  // rows lie in eights (common/silu.cuh): silu(gate) * up is stored, [tokens, n / 2]
    THEN_PICK = 2,  // the row of the largest of each token is stored, none of them
};

struct FusedArgs {
    ProductArgs product;  // its x is normed first, and becomes codes where the weight's codes are multiplied with those
    const void* norm;     // [k], of the type of x: the weight of the norm; null, of codes alone, where there is none
    const unsigned* rows; // [tokens]: which rows of x are meant; or null: the first ones
    unsigned x_rows;      // rows that x has; a number beyond gives a row of NaN
    float eps;
    Then then;
    // Of THEN_PICK: where each block leaves its best, [blocks, tokens]; how many have, zero before and after the launch;
    // and where the row goes, NONE where all is NaN.
    float* best_values;
    unsigned* best_rows;
    unsigned* arrived;
    unsigned* picked;
};

__device__ inline const ProductArgs& product_of(const ProductArgs& args) { return args; }
__device__ inline const ProductArgs& product_of(const FusedArgs& args) { return args.product; }

template <class X> __device__ inline uint4 all_nan() {
    X nan[NORM_CHUNK];
#pragma unroll
    for (unsigned i = 0; i < NORM_CHUNK; i++) nan[i] = from_f32<X>(nanf(""));
    uint4 raw;
    memcpy(&raw, nan, sizeof raw);
    return raw;
}

// The chunk of token `t` from column `first` on, which lies within the row.
template <class X> __device__ inline uint4 chunk_of_input(const FusedArgs& job, unsigned t, unsigned first) {
    const unsigned row = job.rows == nullptr ? t : job.rows[t];
    if (row >= job.x_rows) return all_nan<X>();
    const X* x = static_cast<const X*>(job.product.x) + static_cast<size_t>(row) * job.product.weight.k;
    return load_raw<uint4>(x + first);
}

// Begins to copy the weight of a norm into shared memory, each thread what it will use; nothing where there is no norm.
template <class X> __device__ inline void copy_norm_weight(unsigned char* to, const void* norm, unsigned k) {
    if (norm == nullptr) return;
    for_each_norm_chunk(k, [&](unsigned first) {
        copy16<Keep::Long>(to + first * sizeof(X), static_cast<const X*>(norm) + first, true);
    });
}

// Loads that a thread has under way while it fills up to so many tokens. A single token has few for each thread.
template <unsigned TOKENS> constexpr unsigned LOADS = TOKENS == 1 ? 2 : 8;

// The normed tokens of a block in its shared memory: for each step of columns the tokens as StepOfTokens has them. The
// weight of the norm has a place of its own, where nothing else is, so that it can come while other memory is in use. Every
// thread fills the chunks that for_each_norm_chunk gives it, so that sums are those of norm.cu.
template <class X> struct NormedTokens {
    using Input = X;
    using Tokens = StepOfTokens<X>;
    static_assert(Tokens::PER_CHUNK == NORM_CHUNK, "a chunk is 16 bytes in both");
    unsigned char* shared;
    unsigned char* norm; // [steps * STEP]
    unsigned steps, tokens;

    static __device__ unsigned bytes(unsigned tokens, unsigned steps) { return tokens * steps * Tokens::BYTES; }
    __device__ unsigned char* of_step(unsigned step) const { return shared + step * tokens * Tokens::BYTES; }
    // Where the chunk from column `first` on lies.
    __device__ unsigned char* place(unsigned token, unsigned first) const {
        return of_step(first / STEP) + Tokens::place(token, first % STEP / NORM_CHUNK);
    }
    __device__ unsigned char* weight(unsigned first) const { return norm + first * sizeof(X); }

    static __device__ void read(const unsigned char* at, float (&values)[NORM_CHUNK]) {
        load_wide(reinterpret_cast<const X*>(at), values);
    }

    // Norms the tokens; `partial` has room for a number per token and warp. Ends with a barrier.
    template <unsigned TOKENS> __device__ void fill(const FusedArgs& job, float* partial) const {
        const unsigned k = job.product.weight.k;
        const auto load = [&](unsigned t, unsigned first) {
            // Past the end of the row lie zeros, as in weights there.
            return first < k ? chunk_of_input<X>(job, t, first) : uint4{};
        };
        for_each_loaded_chunk<LOADS<TOKENS>>(tokens, steps * STEP, load, [&](unsigned t, unsigned first, const uint4& raw) {
            store_raw(place(t, first), raw);
        });
#pragma unroll 1
        for (unsigned t = 0; t < tokens; t++) {
            float squares = 0.0f;
            for_each_norm_chunk(steps * STEP, [&](unsigned first) {
                float values[NORM_CHUNK];
                const unsigned char* to = place(t, first);
                read(to, values);
                squares = add_squares(squares, values);
            });
            squares = warp_reduce(squares, Sum());
            if (lane_id() == 0) partial[t * (NORM_THREADS / WARP) + warp_id()] = squares;
        }
        __syncthreads();
#pragma unroll 1
        for (unsigned t = 0; t < tokens; t++) {
            const float* of_warps = partial + t * (NORM_THREADS / WARP);
            float squares = of_warps[0];
#pragma unroll
            for (unsigned w = 1; w < NORM_THREADS / WARP; w++) squares += of_warps[w];
            const float inverse = inverse_rms(squares, k, job.eps);
            for_each_norm_chunk(k, [&](unsigned first) {
                float values[NORM_CHUNK], weights[NORM_CHUNK];
                unsigned char* at = place(t, first);
                read(at, values);
                read(weight(first), weights);
                X rounded[NORM_CHUNK];
#pragma unroll
                for (unsigned i = 0; i < NORM_CHUNK; i++) {
                    rounded[i] = from_f32<X>(normed<X>(values[i], inverse, weights[i]));
                }
                uint4 raw;
                memcpy(&raw, rounded, sizeof raw);
                *reinterpret_cast<uint4*>(at) = raw;
            });
        }
        __syncthreads();
    }
};

// The tokens of a block as codes in its shared memory, rounded as quantize.cu does: the codes as StepOfTokens has them,
// then a row of x and the scale of each token. The weight of the norm as above. Every thread fills the chunks that
// for_each_norm_chunk gives it.
template <class A> struct CodedTokens {
    using Input = A;
    using Tokens = StepOfTokens<signed char>;
    unsigned char* shared;
    unsigned char* norm; // [steps * STEP]
    unsigned steps, tokens;

    static __device__ unsigned bytes(unsigned tokens, unsigned steps) {
        return steps * (tokens * Tokens::BYTES + STEP * sizeof(A)) + tokens * sizeof(float);
    }
    __device__ unsigned char* of_step(unsigned step) const { return shared + step * tokens * Tokens::BYTES; }
    // Where the codes of the chunk from column `first` on lie.
    __device__ unsigned char* place(unsigned token, unsigned first) const {
        return of_step(first / STEP) + Tokens::place(token, first % STEP / PIECE) + first % PIECE;
    }
    __device__ A* row(unsigned first) const { return reinterpret_cast<A*>(of_step(steps)) + first; }
    __device__ A* weight(unsigned first) const { return reinterpret_cast<A*>(norm) + first; }
    __device__ float* scales() const { return reinterpret_cast<float*>(row(steps * STEP)); }

    // Rounds the tokens; `partial` has room for two numbers per warp. Ends with a barrier.
    template <unsigned TOKENS> __device__ void fill(const FusedArgs& job, float* partial) const {
        const unsigned k = job.product.weight.k;
#pragma unroll 1
        for (unsigned t = 0; t < tokens; t++) {
            float squares = 0.0f;
            const auto load = [&](unsigned, unsigned first) { return chunk_of_input<A>(job, t, first); };
            for_each_loaded_chunk<LOADS<1>>(1, k, load, [&](unsigned, unsigned first, const uint4& raw) {
                store_raw(row(first), raw);
                float values[NORM_CHUNK];
                load_wide(row(first), values);
                squares = add_squares(squares, values);
            });
            float inverse = 1.0f;
            if (job.norm != nullptr) inverse = inverse_rms(of_block(squares, Sum(), partial), k, job.eps);
            float largest = 0.0f;
            for_each_norm_chunk(k, [&](unsigned first) {
                float values[NORM_CHUNK];
                load_wide(row(first), values);
                if (job.norm != nullptr) {
                    float weights[NORM_CHUNK];
                    load_wide(weight(first), weights);
#pragma unroll
                    for (unsigned i = 0; i < NORM_CHUNK; i++) {
                        values[i] = round_to<A>(normed<A>(values[i], inverse, weights[i]));
                    }
                    store_chunk(row(0), first, k, values);
                }
#pragma unroll
                for (unsigned i = 0; i < NORM_CHUNK; i++) largest = MaxOrNan()(largest, fabsf(values[i]));
            });
            const float scale = scale_for<f32>(of_block(largest, MaxOrNan(), partial + NORM_THREADS / WARP), HALF_RANGE_8);
            for_each_norm_chunk(k, [&](unsigned first) {
                float values[NORM_CHUNK];
                load_wide(row(first), values);
                signed char codes[NORM_CHUNK];
#pragma unroll
                for (unsigned i = 0; i < NORM_CHUNK; i++) {
                    codes[i] = static_cast<signed char>(nearest_code(values[i] / scale, -128, 127));
                }
                uint2 raw;
                memcpy(&raw, codes, sizeof raw);
                store_raw(place(t, first), raw);
            });
            if (threadIdx.x == 0) scales()[t] = scale;
            __syncthreads(); // for the next one too: all have read what warps left
        }
    }

    // As block_reduce, but where nobody reads `of_warps` any more.
    template <class Op> static __device__ float of_block(float value, Op op, float* of_warps) {
        value = warp_reduce(value, op);
        if (lane_id() == 0) of_warps[warp_id()] = value;
        __syncthreads();
        value = of_warps[0];
#pragma unroll
        for (unsigned w = 1; w < NORM_THREADS / WARP; w++) value = op(value, of_warps[w]);
        return value;
    }
};

// The gated activation of COUNT rows from `first` on, all of whose tiles are whole. Gate and up are rounded to out's type
// before they meet, as if they had been stored.
template <unsigned COUNT, class Scaled>
__device__ inline void gate(const ProductArgs& args, unsigned first, Scaled scaled) {
    const Outcome& outcome = args.outcome;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < args.tokens * (COUNT / 2); i += NORM_THREADS) {
        const unsigned token = i / (COUNT / 2), pair = i % (COUNT / 2);
        const unsigned row = pair / 8 * ROWS + pair % 8;
        if (first + row >= args.weight.n) continue;
        const auto rounded = [&](unsigned row) {
            return round_to_elem(outcome.type, outcome.biased(first + row, scaled(token, row)));
        };
        const size_t at = static_cast<size_t>(token) * outcome.row_stride + outcome.first_column + first / 2 + pair;
        store_elem(outcome.out, outcome.type, at, silu_mul_of(rounded(row), rounded(row + 8)));
    }
}

// A thread looks at one row of one token at most, always of the same token.
template <unsigned TOKENS, unsigned COUNT, class Scaled>
__device__ inline void look(const ProductArgs& args, unsigned first, Scaled scaled, Best& best) {
    static_assert(TOKENS * COUNT <= NORM_THREADS, "a thread for each result");
    const unsigned token = threadIdx.x / COUNT, row = threadIdx.x % COUNT;
    if (token >= args.tokens || token >= TOKENS || first + row >= args.weight.n) return;
    const float value = args.outcome.biased(first + row, scaled(token, row));
    best = better(best, round_to_elem(args.outcome.type, value), first + row);
}

// The best of the threads, COUNT for each token, become the block's, and the last block's choice among all. `shared` has
// room for a Best of every thread, and nobody uses it any more once all are here.
template <unsigned COUNT>
__device__ inline void pick(const FusedArgs& job, Best best, unsigned char* shared, unsigned me, unsigned blocks) {
    const unsigned tokens = job.product.tokens;
    Best* of_threads = reinterpret_cast<Best*>(shared);
    __syncthreads(); // the ring is free
    of_threads[threadIdx.x] = best;
    __syncthreads();
    if (threadIdx.x < tokens) {
        best = of_threads[threadIdx.x * COUNT];
        for (unsigned i = 1; i < COUNT; i++) best = better(best, of_threads[threadIdx.x * COUNT + i]);
        job.best_values[me * tokens + threadIdx.x] = best.value;
        job.best_rows[me * tokens + threadIdx.x] = best.index;
    }
    if (!is_last_of(job.arrived, blocks)) return;
    for (unsigned token = warp_id(); token < tokens; token += NORM_THREADS / WARP) {
        best = {0.0f, NONE};
        for (unsigned block = lane_id(); block < blocks; block += WARP) {
            const unsigned at = block * tokens + token;
            best = better(best, Best{__ldcg(job.best_values + at), __ldcg(job.best_rows + at)});
        }
        best = best_of_warp(best);
        if (lane_id() == 0) job.picked[token] = best.index;
    }
}
