// Runs grids: which block and which thread goes on when one has to wait.
#include "emulator.h"

#include "block.h"
#include "poison.h"
#include "prelude.h"
#include "static_shared.h"

#include <cstdarg>
#include <cstdio>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

bool static_shared_is_poisoned;

namespace {

constexpr size_t RESIDENT = 64;          // blocks at once, at most
constexpr size_t MIXED = 4;              // blocks at once in a random order, unless they wait for more
constexpr uint64_t MOST_LOOKS = 1 << 20; // in vain by all threads, before a launch counts as stuck

Kernel* all_kernels; // the last one first

// Marsaglia, "Xorshift RNGs", 2003.
class Random {
    uint64_t state = 1;

  public:
    explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15 | 1) {}

    uint32_t below(uint32_t limit) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return static_cast<uint32_t>((state >> 32) * limit >> 32);
    }
};

uint64_t common_divisor(uint64_t a, uint64_t b) { return b == 0 ? a : common_divisor(b, a % b); }

enum class Order { Forward, Backward, Random };

struct Launch {
    const Kernel* kernel;
    void* const* args;
    Index grid;
    uint64_t blocks;
    uint32_t threads;
    uint32_t shared_bytes;
    Order order;
    Random random;
    uint64_t stride, first; // block number i in a random order is (first + i * stride) mod blocks

    uint64_t begun = 0; // blocks
    uint64_t looks = 0; // in vain since something last changed
    bool failed = false;
    std::vector<std::unique_ptr<Block>> alive;
    size_t turn = 0;
    Fiber loop; // the one that chooses blocks

    Launch(const Kernel* kernel, void* const* args, const uint32_t grid[3], uint32_t threads, uint32_t shared_bytes,
           uint64_t order);
    void run();

  private:
    Block* choose();
    Block* begin_next();
    void end(const Block* block);
    void enter(Block* block);
    Index index_of(uint64_t number) const;
    bool more() const { return begun < blocks && alive.size() < RESIDENT; }
};

Launch* launch;
Block* block;        // that runs or ran last
Thread* thread;      // that runs
Block* static_owner; // whose static shared memory is in place
std::vector<std::unique_ptr<Block>> idle; // done; their memory serves again
std::string message;
bool waited = false; // whether a thread of the launch has waited for the grid before it

void set_message(const Index* index, const std::string& what) {
    message = launch->kernel->c.name;
    if (index != nullptr) {
        char place[64];
        snprintf(place, sizeof place, ", block (%u, %u, %u)", index->x, index->y, index->z);
        message += place;
    }
    message += ": " + what;
}

void leave() { switch_fiber(thread->fiber, launch->loop); }

void resume(Thread& next) {
    thread = &next;
    threadIdx.x = next.index;
}

// The thread to go on with in `block`, or NONE.
uint32_t pick() {
    switch (launch->order) {
        case Order::Forward: return block->ready.at_or_above(0);
        case Order::Backward: return block->ready.last();
        case Order::Random: break;
    }
    const uint32_t from = launch->random.below(launch->threads);
    const uint32_t next = block->ready.at_or_above(from);
    return next != ThreadSet::NONE ? next : block->ready.at_or_above(0);
}

// Lets `next`, or if there is none the launch loop, go on instead of the calling thread.
void give_way(uint32_t next) {
    if (next == ThreadSet::NONE) return leave();
    Thread* from = thread;
    if (from->index == next) return;
    resume(block->threads[next]);
    switch_fiber(from->fiber, thread->fiber);
}

void suspend(const char* at, Site site, uint32_t mask) {
    thread->wait = {at, site, mask};
    block->ready.remove(thread->index);
}

void wake(Thread& waiting) {
    waiting.wait = {};
    block->ready.add(waiting.index);
    launch->looks = 0;
    block->looks = 0;
}

// Whether all have come. Where they have, all of them can go on.
bool open_barrier() {
    if (block->at_barrier == 0 || block->at_barrier != block->live) return false;
    block->at_barrier = 0;
    for (Warp& warp : block->warps) warp.at_barrier = 0;
    for (Thread& waiting : block->threads) {
        if (!waiting.ended) wake(waiting);
    }
    return true;
}

