// Products that run beside the program, for ptx/wgmma.cuh.
#pragma once

#include "emulator.h"

#include <vector>

namespace emulator {

enum class Numbers { BF16, F16, S8 };

// Cores of 8 tokens by 16 bytes of K; or, where they lie across, of 8 numbers of K by 16 bytes of tokens.
struct TokensInShared {
    const unsigned char* start;
    uint32_t next_core;   // bytes
    uint32_t next_tokens; // bytes
    bool across;
};

// One lane's part of a product: its registers, and where b is.
struct Product {
    Numbers numbers;
    void* d; // f32, or i32 of bytes
    uint32_t d_count;
    const uint32_t* a;
    TokensInShared b;
    bool add;
};

// A product under way.
struct PendingProduct {
    Product product;
    uint64_t group;
    bool first;                 // none before it has the same d
    std::vector<uint32_t> base; // d as it was, where it is the first
};

// What a thread has under way.
struct Products {
    std::vector<PendingProduct> pending;
    uint64_t group = 0; // how many it has ended
    bool fenced = false;
};

// Those of the calling thread.
Products& current_products();

void fence_products();
void start_product(const Product& product, Site site);
void end_product_group();
void wait_for_products(unsigned groups_left, Site site);

} // namespace emulator
