// Products of fragments, for ptx/mma.cuh.
#pragma once

#include "emulator.h"

namespace emulator {

// One lane's fragments of a, b and of d, whose elements are of type Sum.
template <class Sum> struct Fragments {
    Sum* d;
    const uint32_t* a;
    const uint32_t* b;
};

// d += a b. The operands are those of all lanes, Fragments<float> or, for bytes, Fragments<int>.
void multiply_bf16(void* const (&operands)[LANES], uint32_t mask, Site site);
void multiply_f16(void* const (&operands)[LANES], uint32_t mask, Site site);
void multiply_s8(void* const (&operands)[LANES], uint32_t mask, Site site);

} // namespace emulator
