// advance: what closes a step of decoding, so that the next one needs nothing of the host. The tokens that were picked
// become the inputs of the next step, one position further on, and are told to the host, which watches its own memory.
//
//   for each row r: tokens[first + r] = picked[r], positions[first + r] += 1,
//                   told[steps mod slots, first + r] = (steps + 1) << 32 | picked[r]
//   and then, where `ends` says that the step is over, steps += 1.
//
// A word carries the number of its step, so that the host knows a new token from what lay there before, and each word is
// written at once, so that no order between words matters. One block.
#include <ptx/kernel.cuh>

#include "common/advance.cuh"

KERNEL(advance, const AdvanceArgs args) {
    follow_predecessor();
    args.run();
}
