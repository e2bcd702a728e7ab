#!/usr/bin/env python3
"""Puts what benches/gpu.sh left in a folder into one page, OUT/SUMMARY.md: for every model its products by shape and
rows, candlepower's beside PyTorch's; checks; speeds of whole models; and the commands that all of it came from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samples import Line, lines, median

Shape = tuple[int, int]
# Shape, rows, variant or peer.
Cell = tuple[Shape, int, str]
# A ratio of one shape at so many rows.
Share = Callable[[Shape, int], float | None]

# The variant that others are compared with.
BASE = "bf16"


@dataclass
class Products:
    """Everything that one step found about a model's products."""

    name: str
    # Roles by shape, as far as they are known.
    roles: dict[Shape, list[str]] = field(default_factory=dict)
    # The latest record of each cell, in the order in which cells first appeared.
    own: dict[Cell, Line] = field(default_factory=dict)
    peers: dict[Cell, Line] = field(default_factory=dict)

    def shapes(self) -> list[Shape]:
        return list(dict.fromkeys(cell[0] for cell in [*self.own, *self.peers]))

    def rows(self) -> list[int]:
        return sorted({cell[1] for cell in [*self.own, *self.peers]})

    def variants(self) -> list[str]:
        return list(dict.fromkeys(cell[2] for cell in self.own))

    def title(self, shape: Shape) -> str:
        """N × K with what it is in the model."""
        roles = [role.removeprefix(self.name).strip() for role in self.roles.get(shape, [])]
        return f"{shape[0]} × {shape[1]}" + (f" ({', '.join(roles)})" if roles else "")

    def is_head(self, shape: Shape) -> bool:
        return any(role.endswith(" head") for role in self.roles.get(shape, []))


def load_json(path: Path) -> Any:
    """The content of a JSON file; nothing if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def load(folder: Path) -> Products:
    """What is in the folder of a step."""
    products = Products(folder.name.removeprefix("linear-"))
    for line in lines(folder / "records.jsonl"):
        subject = line.get("subject", {})
        if line.get("schema") == "candlepower.kernel/1" and subject["op"] == "linear":
            sizes = subject["sizes"]
            products.own[(sizes["n"], sizes["k"]), subject["tokens"], subject["variant"]] = line
    for line in lines(folder / "peers.jsonl"):
        if line.get("schema") == "candlepower.peer/1":
            products.peers[(line["n"], line["k"]), line["m"], line["peer"]] = line
    for shape in (load_json(folder / "results.json") or {}).get("shapes", []):
        sizes = shape["sizes"]
        if shape["op"] == "linear":
            products.roles[sizes["n"], sizes["k"]] = shape["roles"]
    return products


# --- Figures of one cell


def own_seconds(record: Line | None) -> float | None:
    """The median of cold calls; none for a cell that failed."""
    return median(record["result"]["cold"]["samples_s"]) if record and record["status"] == "ok" else None


def floor_seconds(record: Line | None) -> float | None:
    """The median in which as many bytes are read."""
    return median(record["result"]["read_floor"]["samples_s"]) if record and record["status"] == "ok" else None


def library_seconds(record: Line | None) -> float | None:
    """The median of the vendor's library, timed in the same run."""
    if not record or record["status"] != "ok" or record["result"]["peer"]["status"] != "measured":
        return None
    return median(record["result"]["peer"]["timing"]["samples_s"])


def library_name(record: Line) -> str | None:
    return record["result"]["peer"]["name"] if library_seconds(record) is not None else None


def peer_seconds(line: Line | None) -> float | None:
    return line["cold"]["median_s"] if line and line["status"] == "ok" else None


def percent_of_floor(record: Line | None) -> float | None:
    own, floor = own_seconds(record), floor_seconds(record)
    return 100 * floor / own if own and floor else None