void end_thread() {
    thread->ended = true;
    block->ready.remove(thread->index);
    block->live--;
    block->looks = 0;
    launch->looks = 0;
    Warp& warp = block->warps[thread->index / LANES];
    const uint32_t lane = 1u << thread->index % LANES;
    warp.lanes &= ~lane;
    for (const Meeting& meeting : warp.meetings) {
        if (meeting.mask & lane) {
            fail(meeting.site, "lane %u has ended, for which %s of lanes %08x waits", thread->index % LANES,
                 meeting.op->name, meeting.mask);
        }
    }
    open_barrier();
    give_way(block->live == 0 ? ThreadSet::NONE : pick());
}

void run_thread() {
    launch->kernel->call(launch->kernel->function, launch->args);
    end_thread();
}

Launch::Launch(const Kernel* kernel, void* const* args, const uint32_t grid[3], uint32_t threads, uint32_t shared_bytes,
               uint64_t order)
    : kernel(kernel), args(args), grid{grid[0], grid[1], grid[2]}, blocks(uint64_t(grid[0]) * grid[1] * grid[2]),
      threads(threads), shared_bytes(shared_bytes),
      order(order == 0 ? Order::Forward : order == 1 ? Order::Backward : Order::Random), random(order), stride(1),
      first(0) {
    if (this->order != Order::Random || blocks == 0) return;
    const uint32_t limit = static_cast<uint32_t>(blocks < UINT32_MAX ? blocks : UINT32_MAX);
    first = random.below(limit);
    do stride = 1 + random.below(limit);
    while (common_divisor(stride, blocks) != 1);
}

Index Launch::index_of(uint64_t number) const {
    uint64_t i = number;
    if (order == Order::Backward) i = blocks - 1 - number;
    if (order == Order::Random) {
        i = static_cast<uint64_t>((first + static_cast<unsigned __int128>(number) * stride) % blocks);
    }
    return {static_cast<uint32_t>(i % grid.x), static_cast<uint32_t>(i / grid.x % grid.y),
            static_cast<uint32_t>(i / grid.x / grid.y)};
}

Block* Launch::begin_next() {
    if (idle.empty()) idle.push_back(std::make_unique<Block>());
    alive.push_back(std::move(idle.back()));
    idle.pop_back();
    Block* next = alive.back().get();
    next->begin(index_of(begun++), threads, shared_bytes, run_thread);
    looks = 0;
    return next;
}

void Launch::end(const Block* block) {
    size_t i = 0;
    while (alive[i].get() != block) i++;
    idle.push_back(std::move(alive[i]));
    alive.erase(alive.begin() + static_cast<ptrdiff_t>(i));
    turn = 0;
}

// The block to go on with, or null when all are done.
Block* Launch::choose() {
    if (order == Order::Random) {
        const bool waiting = looks > uint64_t(4) * threads * alive.size();
        while (more() && alive.size() < MIXED) begin_next();
        if (waiting && more()) begin_next();
        return alive.empty() ? nullptr : alive[random.below(static_cast<uint32_t>(alive.size()))].get();
    }
    if (alive.empty()) return more() ? begin_next() : nullptr;
    // A block that only looks for what others are to write lets the next one run.
    if (alive[turn]->looks > alive[turn]->ready.count()) {
        alive[turn]->looks = 0;
        if (++turn == alive.size()) {
            if (more()) return begin_next();
            turn = 0;
        }
    }
    return alive[turn].get();
}

void Launch::enter(Block* next) {
    block = next;
    blockIdx = {next->index.x, next->index.y, next->index.z};
    static_shared_is_poisoned = next->uses_static;
    if (!next->uses_static || static_owner == next) return;
    const Bytes memory = static_shared_memory();
    if (static_owner != nullptr) static_owner->static_image.assign(memory.start, memory.start + memory.size);
    memcpy(memory.start, next->static_image.data(), memory.size);
    static_owner = next;
}

void Launch::run() {
    while (Block* next = choose()) {
        enter(next);
        const uint32_t first = pick();
        if (first == ThreadSet::NONE) return set_message(&next->index, "nobody can go on: " + next->waits());
        resume(next->threads[first]);
        switch_fiber(loop, thread->fiber);
        if (failed) return;
        if (next->live == 0) {
            if (const char* damage = next->damage()) return set_message(&next->index, damage);
            if (static_owner == next) static_owner = nullptr;
            end(next);
        }
    }
}

