// Matrix products of one warp. Fragments are as the PTX ISA has them (section "Warp-level matrix instructions"): with
// g = lane / 4 and t = lane % 4,
//   A, 16 x 16 of 16 bits   a[0] row g, columns 2t 2t+1   a[1] row g + 8   a[2] row g, columns 2t+8 2t+9   a[3] row g + 8
//   B, 16 x 8 of 16 bits    b[0] rows 2t 2t+1 of column g   b[1] rows 2t+8 2t+9
//   A, 16 x 32 of 8 bits    a[0] row g, columns 4t .. 4t+3   a[1] row g + 8   a[2], a[3] the same 16 columns further
//   B, 32 x 8 of 8 bits     b[0] rows 4t .. 4t+3 of column g   b[1] rows 4t+16 .. 4t+19
//   D, 16 x 8               d[0] d[1] row g, columns 2t 2t+1   d[2] d[3] row g + 8
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// d += a b, f32 sums of products of X.
template <class X> __device__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ inline void mma_16x8x16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void mma_16x8x16<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b, exact sums of products of signed bytes.
__device__ inline void mma_16x8x32(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16 bits from shared memory: lane l gives the address of row l % 8 of matrix l / 8, 16 bytes, and
// gets in r[i] the columns 2t 2t+1 of row g of matrix i.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
    const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// The same, each matrix transposed: in r[i] rows 2t 2t+1 of column g of matrix i.
__device__ inline void load_transposed(uint32_t (&r)[4], const void* row) {
    const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}
