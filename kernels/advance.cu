// advance: what closes a step of decoding, so that the next one needs nothing of the host. The tokens that were picked
// become the inputs of the next step, one position further on, and are told to the host, which watches its own memory.
//
//   picked, tokens, positions u32 [rows] · steps u32 [1] · told u64 [slots, width] in the host's memory
//   for each row r: tokens[first + r] = picked[r], positions[first + r] += 1,
//                   told[steps mod slots, first + r] = (steps + 1) << 32 | picked[r]
//   and then, where `ends` says that the step is over, steps += 1.
//
// A word carries the number of its step, so that the host knows a new token from what lay there before, and each word is
// written at once, so that no order between words matters. One block.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

KERNEL(advance, const unsigned* picked, unsigned* tokens, unsigned* positions, unsigned* steps,
       unsigned long long* told, unsigned first, unsigned rows, unsigned width, unsigned slots, unsigned ends) {
    follow_predecessor();
    const unsigned step = *steps;
    __syncthreads();
    unsigned long long* const line = told + static_cast<size_t>(step % slots) * width + first;
    for (unsigned r = threadIdx.x; r < rows; r += blockDim.x) {
        const unsigned token = picked[r];
        tokens[first + r] = token;
        positions[first + r] += 1;
        tell_host(&line[r], static_cast<unsigned long long>(step + 1) << 32 | token);
    }
    if (threadIdx.x == 0 && ends != 0) *steps = step + 1;
}