def digits(x: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def beside(seconds: float | None, own: float | None, missing: str) -> str:
    """Another's time in µs, and how many times as long that is as ours."""
    if seconds is None:
        return missing
    return digits(1e6 * seconds) + (f" ({seconds / own:.2f}×)" if own else "")


# --- Tables


def table(header: list[str], rows: Iterable[list[str]], numbers: bool = True) -> list[str]:
    """A Markdown table; all columns but the first are numbers, or none is."""
    rule = ["---"] + ["--:" if numbers else "---"] * (len(header) - 1)
    return ["| " + " | ".join(row) + " |" for row in [header, rule, *rows]]


def missing(line: Line | None) -> str:
    return "–" if line is None or line["status"] == "unsupported" else "failed"


def main_table(products: Products) -> list[str]:
    """Rows: shape and M. Columns: each variant with its share of the read floor, then the others in that variant."""
    kinds: dict[str, list[str]] = {variant: [] for variant in products.variants()}
    for cell, line in products.peers.items():
        kinds.setdefault(line["variant"], [])
        if line["status"] != "unsupported" and cell[2] not in kinds[line["variant"]]:
            kinds[line["variant"]].append(cell[2])
    libraries = [v for v in kinds if any(library_seconds(r) for cell, r in products.own.items() if cell[2] == v)]
    header = ["shape", "M"]
    for variant, peers in kinds.items():
        header += [f"**{variant}**"] + ["library"] * (variant in libraries) + [f"torch {peer}" for peer in peers]
    rows: list[list[str]] = []
    for shape in products.shapes():
        for m in products.rows():
            row = [products.title(shape), str(m)]
            for variant, peers in kinds.items():
                own_record = products.own.get((shape, m, variant))
                own, share = own_seconds(own_record), percent_of_floor(own_record)
                row.append(missing(own_record) if own is None else f"**{digits(1e6 * own)}**, {share:.0f} %")
                if variant in libraries:
                    row.append(beside(library_seconds(own_record), own, "–"))
                for peer in peers:
                    found = products.peers.get((shape, m, peer))
                    row.append(beside(peer_seconds(found), own, missing(found)))
            if any(entry != "–" for entry in row[2:]):
                rows.append(row)
    return table(header, rows)


def worst_and_mean(products: Products, columns: dict[str, Share], form: str) -> list[str]:
    """By rows, the smallest and the mean of a share over all shapes but the head."""
    shapes = [shape for shape in products.shapes() if not products.is_head(shape)]
    rows = []
    for m in products.rows():
        row = [str(m)]
        for share in columns.values():
            known = [value for shape in shapes if (value := share(shape, m)) is not None]
            short = "" if len(known) == len(shapes) else f" of {len(known)}"
            mean = sum(known) / len(known) if known else 0
            row.append(f"{min(known):{form}} / {mean:{form}}{short}" if known else "–")
        rows.append(row)
    return table(["M", *columns], rows)


def floor_table(products: Products) -> list[str]:
    """The share of the read floor."""

    def of(variant: str) -> Share:
        return lambda shape, m: percent_of_floor(products.own.get((shape, m, variant)))

    return worst_and_mean(products, {variant: of(variant) for variant in products.variants()}, ".1f")


def speed_table(products: Products) -> list[str]:
    """Each variant against bf16, and bf16 against the library; nothing where neither is there."""

    def over_base(variant: str) -> Share:
        def share(shape: Shape, m: int) -> float | None:
            base, own = (own_seconds(products.own.get((shape, m, name))) for name in (BASE, variant))
            return base / own if base and own else None

        return share

    def over_library(shape: Shape, m: int) -> float | None:
        record = products.own.get((shape, m, BASE))
        library, own = library_seconds(record), own_seconds(record)
        return library / own if library and own else None

    variants = [variant for variant in products.variants() if variant != BASE]
    columns = {f"{variant} over {BASE}": over_base(variant) for variant in variants}
    if any(over_library(shape, m) for shape in products.shapes() for m in products.rows()):
        columns[f"{BASE} over the library"] = over_library
    return worst_and_mean(products, columns, ".2f") if BASE in products.variants() and columns else []


def floor_check(products: Products) -> list[str]:
    """Both floors of the same bytes."""
    ratios = []
    for (shape, m, _), line in products.peers.items():
        own = floor_seconds(products.own.get((shape, m, line["variant"])))
        other = line.get("floor", {}).get("median_s")
        if own and other:
            ratios.append(other / own)
    if not ratios:
        return []
    spread = f"{median(ratios):.3f} in the median, {min(ratios):.3f} to {max(ratios):.3f}"
    return [f"A reader in Triton takes {spread} times as long as candlepower's of as many bytes (n = {len(ratios)})."]


def reasons(products: Products) -> list[str]:
    """What has no figure, and why, each reason once."""
    found: dict[str, int] = {}
    for (shape, m, variant), record in products.own.items():
        if record["status"] == "failed":
            text = f"{variant} at {products.title(shape)}, M = {m}: {record['reason']}"
            found[text] = found.get(text, 0) + 1
    for (_, _, peer), line in products.peers.items():
        if line["status"] != "ok":
            text = f"torch {peer}: {line['status']}: {line['reason']}"
            found[text] = found.get(text, 0) + 1
    return [f"- {text}" + (f" ({count} cells)" if count > 1 else "") for text, count in found.items()]


def products_section(products: Products) -> list[str]:
    """A model's part of the page."""
    if not products.own and not products.peers:
        return []
    text = [f"## Products of {products.name}", ""]
    if any(r["status"] == "ok" and r["result"]["cpu_reference"] for r in products.own.values()):
        text += ["On a CPU, where ops are references and times show nothing but the form of this table.", ""]
    stacks = {f"PyTorch {line['torch']} on {line['device']}" for line in products.peers.values()}
    text += [
        "Median time of a cold call in µs. Bold: candlepower, with the share of the read floor, which is a kernel that "
        "only reads as many bytes. Others: in parentheses their time over candlepower's in the same variant, above 1 "
        "where candlepower is faster." + "".join(f" {stack}." for stack in sorted(stacks)),
        "",
        *main_table(products),
        "",
    ]
    what: Line = {line["peer"]: line["what"] for line in products.peers.values()}
    what.update(("library", name) for record in products.own.values() if (name := library_name(record)))
    if what:
        text += ["; ".join(f"`{peer}`: {meaning}" for peer, meaning in what.items()) + ".", ""]
    shapes = ", ".join(products.title(shape) for shape in products.shapes() if not products.is_head(shape))
    if products.own:
        text += [f"Share of the read floor in %, worst / mean over {shapes}:", "", *floor_table(products), ""]
    if speeds := speed_table(products):
        text += ["How many times as fast, worst / mean over the same shapes:", "", *speeds, ""]
    check = floor_check(products)
    text += [*check, ""] if check else []
    gone = reasons(products)
    return text + (["Without a figure:", "", *gone, ""] if gone else [])


# --- Whole models

# What runs a cell, and the cell: batch, prompt, generated, depth.
Run = tuple[str, str]
Work = tuple[int, int, int, int]


@dataclass
class Figures:
    """Medians of a cell, and the least time of a step by the device's read rate, where that is known."""

    prefill: float
    step: float | None
    floor: float | None = None
    host_gap: float | None = None


def own_figures(line: Line) -> Figures:
    """Of a record of `candlepower bench`."""
    result = line["result"]
    trials = result["trials"]
    gaps = [gap for trial in trials for gap in trial["itl_s"]]
    work = result.get("work") or {}
    cost, limits = work.get("decode_step"), work.get("limits", {})
    times = []
    if cost and limits.get("read_gb_per_s"):
        times.append((cost["read_bytes"] + cost["written_bytes"]) / 1e9 / limits["read_gb_per_s"])
    if cost and limits.get("product_tflop_per_s"):
        times.append(cost["flops"] / 1e12 / limits["product_tflop_per_s"])
    host = sum(trial["decode_s"] for trial in trials)
    device = [trial["device"]["decode_s"] for trial in trials if trial.get("device")]
    gap = 100 * (host - sum(device)) / host if host and len(device) == len(trials) else None
    return Figures(
        median([trial["ttft_s"] for trial in trials]), median(gaps) if gaps else None, max(times, default=None), gap
    )


def model_runs(folder: Path) -> tuple[dict[Work, dict[Run, Figures]], list[str]]:
    """Everything that was timed of a model, by cell, and what failed."""
    found: dict[Work, dict[Run, Figures]] = {}
    failed: list[str] = []
    for path in sorted(folder.glob("*/records.jsonl")):
        for line in lines(path):
            if line.get("kind") != "speed":
                continue
            subject, cell = line["subject"], line["cell"]
            work = (cell["batch"], cell["prompt_tokens"], cell["generated_tokens"], cell["depth"])
            run = (subject["variant"], subject["engine"])
            if line["status"] == "ok":
                found.setdefault(work, {})[run] = own_figures(line)
            else:
                failed.append(f"{' by '.join(run)}, batch {work[0]}, prompt {work[1]}: {line['reason']}")
    for line in lines(folder / "peers.jsonl"):
        work = (line["batch"], line["prompt"], line["gen"], 0)
        run = (line["variant"], line["peer"])
        if line["status"] == "ok":
            step = line["step"]["median_s"] if line["gen"] > 1 else None
            found.setdefault(work, {})[run] = Figures(line["prefill"]["median_s"], step)
        else:
            failed.append(f"{' by '.join(run)}, batch {work[0]}, prompt {work[1]}: {line['reason']}")
    return found, failed


def model_section(folder: Path) -> list[str]:
    """A model's part of the page: every cell, every variant, whoever ran it."""
    found, failed = model_runs(folder)
    if not found and not failed:
        return []
    rows = []
    for work, runs in sorted(found.items()):
        for (variant, engine), figures in runs.items():
            own = runs.get((variant, "candlepower"))
            step, times = figures.step, None
            if own and own is not figures and step and own.step:
                times = f"{step / own.step:.2f}×"
            rows.append(
                [
                    f"{work[0]} × {work[1]}" + (f" at {work[3]}" if work[3] else ""),
                    variant,
                    engine,
                    digits(1e3 * figures.prefill),
                    digits(1e3 * step) if step else "",
                    digits(work[0] / step) if step else "",
                    f"{100 * figures.floor / step:.0f}" if step and figures.floor else "",
                    f"{figures.host_gap:.1f}" if figures.host_gap is not None else "",
                    times or "",
                ]
            )
    head = ["batch × prompt", "variant", "engine", "TTFT ms", "step ms", "tok/s", "% of floor", "host gap %", "slower"]
    text = [
        f"## {folder.name.removeprefix('bench-')} with made-up weights",
        "",
        "Medians. The floor of a step is what its bytes take at the measured read rate, or its operations at the measured "
        "rate of products, whichever is more. Slower: time of a step over candlepower's in the same cell and variant.",
        "",
        *table(head, rows),
        "",
    ]
    return text + (["Without a figure:", "", *(f"- {reason}" for reason in failed), ""] if failed else [])


# --- The rest of the page


def device_section(out: Path) -> list[str]:
    """What ran it, and what that can do at best."""
    info = load_json(out / "info" / "info.json")
    if not info:
        return ["# Results", ""]
    environment = info["environment"]
    device = environment["device"]
    facts = [
        f"candlepower {environment['tool_version']} [{', '.join(environment['features'])}]",
        f"driver {device['driver']}" if device.get("driver") else None,
        f"CUDA {device['cuda']}" if device.get("cuda") else None,
        environment.get("os"),
        f"begun {environment['started']}" if environment.get("started") else None,
    ]
    text = [f"# {device['name']}", "", " · ".join(fact for fact in facts if fact), ""]
    failed = [name for name, stamp in stamps(out) if stamp.get("exit") != "0"]
    text += [f"Failed: {', '.join(failed)}; see the end of this page.", ""] if failed else []
    rows = []
    for row in info.get("ceilings", []):
        scale, unit = {"B/s": (1e9, "GB/s"), "FLOP/s": (1e12, "TFLOP/s"), "s": (1e-6, "µs")}[row["unit"]]
        rows.append([row["name"], f"{row['best'] / scale:.4g} {unit}", f"{row['median'] / scale:.4g}", row["how"]])
    return [*text, "## Ceilings", "", *table(["limit", "best", "median", "how"], rows, numbers=False), ""]


def quoted(title: str, path: Path) -> list[str]:
    """What a command printed, as it printed it."""
    if not path.exists() or not path.read_text(encoding="utf-8").strip():
        return []
    return [f"## {title}", "", "```text", path.read_text(encoding="utf-8").strip("\n"), "```", ""]


def stamps(out: Path) -> list[tuple[str, dict[str, str]]]:
    """Every part that has ended, by name."""
    found = []
    for path in sorted(out.glob("*/done/*"), key=lambda path: path.stat().st_mtime):
        if path.suffix not in (".cut", ".partial"):
            pairs = (row.split(": ", 1) for row in path.read_text(encoding="utf-8").splitlines())
            found.append((f"{path.parts[-3]}/{path.name}", dict(pair for pair in pairs if len(pair) == 2)))
    return found


def parts_section(out: Path) -> list[str]:
    """How each part ended, and the command that it was."""
    found = stamps(out)
    if not found:
        return []
    rows = [[name, stamp.get("exit", "?"), stamp.get("seconds", "?"), stamp.get("build", "")] for name, stamp in found]
    return [
        "## Parts",
        "",
        "What a part's exit code is not 0 for is in its `.log` and `.txt`.",
        "",
        *table(["part", "exit code", "s", "build"], rows),
        "",
        "Commands:",
        "",
        "```sh",
        *(stamp["command"] for _, stamp in found if "command" in stamp),
        "```",
        "",
    ]


def page(out: Path) -> str:
    """The whole page."""
    text = device_section(out)
    for folder in sorted(out.glob("linear-*")):
        text += products_section(load(folder))
    for folder in sorted(out.glob("bench-*")):
        text += model_section(folder)
        text += quoted("What each part of the engine is worth", folder / "ablate.txt")
    text += quoted("A study of tiny", out / "study" / "tiny.txt")
    text += quoted("A study of a trained model", out / "study" / "model.txt")
    text += quoted("Logits against the CPU's", out / "logits" / "logits.txt")
    return "\n".join(text + parts_section(out)).rstrip("\n") + "\n"


def main() -> int:
    """Writes the page whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder that benches/gpu.sh wrote to")
    out = parser.parse_args().out
    if not out.is_dir():
        print(f"compare: there is no folder {out}", file=sys.stderr)
        return 2
    partial = out / "SUMMARY.md.partial"
    partial.write_text(page(out), encoding="utf-8")
    partial.replace(out / "SUMMARY.md")
    print(f"compare: wrote {out / 'SUMMARY.md'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
