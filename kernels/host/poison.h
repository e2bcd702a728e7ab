// What memory holds before anything was written to it: a NaN in every floating-point type.
#pragma once

namespace emulator {

constexpr int POISON = 0xff; // every byte

} // namespace emulator
