#!/usr/bin/env python3
"""A whole Llama or Qwen model in PyTorch, with made-up weights: prefill and decode as `candlepower bench` times them.

The model is written here in the manner of gpt-fast: a static cache, one token of each sequence per decode step, greedy
tokens that feed the next step on the device, `torch.compile` over the whole step, and a CUDA graph of it. `bf16` multiplies
by cuBLAS or what the compiler makes of it; `int8` by the same product over weights that are widened in it; `w4a16` by
`torch._weight_int4pack_mm`. Embedding and head are bf16 in all of them, as candlepower has them.

A cell is one variant, batch, prompt and number of generated tokens. Before it is timed, its decode steps must give the
logits of its prefill over the same tokens. Then trials: prompts that differ from trial to trial, prefill, then the steps;
prefill ends when its tokens are on the host, and the steps are timed together, from then until the last of theirs is.

One line per cell goes to --out, a file of JSON lines; cells that are there are not measured again.

Exit codes: 0 · 2 usage · 3 a cell failed · 69 no GPU · 124 the budget ended first · 130 interrupted
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from samples import Line, append, lines, summary
from torch import Tensor
from torch_linear import GROUP, Unsupported, first_line, int4_weight, int8_weight, integers

SCHEMA = "candlepower.peer-model/1"
VARIANTS = ("bf16", "int8", "w4a16")
PRESETS = Path(__file__).resolve().parents[2] / "models" / "presets"

# What decode steps may differ from the prefill by, of the largest logit: rounding of bf16, layer after layer.
TOLERANCE = 0.05
# Prompt tokens of all rows that go through the model at once, as in candlepower.
CHUNK = 8192


@dataclass(frozen=True)
class Shape:
    """What a config.json says of a model's shape."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    tied: bool
    bias: bool
    head_norms: bool

    @staticmethod
    def of(name: str) -> Shape:
        """Of a preset; `tiny` is small enough for a CPU."""
        if name == "tiny":
            return Shape(512, 128, 256, 2, 4, 2, 32, 1e-5, 1e4, True, False, True)
        with (PRESETS / f"{name}.toml").open("rb") as file:
            config: dict[str, Any] = tomllib.load(file)["config"]
        family = config["architectures"][0]
        heads = config["num_attention_heads"]
        return Shape(
            vocab=config["vocab_size"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim", config["hidden_size"] // heads),
            eps=config["rms_norm_eps"],
            theta=config["rope_theta"],
            tied=config["tie_word_embeddings"],
            bias=family.startswith("Qwen2"),
            head_norms=family.startswith("Qwen3"),
        )


class Linear(torch.nn.Module):
    """A product in one of the variants."""

    def __init__(self, n: int, k: int, variant: str, bias: bool, device: torch.device) -> None:
        super().__init__()
        self.variant = variant
        self.bias = torch.nn.Buffer(torch.randn(n, device=device).bfloat16() * 0.02) if bias else None
        if variant == "bf16":
            self.weight = torch.nn.Buffer(((2 * torch.rand(n, k, device=device) - 1) * (3 / k) ** 0.5).bfloat16())
        elif variant == "int8":
            codes, scales = int8_weight(n, k, device).held
            self.weight, self.scales = torch.nn.Buffer(codes), torch.nn.Buffer(scales)
        else:
            packed, pairs = int4_weight(n, k, device).held
            self.weight, self.scales = torch.nn.Buffer(packed), torch.nn.Buffer(pairs)

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == "bf16":
            return F.linear(x, self.weight, self.bias)
        if self.variant == "int8":
            out = F.linear(x, self.weight.to(x.dtype)) * self.scales
        else:
            rows = x.reshape(-1, x.shape[-1])
            if x.device.type == "cpu":
                out = torch._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.scales)
            else:
                out = torch._weight_int4pack_mm(rows, self.weight, GROUP, self.scales)
            out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Halves of a head turned against each other; x is [batch, heads, tokens, head_dim]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Layer(torch.nn.Module):
    """A decoder layer with its part of the cache."""

    def __init__(self, shape: Shape, variant: str, batch: int, capacity: int, device: torch.device) -> None:
        super().__init__()
        self.shape = shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        ones = lambda width: torch.nn.Buffer(torch.ones(width, device=device, dtype=torch.bfloat16))  # noqa: E731
        self.qkv = Linear(q + 2 * kv, shape.hidden, variant, shape.bias, device)
        self.output = Linear(shape.hidden, q, variant, False, device)
        self.gate_up = Linear(2 * shape.intermediate, shape.hidden, variant, False, device)
        self.down = Linear(shape.hidden, shape.intermediate, variant, False, device)
        self.attention_norm, self.mlp_norm = ones(shape.hidden), ones(shape.hidden)
        self.q_norm = ones(shape.head_dim) if shape.head_norms else None
        self.k_norm = ones(shape.head_dim) if shape.head_norms else None
        cache = (batch, shape.kv_heads, capacity, shape.head_dim)
        self.keys = torch.nn.Buffer(torch.zeros(cache, device=device, dtype=torch.bfloat16))
        self.values = torch.nn.Buffer(torch.zeros(cache, device=device, dtype=torch.bfloat16))

    def forward(self, x: Tensor, places: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        shape = self.shape
        batch, tokens, _ = x.shape
        q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        qkv = self.qkv(rms_norm(x, self.attention_norm, shape.eps))
        q, k, v = (
            part.view(batch, tokens, -1, shape.head_dim).transpose(1, 2)
            for part in qkv.split([q_rows, kv_rows, kv_rows], dim=-1)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = rms_norm(q, self.q_norm, shape.eps), rms_norm(k, self.k_norm, shape.eps)
        self.keys.index_copy_(2, places, rotated(k, cos, sin))
        self.values.index_copy_(2, places, v)
        attended = F.scaled_dot_product_attention(
            rotated(q, cos, sin), self.keys, self.values, attn_mask=mask, enable_gqa=True
        )
        x = x + self.output(attended.transpose(1, 2).reshape(batch, tokens, q_rows))
        gate, up = self.gate_up(rms_norm(x, self.mlp_norm, shape.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Model(torch.nn.Module):
    """The whole model for one batch size and capacity."""

    def __init__(self, shape: Shape, variant: str, batch: int, capacity: int, device: torch.device) -> None:
        super().__init__()
        self.shape, self.batch, self.capacity = shape, batch, capacity
        table = torch.randn(shape.vocab, shape.hidden, device=device).bfloat16()
        self.embedding = torch.nn.Buffer(table)
        head = table if shape.tied else torch.randn(shape.vocab, shape.hidden, device=device).bfloat16()
        self.head = torch.nn.Buffer(head)
        self.norm = torch.nn.Buffer(torch.ones(shape.hidden, device=device, dtype=torch.bfloat16))
        self.layers = torch.nn.ModuleList(
            Layer(shape, variant, batch, capacity, device) for _ in range(shape.layers)
        )
        frequencies = shape.theta ** -(torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim)
        angles = torch.outer(torch.arange(capacity, device=device).float(), frequencies)
        self.cos, self.sin = torch.nn.Buffer(angles.cos()), torch.nn.Buffer(angles.sin())
        self.causal = torch.nn.Buffer(torch.ones(capacity, capacity, device=device, dtype=torch.bool).tril())

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Logits after the last of `tokens` [batch, n], which stand at `places` [n] of the cache."""
        x = F.embedding(tokens, self.embedding)
        cos, sin, mask = self.cos[places], self.sin[places], self.causal[places][None, None]
        for layer in self.layers:
            x = layer(x, places, cos, sin, mask)
        return F.linear(rms_norm(x[:, -1], self.norm, self.shape.eps), self.head).float()


class Runner:
    """Prefill and decode, compiled where that is wanted, the decode step as a graph where there is a GPU."""

    def __init__(self, model: Model, compiled: bool, device: torch.device) -> None:
        self.model, self.device = model, device
        self.tokens = torch.zeros(model.batch, 1, dtype=torch.long, device=device)
        self.places = torch.zeros(1, dtype=torch.long, device=device)

        def step() -> None:
            logits = model(self.tokens, self.places)
            self.tokens.copy_(logits.argmax(-1, keepdim=True))
            self.places.add_(1)

        self.step: Callable[[], None] = torch.compile(step, fullgraph=True, dynamic=False) if compiled else step
        self.graph: torch.cuda.CUDAGraph | None = None

    def record(self) -> None:
        """The decode step as a CUDA graph, after it has run as often as compiling and choosing kernels needs."""
        for _ in range(3):
            self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()

    def prefill(self, prompts: Tensor) -> None:
        """Leaves the first tokens and their place for the decode step."""
        total = prompts.shape[1]
        each = max(1, CHUNK // prompts.shape[0])
        for first in range(0, total, each):
            part = prompts[:, first : first + each]
            logits = self.model(part, torch.arange(first, first + part.shape[1], device=self.device))
        self.tokens.copy_(logits.argmax(-1, keepdim=True))
        self.places.fill_(total)

    def decode(self, steps: int) -> None:
        """Asks for so many steps."""
        for _ in range(steps):
            if self.graph is not None:
                self.graph.replay()
            else:
                self.step()

    def on_host(self) -> list[list[int]]:
        """The latest tokens, once they are there."""
        return self.tokens.tolist()


def verify(runner: Runner, prompts: Tensor) -> float:
    """How far logits token by token are from those at once, of the largest."""
    count = min(prompts.shape[1], 8)
    few = prompts[:, :count]
    at_once = runner.model(few, torch.arange(count, device=runner.device))
    for place in range(count):
        stepped = runner.model(few[:, place : place + 1], torch.tensor([place], device=runner.device))
    error = ((stepped - at_once).abs().max() / at_once.abs().max()).item()
    if not error <= TOLERANCE:
        raise RuntimeError(f"not timed: logits token by token differ by {error:.3g} of the largest")
    return error


def measure(args: argparse.Namespace, shape: Shape, variant: str, batch: int, prompt: int, device: torch.device) -> Line:
    """The figures of one cell."""
    torch.manual_seed(args.seed)
    model = Model(shape, variant, batch, prompt + args.gen, device)
    runner = Runner(model, args.compile, device)

    def made() -> Tensor:
        return torch.randint(shape.vocab, (batch, prompt), device=device)

    error = verify(runner, made())
    runner.record()
    prefill, decode = [], []
    for trial in range(args.warmup + args.trials):
        prompts = made()
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        runner.prefill(prompts)
        runner.on_host()
        first = time.perf_counter()
        runner.decode(args.gen - 1)
        runner.on_host()
        last = time.perf_counter()
        if trial >= args.warmup:
            prefill.append(first - start)
            decode.append((last - first) / max(args.gen - 1, 1))
    ends = {"prefill": summary(prefill) | {"samples_s": prefill}, "step": summary(decode) | {"samples_s": decode}}
    return ends | {"verification": error}


def main() -> int:
    """Measures what is asked for and not on record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a preset of models/presets, or tiny")
    parser.add_argument("--variants", default=",".join(VARIANTS), metavar="LIST", help="any of %(default)s")
    parser.add_argument("--batch", type=integers, default=[1, 8, 64], metavar="LIST")
    parser.add_argument("--prompt", type=integers, default=[128], metavar="LIST")
    parser.add_argument("--gen", type=int, default=64, metavar="N")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--eager", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file of JSON lines")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stops before a cell that would not end")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    unknown = set(args.variants.split(",")) - set(VARIANTS)
    if unknown:
        parser.error(f"no variant is called {', '.join(sorted(unknown))}: there are {', '.join(VARIANTS)}")
    if args.gen < 1:
        parser.error("--gen must be at least 1")
    try:
        shape = Shape.of(args.model)
    except FileNotFoundError:
        parser.error(f"there is no preset {args.model} in {PRESETS}")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("peers: PyTorch sees no GPU; --device cpu runs on the CPU", file=sys.stderr)
        return 69
    torch.set_grad_enabled(False)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peer = "torch-compiled" if args.compile else "torch-eager"
    stack = {"device": name, "torch": torch.__version__, "peer": peer, "model": args.model}
    key = ("peer", "model", "variant", "batch", "prompt", "gen", "device", "torch")
    done = {tuple(line[k] for k in key) for line in lines(args.out) if line["status"] != "failed"}
    end = time.monotonic() + args.budget if args.budget else float("inf")
    failed, longest = 0, 0.0
    for prompt in args.prompt:
        for batch in args.batch:
            for variant in args.variants.split(","):
                cell = {"variant": variant, "batch": batch, "prompt": prompt, "gen": args.gen}
                if tuple((stack | cell)[k] for k in key) in done:
                    continue
                if time.monotonic() + longest > end:
                    print("peers: the budget does not hold another cell; the same command goes on", file=sys.stderr)
                    return 124
                begin = time.monotonic()
                line: Line = {"schema": SCHEMA} | stack | cell | {"started_unix_s": round(time.time())}
                try:
                    line |= {"status": "ok"} | measure(args, shape, variant, batch, prompt, device)
                    prefill, step = (1e3 * line[part]["median_s"] for part in ("prefill", "step"))
                    said = f"{prefill:.4g} ms prefill, {step:.4g} ms a step"
                except (Unsupported, NotImplementedError, AttributeError) as error:
                    line |= {"status": "unsupported", "reason": first_line(error)}
                    said = line["reason"]
                except Exception as error:  # Whatever a library raises is a finding.
                    line |= {"status": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}
                    said = line["reason"]
                    failed += 1
                append(args.out, line)
                print(f"{peer} {args.model} {variant} batch {batch} prompt {prompt}: {said}", file=sys.stderr, flush=True)
                # One model's memory is what the next one needs.
                gc.collect()
                torch.compiler.reset()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                longest = max(longest, time.monotonic() - begin)
    return 3 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
