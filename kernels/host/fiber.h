// Fibers: several stacks in one thread of the operating system, and the way from one to another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace emulator {

#if defined(__x86_64__) || defined(__aarch64__)

// Where a fiber that does not run goes on; everything else is on its stack.
struct Fiber {
    void* stack_pointer;
};

// Keeps what a function must keep for its caller on the present stack, stores the stack pointer and goes on at another.
extern "C" void emulator_switch_stack(void** from, void* to);

#if defined(__x86_64__)
constexpr size_t SAVED_WORDS = 8; // six registers, where to go on, and one to align
constexpr size_t ENTRY_WORD = 6;
#else
constexpr size_t SAVED_WORDS = 20; // registers
constexpr size_t ENTRY_WORD = 11;  // the link register
#endif

// Makes `fiber` one that begins with `entry`, which never returns, on the `bytes` from `stack` on, a multiple of 16.
inline void prepare(Fiber& fiber, unsigned char* stack, size_t bytes, void (*entry)()) {
    void** saved = reinterpret_cast<void**>(stack + bytes) - SAVED_WORDS;
    memset(saved, 0, SAVED_WORDS * sizeof *saved);
    saved[ENTRY_WORD] = reinterpret_cast<void*>(entry);
    fiber.stack_pointer = saved;
}

inline void switch_fiber(Fiber& from, Fiber& to) { emulator_switch_stack(&from.stack_pointer, to.stack_pointer); }

#else

struct Fiber {
    ucontext_t context;
};

inline void prepare(Fiber& fiber, unsigned char* stack, size_t bytes, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}

inline void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

} // namespace emulator
