#!/usr/bin/env python3
"""PyTorch's linear layers: verified, then timed in the way of `candlepower kernels`, cell by cell.

A cell is one way to multiply (a peer), one shape N,K and one number of rows M. Its result is first compared with a
product in f64. Then it is timed cold: calls take turns on copies of all their buffers which together exceed the
second-level cache four times, the cache is filled with something else before each sample, and a sample is the replay of
a CUDA graph of as many calls as take a millisecond, between two events. (`bf16-eager` is launched call by call instead,
and what the host takes counts.) At least 10 samples and 0.1 s, 3 samples where one exceeds 2 s.

One line per cell goes to --out, a file of JSON lines; cells that are there are not measured again. The floor beside
some cells is a kernel in Triton that reads as many bytes as the product moves and does nothing else.

Exit codes: 0 · 2 usage · 3 a cell failed · 69 no GPU · 70 the GPU does not answer any more · 124 the budget ended first
· 130 interrupted
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from samples import Line, append, lines, summary
from torch import Tensor

SCHEMA = "candlepower.peer/1"

# Copies of all buffers exceed the cache so many times; more of them than these are bookkeeping, not traffic.
CACHES = 4
MOST_COPIES = 8192
# The share of free memory that they may take, and the cache of a CPU, which PyTorch does not tell.
ROOM = 0.45
CPU_CACHE = 64 << 20

# A sample takes at least this long, in at most so many calls.
SAMPLE_S = 1e-3
MOST_CALLS = 1024
WARM_UP = 2
LEAST_SAMPLES, LEAST_S, MOST_S = 10, 0.1, 6.0
# Samples that are made however long they take.
SAMPLES_ANYWAY = 3

# Columns per scale of a 4-bit weight, and the tiles that its packing holds side by side.
GROUP = 128
INNER_K_TILES = 8

# Rows that are compared at most, and output channels that are compared at once.
ROWS = 16
CHANNELS = 8192
# A result in bf16 is rounded by 2^-9, a sum in pieces of bf16 some times more.
BF16_LIMIT = 2.0**-7

Call = Callable[[Tensor, Sequence[Tensor]], Tensor]


class OutOfTime(Exception):
    """The next cell would not end within the budget."""


class Unsupported(Exception):
    """This PyTorch, or this device, cannot do it."""


@dataclass(frozen=True)
class Weight:
    """A weight as a peer holds it, and what it means."""

    held: tuple[Tensor, ...]
    # The numbers of channels `first` to `last`, in f64.
    numbers: Callable[[int, int], Tensor]

    def copy(self) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in self.held)

    def bytes(self) -> int:
        return sum(map(bytes_of, self.held))


@dataclass(frozen=True)
class Peer:
    """One way to multiply."""

    name: str
    # The variant of candlepower that it stands beside.
    variant: str
    what: str
    make: Callable[[int, int, torch.device], Weight]
    call: Call
    graph: bool = True
    integers: bool = False
    least_rows: int = 1
    most_rows: int = 1 << 30


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["it says nothing"])[0]


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# --- Weights


def bf16_weight(n: int, k: int, device: torch.device) -> Weight:
    w = ((2 * torch.rand(n, k, device=device) - 1) * (3 / k) ** 0.5).bfloat16()
    return Weight((w,), lambda first, last: w[first:last].double())


def codes(n: int, k: int, low: int, high: int, device: torch.device) -> Tensor:
    return torch.randint(low, high + 1, (n, k), device=device, dtype=torch.int8)


def int8_weight(n: int, k: int, device: torch.device) -> Weight:
    q = codes(n, k, -127, 127, device)
    scales = ((0.5 + torch.rand(n, device=device)) * (3 / k) ** 0.5 / 127).bfloat16()
    return Weight((q, scales), lambda first, last: q[first:last].double() * scales[first:last, None].double())


def integer_weight(n: int, k: int, device: torch.device) -> Weight:
    q = codes(n, k, -127, 127, device)
    return Weight((q,), lambda first, last: q[first:last].double())


def int4_weight(n: int, k: int, device: torch.device) -> Weight:
    if k % GROUP:
        raise Unsupported(f"K must be a multiple of {GROUP}")
    q = codes(n, k, 0, 15, device)
    scales = ((0.5 + torch.rand(n, k // GROUP, device=device)) * (3 / k) ** 0.5 / 8).bfloat16()
    # Codes stand for -8 to 7; an offset of each group is added after the scale.
    pairs = torch.stack([scales, torch.zeros_like(scales)], dim=-1).transpose(0, 1).contiguous()
    if device.type == "cpu":
        packed = torch._convert_weight_to_int4pack_for_cpu(q.int(), INNER_K_TILES)
    else:
        bytes_ = q.to(torch.uint8)
        packed = torch._convert_weight_to_int4pack(bytes_[:, ::2] << 4 | bytes_[:, 1::2], INNER_K_TILES)

    def numbers(first: int, last: int) -> Tensor:
        return (q[first:last].double() - 8) * scales[first:last].double().repeat_interleave(GROUP, 1)

    return Weight((packed, pairs), numbers)


# --- Products


def plain_product(x: Tensor, w: Sequence[Tensor]) -> Tensor:
    return F.linear(x, w[0])


def int8_product(x: Tensor, w: Sequence[Tensor]) -> Tensor:
    return torch._weight_int8pack_mm(x, w[0], w[1])


def integer_product(x: Tensor, w: Sequence[Tensor]) -> Tensor:
    return torch._int_mm(x, w[0].t())


def int4_product(x: Tensor, w: Sequence[Tensor]) -> Tensor:
    if x.device.type == "cpu":
        return torch._weight_int4pack_mm_for_cpu(x, w[0], GROUP, w[1])
    return torch._weight_int4pack_mm(x, w[0], GROUP, w[1])


def widened_product(x: Tensor, q: Tensor, scales: Tensor) -> Tensor:
    return F.linear(x, q.to(x.dtype)) * scales


def compiled_product() -> Call:
    """A weight that is widened in the kernel that multiplies with it, where the compiler manages that."""
    torch._dynamo.reset()
    # Without this option the compiler leaves products with one row to the library, as gpt-fast found.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"coordinate_descent_tuning": True}
    product = torch.compile(widened_product, dynamic=False, fullgraph=True, options=options)
    return lambda x, w: product(x, w[0], w[1])


COMPILED = "int8-compiled"

PEERS = [
    Peer("bf16-graph", "bf16", "F.linear in bf16", bf16_weight, plain_product),
    Peer("bf16-eager", "bf16", "F.linear in bf16, launched call by call", bf16_weight, plain_product, graph=False),
    Peer("int4-pack", "w4a16", f"_weight_int4pack_mm, group {GROUP}", int4_weight, int4_product),
    # It computes element by element: beyond some rows a call takes longer than anybody waits.
    Peer("int8-pack", "int8", "_weight_int8pack_mm", int8_weight, int8_product, most_rows=64),
    Peer(COMPILED, "int8", "F.linear(x, w.to(bf16)) * scale, compiled", int8_weight, int8_product),
    # 32-bit integers come out, without scales: less work than w8a8's, and more bytes.
    Peer("int-mm", "w8a8", "_int_mm, without scales", integer_weight, integer_product, integers=True, least_rows=17),
]


# --- Measuring


@dataclass
class Bed:
    """Where cells are measured."""

    device: torch.device
    deadline: float
    # Bytes that are read to fill the second-level cache with something else; made when they are first needed.
    flushed: Tensor | None = None
    floors: dict[int, Line] = field(default_factory=dict)
    # The longest that a cell took, and that the next can be expected to take.
    longest: float = 3.0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "cpu"

    def cache(self) -> int:
        return torch.cuda.get_device_properties(self.device).L2_cache_size if self.on_gpu else CPU_CACHE

    def room(self) -> int:
        return int(ROOM * torch.cuda.mem_get_info(self.device)[0]) if self.on_gpu else 4 << 30

    def copies(self, size: int) -> int:
        """How many sets of buffers of `size` bytes are wanted and fit."""
        wanted = min(max(-(-CACHES * self.cache() // size), 2), MOST_COPIES)
        fitting = min(wanted, self.room() // size)
        if fitting == 0:
            raise RuntimeError(f"its buffers take {size / 1e9:.2f} GB, but only {self.room() / 1e9:.2f} GB may be used")
        return fitting

    def expect(self, seconds: float) -> None:
        """Stops if so many seconds are not left."""
        if time.monotonic() + seconds > self.deadline:
            raise OutOfTime

    def flush(self) -> None:
        if self.flushed is None:
            self.flushed = torch.ones(CACHES * self.cache() // 4, device=self.device)
        # Read, not written: written lines would have to go back to memory while the sample runs.
        self.flushed.sum()

    def recorded(self, call: Callable[[int], Tensor], calls: int, copies: int) -> torch.cuda.CUDAGraph:
        """A graph of calls in turn. As many results as there are copies live at once, each with memory of its own."""
        results: deque[Tensor] = deque(maxlen=copies)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for turn in range(calls):
                results.append(call(turn % copies))
        return graph

    def events(self, work: Callable[[], object]) -> float:
        """Seconds of the device between an event before `work` and one after."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush()
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def time(self, call: Callable[[int], Tensor], copies: int, size: int, graph: bool = True) -> Line:
        """Times calls on `copies` sets of buffers of `size` bytes each, cold."""
        turn = 0

        def several(calls: int) -> None:
            nonlocal turn
            for _ in range(calls):
                call(turn % copies)
                turn += 1

        def by_host(calls: int) -> float:
            begin = time.perf_counter()
            several(calls)
            return time.perf_counter() - begin

        several(1)
        if not self.on_gpu:
            sample = by_host
        elif graph:
            torch.cuda.synchronize()
            recorded: dict[int, torch.cuda.CUDAGraph] = {}

            def sample(calls: int) -> float:
                if calls not in recorded:
                    recorded.clear()
                    recorded[calls] = self.recorded(call, calls, copies)
                return self.events(recorded[calls].replay)

        else:

            def sample(calls: int) -> float:
                return self.events(lambda: several(calls))

        sample(1)
        alone = max(sample(1), 1e-7)
        calls = min(max(int(SAMPLE_S / alone) + 1, 1), MOST_CALLS)
        for _ in range(WARM_UP):
            sample(calls)
        times: list[float] = []
        begin = time.monotonic()
        while True:
            times.append(sample(calls) / calls)
            elapsed = time.monotonic() - begin
            if len(times) >= LEAST_SAMPLES and elapsed >= LEAST_S:
                reason = "enough"
            elif len(times) >= SAMPLES_ANYWAY and elapsed >= MOST_S:
                reason = "time_limit"
            else:
                continue
            break
        facts = {"calls": calls, "copies": copies, "rotated_bytes": size * copies, "stop_reason": reason}
        return summary(times) | facts | {"samples_s": times}

    def floor(self, size: int) -> Line:
        """The time in which Triton reads `size` bytes, in the fastest of some ways; or why there is none."""
        if not self.on_gpu:
            return {"unavailable": "the device is a CPU"}
        try:
            from floor import PLANS, buffer, read
        except ImportError as error:
            return {"unavailable": first_line(error)}
        if size not in self.floors:
            copies = self.copies(size)
            buffers = [buffer(size, self.device) for _ in range(copies)]
            found = []
            for plan in PLANS:
                timing = self.time(lambda copy: read(buffers[copy], plan), copies, size)
                found.append(timing | {"plan": str(plan)})
            self.floors[size] = min(found, key=lambda timing: timing["median_s"])
        return self.floors[size]


