// Order between blocks of a grid, and between grids. Grids run one after another here.
#pragma once

#include "../threads.h"

inline unsigned count_up(unsigned* counter, emulator::Site site = emulator::here()) {
    return atomicAdd(counter, 1u, site);
}

inline void arrive_at(unsigned* counter, emulator::Site site = emulator::here()) { atomicAdd(counter, 1u, site); }

inline void wait_for_count(const unsigned* counter, unsigned count, emulator::Site site = emulator::here()) {
    do {
        emulator::ordered_access(emulator::Access::Look, site);
    } while (*counter < count);
}

inline void wait_for_predecessor() { emulator::note_wait(); }

inline void let_successor_start() {}

inline void follow_predecessor() { wait_for_predecessor(); }

inline void tell_host(unsigned long long* word, unsigned long long value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}
