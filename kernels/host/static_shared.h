// Static shared memory. A `__shared__` variable is a static one of the operating system's thread: the linker puts all
// of these of a library, templates' included, into one piece, and the loader tells where it is. So they can be
// poisoned, kept and put back together.
#pragma once

#include <cstddef>

namespace emulator {

struct Bytes {
    unsigned char* start;
    size_t size;
};

// The static shared memory of all kernels of this library, as the calling thread sees it.
Bytes static_shared_memory();

} // namespace emulator