def verify(x: Tensor, weight: Weight, out: Tensor, integers: bool) -> Line:
    """Compares some rows of a result, every channel of them, with a product in f64."""
    m, n = out.shape
    rows = sorted({round(i * (m - 1) / max(min(m, ROWS) - 1, 1)) for i in range(min(m, ROWS))})
    few = x[rows].double()
    worst, errors, sizes = 0.0, 0.0, 0.0
    for first in range(0, n, CHANNELS):
        w = weight.numbers(first, min(first + CHANNELS, n))
        truth = few @ w.t()
        error = (out[rows, first : first + CHANNELS].double() - truth).abs()
        # Sums are exact in integers. Else what may be missed is a share of the result and of its usual size.
        usual = (few.square() @ w.square().t()).sqrt()
        limit = torch.full_like(truth, 0.5) if integers else BF16_LIMIT * (truth.abs() + usual)
        share = (error / limit).max().item()
        if not share <= 1:
            row, channel = divmod(int((error / limit).nan_to_num(float("inf")).argmax()), truth.shape[1])
            got, wanted = out[rows[row], first + channel].item(), truth[row, channel].item()
            place = f"row {rows[row]}, channel {first + channel}"
            raise RuntimeError(f"not timed: {place} is {got:.6g} instead of {wanted:.6g}")
        worst = max(worst, share)
        errors += error.square().sum().item()
        sizes += truth.square().sum().item()
    return {"elements": len(rows) * n, "worst": worst, "whole": (errors / max(sizes, 1e-300)) ** 0.5}


