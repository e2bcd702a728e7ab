// Matrix products of a warpgroup, from what kernels/ptx/wgmma.cuh says of them. A product is computed at the wait that
// covers its group, of what lies in registers and shared memory then; until then d holds NaN, or a number that no sum of
// bytes comes near. So a wait that is missing is noticed, and so is a register or shared memory that is written too early.
#pragma once

#include "../products.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

constexpr bool WARPGROUP_PRODUCTS = true;

struct SharedTokens {
    emulator::TokensInShared tokens;

    static SharedTokens at(const void* start, unsigned next_core, unsigned next_tokens) {
        return {{static_cast<const unsigned char*>(start), next_core, next_tokens, false}};
    }

    static SharedTokens across(const void* start, unsigned next_core, unsigned next_tokens) {
        return {{static_cast<const unsigned char*>(start), next_core, next_tokens, true}};
    }

    SharedTokens plus(unsigned bytes) const {
        return {{tokens.start + bytes, tokens.next_core, tokens.next_tokens, tokens.across}};
    }
};

inline void warpgroup_fence() { emulator::fence_products(); }

// The host has but one way to its memory.
inline void show_to_products() {}

inline void warpgroup_commit() { emulator::end_product_group(); }

template <int PENDING> inline void warpgroup_wait(emulator::Site site = emulator::here()) {
    static_assert(PENDING >= 0);
    emulator::wait_for_products(PENDING, site);
}

template <class T, unsigned N> inline void in_use_until_here(T (&)[N]) {}

template <class X, unsigned N>
inline void warpgroup_mma(float (&d)[N], const uint32_t (&a)[4], SharedTokens b, bool add,
                          emulator::Site site = emulator::here()) {
    constexpr bool HALF = std::is_same_v<X, __half>;
    static_assert(HALF || std::is_same_v<X, __nv_bfloat16>);
    emulator::start_product({HALF ? emulator::Numbers::F16 : emulator::Numbers::BF16, d, N, a, b.tokens, add}, site);
}

template <class X, unsigned N>
inline void warpgroup_mma_across(float (&d)[N], const uint32_t (&a)[4], SharedTokens b, bool add,
                                 emulator::Site site = emulator::here()) {
    if (!b.tokens.across) emulator::fail(site, "warpgroup_mma_across of tokens that do not lie across");
    warpgroup_mma<X>(d, a, b, add, site);
}

template <unsigned N>
inline void warpgroup_mma_s8(int (&d)[N], const uint32_t (&a)[4], SharedTokens b, bool add,
                             emulator::Site site = emulator::here()) {
    emulator::start_product({emulator::Numbers::S8, d, N, a, b.tokens, add}, site);
}
