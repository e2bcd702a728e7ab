// Asynchronous copies to shared memory. Between its start and the wait that covers it the destination holds NaN.
#pragma once

#include "../emulator.h"

#include <cstdint>

enum class Keep { Short, Long };

template <Keep KEEP>
inline void copy16(void* shared, const void* global, bool valid, emulator::Site site = emulator::here()) {
    emulator::start_copy(shared, global, 16, valid, site);
}

inline void copy4(void* shared, const void* global, bool valid, emulator::Site site = emulator::here()) {
    emulator::start_copy(shared, global, 4, valid, site);
}

// Whoever asks for a sector that is not there would ask for something else than it reads later.
constexpr unsigned SECTOR = 32;
inline void bring_to_cache(const void* global) { static_cast<void>(*static_cast<const volatile unsigned char*>(global)); }

inline void copies_commit() { emulator::end_copy_group(); }

template <int PENDING> inline void copies_wait() {
    static_assert(PENDING >= 0);
    emulator::wait_for_copies(PENDING);
}
