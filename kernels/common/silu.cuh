// The gated activation: silu(gate) * up, silu(x) = x / (1 + exp(-x)).
#pragma once

// Every step is rounded by itself, so that all kernels that contain it give the same bits.
__device__ inline float silu_mul_of(float gate, float up) {
    return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, expf(-gate))), up);
}

// Where gate and up lie in a row of 2 * width numbers: all of one after all of the other, or, where the rows of the matrix
// that gives them lie so in its tiles, eight of each in turn.
struct GateUp {
    unsigned width;
    unsigned in_eights; // not zero: in turn; then width is a multiple of eight

    __device__ unsigned gate(unsigned i) const { return in_eights != 0 ? i / 8 * 16 + i % 8 : i; }
    __device__ unsigned up(unsigned i) const { return gate(i) + (in_eights != 0 ? 8 : width); }
};
