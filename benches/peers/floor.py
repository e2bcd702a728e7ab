"""A kernel in Triton that reads and does nothing else: the floor of a product that moves as many bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """How much a program reads at once, with how many warps, and how many programs there are at most."""

    block: int
    warps: int
    programs: int

    def __str__(self) -> str:
        return f"{4 * self.block} bytes at once, {self.warps} warps, at most {self.programs} programs"


# Many programs that read little each, and some that go on and on.
PLANS = (Plan(4096, 4, 1 << 30), Plan(8192, 8, 1 << 30), Plan(8192, 8, 528))

# Bytes that a buffer is rounded up to, so that all loads are 16 bytes wide.
LINE = 64


@triton.jit
def read_all(x, out, count, BLOCK: tl.constexpr):
    """Folds `count` words at `x` into one per program at `out`, so that none of them can be left unread."""
    here = tl.program_id(0)
    step = tl.num_programs(0) * BLOCK
    folded = tl.zeros([BLOCK], tl.int32)
    for first in range(here * BLOCK, count, step):
        places = first + tl.arange(0, BLOCK)
        folded = folded ^ tl.load(x + places, mask=places < count, other=0)
    tl.store(out + here, tl.xor_sum(folded, axis=0))


def buffer(size: int, device: torch.device) -> Tensor:
    """Words of noise, `size` bytes or a little more."""
    count = -(-size // LINE) * LINE // 4
    return torch.randint(-(1 << 31), (1 << 31) - 1, (count,), device=device, dtype=torch.int32)


def read(x: Tensor, plan: Plan) -> Tensor:
    """Reads all of `x`."""
    programs = min(triton.cdiv(x.numel(), plan.block), plan.programs)
    out = torch.empty(programs, device=x.device, dtype=torch.int32)
    read_all[(programs,)](x, out, x.numel(), BLOCK=plan.block, num_warps=plan.warps)
    return out
