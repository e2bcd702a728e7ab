#!/usr/bin/env python3
"""The program's logits on a GPU against its own on the CPU, for some models and variants.

Each variant runs on the CPU with activations in f32, then on the device in f32 and in the type that it takes by
itself. What is printed, and written to a file of JSON lines, is the largest difference of a logit, beside the largest
logit, and at how many positions the most likely token is the same. Exit codes: 0 · 2 usage · 3 a run failed, or a
difference is too large to be rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from samples import Line, append, lines

# Ids that every vocabulary has, none twice in a row.
IDS = [(37 * i + 11) % 250 for i in range(24)]

# The share of the largest logit that rounding explains: f32 differs by the order of sums alone, but an input that w8a8
# rounds to the other side moves a whole step.
F32_LIMIT = 0.02
HALF_LIMIT = 0.1


def logits(binary: str, model: str, variant: str, device: str, dtype: str | None) -> list[list[float]]:
    """Logits by position and token."""
    command = [binary, "logits", "--model", model, "--variant", variant, "--device", device, "--json"]
    command += ["--ids", ",".join(map(str, IDS))] + (["--dtype", dtype] if dtype else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"exit code {done.returncode}: {said[-1] if said else 'it says nothing'}")
    return json.loads(done.stdout)["logits"]


def top(row: list[float]) -> int:
    """The most likely token."""
    return max(range(len(row)), key=row.__getitem__)


def compared(truth: list[list[float]], got: list[list[float]]) -> Line:
    """How far two sets of logits are apart."""
    pairs = [(a, b) for row, other in zip(truth, got, strict=True) for a, b in zip(row, other, strict=True)]
    finite = all(b is not None and math.isfinite(b) for _, b in pairs)
    return {
        "finite": finite,
        "largest_difference": max(abs(a - b) for a, b in pairs) if finite else None,
        "largest_logit": max(abs(a) for a, _ in pairs),
        "same_top": sum(top(row) == top(other) for row, other in zip(truth, got, strict=True)) if finite else 0,
        "positions": len(truth),
    }


def row(model: str, variant: str, dtype: str, difference: str, logit: str, same: str) -> str:
    """A line of the table."""
    return f"{model:<24} {variant:<8} {dtype:<12} {difference:>18} {logit:>14}  {same}"


def fault(found: Line, dtype: str | None) -> str | None:
    """Why a difference is no rounding."""
    if not found["finite"]:
        return "a logit is not finite"
    limit = F32_LIMIT if dtype == "f32" else HALF_LIMIT
    share = found["largest_difference"] / found["largest_logit"]
    return None if share <= limit else f"{share:.1%} of the largest logit is more than rounding explains ({limit:.0%})"


def main() -> int:
    """Compares what is asked for and not on record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", action="append", required=True, help="may be repeated")
    parser.add_argument("--variants", default="f32,bf16,int8,w8a8,w4a16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines; what is there is not run again")
    args = parser.parse_args()
    known = {(line["model"], line["variant"], line["dtype"]): line for line in lines(args.out)}
    failed = 0
    print(row("model", "variant", "activations", "largest difference", "largest logit", "same top token"))
    for model in args.model:
        for variant in args.variants.split(","):
            truth: list[list[float]] | None = None
            for dtype in ("f32", None):
                line = known.get((model, variant, dtype))
                if line is None or line["fault"]:
                    line = {"model": model, "variant": variant, "dtype": dtype, "device": args.device}
                    try:
                        truth = truth or logits(args.binary, model, variant, "cpu", "f32")
                        found = compared(truth, logits(args.binary, model, variant, args.device, dtype))
                        line |= found | {"fault": fault(found, dtype)}
                    except RuntimeError as error:
                        line["fault"] = str(error)
                    append(args.out, line)
                failed += line["fault"] is not None
                name = Path(model).name
                shown = "-" if line.get("largest_difference") is None else f"{line['largest_difference']:.3g}"
                logit = f"{line['largest_logit']:.4g}" if "largest_logit" in line else "-"
                same = f"{line['same_top']} of {line['positions']}" if "positions" in line else "-"
                why = f"  {line['fault']}" if line["fault"] else ""
                print(row(name, variant, dtype or "its own", shown, logit, same) + why, flush=True)
    return 3 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
