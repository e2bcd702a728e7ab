// dequantize_<weight>_<x>: some tiles of packed weights as rows of X, for products of so many tokens that a library's
// matrix product on X is worth the detour. Storages as in common/storages.cuh.
//
//   out X [tiles * 16, k] = the weights of tiles `first` and on, scaled in f32 and rounded once
//
// One warp per tile and step.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/stream.cuh"

template <class Format> __device__ void dequantize(const StreamedWeight& weight, typename Format::X* out, unsigned first,
                                                   unsigned tiles) {
    follow_predecessor();
    using X = typename Format::X;
    using Scale = std::conditional_t<std::is_void_v<typename Format::Scale>, float, typename Format::Scale>;
    const size_t unit = static_cast<size_t>(blockIdx.x) * (blockDim.x / WARP) + warp_id();
    if (unit >= static_cast<size_t>(tiles) * weight.steps()) return; // the whole warp
    const unsigned tile = unit / weight.steps(), step = unit % weight.steps();

    const Source<Format> source(weight, first + tile, step);
    uint4 w[Format::PIECES];
#pragma unroll
    for (unsigned i = 0; i < Format::PIECES; i++) {
        const bool valid = Format::valid(weight, step, i);
        w[i] = valid ? *reinterpret_cast<const uint4*>(source.at + Format::beside(weight, 0, i)) : uint4{};
    }
#pragma unroll
    for (unsigned s = 0; s < 4; s++) {
        NibbleZero zero[2] = {};
        float scale[2];
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            const unsigned row = lane_row() + 8 * i;
            // The last step's second half may lie past the end of the row.
            const unsigned group = min(weight.halves() ? 2 * step + s / 2 : weight.group_of(step), weight.groups - 1);
            const size_t at = (static_cast<size_t>(first + tile) * weight.groups + group) * ROWS + row;
            if constexpr (Format::ROW_SCALES) {
                const unsigned all = (first + tile) * ROWS + row;
                scale[i] = all < weight.n ? load_elem(weight.scales, weight.scale_type, all) : 0.0f;
            } else {
                scale[i] = to_f32(static_cast<const Scale*>(weight.scales)[at]);
            }
            if constexpr (Format::PIECES == 1) zero[i] = Format::zero(Format::ZEROS ? weight.zeros[at] : 8);
        }
        uint32_t a[4];
        Format::fragment(w, s, zero, a);
        // Four neighbouring columns of two rows.
        const unsigned column = step * STEP + (Format::chunk(s / 2) * 8 + s % 2 * 4);
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            X numbers[4];
            memcpy(numbers, &a[i], 4);
            memcpy(numbers + 2, &a[i + 2], 4);
#pragma unroll
            for (unsigned j = 0; j < 4; j++) numbers[j] = from_f32<X>(to_f32(numbers[j]) * scale[i]);
            if (column < weight.k) {
                X* to = out + (static_cast<size_t>(tile) * ROWS + lane_row() + 8 * i) * weight.k + column;
                uint2 raw;
                memcpy(&raw, numbers, sizeof raw);
                *reinterpret_cast<uint2*>(to) = raw;
            }
        }
    }
}

#define PLAIN(FORMAT)
#define PACKED(FORMAT)                                                                                                 \
    KERNEL(dequantize_##FORMAT, const StreamedWeight weight, void* out, unsigned first, unsigned tiles) {              \
        dequantize<FORMAT>(weight, static_cast<FORMAT::X*>(out), first, tiles);                                        \
    }
#define CODES(FORMAT)
#define WIDE_SCALES PACKED
#include "common/storages.cuh"
