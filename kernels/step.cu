// step: a whole step of decoding one token in one launch (a persistent kernel): the ops that advance, embed, linear_fused,
// linear_few and attention_single are launches of elsewhere, one after another.
//
//   ops [count] · arrived u32 [count], all zero before and after the launch · norm: bytes for the weight of any norm
//
// step_<weight>_<x>_<head size>   weights of the layers and x as in linear_fused.cu; the head has those weights, or plain
//                                 ones of the type of x; up to 8 query heads for each head of keys. Any number of blocks
//                                 that all run at once.
//
// A launch that depends on the one before it begins with nothing under way: some 5 us on a Hopper, whatever it reads. Here
// blocks wait for each other between ops instead, and every warp has begun to copy the weights of the next product before
// that. They do not depend on anything, and a block's rings hold enough to keep the memory busy for the time of a wait.
//
// Blocks do what those of the other kernels do, in the same order, so the bits are theirs. What one block wrote and another
// reads goes by way of the wait; weights alone may be read ahead of it.
#include <ptx/kernel.cuh>
#include <ptx/sync.cuh>

#include "common/advance.cuh"
#include "common/few.cuh"
#include "common/gather.cuh"
#include "common/single.cuh"

// The values are part of the launch code's contract.
enum StepKind : unsigned {
    STEP_GATHER = 0,
    STEP_NORMED = 1,  // a product of the norm of its input, or of its codes
    STEP_PRODUCT = 2, // one of its input
    STEP_HEAD = 3,    // as STEP_NORMED, with plain weights
    STEP_ATTEND = 4,
    STEP_ADVANCE = 5,
};

// A: the type of activations.
template <class A> struct __align__(16) StepOp {
    StepKind kind;
    unsigned ranges; // of attention: into how many the parts of the keys are divided
    union {
        FusedArgs product; // of STEP_PRODUCT the first part of it
        AttentionArgs<A> attention;
        GatherArgs<A, A> gather;
        AdvanceArgs advance;
    };

    __device__ bool is_product() const { return kind >= STEP_NORMED && kind <= STEP_HEAD; }
    // Pieces of attention that blocks take in turn.
    __device__ unsigned ranges_in_all() const { return ranges * attention.kv_heads * attention.tokens; }
};

struct StepArgs {
    const void* ops; // [count] of StepOp
    unsigned* arrived;
    unsigned count;
    unsigned norm; // bytes
};

