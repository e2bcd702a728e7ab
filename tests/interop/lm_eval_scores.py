"""The program against lm_eval with transformers, on the same YAML task, documents and machine.

    python tests/interop/lm_eval_scores.py GGUF ROWS.jsonl [ROWS.jsonl ...] [--limit 200] [--recorded FILE ...]

GGUF is a trained model, such as SmolLM2-135M-Instruct; ROWS hold {query, choices, gold}. Both programs get one YAML task
over them, without examples and without a beginning-of-text token, in float32 on the CPU. Every log-likelihood must agree to
1e-3, and with it acc and acc_norm; where one does not, both are held against transformers in float64, and ours must agree
with that: over texts of some 150 tokens lm_eval's sums in float32 are off by more than 1e-3 themselves. Prints how long
each took, by the clock and in seconds of processors (which other work on the machine changes less): the program as a
whole with loading and tokenising, lm_eval without its imports and without loading the model. lm_eval runs batches of
--batch (default 8).

--recorded FILE compares with log-likelihoods and token counts that lm_eval gave before (lines with `doc`, `context`,
`continuations`, `loglikelihood`), of choices or of last words, instead of running lm_eval.

CANDLEPOWER names the program (default: target/release/candlepower). Needs lm_eval, transformers, gguf and torch unless only
--recorded is given; nothing is fetched.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
TOLERANCE = 1e-3
PROGRAM = os.environ.get("CANDLEPOWER", "target/release/candlepower")

CHOICES = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {rows}
output_type: multiple_choice
test_split: train
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


def ours(gguf, task, limit, scratch):
    """The lines of our log, the results, and the seconds that the program took: by the clock, of processors."""
    log = scratch / "log.jsonl"
    log.unlink(missing_ok=True)
    command = [PROGRAM, "eval", "--model", gguf, "--variant", "f32", "--device", "cpu", "--add-bos", "off"]
    command += ["--tasks", str(task), "--limit", str(limit), "--log-samples", str(log), "--json"]
    begin, before = time.monotonic(), os.times()
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    seconds = (time.monotonic() - begin, busy)
    return [json.loads(line) for line in log.read_text().splitlines()], json.loads(found), seconds


def theirs(model, task, limit):
    import lm_eval
    from lm_eval.tasks import TaskManager

    begin, before = time.monotonic(), os.times()
    manager = TaskManager(include_path=str(task.parent), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=[task.stem], limit=limit, task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    after = os.times()
    return found, (time.monotonic() - begin, after.user + after.system - before.user - before.system)


def load(gguf, batch):
    from lm_eval.models.huggingface import HFLM

    path = pathlib.Path(gguf).resolve()
    model = HFLM(pretrained=str(path.parent), gguf_file=path.name, dtype="float32", device="cpu", batch_size=batch,
                 add_bos_token=False)
    split_as_the_file_says(model.tokenizer, path)
    return model


def split_as_the_file_says(tokenizer, path):
    """transformers reads no `tokenizer.ggml.pre`: every tokenizer splits texts as GPT-2's. SmolLM's takes digits one by one
    first, so that two blanks before a digit are one token."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUFReader(path).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        split = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(split)


class Exact:
    """Log-likelihoods by transformers in float64; the model is widened when the first one is asked for."""

    def __init__(self, model):
        self.model = model
        self.wide = None

    def of(self, context, continuation):
        import copy

        import torch

        if self.wide is None:
            self.wide = copy.deepcopy(self.model.model).double()
        before, after = self.model._encode_pair(context, continuation)
        with torch.no_grad():
            logits = self.wide(torch.tensor([(before + after)[:-1]])).logits[0, len(before) - 1 :]
        of_tokens = torch.log_softmax(logits, -1).gather(-1, torch.tensor(after)[:, None])
        return of_tokens.sum().item()


def compare_with_lm_eval(args, scratch):
    model = load(args.gguf, args.batch)
    exact = Exact(model)
    failed = False
    for rows in args.rows:
        name = pathlib.Path(rows).stem + "_local"
        task = scratch / f"{name}.yaml"
        task.write_text(CHOICES.format(name=name, rows=pathlib.Path(rows).resolve()))
        log, results, seconds = ours(args.gguf, task, args.limit, scratch)
        found, their_seconds = theirs(model, task, args.limit)
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        assert len(samples) == len(log), (len(samples), len(log))
        worst = 0.0
        for own, other in zip(log, samples):
            assert own["doc_id"] == other["doc_id"]
            requests = other["arguments"].values() if isinstance(other["arguments"], dict) else other["arguments"]
            for a, b, request in zip(own["loglikelihood"], other["filtered_resps"], requests, strict=True):
                b = float(b[0])
                worst = max(worst, abs(a - b))
                if not abs(a - b) <= TOLERANCE:
                    truth = exact.of(*(request.values() if isinstance(request, dict) else request))
                    print(f"{name}: document {own['doc_id']}: {a:.6f}, lm_eval {b:.6f}, in float64 {truth:.6f}")
                    failed |= not abs(a - truth) <= TOLERANCE
            differs = [m for m in ("acc", "acc_norm") if own[m] != other[m]]
            if differs:
                print(f"{name}: document {own['doc_id']}: {differs} differ")
                failed = True
        for metric in ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr"):
            a, b = results["results"][name][f"{metric},none"], found["results"][name].get(f"{metric},none")
            if isinstance(b, float) and not abs(a - b) < 1e-9:
                print(f"{name}: {metric} is {a}, lm_eval has {b}")
                failed = True
        print(
            f"{name}: {len(log)} documents, log-likelihoods off by at most {worst:.1e}; acc "
            f"{results['results'][name]['acc,none']:.4f}; {seconds[0]:.1f} s ({seconds[1]:.1f} s of processors), lm_eval "
            f"{their_seconds[0]:.1f} s ({their_seconds[1]:.1f} s): {their_seconds[0] / seconds[0]:.1f} ("
            f"{their_seconds[1] / seconds[1]:.1f}) times as long"
        )
    return failed


def compare_with_recorded(args, scratch):
    failed = False
    for path in args.recorded:
        recorded = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
        docs = scratch / (pathlib.Path(path).stem + ".jsonl")
        docs.write_text("".join(json.dumps(entry["doc"]) + "\n" for entry in recorded))
        log, _, _ = ours(args.gguf, docs, len(recorded), scratch)
        worst = 0.0
        for own, entry in zip(log, recorded, strict=True):
            for a, b in zip(own["loglikelihood"], entry["loglikelihood"], strict=True):
                worst = max(worst, abs(a - b))
            failed |= own["is_greedy"] != entry["is_greedy"]
        failed |= not worst <= TOLERANCE
        print(f"{docs.name}: {len(log)} documents, log-likelihoods off by at most {worst:.1e}")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--recorded", nargs="*", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        failed = compare_with_recorded(args, scratch) if args.recorded else False
        if args.rows:
            failed |= compare_with_lm_eval(args, scratch)
    sys.exit(failed)


if __name__ == "__main__":
    main()
