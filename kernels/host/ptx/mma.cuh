// Matrix products of one warp, from fragments as kernels/ptx/mma.cuh states them. Products of 16-bit numbers are exact;
// they and d are summed in f64 and rounded to f32 once. A GPU rounds in between, each architecture in its own way.
#pragma once

#include "../mma.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace emulator {

constexpr WarpOp MMA_BF16 = {"mma_16x8x16<bf16>", true};
constexpr WarpOp MMA_F16 = {"mma_16x8x16<f16>", true};
constexpr WarpOp MMA_S8 = {"mma_16x8x32", true};
constexpr WarpOp LOAD_MATRICES = {"load_matrices", true};
constexpr WarpOp LOAD_TRANSPOSED = {"load_transposed", true};

// Where one lane's registers go, and the row whose address it gives.
struct MatrixLoad {
    uint32_t* r;
    const void* row;
};

} // namespace emulator

template <class X>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 emulator::Site site = emulator::here()) {
    emulator::Fragments<float> mine = {d, a, b};
    if constexpr (std::is_same_v<X, __half>) {
        emulator::meet(emulator::MMA_F16, emulator::ALL_LANES, site, &mine, emulator::multiply_f16);
    } else {
        static_assert(std::is_same_v<X, __nv_bfloat16>);
        emulator::meet(emulator::MMA_BF16, emulator::ALL_LANES, site, &mine, emulator::multiply_bf16);
    }
}

inline void mma_16x8x32(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        emulator::Site site = emulator::here()) {
    emulator::Fragments<int> mine = {d, a, b};
    emulator::meet(emulator::MMA_S8, emulator::ALL_LANES, site, &mine, emulator::multiply_s8);
}

inline void load_matrices(uint32_t (&r)[4], const void* row, emulator::Site site = emulator::here()) {
    using namespace emulator;
    check_shared(row, 16, "load_matrices", site);
    MatrixLoad mine = {r, row};
    meet(LOAD_MATRICES, ALL_LANES, site, &mine, [](void* const(&operands)[LANES], uint32_t, Site) {
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            const auto& load = *static_cast<const MatrixLoad*>(operands[lane]);
            for (int matrix = 0; matrix < 4; matrix++) {
                const void* from = static_cast<const MatrixLoad*>(operands[matrix * 8 + g])->row;
                memcpy(&load.r[matrix], static_cast<const uint32_t*>(from) + t, sizeof load.r[matrix]);
            }
        }
    });
}

inline void load_transposed(uint32_t (&r)[4], const void* row, emulator::Site site = emulator::here()) {
    using namespace emulator;
    check_shared(row, 16, "load_transposed", site);
    MatrixLoad mine = {r, row};
    meet(LOAD_TRANSPOSED, ALL_LANES, site, &mine, [](void* const(&operands)[LANES], uint32_t, Site) {
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            const auto& load = *static_cast<const MatrixLoad*>(operands[lane]);
            for (int matrix = 0; matrix < 4; matrix++) {
                for (int i = 0; i < 2; i++) {
                    const void* from = static_cast<const MatrixLoad*>(operands[matrix * 8 + 2 * t + i])->row;
                    memcpy(reinterpret_cast<uint16_t*>(&load.r[matrix]) + i, static_cast<const uint16_t*>(from) + g,
                           sizeof(uint16_t));
                }
            }
        }
    });
}
