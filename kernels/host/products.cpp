#include "products.h"

#include "block.h"
#include "poison.h"
#include "prelude.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace emulator {

namespace {

constexpr WarpOp WAIT = {"warpgroup_wait", true};
constexpr uint32_t TOKENS = 8; // of a core
constexpr uint32_t CORE = 16;  // bytes of K in a core

float widened(Numbers numbers, uint32_t word, int i) {
    switch (numbers) {
        case Numbers::BF16: return __bfloat162float(__ushort_as_bfloat16(static_cast<uint16_t>(word >> 16 * i)));
        case Numbers::F16: return __half2float(__ushort_as_half(static_cast<uint16_t>(word >> 16 * i)));
        case Numbers::S8: break;
    }
    return static_cast<int8_t>(word >> 8 * i);
}

// The product of one warp's sixteen rows; `all` are the lanes' parts of it. Products and their sum are f64, which is exact
// for bytes, and rounded once.
void multiply(PendingProduct* const (&all)[LANES], Site site) {
    const Product& one = all[0]->product;
    const int per_word = one.numbers == Numbers::S8 ? 4 : 2;
    const int per_core = 4 * per_word;
    double a[16][64];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++) {
            for (int w = 0; w < per_word; w++) {
                a[g + r % 2 * 8][r / 2 * per_core + t * per_word + w] = widened(one.numbers, all[lane]->product.a[r], w);
            }
        }
    }
    for (uint32_t block = 0; block < one.d_count / 4; block++) {
        double b[64][TOKENS];
        for (int core = 0; core < 2; core++) {
            const unsigned char* start = one.b.start + core * one.b.next_core + block * one.b.next_tokens;
            for (uint32_t token = 0; token < TOKENS; token++) {
                check_shared(start + token * CORE, CORE, "a product of a warpgroup", site);
                for (int w = 0; w < 4; w++) {
                    uint32_t word;
                    memcpy(&word, start + token * CORE + 4 * w, sizeof word);
                    for (int i = 0; i < per_word; i++) {
                        const double number = widened(one.numbers, word, i);
                        // Across, a row of a core is a number of K, and its numbers are tokens: eight of 16 bits.
                        if (one.b.across) b[core * per_core + token][w * per_word + i] = number;
                        else b[core * per_core + w * per_word + i][token] = number;
                    }
                }
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            const Product& mine = all[lane]->product;
            for (int r = 0; r < 4; r++) {
                const int row = lane / 4 + r / 2 * 8, token = lane % 4 * 2 + r % 2;
                const uint32_t at = 4 * block + r;
                double sum = 0.0;
                if (mine.add) {
                    sum = mine.numbers == Numbers::S8 ? static_cast<const int32_t*>(mine.d)[at]
                                                      : static_cast<const float*>(mine.d)[at];
                }
                for (int k = 0; k < 2 * per_core; k++) sum += a[row][k] * b[k][token];
                if (mine.numbers == Numbers::S8) static_cast<int32_t*>(mine.d)[at] = static_cast<int32_t>(sum);
                else static_cast<float*>(mine.d)[at] = static_cast<float>(sum);
            }
        }
    }
}

void begin(PendingProduct& pending) {
    const auto* words = static_cast<const uint32_t*>(pending.product.d);
    pending.first = true;
    pending.base.assign(words, words + pending.product.d_count);
    // Of integers there is no NaN, but few sums are as large as this.
    const int poison = pending.product.numbers == Numbers::S8 ? 0x7e : POISON;
    memset(pending.product.d, poison, pending.product.d_count * 4);
}

} // namespace

void fence_products() { current_products().fenced = true; }

void start_product(const Product& product, Site site) {
    Products& mine = current_products();
    if (!mine.fenced) fail(site, "a product of a warpgroup without a warpgroup_fence since the last wait");
    mine.pending.push_back({product, mine.group, false, {}});
    PendingProduct& pending = mine.pending.back();
    for (const PendingProduct& before : mine.pending) {
        if (&before != &pending && before.product.d == product.d) return;
    }
    begin(pending);
}

void end_product_group() { current_products().group++; }

void wait_for_products(unsigned groups_left, Site site) {
    Products& mine = current_products();
    mine.fenced = false;
    size_t due = 0;
    while (due < mine.pending.size() && mine.pending[due].group + groups_left < mine.group) due++;
    for (size_t i = 0; i < due; i++) {
        PendingProduct& pending = mine.pending[i];
        if (pending.first) memcpy(pending.product.d, pending.base.data(), pending.base.size() * 4);
        meet(WAIT, ALL_LANES, site, &pending, [](void* const(&operands)[LANES], uint32_t, Site site) {
            PendingProduct* all[LANES];
            for (uint32_t lane = 0; lane < LANES; lane++) all[lane] = static_cast<PendingProduct*>(operands[lane]);
            multiply(all, site);
        });
    }
    mine.pending.erase(mine.pending.begin(), mine.pending.begin() + static_cast<ptrdiff_t>(due));
    for (size_t i = 0; i < mine.pending.size(); i++) {
        bool first = !mine.pending[i].first;
        for (size_t before = 0; before < i; before++) {
            first = first && mine.pending[before].product.d != mine.pending[i].product.d;
        }
        if (first) begin(mine.pending[i]);
    }
}

} // namespace emulator
