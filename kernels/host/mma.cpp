#include "mma.h"

#include "prelude.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace emulator {

namespace {

// A register holds WORD numbers, and `widen(register, i)` is number i of one as a Wide; A is 16 x 8 WORD, B 8 WORD x 8.
template <int WORD, class Wide, class Sum, class Widen>
void multiply(void* const (&operands)[LANES], Widen widen) {
    constexpr int DEPTH = 8 * WORD;
    constexpr int ROWS = 16;
    constexpr int COLUMNS = 8;
    Wide a[ROWS][DEPTH], b[DEPTH][COLUMNS], d[ROWS][COLUMNS];
    for (int lane = 0; lane < 32; lane++) {
        const auto& mine = *static_cast<const Fragments<Sum>*>(operands[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++) {
            for (int w = 0; w < WORD; w++) a[g + r % 2 * 8][(t + r / 2 * 4) * WORD + w] = widen(mine.a[r], w);
            d[g + r / 2 * 8][2 * t + r % 2] = mine.d[r];
        }
        for (int r = 0; r < 2; r++) {
            for (int w = 0; w < WORD; w++) b[(t + r * 4) * WORD + w][g] = widen(mine.b[r], w);
        }
    }
    for (int row = 0; row < ROWS; row++) {
        Wide sums[COLUMNS];
        for (int column = 0; column < COLUMNS; column++) sums[column] = d[row][column];
        for (int k = 0; k < DEPTH; k++) {
            for (int column = 0; column < COLUMNS; column++) sums[column] += a[row][k] * b[k][column];
        }
        for (int column = 0; column < COLUMNS; column++) d[row][column] = sums[column];
    }
    for (int lane = 0; lane < 32; lane++) {
        const auto& mine = *static_cast<const Fragments<Sum>*>(operands[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++) mine.d[r] = static_cast<Sum>(d[g + r / 2 * 8][2 * t + r % 2]);
    }
}

unsigned short half_of(uint32_t word, int i) { return static_cast<unsigned short>(word >> 16 * i); }

} // namespace

void multiply_bf16(void* const (&operands)[LANES], uint32_t, Site) {
    multiply<2, double, float>(operands, [](uint32_t word, int i) -> double {
        return __bfloat162float(__ushort_as_bfloat16(half_of(word, i)));
    });
}

void multiply_f16(void* const (&operands)[LANES], uint32_t, Site) {
    multiply<2, double, float>(operands, [](uint32_t word, int i) -> double {
        return __half2float(__ushort_as_half(half_of(word, i)));
    });
}

// Sums wrap around, as they do on a GPU.
void multiply_s8(void* const (&operands)[LANES], uint32_t, Site) {
    multiply<4, uint32_t, int>(operands, [](uint32_t word, int i) -> uint32_t {
        return static_cast<uint32_t>(static_cast<int8_t>(word >> 8 * i));
    });
}

} // namespace emulator
