// How a kernel is defined, and how it gets the shared memory whose size its launch says.
#pragma once

// KERNEL(name, parameters...) { body }: a kernel that the launch code finds by its name. `name` may be put together by a
// macro. KERNEL_OF(threads, blocks, name, parameters...) says besides how many threads a block has at most and how many
// blocks a multiprocessor is to hold at least, from which the compiler knows how many registers it may use.
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#define KERNEL_OF(threads, blocks, name, ...)                                                                          \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)

// Declares `name` as the first byte of the block's dynamic shared memory, aligned to 128 bytes.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// The size of that memory in bytes, as the launch asked for it.
__device__ inline unsigned dynamic_shared_bytes() {
    unsigned bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    return bytes;
}
