// An exponential in one instruction.
#pragma once

// 2^x to within two units in the last place, and 0 where that is below the smallest normal number.
__device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
