"""Tests of what the scripts here compute and write, on made-up results: no GPU, no PyTorch.

python3 -m unittest discover -s benches/peers
"""

from __future__ import annotations

import json
import random
import tempfile
import unittest
from pathlib import Path

import compare
import logits
import samples


def timing(microseconds: float) -> samples.Line:
    """Three samples around a median."""
    return {"samples_s": [1.01e-6 * microseconds, 1e-6 * microseconds, 0.99e-6 * microseconds]}


def record(n: int, k: int, m: int, variant: str, us: float | None, library: float | None = None) -> samples.Line:
    """A cell of `candlepower kernels` whose bytes are read in 10 µs; a failed one without a time."""
    subject = {"op": "linear", "sizes": {"n": n, "k": k}, "tokens": m, "variant": variant}
    line: samples.Line = {"schema": "candlepower.kernel/1", "subject": subject, "roles": []}
    if us is None:
        return line | {"status": "failed", "reason": "not timed: it is wrong"}
    peer: samples.Line = {"status": "unavailable", "reason": "none"}
    if library is not None:
        peer = {"status": "measured", "name": "a library", "timing": timing(library)}
    result = {"cold": timing(us), "read_floor": timing(10), "cpu_reference": False, "peer": peer}
    return line | {"status": "ok", "result": result}


def peer(n: int, k: int, m: int, name: str, variant: str, us: float | None) -> samples.Line:
    """A cell of torch_linear.py; one without a time is not supported."""
    identity = {"peer": name, "variant": variant, "what": f"what {name} is", "n": n, "k": k, "m": m}
    stack = {"schema": "candlepower.peer/1", "device": "a GPU", "torch": "2.0"}
    if us is None:
        return identity | stack | {"status": "unsupported", "reason": "no such kernel"}
    return identity | stack | {"status": "ok", "cold": samples.summary(timing(us)["samples_s"])}


