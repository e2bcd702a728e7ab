// linear_any_w8a8: out[t, n] (+)= (sum_k x[t, k] * w[n, k]) * xs[t] * ws[n] (+ bias[n]), for the rows that the streaming
// products do not take: those that are no multiples of 16 bytes.
//
//   x i8 [T, K] · xs f32 [T] · w i8 [N, K] · ws [N] of any element type · out as in common/outcome.cuh.
//
// The sum is exact in i32 while K <= 131071 (127 * 128 * K < 2^31 holds up to there); the launch code holds K to that.
//
// linear_any_w8a8_few    for a handful of tokens: every weight is read once per 8 tokens. One warp per feature.
// linear_any_w8a8_many   for many: one block of 256 threads per 64 features x 64 tokens.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/outcome.cuh"
#include "common/reduce.cuh"
#include "common/tile.cuh"

constexpr unsigned FEW_TOKENS = 8;     // of one pass
constexpr unsigned CODES_PER_WORD = 4; // of one __dp4a

// Eight-bit rows and what turns their products into numbers.
struct W8A8Args {
    const signed char* x;
    const float* x_scales;
    const signed char* w;
    const void* w_scales;
    ElemType w_scale_type;

    __device__ float scaled(size_t t, unsigned n, int sum) const {
        return static_cast<float>(sum) * x_scales[t] * load_elem(w_scales, w_scale_type, n);
    }
};

// Four codes of `row` from `col` on, those past its end as zeros. `aligned`: rows start at multiples of four bytes.
__device__ inline int load_word(const signed char* row, unsigned col, unsigned k, bool aligned) {
    if (aligned) return col < k ? *reinterpret_cast<const int*>(row + col) : 0;
    unsigned word = 0;
#pragma unroll
    for (unsigned i = 0; i < CODES_PER_WORD; i++) {
        if (col + i < k) word |= static_cast<unsigned>(static_cast<unsigned char>(row[col + i])) << (8 * i);
    }
    return static_cast<int>(word);
}

__device__ inline bool rows_are_aligned(const signed char* rows, unsigned k, unsigned bytes) {
    return k % bytes == 0 && reinterpret_cast<size_t>(rows) % bytes == 0;
}

__device__ inline void linear_w8a8_few(const W8A8Args args, const Outcome outcome, unsigned tokens, unsigned features,
                                unsigned k) {
    follow_predecessor();
    const unsigned n = blockIdx.x * (blockDim.x / WARP) + warp_id();
    const size_t first = static_cast<size_t>(blockIdx.y) * FEW_TOKENS;
    if (n >= features) return; // the whole warp
    const unsigned here = min(FEW_TOKENS, static_cast<unsigned>(tokens - first));
    const signed char* w_row = args.w + static_cast<size_t>(n) * k;
    const signed char* x = args.x + first * k;

    int sums[FEW_TOKENS] = {};
    if (rows_are_aligned(args.w, k, 16) && rows_are_aligned(args.x, k, 16)) {
        for (unsigned col = lane_id() * 16; col < k; col += WARP * 16) {
            const int4 w = *reinterpret_cast<const int4*>(w_row + col);
#pragma unroll
            for (unsigned t = 0; t < FEW_TOKENS; t++) {
                if (t < here) {
                    const int4 a = *reinterpret_cast<const int4*>(x + static_cast<size_t>(t) * k + col);
                    sums[t] = __dp4a(w.x, a.x, sums[t]);
                    sums[t] = __dp4a(w.y, a.y, sums[t]);
                    sums[t] = __dp4a(w.z, a.z, sums[t]);
                    sums[t] = __dp4a(w.w, a.w, sums[t]);
                }
            }
        }
    } else {
        for (unsigned col = lane_id(); col < k; col += WARP) {
            const int w = w_row[col];
#pragma unroll
            for (unsigned t = 0; t < FEW_TOKENS; t++) {
                if (t < here) sums[t] += w * x[static_cast<size_t>(t) * k + col];
            }
        }
    }

#pragma unroll
    for (unsigned t = 0; t < FEW_TOKENS; t++) {
        if (t < here) {
            const int sum = warp_reduce(sums[t], Sum());
            if (lane_id() == t) outcome.store(first + t, n, args.scaled(first + t, n, sum));
        }
    }
}

__device__ inline void linear_w8a8_many(const W8A8Args args, const Outcome outcome, unsigned tokens, unsigned features,
                                 unsigned k) {
    follow_predecessor();
    __shared__ int xs[DEPTH][PITCH];
    __shared__ int ws[DEPTH][PITCH];
    const unsigned first_n = blockIdx.x * TILE;
    const size_t first_t = static_cast<size_t>(blockIdx.y) * TILE;
    const bool x_aligned = rows_are_aligned(args.x, k, CODES_PER_WORD);
    const bool w_aligned = rows_are_aligned(args.w, k, CODES_PER_WORD);

    TileSums<int> sums;
    for (unsigned first_k = 0; first_k < k; first_k += DEPTH * CODES_PER_WORD) {
        __syncthreads(); // the tiles may still be read from the step before
        for (unsigned i = threadIdx.x; i < TILE * DEPTH; i += blockDim.x) {
            const unsigned row = i / DEPTH;
            const unsigned depth = i % DEPTH;
            const size_t t = first_t + row;
            const size_t n = first_n + row;
            const unsigned col = first_k + depth * CODES_PER_WORD;
            xs[depth][row] = t < tokens ? load_word(args.x + t * k, col, k, x_aligned) : 0;
            ws[depth][row] = n < features ? load_word(args.w + n * k, col, k, w_aligned) : 0;
        }
        __syncthreads();
        sums.add(xs, ws, [](int x, int w, int sum) { return __dp4a(x, w, sum); });
    }
    sums.for_each([&](unsigned row, unsigned column, int sum) {
        const size_t t = first_t + row;
        const unsigned n = first_n + column;
        if (t < tokens && n < features) outcome.store(t, n, args.scaled(t, n, sum));
    });
}

KERNEL(linear_any_w8a8_few, const W8A8Args args, Outcome outcome, unsigned tokens, unsigned features, unsigned k) {
    linear_w8a8_few(args, outcome, tokens, features, k);
}

KERNEL_OF(TILE_THREADS, 1, linear_any_w8a8_many, const W8A8Args args, Outcome outcome, unsigned tokens, unsigned features,
          unsigned k) {
    linear_w8a8_many(args, outcome, tokens, features, k);
}