std::string unsuitable(const Kernel& kernel, const uint32_t grid[3], uint32_t threads, uint32_t shared_bytes) {
    char what[160] = "";
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535) {
        snprintf(what, sizeof what, "a grid of %u x %u x %u blocks; 1 to 2147483647 x 65535 x 65535 can be", grid[0],
                 grid[1], grid[2]);
    } else if (threads == 0 || threads > kernel.max_threads) {
        snprintf(what, sizeof what, "%u threads to a block; it is compiled for 1 to %u", threads, kernel.max_threads);
    } else if (shared_bytes > MAX_SHARED) {
        snprintf(what, sizeof what, "%u bytes of dynamic shared memory; a block has at most %u", shared_bytes,
                 MAX_SHARED);
    }
    return what;
}

} // namespace

void fail(Site site, const char* format, ...) {
    char what[1024];
    va_list values;
    va_start(values, format);
    vsnprintf(what, sizeof what, format, values);
    va_end(values);
    char place[64];
    snprintf(place, sizeof place, "thread %u, at ", thread->index);
    set_message(&block->index, place + std::string(site.file) + ":" + std::to_string(site.line) + ": " + what);
    launch->failed = true;
    leave();
    abort(); // nobody comes back to it
}

void barrier(Site site) {
    Warp& warp = block->warps[thread->index / LANES];
    if (warp.at_barrier++ == 0) warp.barrier_site = site;
    else if (!(warp.barrier_site == site)) {
        fail(site, "a barrier, while other lanes of the warp are at the one at %s:%d", warp.barrier_site.file,
             warp.barrier_site.line);
    }
    block->at_barrier++;
    suspend("__syncthreads", site, 0);
    if (open_barrier() && launch->order == Order::Random) leave();
    else give_way(pick());
}

void meet(const WarpOp& op, uint32_t mask, Site site, void* operands, Resolve resolve) {
    Warp& warp = block->warps[thread->index / LANES];
    const uint32_t me = 1u << thread->index % LANES;
    if (!(mask & me)) fail(site, "%s of lanes %08x by lane %u", op.name, mask, thread->index % LANES);
    if (mask & ~warp.lanes) {
        fail(site, "%s of lanes %08x, of which %08x have ended or never were", op.name, mask, mask & ~warp.lanes);
    }
    size_t at = 0;
    while (at < warp.meetings.size() && warp.meetings[at].mask != mask) at++;
    if (at == warp.meetings.size()) warp.meetings.push_back({&op, site, mask, 0});
    Meeting& meeting = warp.meetings[at];
    if (meeting.op != &op || (op.aligned && !(meeting.site == site))) {
        fail(site, "%s of lanes %08x, while other lanes of the warp are at %s at %s:%d", op.name, mask,
             meeting.op->name, meeting.site.file, meeting.site.line);
    }
    meeting.here |= me;
    warp.operands[thread->index % LANES] = operands;
    if (meeting.here != mask) {
        suspend(op.name, site, mask);
        return give_way(pick());
    }
    warp.meetings.erase(warp.meetings.begin() + static_cast<ptrdiff_t>(at));
    void* all[LANES] = {};
    Thread* lanes = &block->threads[thread->index / LANES * LANES];
    for (uint32_t i = 0; i < LANES; i++) {
        if (mask >> i & 1) all[i] = warp.operands[i];
    }
    resolve(all, mask, site);
    for (uint32_t i = 0; i < LANES; i++) {
        if (mask >> i & 1) wake(lanes[i]);
    }
    give_way(pick());
}

void ordered_access(Access access, Site site) {
    if (access == Access::Write) {
        launch->looks = 0;
        block->looks = 0;
    }
    if (access == Access::Look) {
        block->looks++;
        if (++launch->looks > MOST_LOOKS) {
            fail(site, "all threads look for what none will write; this block: %s", block->waits().c_str());
        }
    }
    if (launch->order == Order::Random) {
        if (launch->random.below(2) == 0) leave();
    } else if (access == Access::Look) {
        // Others first, and other blocks once all of this one have looked.
        const uint32_t next = block->ready.at_or_above(thread->index + 1);
        give_way(next != ThreadSet::NONE || block->looks > block->ready.count() ? next : block->ready.at_or_above(0));
    }
}

