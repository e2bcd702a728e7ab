"""What the scripts beside this file share: statistics of samples, and files of JSON lines. Standard library alone.

The statistics are those of the program's own figures: quantiles between order statistics (Hyndman and Fan, "Sample
Quantiles in Statistical Packages", type 7), and 95 % percentile intervals of a bootstrap with a fixed seed (Efron and
Tibshirani, "An Introduction to the Bootstrap", §13.3).
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0xCA9D1E90

Line = dict[str, Any]


def quantile(ascending: Sequence[float], p: float) -> float:
    """Quantile `p` of samples in ascending order, of which there is at least one."""
    place = (len(ascending) - 1) * p
    below, above = math.floor(place), math.ceil(place)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)


def median(samples: Sequence[float]) -> float:
    """The median of at least one sample."""
    return quantile(sorted(samples), 0.5)


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Where the median lies; none for a single sample."""
    if len(samples) < 2:
        return None
    draw = random.Random(SEED)
    medians = sorted(median(draw.choices(samples, k=len(samples))) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return quantile(medians, tail), quantile(medians, 1 - tail)


def summary(samples: Sequence[float]) -> Line:
    """What is said about times in seconds, next to the samples themselves."""
    interval = median_interval(samples)
    return {
        "median_s": median(samples),
        "min_s": min(samples),
        "n": len(samples),
        "ci95_s": list(interval) if interval else None,
    }


def lines(path: Path) -> Iterator[Line]:
    """The objects of a file of JSON lines; none if there is no file. A line that was cut off is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except json.JSONDecodeError:
                continue


def append(path: Path, line: Line) -> None:
    """Adds one line, which is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A line that was cut off before this one must not take it along.
    broken = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    text = ("\n" if broken else "") + json.dumps(line) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