class Samples(unittest.TestCase):
    def test_quantiles_lie_between_order_statistics(self) -> None:
        self.assertEqual(samples.median([3.0, 1.0, 2.0]), 2.0)
        self.assertEqual(samples.median([4.0, 1.0, 2.0, 3.0]), 2.5)
        self.assertAlmostEqual(samples.quantile([0.0, 10.0, 20.0], 0.9), 18.0)

    def test_an_interval_holds_the_median_and_shrinks_with_more_samples(self) -> None:
        draw = random.Random(1)
        many = [draw.gauss(5, 1) for _ in range(200)]
        few = samples.median_interval(many[:10])
        all_of_them = samples.median_interval(many)
        assert few and all_of_them
        self.assertTrue(all_of_them[0] <= samples.median(many) <= all_of_them[1])
        self.assertTrue(all_of_them[0] > 4.5 and all_of_them[1] < 5.5)
        self.assertLess(all_of_them[1] - all_of_them[0], few[1] - few[0])
        self.assertEqual(all_of_them, samples.median_interval(many))

    def test_one_sample_has_no_interval(self) -> None:
        self.assertEqual(samples.summary([2.0]), {"median_s": 2.0, "min_s": 2.0, "n": 1, "ci95_s": None})

    def test_a_line_that_was_cut_off_takes_no_other_along(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "new" / "lines.jsonl"
            samples.append(path, {"a": 1})
            with path.open("a", encoding="utf-8") as file:
                file.write('{"a": 2, "b')
            samples.append(path, {"a": 3})
            self.assertEqual([line["a"] for line in samples.lines(path)], [1, 3])


class Pages(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.out = Path(scratch.name)
        self.step = self.out / "linear-a-model"

    def page(self, own: list[samples.Line], peers: list[samples.Line], roles: dict[tuple[int, int], str]) -> str:
        for line in own:
            samples.append(self.step / "records.jsonl", line)
        for line in peers:
            samples.append(self.step / "peers.jsonl", line)
        shapes = [{"op": "linear", "sizes": {"n": n, "k": k}, "roles": [role]} for (n, k), role in roles.items()]
        (self.step / "results.json").write_text(json.dumps({"shapes": shapes}), encoding="utf-8")
        return compare.page(self.out)

    def rows(self, page: str, start: str) -> list[list[str]]:
        """Entries of the table rows that begin so."""
        wanted = [line for line in page.splitlines() if line.startswith(f"| {start}")]
        return [[entry.strip() for entry in line.strip("|").split("|")] for line in wanted]

    def test_ours_stand_with_their_share_and_others_with_their_ratio(self) -> None:
        own = [
            record(64, 32, 1, "bf16", 12.5, library=10.0),
            record(64, 32, 1, "int8", 8.0),
            record(64, 32, 1, "w4a16", None),
        ]
        peers = [
            peer(64, 32, 1, "graph", "bf16", 15.0),
            peer(64, 32, 1, "packed", "int8", 16.0),
            peer(64, 32, 1, "other", "int8", None),
        ]
        page = self.page(own, peers, {(64, 32): "a-model qkv"})
        header, row = self.rows(page, "shape")[0], self.rows(page, "64 × 32")[0]
        cells = dict(zip(header, row, strict=True))
        self.assertEqual(row[0], "64 × 32 (qkv)")
        self.assertEqual(cells["**bf16**"], "**12.5**, 80 %")
        self.assertEqual(cells["library"], "10.0 (0.80×)")
        self.assertEqual(cells["torch graph"], "15.0 (1.20×)")
        self.assertEqual(cells["**int8**"], "**8.00**, 125 %")
        self.assertEqual(cells["torch packed"], "16.0 (2.00×)")
        self.assertEqual(cells["**w4a16**"], "failed")
        self.assertNotIn("torch other", header)
        self.assertIn("- w4a16 at 64 × 32 (qkv), M = 1: not timed: it is wrong", page)
        self.assertIn("- torch other: unsupported: no such kernel", page)

    def test_a_head_counts_for_nothing_but_itself(self) -> None:
        own = [
            record(64, 32, 1, "bf16", 20.0, library=10.0),
            record(32, 32, 1, "bf16", 12.5, library=10.0),
            record(999, 32, 1, "bf16", 100.0),
            record(64, 32, 1, "int8", 10.0),
            record(32, 32, 1, "int8", 12.5),
        ]
        roles = {(64, 32): "a-model up", (32, 32): "a-model o", (999, 32): "a-model head"}
        page = self.page(own, [], roles)
        self.assertEqual(len(self.rows(page, "999 × 32 (head)")), 1)
        shares, speeds = self.rows(page, "1 |")
        self.assertEqual(shares, ["1", "50.0 / 65.0", "80.0 / 90.0"])
        self.assertEqual(speeds, ["1", "1.00 / 1.50", "0.50 / 0.65"])

    def test_the_latest_record_of_a_cell_is_shown(self) -> None:
        page = self.page([record(64, 32, 1, "bf16", None), record(64, 32, 1, "bf16", 20.0)], [], {})
        self.assertEqual(self.rows(page, "64 × 32")[0][2], "**20.0**, 50 %")
        self.assertNotIn("Without a figure", page)

    def test_both_floors_are_compared_where_there_are_two(self) -> None:
        line = peer(64, 32, 1, "graph", "bf16", 15.0) | {"floor": samples.summary(timing(11)["samples_s"])}
        page = self.page([record(64, 32, 1, "bf16", 20.0)], [line], {})
        self.assertIn("takes 1.100 in the median", page)

    def test_a_part_that_failed_stands_at_the_top_and_commands_at_the_end(self) -> None:
        done = self.out / "tests" / "done"
        done.mkdir(parents=True)
        (done / "suite").write_text("exit: 101\nseconds: 7\nbuild: ab\ncommand: suite --exact a:b\n", encoding="utf-8")
        (self.out / "info").mkdir()
        environment = {"device": {"name": "A GPU"}, "tool_version": "0", "features": ["cuda"]}
        ceilings = [{"name": "read", "best": 4e12, "median": 3.9e12, "unit": "B/s", "how": "somehow"}]
        info = json.dumps({"environment": environment, "ceilings": ceilings})
        (self.out / "info" / "info.json").write_text(info, encoding="utf-8")
        page = compare.page(self.out)
        self.assertTrue(page.startswith("# A GPU\n"))
        self.assertIn("Failed: tests/suite;", page)
        self.assertEqual(self.rows(page, "read")[0], ["read", "4000 GB/s", "3900", "somehow"])
        self.assertEqual(self.rows(page, "tests/suite")[0], ["tests/suite", "101", "7", "ab"])
        self.assertTrue(page.endswith("```sh\nsuite --exact a:b\n```\n"))

    def test_whole_models_stand_with_their_floor_and_peers_with_their_ratio(self) -> None:
        def own(engine: str, step: float, failure: str | None = None) -> samples.Line:
            cell = {"batch": 2, "prompt_tokens": 16, "generated_tokens": 3, "depth": 0}
            line = {"kind": "speed", "subject": {"variant": "bf16", "engine": engine}, "cell": cell}
            if failure:
                return line | {"status": "failed", "reason": failure}
            trial = {"ttft_s": 0.02, "decode_s": 2 * step, "itl_s": [step, step], "device": {"decode_s": 1.98 * step}}
            cost = {"read_bytes": 3e6, "written_bytes": 1e6, "flops": 1e9}
            limits = {"read_gb_per_s": 2.0, "product_tflop_per_s": 1.0}
            return line | {"status": "ok", "result": {"trials": [trial], "work": {"decode_step": cost, "limits": limits}}}

        folder = self.out / "bench-a-model"
        samples.append(folder / "ours" / "records.jsonl", own("candlepower", 0.004))
        samples.append(folder / "candle" / "records.jsonl", own("candle", 0.01))
        samples.append(folder / "candle" / "records.jsonl", own("other", 0.0, "out of memory"))
        step, prefill = samples.summary([0.005]), samples.summary([0.03])
        line = {"variant": "bf16", "peer": "torch-compiled", "batch": 2, "prompt": 16, "gen": 3, "status": "ok"}
        samples.append(folder / "peers.jsonl", line | {"step": step, "prefill": prefill})
        page = compare.page(self.out)
        rows = {row[2]: row for row in self.rows(page, "2 × 16")}
        self.assertEqual(rows["candlepower"][3:], ["20.0", "4.00", "500", "50", "1.0", ""])
        self.assertEqual(rows["candle"][3:], ["20.0", "10.0", "200", "20", "1.0", "2.50×"])
        self.assertEqual(rows["torch-compiled"][3:], ["30.0", "5.00", "400", "", "", "1.25×"])
        self.assertIn("- bf16 by other, batch 2, prompt 16: out of memory", page)

    def test_an_empty_folder_makes_a_page(self) -> None:
        self.assertEqual(compare.page(self.out), "# Results\n")


class Logits(unittest.TestCase):
    def test_rounding_passes_and_anything_else_is_a_fault(self) -> None:
        truth = [[1.0, 10.0], [2.0, -3.0]]
        near = logits.compared(truth, [[1.0, 9.9], [2.0, -3.0]])
        self.assertAlmostEqual(near["largest_difference"], 0.1)
        self.assertEqual((near["largest_logit"], near["same_top"], near["positions"]), (10.0, 2, 2))
        self.assertIsNone(logits.fault(near, "f32"))
        far = logits.compared(truth, [[1.0, 10.0], [2.0, 2.5]])
        self.assertEqual(far["same_top"], 1)
        self.assertIsNotNone(logits.fault(far, "f32"))
        self.assertIsNotNone(logits.fault(far, None))
        nan = logits.compared(truth, [[1.0, float("nan")], [2.0, -3.0]])
        self.assertEqual(logits.fault(nan, None), "a logit is not finite")


if __name__ == "__main__":
    unittest.main()