uint32_t lane() { return thread->index % LANES; }

unsigned char* dynamic_shared() { return block->dynamic; }

uint32_t dynamic_shared_bytes() { return launch->shared_bytes; }

void poison_static_shared() {
    const Bytes memory = static_shared_memory();
    if (static_owner != nullptr) static_owner->static_image.assign(memory.start, memory.start + memory.size);
    memset(memory.start, POISON, memory.size);
    static_owner = block;
    block->uses_static = true;
    static_shared_is_poisoned = true;
}

void check_shared(const void* address, size_t bytes, const char* what, Site site) {
    const auto start = static_cast<const unsigned char*>(address);
    const auto is_in = [=](Bytes memory) {
        return start >= memory.start && start + bytes <= memory.start + memory.size;
    };
    const bool is_shared =
        is_in({block->dynamic, launch->shared_bytes}) || (block->uses_static && is_in(static_shared_memory()));
    if (!is_shared) fail(site, "%s: the address is not in the shared memory of this block", what);
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
        fail(site, "%s: the address in shared memory is not a multiple of %zu", what, bytes);
    }
}

void note_wait() { waited = true; }

void start_copy(void* to, const void* from, size_t bytes, bool valid, Site site) {
    const char* what = bytes == 4 ? "copy4" : "copy16";
    check_shared(to, bytes, what, site);
    if (reinterpret_cast<uintptr_t>(from) % bytes != 0) {
        fail(site, "%s: the address in global memory is not a multiple of %zu", what, bytes);
    }
    memset(to, POISON, bytes);
    thread->copies.push_back({to, valid ? from : nullptr, bytes, thread->copy_group});
}

void end_copy_group() { thread->copy_group++; }

void wait_for_copies(unsigned groups_left) {
    std::vector<Copy>& copies = thread->copies;
    size_t done = 0;
    while (done < copies.size() && copies[done].group + groups_left < thread->copy_group) {
        const Copy& copy = copies[done++];
        if (copy.from == nullptr) memset(copy.to, 0, copy.bytes);
        else memcpy(copy.to, copy.from, copy.bytes);
    }
    copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(done));
}

Products& current_products() { return thread->products; }

void add_kernel(Kernel* kernel) {
    kernel->next = all_kernels;
    all_kernels = kernel;
}

} // namespace emulator

using namespace emulator;

namespace {

const std::vector<const Kernel*>& kernels() {
    static const std::vector<const Kernel*> list = [] {
        std::vector<const Kernel*> list;
        for (const Kernel* kernel = all_kernels; kernel != nullptr; kernel = kernel->next) list.push_back(kernel);
        return std::vector<const Kernel*>(list.rbegin(), list.rend());
    }();
    return list;
}

} // namespace

uint32_t emu_kernels(const EmuKernel** list) {
    static const std::vector<EmuKernel> public_parts = [] {
        std::vector<EmuKernel> parts;
        for (const Kernel* kernel : kernels()) parts.push_back(kernel->c);
        return parts;
    }();
    *list = public_parts.data();
    return static_cast<uint32_t>(public_parts.size());
}

uint32_t emu_waited() { return waited ? 1 : 0; }

const char* emu_launch(uint32_t kernel, const uint32_t grid[3], uint32_t threads, uint32_t shared_bytes,
                       void* const* args, uint64_t order) {
    if (kernel >= kernels().size()) {
        message = "no kernel has the number " + std::to_string(kernel);
        return message.c_str();
    }
    Launch next(kernels()[kernel], args, grid, threads, shared_bytes, order);
    launch = &next;
    static_owner = nullptr;
    waited = false;
    message.clear();
    const std::string why_not = unsuitable(*next.kernel, grid, threads, shared_bytes);
    if (!why_not.empty()) set_message(nullptr, why_not);
    else {
        gridDim = dim3(grid[0], grid[1], grid[2]);
        blockDim = dim3(threads);
        next.run();
    }
    launch = nullptr;
    idle.insert(idle.end(), std::make_move_iterator(next.alive.begin()), std::make_move_iterator(next.alive.end()));
    if (idle.size() > MIXED) idle.resize(MIXED);
    return message.empty() ? nullptr : message.c_str();
}
