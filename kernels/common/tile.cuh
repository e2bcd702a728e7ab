// The inner part of a tiled product: 256 threads hold the sums of a 64 x 64 tile, 4 x 4 each, and add to them from two
// slabs in shared memory that lie transposed, depth first.
#pragma once

constexpr unsigned TILE = 64;         // tokens and features of a block
constexpr unsigned TILE_THREADS = 256;
constexpr unsigned DEPTH = 32;        // of a slab
constexpr unsigned PITCH = TILE + 4;  // keeps rows 16-byte aligned and spreads a column over the banks

template <class T> class TileSums {
    static constexpr unsigned SIDE = 4; // of a thread's part
    static constexpr unsigned ACROSS = TILE / SIDE;
    static_assert(ACROSS * ACROSS == TILE_THREADS, "the threads cover the tile");

    T sums[SIDE][SIDE] = {};
    unsigned row = threadIdx.x / ACROSS * SIDE;
    unsigned column = threadIdx.x % ACROSS * SIDE;

  public:
    // sum[r][c] = mac(a[d][r], b[d][c], sum[r][c]) for all d in order.
    template <class Mac> __device__ void add(const T (&a)[DEPTH][PITCH], const T (&b)[DEPTH][PITCH], Mac mac) {
#pragma unroll 8
        for (unsigned d = 0; d < DEPTH; d++) {
            T left[SIDE], right[SIDE];
#pragma unroll
            for (unsigned i = 0; i < SIDE; i++) {
                left[i] = a[d][row + i];
                right[i] = b[d][column + i];
            }
#pragma unroll
            for (unsigned r = 0; r < SIDE; r++) {
#pragma unroll
                for (unsigned c = 0; c < SIDE; c++) sums[r][c] = mac(left[r], right[c], sums[r][c]);
            }
        }
    }

    // use(row, column, sum) for every sum of this thread.
    template <class Use> __device__ void for_each(Use use) const {
#pragma unroll
        for (unsigned r = 0; r < SIDE; r++) {
#pragma unroll
            for (unsigned c = 0; c < SIDE; c++) use(row + r, column + c, sums[r][c]);
        }
    }
};
