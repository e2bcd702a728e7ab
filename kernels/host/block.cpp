#include "block.h"

#include "poison.h"

#include <cstdio>
#include <sys/mman.h>

namespace emulator {

namespace {

constexpr size_t STACK = 128 << 10; // bytes; only what is touched takes memory
// Tops of stacks lie apart by this much more, or all would fall into the same sets of the caches.
constexpr size_t COLOUR = 64 * 17;
constexpr uint32_t COLOURS = 16;
constexpr uint64_t CANARY = 0x5afe57ac5afe57ac; // at the far end of every stack

constexpr size_t ALIGNMENT = 128; // of dynamic shared memory
constexpr size_t ZONE = 1024;     // bytes before and behind it
constexpr uint16_t ZONE_WORD = 0x7fff; // NaN in every type, and not what memory is poisoned with

void fill_zone(unsigned char* zone) {
    for (size_t i = 0; i < ZONE; i += sizeof ZONE_WORD) memcpy(zone + i, &ZONE_WORD, sizeof ZONE_WORD);
}

bool zone_is_intact(const unsigned char* zone) {
    for (size_t i = 0; i < ZONE; i += sizeof ZONE_WORD) {
        if (memcmp(zone + i, &ZONE_WORD, sizeof ZONE_WORD) != 0) return false;
    }
    return true;
}

std::string describe(const Thread& thread) {
    if (thread.ended) return "have ended";
    if (thread.wait.at == nullptr) return "could go on";
    char lanes[32] = "";
    if (thread.wait.mask != 0) snprintf(lanes, sizeof lanes, " of lanes %08x", thread.wait.mask);
    char line[32];
    snprintf(line, sizeof line, ":%d", thread.wait.site.line);
    return std::string("wait in ") + thread.wait.at + lanes + " at " + thread.wait.site.file + line;
}

} // namespace

Block::~Block() {
    if (stacks != nullptr) munmap(stacks, (stack_count + 1) * STACK);
}

// The first is nobody's: what overflows the stack of thread 0 goes there.
unsigned char* Block::stack(uint32_t thread) const { return stacks + (thread + 1) * STACK; }

// For `threads` stacks and `dynamic_bytes` of dynamic shared memory.
void Block::make_room() {
    const size_t needed = ALIGNMENT + ZONE + dynamic_bytes + ZONE;
    if (dynamic_memory.size() < needed) dynamic_memory.resize(needed);
    const size_t start = reinterpret_cast<size_t>(dynamic_memory.data());
    dynamic = dynamic_memory.data() + ZONE + (ALIGNMENT - (start + ZONE) % ALIGNMENT) % ALIGNMENT;
    fill_zone(dynamic - ZONE);
    fill_zone(dynamic + dynamic_bytes);

    if (stack_count >= threads.size()) return;
    if (stacks != nullptr) munmap(stacks, (stack_count + 1) * STACK);
    stack_count = static_cast<uint32_t>(threads.size());
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, (stack_count + 1) * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
        perror("emulator: no memory for the stacks of a block");
        abort();
    }
    stacks = static_cast<unsigned char*>(memory);
}

void Block::begin(Index index, uint32_t thread_count, uint32_t dynamic_bytes, void (*entry)()) {
    this->index = index;
    this->dynamic_bytes = dynamic_bytes;
    threads.resize(thread_count);
    warps.resize((thread_count + LANES - 1) / LANES);
    make_room();
    memset(dynamic, POISON, dynamic_bytes);
    uses_static = false;

    live = thread_count;
    at_barrier = 0;
    looks = 0;
    ready.clear();
    for (uint32_t i = 0; i < thread_count; i++) {
        Thread& thread = threads[i];
        thread.index = i;
        thread.ended = false;
        thread.wait = {};
        thread.copy_group = 0;
        thread.products = {};
        thread.copies.clear();
        memcpy(stack(i), &CANARY, sizeof CANARY);
        prepare(thread.fiber, stack(i), STACK - i % COLOURS * COLOUR, entry);
        ready.add(i);
    }
    uint32_t left = thread_count;
    for (Warp& warp : warps) {
        const uint32_t here = left < LANES ? left : LANES;
        warp.lanes = ALL_LANES >> (LANES - here);
        warp.at_barrier = 0;
        warp.meetings.clear();
        left -= here;
    }
}

const char* Block::damage() const {
    if (!zone_is_intact(dynamic - ZONE)) return "wrote before the start of dynamic shared memory";
    if (!zone_is_intact(dynamic + dynamic_bytes)) return "wrote behind the end of dynamic shared memory";
    for (uint32_t i = 0; i < threads.size(); i++) {
        if (memcmp(stack(i), &CANARY, sizeof CANARY) != 0) return "has a thread with more local variables than fit";
    }
    return nullptr;
}

std::string Block::waits() const {
    std::string all;
    for (size_t first = 0, end; first < threads.size(); first = end) {
        const std::string what = describe(threads[first]);
        end = first + 1;
        while (end < threads.size() && describe(threads[end]) == what) end++;
        char range[48];
        if (end - first == 1) snprintf(range, sizeof range, "thread %zu: ", first);
        else snprintf(range, sizeof range, "threads %zu-%zu: ", first, end - 1);
        all += (all.empty() ? "" : "; ") + (range + what);
    }
    return all;
}

} // namespace emulator