def measure(bed: Bed, peer: Peer, weight: Weight, copies: list[tuple[Tensor, ...]], m: int, floor_too: bool) -> Line:
    """The figures of one cell."""
    k = weight.numbers(0, 1).shape[1]

    def made() -> Tensor:
        if peer.integers:
            return codes(m, k, -127, 127, bed.device)
        return (2 * torch.rand(m, k, device=bed.device) - 1).bfloat16()

    call = compiled_product() if peer.name == COMPILED else peer.call
    first = made()
    out = call(first, copies[0])
    verification = verify(first, weight, out, peer.integers)
    size = weight.bytes() + bytes_of(first) + bytes_of(out)
    flops = 2 * out.numel() * k
    del out
    inputs = [first] + [made() for _ in range(min(bed.copies(size), len(copies)) - 1)]
    cold = bed.time(lambda copy: call(inputs[copy], copies[copy]), len(inputs), size, peer.graph)
    timer = "host clock" if not bed.on_gpu else "events over graph replays" if peer.graph else "events over launches"
    beside = {"floor": bed.floor(size)} if floor_too else {}
    return {"bytes": size, "flops": flops, "timer": timer, "verification": verification, "cold": cold} | beside


def family(
    bed: Bed,
    peer: Peer,
    shape: tuple[int, int],
    cells: list[int],
    args: argparse.Namespace,
    put: Callable[[Line], None],
) -> int:
    """One peer at one shape, all numbers of rows that are missing; returns how many failed."""
    failed = 0
    # Nothing of the family before is needed any more.
    gc.collect()
    if bed.on_gpu:
        torch.cuda.empty_cache()
    copies: list[tuple[Tensor, ...]] = []
    weight: Weight | None = None
    for m in cells:
        bed.expect(2 * bed.longest + (30 if peer.name == COMPILED else 0))
        begin = time.monotonic()
        line: Line = {"m": m, "started_unix_s": round(time.time())}
        try:
            if weight is None:
                torch.manual_seed(args.seed)
                weight = peer.make(*shape, bed.device)
                n, k = shape
                beside = cells[0] * (k * (1 if peer.integers else 2) + n * (4 if peer.integers else 2))
                copies = [weight.held] + [weight.copy() for _ in range(bed.copies(weight.bytes() + beside) - 1)]
            line |= {"status": "ok"} | measure(bed, peer, weight, copies, m, m in args.floor_m)
        except (Unsupported, NotImplementedError, AttributeError) as error:
            line |= {"status": "unsupported", "reason": first_line(error)}
        except Exception as error:  # Whatever a library raises is a finding.
            line |= {"status": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}
            failed += 1
        put(line)
        if bed.on_gpu and line["status"] == "failed":
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                print(f"peers: the GPU does not answer any more: {error}", file=sys.stderr)
                sys.exit(70)
        # What a weight takes to be made is not expected again.
        if peer.name != COMPILED and m != cells[0]:
            bed.longest = max(bed.longest, time.monotonic() - begin)
    return failed


