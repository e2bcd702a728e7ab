// The emulator's side that kernels see once they are compiled for the host, and the C interface of a library of them.
//
// Every thread of a block is a fiber: a stack of its own that runs until it has to wait for others. The threads of a
// block wait for each other at barriers and at operations of a warp; where not all of those arrive that should, the
// launch ends with a message that says who waits where. Nothing runs in parallel: one thread of one block at a time.
//
// Shared memory is poisoned with NaN at the start of a block, the destination of an asynchronous copy until its wait ends,
// and threads and blocks run in several orders. This finds missing barriers and waits, reads of what was never
// written, divergence at operations of a warp, deadlocks, misaligned accesses and, where the compiler knows an array,
// indices out of its range. It cannot find a missing memory fence, since writes are visible at once and in order, and
// says nothing about speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

extern "C" {

// A kernel of the library: the name, and the size of every argument in bytes.
struct EmuKernel {
    const char* name;
    uint32_t args;
    const uint32_t* arg_sizes;
};

// How many kernels the library has; `*list` becomes the address of the first.
__attribute__((visibility("default"))) uint32_t emu_kernels(const EmuKernel** list);

// Runs the kernel of that number over a grid of blocks of `threads` threads with `shared_bytes` of dynamic shared
// memory; `args` points to the arguments. Blocks, and the threads of a block between two waits, run in rising order
// (`order` 0), in falling order (1), or several blocks at once in a random order that any other `order` is the seed of.
// Null, or what went wrong; the text is valid until the next call. One call at a time per library.
__attribute__((visibility("default"))) const char* emu_launch(uint32_t kernel, const uint32_t grid[3], uint32_t threads,
                                                              uint32_t shared_bytes, void* const* args, uint64_t order);

// Whether, in the last launch, a thread waited for the grid before it.
__attribute__((visibility("default"))) uint32_t emu_waited();
}

namespace emulator {

constexpr uint32_t LANES = 32;           // of a warp
constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr uint32_t MAX_THREADS = 1024;   // of a block
constexpr uint32_t MAX_SHARED = 232448;  // bytes of dynamic shared memory; the most of any GPU so far (H100)

// A place in the sources.
struct Site {
    const char* file;
    int line;

    bool operator==(const Site& other) const { return line == other.line && file == other.file; }
};

// As a default argument: where the function is called.
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// Ends the launch with a message that names kernel, block and thread.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Waits for all threads of the block that have not ended. The threads of a warp must do so at the same place.
void barrier(Site site);

// An operation of a warp. `aligned`: all lanes must do it at the same place of the program.
struct WarpOp {
    const char* name;
    bool aligned;
};

// Waits for all lanes of `mask`, which includes the caller, to be at the same operation with the same mask. The last
// one calls `resolve` with the operands of all lanes, null for those that are not in the mask.
using Resolve = void (*)(void* const (&operands)[LANES], uint32_t mask, Site site);
void meet(const WarpOp& op, uint32_t mask, Site site, void* operands, Resolve resolve);

// What a thread does that others may wait for, or that may wait for others.
enum class Access {
    Write, // something new
    Look,  // at what others may write; threads that only do this wait
    Fence, // neither
};

// To be called with every access that orders memory between threads; other blocks may run. When for very long all that
// threads do is look, the launch ends as a deadlock.
void ordered_access(Access access, Site site);

// The calling thread's lane, the dynamic shared memory of its block and how many bytes that has.
uint32_t lane();
unsigned char* dynamic_shared();
uint32_t dynamic_shared_bytes();

// Stands before every static shared variable, poisoning all of them before a block uses its first.
extern bool static_shared_is_poisoned;
void poison_static_shared();
inline void static_shared() {
    if (__builtin_expect(!static_shared_is_poisoned, false)) poison_static_shared();
}

// A thread waits for the grid before this one. Grids run one after another here, so it need only be known that it does.
void note_wait();

// Ends the launch unless `bytes` from `address` on are shared memory of this block and aligned to `bytes`.
void check_shared(const void* address, size_t bytes, const char* what, Site site);

// An asynchronous copy of 16 or 4 bytes, or of as many zeros if not `valid`. They arrive at the wait that covers their
// group.
void start_copy(void* to, const void* from, size_t bytes, bool valid, Site site);
void end_copy_group();
void wait_for_copies(unsigned groups_left);

// A kernel as the launch needs it.
struct Kernel {
    EmuKernel c;
    uint32_t max_threads;
    void (*function)();
    void (*call)(void (*function)(), void* const* args);
    Kernel* next;
};

void add_kernel(Kernel* kernel);

template <class... Args> struct Caller {
    static_assert((... && (std::is_trivially_copyable_v<Args> && !std::is_reference_v<Args>)),
                  "arguments of a kernel are copied byte by byte");
    static constexpr uint32_t SIZES[sizeof...(Args) + 1] = {sizeof(Args)..., 0};

    static void call(void (*function)(), void* const* args) {
        apply(reinterpret_cast<void (*)(Args...)>(function), args, std::index_sequence_for<Args...>());
    }

    template <size_t... I>
    static void apply(void (*function)(Args...), [[maybe_unused]] void* const* args, std::index_sequence<I...>) {
        function(*static_cast<const Args*>(args[I])...);
    }
};

// Makes a kernel known to emu_kernels.
class Registration {
    Kernel kernel;

  public:
    template <class... Args> Registration(const char* name, uint32_t max_threads, void (*function)(Args...)) {
        kernel = {{name, sizeof...(Args), Caller<Args...>::SIZES},
                  max_threads,
                  reinterpret_cast<void (*)()>(function),
                  &Caller<Args...>::call,
                  nullptr};
        add_kernel(&kernel);
    }
};

} // namespace emulator
