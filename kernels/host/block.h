// A block of threads while it runs: who can go on, and who waits where.
#pragma once

#include "emulator.h"
#include "fiber.h"
#include "products.h"

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace emulator {

struct Index {
    uint32_t x, y, z;
};

// What a thread waits at.
struct Wait {
    const char* at = nullptr; // null while it can go on
    Site site = {};
    uint32_t mask = 0; // of lanes; 0 at a barrier
};

// An asynchronous copy under way.
struct Copy {
    void* to;
    const void* from; // null: zeros
    size_t bytes;
    uint64_t group;
};

struct Thread {
    Fiber fiber;
    uint32_t index;
    bool ended;
    Wait wait;
    uint64_t copy_group; // how many it has ended
    std::vector<Copy> copies;
    Products products;
};

// Lanes that wait for each other at one operation.
struct Meeting {
    const WarpOp* op;
    Site site; // of the first to come
    uint32_t mask;
    uint32_t here;
};

struct Warp {
    uint32_t lanes;       // that have not ended
    uint32_t at_barrier;
    Site barrier_site;    // of the first to come
    std::vector<Meeting> meetings;
    void* operands[LANES];
};

// Threads of a block by number.
class ThreadSet {
    static constexpr uint32_t WORDS = MAX_THREADS / 64;
    uint64_t words[WORDS] = {};

  public:
    static constexpr uint32_t NONE = MAX_THREADS;

    void clear() { *this = {}; }
    void add(uint32_t i) { words[i / 64] |= uint64_t(1) << i % 64; }
    void remove(uint32_t i) { words[i / 64] &= ~(uint64_t(1) << i % 64); }

    // The first member that is not below `i`, or NONE.
    uint32_t at_or_above(uint32_t i) const {
        if (i >= MAX_THREADS) return NONE;
        uint64_t word = words[i / 64] >> i % 64 << i % 64;
        for (uint32_t w = i / 64;; word = words[w]) {
            if (word != 0) return w * 64 + static_cast<uint32_t>(__builtin_ctzll(word));
            if (++w == WORDS) return NONE;
        }
    }

    uint32_t last() const {
        for (uint32_t w = WORDS; w-- > 0;) {
            if (words[w] != 0) return w * 64 + 63 - static_cast<uint32_t>(__builtin_clzll(words[w]));
        }
        return NONE;
    }

    uint32_t count() const {
        int n = 0;
        for (uint64_t word : words) n += __builtin_popcountll(word);
        return static_cast<uint32_t>(n);
    }
};

struct Block {
    Index index;
    uint32_t live;        // threads that have not ended
    uint32_t at_barrier;
    uint32_t looks;       // in a row that found nothing changed
    ThreadSet ready;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    unsigned char* dynamic; // the dynamic shared memory, between two zones that nobody may write
    bool uses_static;
    std::vector<unsigned char> static_image; // of the static shared memory while another block runs

    Block() = default;
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    // Ready to run the block `index` of so many threads from its start; every thread begins with `entry`.
    void begin(Index index, uint32_t thread_count, uint32_t dynamic_bytes, void (*entry)());

    // What it wrote over that was not its own, or null.
    const char* damage() const;

    // Who waits where, thread by thread in ranges.
    std::string waits() const;

  private:
    uint32_t dynamic_bytes;
    std::vector<unsigned char> dynamic_memory;
    unsigned char* stacks = nullptr;
    uint32_t stack_count = 0;

    void make_room();
    unsigned char* stack(uint32_t thread) const;
};

} // namespace emulator