def integers(text: str) -> list[int]:
    """A list such as 1,2,4; `none` is empty."""
    return [] if text == "none" else [int(part) for part in text.split(",")]


def shape(text: str) -> tuple[int, int]:
    """Output and input features, such as 4096,14336."""
    n, k = (int(part) for part in text.split(","))
    return n, k


def main() -> int:
    """Measures what is asked for and not on record; returns the exit code."""
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=shape, action="append", required=True, metavar="N,K", help="may be repeated")
    parser.add_argument("--m", type=integers, default=[1, 8, 64], metavar="LIST", help="rows of the input [1,8,64]")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file of JSON lines")
    parser.add_argument("--peers", default=",".join(names), metavar="LIST", help="any of %(default)s")
    parser.add_argument("--compiled-m", type=integers, metavar="LIST", help="rows that something is compiled for [--m]")
    parser.add_argument("--floor-m", type=integers, default=[], metavar="LIST", help="rows with a floor beside them []")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stops before a cell that would not end")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    unknown = set(args.peers.split(",")) - set(names)
    if unknown:
        parser.error(f"no peer is called {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("peers: PyTorch sees no GPU; --device cpu runs on the CPU", file=sys.stderr)
        return 69
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    torch.set_grad_enabled(False)
    if device.type == "cpu":
        # Figures of a CPU show nothing; one thread shows it fast whatever else runs.
        torch.set_num_threads(1)
    bed = Bed(device, time.monotonic() + args.budget if args.budget else float("inf"))
    stack = {"device": bed.name(), "torch": torch.__version__, "cuda": torch.version.cuda if bed.on_gpu else None}
    done = {
        (line["peer"], line["n"], line["k"], line["m"], line["device"], line["torch"])
        for line in lines(args.out)
        if line["status"] != "failed"
    }
    failed = 0
    try:
        for n, k in args.shape:
            for peer in (peer for peer in PEERS if peer.name in args.peers.split(",")):
                wanted = args.m if peer.name != COMPILED or args.compiled_m is None else args.compiled_m
                cells = [m for m in sorted(set(wanted)) if peer.least_rows <= m <= peer.most_rows]
                cells = [m for m in cells if (peer.name, n, k, m, stack["device"], stack["torch"]) not in done]

                def put(line: Line, peer: Peer = peer, n: int = n, k: int = k) -> None:
                    identity = {"schema": SCHEMA, "peer": peer.name, "variant": peer.variant, "what": peer.what}
                    append(args.out, identity | {"n": n, "k": k} | stack | line)
                    said = line.get("reason") or f"{1e6 * line['cold']['median_s']:.4g} µs cold"
                    print(f"{peer.name} n {n} k {k}, M {line['m']}: {said}", file=sys.stderr, flush=True)

                failed += family(bed, peer, (n, k), cells, args, put) if cells else 0
    except OutOfTime:
        print("peers: the budget does not hold another cell; the same command goes on from here", file=sys.stderr)
        return 124
    return 3 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