// R: tiles of 16 rows that a block has in hand.
template <class Format, unsigned R, unsigned DIM> struct Step {
    // The type of activations.
    using A = std::conditional_t<std::is_same_v<typename Format::Sum, int>, InputOf<Format>, typename Format::X>;
    using Op = StepOp<A>;
    // Of a warp. Two blocks fit on a multiprocessor of compute capability 9.0 where the input of a norm has up to 7168
    // numbers, and one where inputs of as many become codes.
    static constexpr unsigned RING = 10 << 10;
    using Normed = Few<Format, R, 0, FusedArgs, RING>;
    using Product = Few<Format, R, 0, ProductArgs, RING>;
    using Head = Few<PlainRows<A>, 1, 0, FusedArgs, RING>;
    static_assert(Normed::RINGS <= WARPS * RING && Product::RINGS <= WARPS * RING && Head::RINGS <= WARPS * RING);

    // Shared memory: the op at hand and those to come, then the rings and what products take beside them, in places that do
    // not depend on the product, so that the next one's weights can come while this one's are in use; attention has all of
    // that to itself.
    static constexpr unsigned OPS = 4;
    static constexpr unsigned AHEAD = 2; // ops that are looked at while another runs
    static constexpr unsigned RINGS_AT = 1024;
    static constexpr unsigned SUMS_AT = RINGS_AT + WARPS * RING;
    static constexpr unsigned SUMS = Normed::SUMS > Head::SUMS ? Normed::SUMS : Head::SUMS;
    static constexpr unsigned NORM_AT = SUMS_AT + SUMS; // and behind it what products prepare
    static constexpr unsigned OP_PIECES = sizeof(Op) / PIECE;
    static_assert(sizeof(Op) % PIECE == 0 && OPS * sizeof(Op) <= RINGS_AT && OP_PIECES <= WARP);

    using Attention = Single<A, DIM, PlainKv, 1, WARPS>;

    const StepArgs& args;
    unsigned char* const shared;

    __device__ const Op& op(unsigned i) const { return reinterpret_cast<const Op*>(shared)[i % OPS]; }

    template <class P> __device__ typename P::Room room() const {
        return {shared + RINGS_AT, RING, shared + SUMS_AT, shared + NORM_AT, shared + NORM_AT + args.norm};
    }
    __device__ Normed normed(unsigned i) const { return {op(i).product, room<Normed>(), blockIdx.x, gridDim.x}; }
    __device__ Product product(unsigned i) const {
        return {op(i).product.product, room<Product>(), blockIdx.x, gridDim.x};
    }
    __device__ Head head(unsigned i) const { return {op(i).product, room<Head>(), blockIdx.x, gridDim.x}; }

    __device__ void run() const {
        if (warp_id() < min(args.count, OPS - 1)) bring(warp_id());
        __syncthreads();
        bool begun = begin_copying(0); // with the weights of the next product
        follow_predecessor();
#pragma unroll 1
        for (unsigned i = 0;;) {
            run_op(i, begun);
            if (++i == args.count) break;
            if (!begun && !arrives()) begun = begin_copying(i);
            meet(i - 1, begun);
        }
        leave();
    }

    // Whether this is the warp that counts the block. It begins to copy after that: what it writes to the counter waits for
    // what it has under way.
    static __device__ bool arrives() { return warp_id() == 0; }

    // Waits for all blocks after op `i`; meanwhile brings the first op that is not here yet.
    __device__ void meet(unsigned i, bool& begun) const {
        __syncthreads(); // all of this block has written, and read op `i`
        if (arrives()) {
            if (lane_id() == 0) arrive_at(args.arrived + i);
            __syncwarp();
            if (!begun) begun = begin_copying(i + 1);
            if (lane_id() == 0) {
                wait_for_count(args.arrived + i, gridDim.x);
                // All are past the wait before, and its counter is free for the next launch.
                if (blockIdx.x == 0 && i > 0) args.arrived[i - 1] = 0;
            }
        } else if (warp_id() == 1 && i + OPS - 1 < args.count) {
            bring(i + OPS - 1);
        }
        __syncthreads();
    }

    // By one warp.
    __device__ void bring(unsigned i) const {
        const auto* from = static_cast<const uint4*>(args.ops) + static_cast<size_t>(i) * OP_PIECES;
        if (lane_id() < OP_PIECES) reinterpret_cast<uint4*>(shared + i % OPS * sizeof(Op))[lane_id()] = from[lane_id()];
    }

    // Leaves the last counters as they were.
    __device__ void leave() const {
        if (threadIdx.x > 0) return;
        unsigned* const last = args.arrived + args.count - 1;
        if (count_up(last) < gridDim.x - 1) return;
        *last = 0;
        if (args.count > 1) last[-1] = 0;
    }

    // Begins with the weights of the next product from op `i` on, by each warp for itself; false if this block has to
    // attend before that, which takes the memory of the rings.
    __device__ bool begin_copying(unsigned i) const {
        const unsigned end = min(args.count, i + AHEAD);
        while (i < end && !op(i).is_product()) {
            if (op(i).kind == STEP_ATTEND && blockIdx.x < op(i).ranges_in_all()) return false;
            i++;
        }
        if (i == end) return false;
        switch (op(i).kind) {
        case STEP_NORMED: begin(normed(i)); break;
        case STEP_PRODUCT: begin(product(i)); break;
        default: begin(head(i)); break;
        }
        return true;
    }

    template <class P> static __device__ void begin(const P& product) {
        if (product.me < product.items) product.begin_copying();
    }

    __device__ void run_op(unsigned i, bool& begun) const {
        switch (op(i).kind) {
        case STEP_GATHER:
            if (blockIdx.x == 0) op(i).gather.run(0);
            break;
        case STEP_NORMED: multiply(normed(i), i, begun); break;
        case STEP_PRODUCT: multiply(product(i), i, begun); break;
        case STEP_HEAD: multiply(head(i), i, begun); break;
        case STEP_ATTEND: attend(op(i)); break;
        case STEP_ADVANCE:
            if (blockIdx.x == 0) op(i).advance.run();
            break;
        }
    }

    template <class P> __device__ void multiply(const P& product, unsigned i, bool& begun) const {
        begun = false;
        if (product.me >= product.items) return;
        product.compute(P::FUSED ? product.copied() : product.start(), [&] {
            __syncwarp(); // all lanes are done with the ring
            if (!arrives()) begun = begin_copying(i + 1);
        });
    }

    __device__ void attend(const Op& at) const {
        const unsigned all = at.ranges_in_all();
#pragma unroll 1
        for (unsigned j = blockIdx.x; j < all; j += gridDim.x) {
            const unsigned head = j / at.ranges;
            const RangeOfKeys of = {j % at.ranges, at.ranges, head % at.attention.kv_heads, head / at.attention.kv_heads};
            Attention(at.attention, shared + RINGS_AT, of).run();
        }
    }
};

template <class Format, unsigned R, unsigned DIM> __device__ void step(const StepArgs& args) {
    DYNAMIC_SHARED(shared);
    Step<Format, R, DIM>{args, shared}.run();
}

#define KERNEL_STEP(FORMAT, R, DIM)                                                                                    \
    KERNEL_OF(WARPS* WARP, 2, step_##FORMAT##_##DIM, const StepArgs args) { step<FORMAT, R, DIM>(args); }
#define PLAIN(FORMAT) KERNEL_STEP(FORMAT, 1, 64) KERNEL_STEP(FORMAT, 1, 128)
#define PACKED(FORMAT) KERNEL_STEP(FORMAT, 2, 64) KERNEL_STEP(FORMAT, 2, 128)
#define WIDE_SCALES(FORMAT)
using w8a8_bf16 = CodesOf<bf16>;
using w8a8_f16 = CodesOf<f16>;
#define CODES(FORMAT) PACKED(FORMAT##_bf16) PACKED(FORMAT##_f16)
#include "common/storages.cuh"
