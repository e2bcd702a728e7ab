"""What lm_eval makes of the rows in tests/fixtures/lm_eval/rows.json, and what it makes of a tiny model's answers.

    python tests/interop/lm_eval_requests.py [--check]

Writes tests/fixtures/lm_eval/requests.json: for every task, with no and with two examples, each document's requests as
lm_eval's own task builds them; and tests/fixtures/lm_eval/scores.json: the log-likelihoods, texts and figures that lm_eval
gets from tests/fixtures/tiny-llama/bf16 through transformers in float32. With --check, compares instead of writing.

Needs lm_eval (0.4.13), transformers and torch; nothing is fetched.
"""

import argparse
import json
import math
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import lm_eval
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures/lm_eval"
SHOTS = (0, 2)
FOLDERS = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "mmlu_high_school_physics": "mmlu/default/mmlu_high_school_physics.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}


def load_config(name):
    """lm_eval's own definition, its functions among it."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(pathlib.Path(lm_eval.tasks.__file__).parent / FOLDERS[name])


def task_over(name, splits, shots):
    """lm_eval's own task over rows at hand."""
    config = {key: value for key, value in load_config(name).items() if key not in ("tag", "group")}

    class Local(ConfigurableTask):
        def download(self, dataset_kwargs=None, **kwargs):
            made = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
            self.dataset = datasets.DatasetDict(made)

    task = Local(config=config)
    if task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    return task


def requests_of(task):
    task.build_all_requests()
    documents = {}
    for instance in task.instances:
        args = instance.args
        continuation = args[1] if isinstance(args[1], str) else ""
        documents.setdefault(instance.doc_id, []).append([args[0], continuation])
    return [documents[doc_id] for doc_id in sorted(documents)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    rows = json.loads((FIXTURES / "rows.json").read_text())
    requests, scores = {}, {}
    folder = ROOT / "tests/fixtures/tiny-llama/bf16"
    ids = json.loads((folder / "config.json").read_text())
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(ids["bos_token_id"])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids["eos_token_id"])
    model = HFLM(
        pretrained=str(folder),
        tokenizer=tokenizer,
        dtype="float32",
        device="cpu",
        batch_size=1,
    )
    for name, splits in rows.items():
        requests[name] = {}
        scores[name] = {}
        for shots in SHOTS:
            task = task_over(name, splits, shots)
            requests[name][str(shots)] = requests_of(task)
            if name == "gsm8k":
                # The tiny model talks nonsense: a few tokens tell as much.
                task.set_config("generation_kwargs", {**task.get_config("generation_kwargs"), "max_gen_toks": 24})
                # Drawn examples depend on what was drawn before.
                task.set_fewshot_seed(seed=1234)
                task.build_all_requests()
            scores[name][str(shots)] = evaluated(model, task)
    compare_or_write("requests.json", requests, args.check)
    compare_or_write("scores.json", scores, args.check)


def evaluated(model, task):
    """Per document: what the model says, and every metric under each filter."""
    kind = task.OUTPUT_TYPE
    if kind == "generate_until":
        answers = model.generate_until(task.instances, disable_tqdm=True)
    else:
        answers = model.loglikelihood(task.instances, disable_tqdm=True)
    for instance, answer in zip(task.instances, answers):
        instance.resps = [answer]
    task.apply_filters()
    documents = {}
    for instance in task.instances:
        documents.setdefault(instance.doc_id, []).append(instance)
    out = []
    for doc_id in sorted(documents):
        instances = sorted(documents[doc_id], key=lambda one: one.idx)
        entry = {}
        if kind == "generate_until":
            entry["text"] = instances[0].resps[0]
        else:
            entry["loglikelihood"] = [one.resps[0][0] for one in instances]
            entry["is_greedy"] = [bool(one.resps[0][1]) for one in instances]
        for key in instances[0].filtered_resps:
            results = [one.filtered_resps[key] for one in instances]
            values = task.process_results(instances[0].doc, results)
            for metric, value in values.items():
                entry[metric if key == "none" else f"{metric},{key}"] = float(value)
        out.append(entry)
    return out


def alike(a, b):
    """Whether two documents are the same, but for the last digits of floats, which differ from one torch to the next."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5)
    return a == b


def compare_or_write(name, found, check):
    path = FIXTURES / name
    if not check:
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {path.relative_to(ROOT)}")
        return
    same = alike(json.loads(path.read_text()), json.loads(json.dumps(found)))
    print(f"{path.relative_to(ROOT)}: {'the same' if same else 'differs'}")
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
