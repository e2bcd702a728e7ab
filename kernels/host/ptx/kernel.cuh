// How a kernel is defined for the host: it is a function that the library finds by its name.
#pragma once

#include "../emulator.h"

#define KERNEL(name, ...) KERNEL_OF(emulator::MAX_THREADS, 1, name, __VA_ARGS__)
#define KERNEL_OF(threads, blocks, name, ...)                                                                          \
    extern "C" void name(__VA_ARGS__);                                                                                 \
    static emulator::Registration EMULATOR_JOIN(registration_of_, name)(EMULATOR_TEXT(name), threads, name);           \
    extern "C" void name(__VA_ARGS__)

#define DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared()

// Of `name` as it is once macros are replaced in it.
#define EMULATOR_TEXT(name) EMULATOR_TEXT_OF(name)
#define EMULATOR_TEXT_OF(name) #name
#define EMULATOR_JOIN(a, b) EMULATOR_JOIN_OF(a, b)
#define EMULATOR_JOIN_OF(a, b) a##b

inline unsigned dynamic_shared_bytes() { return emulator::dynamic_shared_bytes(); }
