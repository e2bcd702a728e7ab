#!/usr/bin/env python3
"""Checkpoints that `candlepower quantize` writes, read by the libraries that they are for.

    tests/interop/quantised.py [CANDLEPOWER]

Every tiny model is quantised by every method. Its logits as `candlepower logits --variant as-is` gives them in float32
are compared

  1. with a plain float32 model of transformers whose weights compressed-tensors' own functions unpacked here, and
  2. with what transformers gives for the folder as it is, which rounds each weight to the scales' 16 bits first.

Needs torch, transformers, compressed-tensors and accelerate; where they are missing, they are installed with pip into
target/interop (torch is a large download).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["torch", "transformers", "compressed-tensors", "accelerate"]

CASES = [
    ("tiny-llama", ["w4a16:gptq:g32"]),
    ("tiny-llama", ["w8a8:smoothquant:gptq"]),
    ("tiny-llama-tied", ["w4a16:awq:asym:g32"]),
    ("tiny-llama-tied", ["int8:gptq"]),
    ("tiny-qwen2", ["w4a16:awq:gptq:g32"]),
    ("tiny-qwen2", ["w4a16:mse:g32", "--keep-bits", "16", "--layers", "0.qkv,1.down"]),
    ("tiny-qwen3", ["w4a16:gptq:g32", "--keep-bits", "8", "--layers", "1"]),
    ("tiny-qwen3", ["int8:asym"]),
]
IDS = [1, 5, 9, 2, 7, 30, 11, 4, 60, 23, 8, 17]


def with_packages():
    """Runs this script again by a Python that has the packages, installing them if need be."""
    try:
        import accelerate  # noqa: F401
        import compressed_tensors  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        if os.environ.get("QUANTISED_VENV"):
            raise
        venv = ROOT / "target" / "interop"
        python = venv / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        os.environ["QUANTISED_VENV"] = "1"
        os.execv(str(python), [str(python), *sys.argv])


def plain_state(folder):
    """The checkpoint's tensors with every quantised weight in float32."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    state = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        scale = tensors.get(f"{module}.weight_scale")
        if scale is None:
            state[name] = tensor.float()
            continue
        if part not in ("weight", "weight_packed"):
            if part == "bias":
                state[name] = tensor.float()
            continue
        codes, zero = tensor, torch.zeros_like(scale, dtype=torch.float32)
        if part == "weight_packed":
            shape = tensors[f"{module}.weight_shape"].tolist()
            bits = 32 * tensor.shape[1] // shape[1]
            codes = unpack_from_int32(tensor, bits, torch.Size(shape))
            if f"{module}.weight_zero_point" in tensors:
                packed = tensors[f"{module}.weight_zero_point"]
                zero = unpack_from_int32(packed, bits, scale.shape, packed_dim=0).float()
        columns = codes.shape[1] // scale.shape[1]
        spread = lambda x: x.float().repeat_interleave(columns, dim=1)  # noqa: E731
        state[f"{module}.weight"] = (codes.float() - spread(zero)) * spread(scale)
    return state


def reference(folder, ids, inputs_in_eight_bits):
    """Logits of a plain float32 model with the unpacked weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    missing, unexpected = model.load_state_dict(plain_state(folder), strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert set(missing) <= tied and not unexpected, (missing, unexpected)
    model.tie_weights()
    if inputs_in_eight_bits:

        def rounded(module, inputs):
            (x,) = inputs
            scale = x.abs().amax(-1, keepdim=True) / 127.5
            return ((x / scale).clamp(-128, 127).round() * scale,)

        for name, module in model.named_modules():
            if name.endswith("_proj"):
                module.register_forward_pre_hook(rounded)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def as_it_is(folder, ids):
    """Logits of the folder as transformers opens it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def main():
    with_packages()
    import torch

    program = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target" / "release" / "candlepower").resolve()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        text = scratch / "text.txt"
        text.write_text("".join(f"Reading {i} of the lamp came to {i * 37 % 101} units.\n" for i in range(400)))
        for number, (model, scheme) in enumerate(CASES):
            out = scratch / str(number)
            source = ROOT / "tests" / "fixtures" / model / "bf16"
            command = [program, "quantize", "--device", "cpu", "--model", source, "--out", out, "--scheme", *scheme]
            if any(method in scheme[0] for method in ("gptq", "awq", "smoothquant")):
                command += ["--calibrate", text, "--calibration-samples", "8", "--calibration-length", "64"]
            subprocess.run(command, check=True, capture_output=True)
            command = [program, "logits", "--device", "cpu", "--dtype", "f32", "--model", out, "--variant", "as-is"]
            command += ["--ids", ",".join(map(str, IDS))]
            printed = subprocess.run(command, check=True, capture_output=True).stdout
            own = torch.tensor(json.loads(printed)["logits"])
            eight = scheme[0].startswith("w8a8")
            largest = own.abs().max()
            exact = (own - reference(out, IDS, eight)).abs() / largest
            # transformers 5.24 with compressed-tensors 0.20 opens no checkpoint with zero points, not even LLM
            # Compressor's: it expects them unpacked.
            if "asym" in scheme[0]:
                rounded = torch.zeros(1)
            else:
                rounded = (own - as_it_is(out, IDS)).abs() / largest
            # Where inputs are rounded, a tie moves whole steps: the mean says more than the largest.
            good = exact.mean() < 0.015 and exact.max() < 0.07 if eight else exact.max() < 1e-4
            good = good and rounded.mean() < 0.015 and rounded.max() < 0.07
            failed += not good
            print(
                f"{model} {' '.join(scheme)}: unpacked: mean {exact.mean():.1e}, largest {exact.max():.1e}; "
                f"transformers: mean {rounded.mean():.1e}, largest {rounded.max():.1e} of the largest logit"
                + ("" if good else "  WRONG")
            )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
