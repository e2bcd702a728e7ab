#!/usr/bin/env bash
# The program against other programs, on a trained model: SmolLM2-135M-Instruct as a Q4_1 GGUF file.
#
#   tests/interop/smollm2.sh GGUF [WIKITEXT [RECORDED]]
#
# WIKITEXT is WikiText-2's raw test split (wiki.test.raw), RECORDED what lm_eval gave for a task's documents (the form is in
# lm_eval_scores.py); what needs a file that is not there is left out. CANDLEPOWER names the program (default:
# target/release/candlepower).
#
#   1. The NLL of the first two segments of 2,048 tokens, against transformers in float32.
#   2. Token ids, against those of the model's own tokenizer (the ignored tests of tests/models.rs).
#   3. Greedy text, against candle's llama on the same dequantised weights.
#   4. Log-likelihoods of a task's choices, against those that lm_eval gave.
set -euo pipefail

usage='usage: tests/interop/smollm2.sh GGUF [WIKITEXT [RECORDED]]'
gguf=$(realpath -e "${1:?$usage}")
wikitext=${2:+$(realpath -m "$2")}
recorded=${3:+$(realpath -m "$3")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
candlepower=${CANDLEPOWER:-target/release/candlepower}

# transformers 5.23.0 and torch 2.15.0 on a CPU: LlamaForCausalLM.from_pretrained(gguf_file=..., dtype=float32, eager
# attention), the joined rows of wiki.test.raw (304,978 tokens; digits one by one, as `tokenizer.ggml.pre` = smollm asks),
# no BOS, tokens 2 to 2048 of each segment, cross-entropy in float64: 5563.311658 + 6456.081816.
nll_of_transformers=12019.393474114679
tolerance=2e-5

[[ -x $candlepower ]] || {
  echo "smollm2: $candlepower is missing: cargo build --release" >&2
  exit 1
}
failed=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [[ -f $wikitext ]]; then
  "$candlepower" ppl --model "$gguf" --text "$wikitext" --variant f32 --device cpu --context 2048 --segments 2 --json \
    >"$scratch/ppl.json"
  python3 - "$scratch/ppl.json" "$nll_of_transformers" "$tolerance" <<'PY' || failed=1
import json, sys
path, truth, tolerance = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
with open(path) as file:
    found = json.load(file)
assert found["tokens_total"] == 304978, found["tokens_total"]
assert found["tokens_scored"] == 2 * 2047, found["tokens_scored"]
error = abs(found["nll_sum"] - truth) / truth
print(f"NLL of 2 segments: {found['nll_sum']:.4f}, transformers {truth:.4f}, off by {error:.1e}")
sys.exit(not error <= tolerance)
PY
else
  echo "no ${wikitext:-WikiText-2}: the NLL is not compared"
fi

if command -v cargo >/dev/null; then
  export CANDLEPOWER_SMOLLM2=$gguf
  names=(smollm2_gives_the_known_ids)
  if [[ -f $wikitext ]]; then
    export CANDLEPOWER_WIKITEXT=$wikitext
    names+=(smollm2_gives_the_known_number_of_tokens_for_wikitext)
  fi
  # The features of the program, so that nothing is compiled for this alone.
  features=()
  if "$candlepower" info --json --no-ceilings --device cpu 2>/dev/null | grep -q '"cuda"$\|"cuda",$'; then
    features=(--features cuda)
  fi
  if cargo test --locked --release --quiet "${features[@]}" --test models -- \
    --ignored "${names[@]}" >"$scratch/ids.log" 2>&1; then
    echo "token ids: ${#names[@]} tests pass"
  else
    cat "$scratch/ids.log"
    failed=1
  fi
fi

prompts=(
  'The capital of France is'
  'Once upon a time, in a village by the sea,'
  'def fibonacci(n):'
  'Water boils at 100 degrees because'
  'The three laws of motion are'
  'Q: What is 17 + 25? A:'
  'A candle gives light'
)
arguments=()
for prompt in "${prompts[@]}"; do arguments+=(--prompt "$prompt"); done
for engine in candlepower candle; do
  "$candlepower" generate --model "$gguf" --variant f32 --device cpu --gen 64 --ignore-eos --json --engine "$engine" \
    "${arguments[@]}" >"$scratch/$engine.json"
done
# Where the texts part, the first differing token must be a tie: the two largest logits within 1e-3.
python3 - "$scratch" "$candlepower" "$gguf" <<'PY' || failed=1
import json, subprocess, sys
scratch, program, model = sys.argv[1:]
rows = {}
for engine in ("candlepower", "candle"):
    with open(f"{scratch}/{engine}.json") as file:
        rows[engine] = json.load(file)
bad = 0
for own, candle in zip(rows["candlepower"], rows["candle"], strict=True):
    assert own["prompt_ids"] == candle["prompt_ids"]
    assert len(own["ids"]) == len(candle["ids"]) == 64
    if own["ids"] == candle["ids"]:
        continue
    at = next(i for i, (a, b) in enumerate(zip(own["ids"], candle["ids"])) if a != b)
    ids = ",".join(map(str, own["prompt_ids"] + own["ids"][:at]))
    command = [program, "logits", "--model", model, "--variant", "f32", "--device", "cpu", "--ids", ids, "--json"]
    logits = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["logits"][-1]
    first, second = sorted(logits)[:-3:-1]
    tie = first - second <= 1e-3
    bad += not tie
    print(f"{own['prompt']!r}: parts at token {at}, margin {first - second:.1e}" + (", a tie" if tie else ""))
print(f"greedy text: {len(rows['candle'])} prompts of 64 tokens, {bad} differ from candle's")
sys.exit(bad > 0)
PY

if [[ -f $recorded ]]; then
  if ! CANDLEPOWER=$candlepower python3 tests/interop/lm_eval_scores.py "$gguf" --recorded "$recorded" \
    2>"$scratch/scores.log"; then
    cat "$scratch/scores.log"
    failed=1
  fi
else
  echo "no ${recorded:-log-likelihoods of lm_eval}: tasks are not compared"
fi

exit "$failed"
