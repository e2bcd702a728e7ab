#!/usr/bin/env python3
"""Perplexities by every protocol, against their plain recomputation with transformers in float32 on the CPU.

    tests/interop/protocols.py MODEL TEXT [--context N] [--segments N] [--tolerance X]

MODEL is a folder that transformers reads, or a .gguf file. TEXT is a file; a raw WikiText file is read as each protocol's
authors read it. CANDLEPOWER names the program (default: target/release/candlepower). Where the package lm_eval is there,
its own `loglikelihood_rolling` is what `lm_eval` is held to. Needs torch and transformers (and gguf for a .gguf file).
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_grad_enabled(False)


def load(source):
    path = Path(source)
    if path.suffix == ".gguf":
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    else:
        where = {"pretrained_model_name_or_path": str(path)}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(**where)


def losses(model, ids):
    """The loss of every token of `ids` after the first, in nats."""
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    targets = torch.tensor(ids[1:])
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def gptq(model, ids, context, segments):
    windows = [ids[i * context : (i + 1) * context] for i in range(len(ids) // context)][:segments]
    return [loss for window in windows for loss in losses(model, window).tolist()]


def llama_cpp(model, tokenizer, ids, context, segments):
    begin = tokenizer.encode("", add_special_tokens=True)
    begins = bool(begin) and begin[0] == tokenizer.bos_token_id
    found = []
    for i in range(len(ids) // context)[:segments]:
        window = ids[i * context : (i + 1) * context]
        if begins:
            window = [tokenizer.bos_token_id] + window[1:]
        # Logits from position context/2 to context - 2 predict the token behind each.
        found += losses(model, window)[context // 2 :].tolist()
    return found


def sliding(model, ids, context, stride, segments):
    found, previous, number = [], 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        wanted = end - previous
        window = losses(model, ids[begin:end]) if end - begin > 1 else torch.tensor([])
        # The first token of a window has nothing before it.
        found += window[-wanted:].tolist()
        previous, number = end, number + 1
        if end == len(ids) or number == segments:
            break
    return found


def lm_eval_rolling(model, tokenizer, documents, context):
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        print("no lm_eval: its windows are cut here")
        return sum(-sum(rolling(model, tokenizer, document, context)) for document in documents)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, max_length=context, batch_size=1)
    requests = [Instance("loglikelihood_rolling", {}, (document,), 0) for document in documents]
    return sum(wrapped.loglikelihood_rolling(requests, disable_tqdm=True))


def rolling(model, tokenizer, document, context):
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    stream = [prefix] + tokenizer.encode(document)
    done, total, found = 0, len(stream) - 1, []
    while done < total:
        end = min(done + context, total)
        begin = 0 if done == 0 else end - context
        found += losses(model, stream[begin : end + 1])[done - end :].tolist()
        done = end
    return found


def pages(raw):
    found, page = [], []
    for line in raw.split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            if "\n".join(page).strip():
                found.append("\n".join(page))
            page = []
        page.append(line)
    return found + ["\n".join(page)]


def detokenised(page):
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    return wikitext_detokenizer({"page": page})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--segments", type=int, default=6)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    args = parser.parse_args()
    program = os.environ.get("CANDLEPOWER", "target/release/candlepower")
    model, tokenizer = load(args.model)
    raw = Path(args.text).read_text(encoding="utf-8")
    is_raw = re.search(r"^ = .* = ?$", raw, re.M) and all(not l or l[0] == " " for l in raw.split("\n"))
    rows = "\n\n".join("" if not row.strip() else row for row in re.findall(r"[^\n]*\n|[^\n]+", raw)) if is_raw else raw
    documents = pages(raw) if is_raw else [raw]
    context, segments = args.context, args.segments
    stride = context // 3
    failed = False
    for protocol in ["gptq", "llama.cpp", "sliding", "lm_eval"]:
        few = 1 if protocol == "lm_eval" else segments
        command = [program, "ppl", "--model", args.model, "--text", args.text, "--variant", "f32", "--device", "cpu"]
        command += ["--protocol", protocol, "--context", str(context), "--segments", str(few), "--json"]
        command += ["--stride", str(stride)] if protocol == "sliding" else []
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if protocol == "lm_eval":
            scored = [detokenised(page) if is_raw else page for page in documents[:few]]
            total = -lm_eval_rolling(model, tokenizer, scored, context)
            words = sum(len(re.split(r"\s+", page)) for page in documents[:few])
            size = sum(len(page.encode()) for page in documents[:few])
            tokens = sum(len(tokenizer.encode(page)) for page in scored)
            pairs = {
                "word_perplexity": math.exp(total / words),
                "byte_perplexity": math.exp(total / size),
                "bits_per_byte": total / size / math.log(2),
            }
        else:
            text = raw.removesuffix("\n") if protocol == "llama.cpp" else rows
            ids = tokenizer.encode(text)
            if protocol == "gptq":
                each = gptq(model, ids, context, few)
            elif protocol == "llama.cpp":
                each = llama_cpp(model, tokenizer, ids, context, few)
            else:
                each = sliding(model, ids, context, stride, few)
            total, tokens = sum(each), len(each)
            pairs = {"value": math.exp(total / tokens)}
            if protocol == "llama.cpp":
                mean = total / tokens
                spread = sum(loss * loss for loss in each) / tokens - mean * mean
                pairs["stderr_over_tokens"] = pairs["value"] * math.sqrt(spread / (tokens - 1))
        pairs["nll_sum"] = total
        same = found["tokens_scored"] == tokens
        for name, truth in pairs.items():
            error = abs(found[name] - truth) / truth
            failed |= not (error <= args.tolerance and same)
            figures = f"{found[name]:.6f}  recomputed {truth:.6f}  off by {error:.1e}"
            print(f"{protocol:10} {name:19} {figures}  ({tokens} tokens)")
        if not same:
            print(f"{protocol}: {found['tokens_scored']} tokens scored, {tokens} recomputed")
    sys.exit(failed)


if __name__ == "__main__":
    main()
