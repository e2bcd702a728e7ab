// What threads have of each other: their numbers, barriers, operations of a warp, atomics.
#pragma once

#include "emulator.h"
#include "vectors.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

inline void __syncthreads(emulator::Site site = emulator::here()) { emulator::barrier(site); }

namespace emulator {

constexpr WarpOp SYNCWARP = {"__syncwarp", false};
constexpr WarpOp BALLOT = {"__ballot_sync", false};
constexpr WarpOp SHFL = {"__shfl_sync", false};
constexpr WarpOp SHFL_UP = {"__shfl_up_sync", false};
constexpr WarpOp SHFL_DOWN = {"__shfl_down_sync", false};
constexpr WarpOp SHFL_XOR = {"__shfl_xor_sync", false};

struct Vote {
    bool mine;
    uint32_t all;
};

// The lanes of `mask` whose `mine` is true.
inline uint32_t vote(uint32_t mask, bool mine, Site site) {
    Vote vote = {mine, 0};
    meet(BALLOT, mask, site, &vote, [](void* const(&operands)[LANES], uint32_t mask, Site) {
        uint32_t all = 0;
        for (uint32_t i = 0; i < LANES; i++) {
            if (mask >> i & 1) all |= uint32_t(static_cast<const Vote*>(operands[i])->mine) << i;
        }
        for (uint32_t i = 0; i < LANES; i++) {
            if (mask >> i & 1) static_cast<Vote*>(operands[i])->all = all;
        }
    });
    return vote.all;
}

template <class T> struct Shuffle {
    T value;
    uint32_t source;
    T result;
};

// The value of lane `source`.
template <class T> T shuffle(const WarpOp& op, uint32_t mask, T value, uint32_t source, Site site) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle moves 32 or 64 bits");
    Shuffle<T> shuffle = {value, source, value};
    meet(op, mask, site, &shuffle, [](void* const(&operands)[LANES], uint32_t mask, Site site) {
        for (uint32_t i = 0; i < LANES; i++) {
            if (!(mask >> i & 1)) continue;
            auto* mine = static_cast<Shuffle<T>*>(operands[i]);
            if (operands[mine->source] == nullptr) {
                fail(site, "a shuffle of lanes %08x in which lane %u asks for the value of lane %u", mask, i,
                     mine->source);
            }
            mine->result = static_cast<const Shuffle<T>*>(operands[mine->source])->value;
        }
    });
    return shuffle.result;
}

// The first lane of the caller's segment, of `width` lanes.
inline uint32_t segment(int width, Site site) {
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail(site, "a shuffle in segments of %d lanes", width);
    return lane() & ~static_cast<uint32_t>(width - 1);
}

} // namespace emulator

inline void __syncwarp(unsigned mask = emulator::ALL_LANES, emulator::Site site = emulator::here()) {
    emulator::meet(emulator::SYNCWARP, mask, site, nullptr, [](void* const (&)[32], uint32_t, emulator::Site) {});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = emulator::here()) {
    return emulator::vote(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, emulator::Site site = emulator::here()) {
    return emulator::vote(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Site site = emulator::here()) {
    return emulator::vote(mask, predicate != 0, site) == mask;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulator::Site site = emulator::here()) {
    const uint32_t first = emulator::segment(width, site);
    return emulator::shuffle(emulator::SHFL, mask, value, first | (source & (width - 1)), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, emulator::Site site = emulator::here()) {
    const uint32_t first = emulator::segment(width, site);
    const uint32_t me = emulator::lane();
    return emulator::shuffle(emulator::SHFL_UP, mask, value, me - first >= delta ? me - delta : me, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, emulator::Site site = emulator::here()) {
    const uint32_t first = emulator::segment(width, site);
    const uint32_t me = emulator::lane();
    const bool inside = delta < static_cast<unsigned>(width) && me - first + delta < static_cast<unsigned>(width);
    return emulator::shuffle(emulator::SHFL_DOWN, mask, value, inside ? me + delta : me, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, emulator::Site site = emulator::here()) {
    const uint32_t end = emulator::segment(width, site) + static_cast<uint32_t>(width);
    const uint32_t me = emulator::lane();
    const uint32_t source = me ^ static_cast<uint32_t>(lane_mask);
    return emulator::shuffle(emulator::SHFL_XOR, mask, value, source < end ? source : me, site);
}

// Others see what was written before as soon as it is written; here they may run.
inline void __threadfence(emulator::Site site = emulator::here()) {
    emulator::ordered_access(emulator::Access::Fence, site);
}
inline void __threadfence_block(emulator::Site site = emulator::here()) { __threadfence(site); }
inline void __threadfence_system(emulator::Site site = emulator::here()) { __threadfence(site); }
inline void __nanosleep(unsigned, emulator::Site site = emulator::here()) {
    emulator::ordered_access(emulator::Access::Look, site);
}

namespace emulator {

// Replaces what is at `address` by `next` of it and gives what it was.
template <class T, class Next> T atomic(T* address, Next next, Site site) {
    if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) fail(site, "an atomic at a misaligned address");
    const T before = *address;
    const T after = next(before);
    memcpy(address, &after, sizeof after);
    ordered_access(memcmp(&before, &after, sizeof after) != 0 ? Access::Write : Access::Look, site);
    return before;
}

// Keeps T from being deduced from an argument.
template <class T> struct Same {
    using Type = T;
};

} // namespace emulator

#define ATOMIC(NAME, NEXT)                                                                                             \
    template <class T>                                                                                                 \
    T NAME(T* address, typename emulator::Same<T>::Type operand, emulator::Site site = emulator::here()) {             \
        return emulator::atomic(address, [operand](T old) -> T { return NEXT; }, site);                                \
    }
ATOMIC(atomicAdd, old + operand)
ATOMIC(atomicSub, old - operand)
ATOMIC(atomicMin, old < operand ? old : operand)
ATOMIC(atomicMax, old > operand ? old : operand)
ATOMIC(atomicAnd, old& operand)
ATOMIC(atomicOr, old | operand)
ATOMIC(atomicXor, old ^ operand)
ATOMIC(atomicExch, (static_cast<void>(old), operand))
ATOMIC(atomicInc, old >= operand ? 0 : old + 1)
#undef ATOMIC

template <class T>
T atomicCAS(T* address, typename emulator::Same<T>::Type expected, typename emulator::Same<T>::Type value,
            emulator::Site site = emulator::here()) {
    return emulator::atomic(address, [=](T old) { return old == expected ? value : old; }, site);
}

// Loads and stores that ask something of the caches.
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldlu(const T* p) { return *p; }
template <class T> T __ldcv(const T* p) { return *p; }
template <class T> void __stwb(T* p, typename emulator::Same<T>::Type x) { *p = x; }
template <class T> void __stcg(T* p, typename emulator::Same<T>::Type x) { *p = x; }
template <class T> void __stcs(T* p, typename emulator::Same<T>::Type x) { *p = x; }
template <class T> void __stwt(T* p, typename emulator::Same<T>::Type x) { *p = x; }
