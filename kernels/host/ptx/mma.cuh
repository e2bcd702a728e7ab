// Matrix products of one warp, from fragments as kernels/ptx/mma.cuh states them. Products of 16-bit numbers are exact;
// they and d are summed in f64 and rounded to f32 once. A GPU rounds in between, each architecture in its own way.
#pragma once

#include "../emulator.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace emulator {

constexpr WarpOp MMA = {"mma", true};
constexpr WarpOp LOAD_MATRICES = {"load_matrices", true};

// Of one lane.
template <class Sum> struct Fragments {
    Sum* d;
    const uint32_t* a;
    const uint32_t* b;
};

// d += a b over the fragments of all lanes. `WORD` is how many numbers a register holds, and `widen(register, i)` is
// number i of one; A is 16 x 8 WORD, B is 8 WORD x 8. Sums are of type Wide.
template <int WORD, class Wide, class Sum, class Widen>
void multiply(void* const (&operands)[LANES], Widen widen) {
    constexpr int DEPTH = 8 * WORD;
    constexpr int COLUMNS = 8;
    Wide a[16][DEPTH], b[DEPTH][COLUMNS], d[16][COLUMNS];
    const auto lane = [&](int i) { return static_cast<const Fragments<Sum>*>(operands[i]); };
    for (int i = 0; i < 32; i++) {
        const int g = i / 4, t = i % 4;
        for (int r = 0; r < 4; r++) {
            for (int w = 0; w < WORD; w++) a[g + r % 2 * 8][(t + r / 2 * 4) * WORD + w] = widen(lane(i)->a[r], w);
            d[g + r / 2 * 8][2 * t + r % 2] = lane(i)->d[r];
        }
        for (int r = 0; r < 2; r++) {
            for (int w = 0; w < WORD; w++) b[(t + r * 4) * WORD + w][g] = widen(lane(i)->b[r], w);
        }
    }
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < DEPTH; k++) {
            for (int column = 0; column < COLUMNS; column++) d[row][column] += a[row][k] * b[k][column];
        }
    }
    for (int i = 0; i < 32; i++) {
        const int g = i / 4, t = i % 4;
        for (int r = 0; r < 4; r++) lane(i)->d[r] = static_cast<Sum>(d[g + r / 2 * 8][2 * t + r % 2]);
    }
}

inline double widen_16_bits(__nv_bfloat16, uint32_t word, int i) {
    return __bfloat162float({static_cast<unsigned short>(word >> 16 * i)});
}
inline double widen_16_bits(__half, uint32_t word, int i) {
    return __half2float({static_cast<unsigned short>(word >> 16 * i)});
}

} // namespace emulator

template <class X>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emulator::Site site = emulator::here()) {
    using namespace emulator;
    Fragments<float> mine = {d, a, b};
    meet(MMA, ALL_LANES, site, &mine, [](void* const(&operands)[LANES], uint32_t, Site) {
        multiply<2, double, float>(operands, [](uint32_t word, int i) { return widen_16_bits(X(), word, i); });
    });
}

inline void mma_16x8x32(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        emulator::Site site = emulator::here()) {
    using namespace emulator;
    Fragments<int> mine = {d, a, b};
    meet(MMA, ALL_LANES, site, &mine, [](void* const(&operands)[LANES], uint32_t, Site) {
        multiply<4, int, int>(operands, [](uint32_t word, int i) { return static_cast<int8_t>(word >> 8 * i); });
    });
}

inline void load_matrices(uint32_t (&r)[4], const void* row, emulator::Site site = emulator::here()) {
    using namespace emulator;
    struct Rows {
        uint32_t* r;
        const void* row;
    };
    check_shared(row, 16, "load_matrices", site);
    Rows mine = {r, row};
    meet(LOAD_MATRICES, ALL_LANES, site, &mine, [](void* const(&operands)[LANES], uint32_t, Site) {
        for (int i = 0; i < 32; i++) {
            const int g = i / 4, t = i % 4;
            for (int matrix = 0; matrix < 4; matrix++) {
                const auto from = static_cast<const Rows*>(operands[matrix * 8 + g]);
                const auto bytes = static_cast<const unsigned char*>(from->row) + 4 * t;
                memcpy(&static_cast<const Rows*>(operands[i])->r[matrix], bytes, 4);
            }
        }
    });
}
