// The words of CUDA C++ that kernels use, for the host's compiler; included before every source.
#pragma once

#include "emulator.h"

#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <math.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __shared__                                                                                                     \
    ::emulator::static_shared();                                                                                       \
    static thread_local

#include "arithmetic.h"
#include "threads.h"
#include "vectors.h"
