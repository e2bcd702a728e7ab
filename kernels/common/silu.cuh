// The gated activation: silu(gate) * up, silu(x) = x / (1 + exp(-x)).
#pragma once

#include "norm.cuh"

// Every step is rounded by itself, so that all kernels that contain it give the same bits.
__device__ inline float silu_mul_of(float gate, float up) {
    return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, expf(-gate))), up);
}

// Where gate and up lie in a row of 2 * width numbers: all of one after all of the other, or, where the rows of the matrix
// that gives them lie so in its tiles, eight of each in turn.
struct GateUp {
    unsigned width;
    unsigned in_eights; // not zero: in turn; then width is a multiple of eight

    // The gated activation of eight neighbours of a row; of zeros past its end.
    template <class T> __device__ void load(const T* row, unsigned first, float (&values)[NORM_CHUNK]) const {
        float gate[NORM_CHUNK], up[NORM_CHUNK];
        if (in_eights != 0) {
            load_norm_chunk(row, 2 * first, 2 * width, gate);
            load_norm_chunk(row, 2 * first + NORM_CHUNK, 2 * width, up);
        } else {
            load_norm_chunk(row, first, width, gate);
            load_norm_chunk(row + width, first, width, up);
        }
#pragma unroll
        for (unsigned i = 0; i < NORM_CHUNK; i++) values[i] = silu_mul_of(gate[i], up[i]);
    }
};
static_assert(NORM_CHUNK == 8, "eights are chunks");
