#!/usr/bin/env bash
# Everything that is worth measuring on a GPU, in the order of its worth: checks, ceilings, studies, single products
# beside PyTorch's, whole models. For a machine that has the program, the CUDA libraries and Python with PyTorch; nothing
# is compiled but what PyTorch compiles for itself. benches/README.md says what comes out and how long it takes.
#
#   benches/gpu.sh [--binary FILE] [--tests FILE] [--model GGUF [--text FILE]] [--budget TIME] [--only STEP,...]
#   benches/gpu.sh --list         the steps and their state
#   benches/gpu.sh --dry-run      every step on the CPU with tiny shapes, to see that all of this works
#   benches/gpu.sh --brief        all of it in minutes: three trials, few cells, no energy, few peers; to find faults and
#                                 what is slow, not to quote
#
#   --binary FILE      the program                                    [default: target/release/candlepower]
#   --tests FILE       the executable of the integration test `kernels`, which `cargo test --no-run` names
#   --model GGUF       a trained model for a study and for logits; --text FILE is scored instead of tiny's text
#   --budget TIME      stops before a part that cannot end within it: 90s, 9m, 1h, or seconds       [default: none]
#   --only STEP,...    these steps alone
#   --again STEP,...   puts what these steps left aside, in OUT/earlier, and does them again: give it once
#   --out DIR          where results go   [default: benches/results/GPU, brief in it, target/dry-run for a dry run]
#   --python FILE      the Python that has PyTorch                                             [default: python3]
#
# A part that has ended leaves a stamp, with its command, and is not done again, whether it ended well or not. One that was
# cut short goes on from its last cell, so the same command, called again and again, gets to the end.
#
# Exit codes: 0 all is done · 2 usage · 3 all is done, but a part failed · 69 no GPU · 75 parts are left for another call
# · 130 interrupted
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
die() {
  local code=$1
  shift
  say "gpu: $*"
  exit "$code"
}

# Models as a whole, the most telling first.
models=(llama-3.1-8b qwen3-0.6b llama-3.2-1b qwen3-8b qwen2.5-7b)
steps=(info tests study logits bench-llama-3.1-8b attention bench-qwen3-0.6b linear-llama-3.1-8b linear-qwen3-0.6b profile
  sanitizer)
for name in "${models[@]:2}"; do steps+=("bench-$name"); done

# --- Arguments

absolute() { realpath -m -- "$1"; }

seconds() {
  [[ $1 =~ ^([0-9]+)([smh]?)$ ]] || die 2 "--budget $1: expected a time such as 90s, 9m or 1h"
  case ${BASH_REMATCH[2]} in
    m) echo $((10#${BASH_REMATCH[1]} * 60)) ;;
    h) echo $((10#${BASH_REMATCH[1]} * 3600)) ;;
    *) echo $((10#${BASH_REMATCH[1]})) ;;
  esac
}

check_steps() {
  local name
  for name in ${1//,/ }; do
    [[ " ${steps[*]} " == *" $name "* ]] || die 2 "no step is called '$name': there are ${steps[*]}"
  done
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
binary=$root/target/release/candlepower
python=python3
mode=run
budget=0
tests='' model='' text='' only='' again='' out='' dry='' brief=''
while [[ $# -gt 0 ]]; do
  flag=$1
  shift
  case $flag in
    --list) mode=list ;;
    --dry-run) dry=yes ;;
    --brief) brief=yes ;;
    -h | --help)
      sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --binary | --tests | --model | --text | --budget | --only | --again | --out | --python)
      [[ $# -gt 0 ]] || die 2 "$flag needs a value"
      case $flag in
        --binary) binary=$(absolute "$1") ;;
        --tests) tests=$(absolute "$1") ;;
        --model) model=$(absolute "$1") ;;
        --text) text=$(absolute "$1") ;;
        --budget) budget=$(seconds "$1") ;;
        --only) check_steps "$1" && only=$1 ;;
        --again) check_steps "$1" && again=$1 ;;
        --out) out=$(absolute "$1") ;;
        --python) python=$1 ;;
      esac
      shift
      ;;
    *) die 2 "unknown argument '$flag'; --help says what there is" ;;
  esac
done
for file in "$tests" "$model" "$text"; do
  [[ -z $file || -f $file ]] || die 2 "there is no file $file"
done

# Commands and results name files as seen from the package, where they lie in it.
cd "$root"
short() { realpath -m --relative-base=. -- "$1"; }
# The same with a slash in it, without which a command is looked for in PATH.
runnable() { short "$1" | sed '/\//!s/^/.\//'; }
program=$(runnable "$binary")
[[ -z $tests ]] || tests=$(runnable "$tests")
[[ -z $model ]] || model=$(short "$model")
[[ -z $text ]] || text=$(short "$text")

# --- The device

gpu=''
if command -v nvidia-smi >/dev/null; then
  gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0 2>/dev/null) || gpu=''
fi
if [[ -n $dry ]]; then
  device=cpu
  fresh=''
  [[ -n $out || $mode == list ]] || fresh=yes
  out=${out:-target/dry-run}
elif [[ -n $gpu ]]; then
  device=cuda
  slug=$(tr '[:upper:]' '[:lower:]' <<<"$gpu" | sed -E 's/^nvidia //; s/[^a-z0-9]+/-/g; s/^-|-$//g')
  out=${out:-benches/results/$slug${brief:+/brief}}
elif [[ $mode == list && -n $out ]]; then
  device=cuda
else
  die 69 'nvidia-smi is missing or sees no GPU; --dry-run runs every step on the CPU'
fi
out=$(short "$out")

# --- Parts of steps: run, cut short, stamped

# What this call came to.
ended=0 failed=0 left=0 left_out=0
# Why it ends before its end; empty as long as it goes on.
stopped=''
interrupted=''
# Commands are asked to stop this long before the budget is spent, and killed when it is.
grace=10

remaining() { if ((budget == 0)); then echo 86400; else echo $((budget - SECONDS)); fi; }

row() { printf '%-44s %s\n' "$1" "$2"; }

# A command as a shell reads it, quoted only where it must be.
quoted() {
  local word line=''
  for word; do
    [[ $word =~ ^[[:alnum:]_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

# part KIND LEAST NAME COMMAND...: one command of a step, which is begun only if LEAST seconds are left. KIND is `cells`
# where it goes on from where it was cut short, and `whole` where it begins anew: that one is begun again only with more
# time than it had. What it prints becomes NAME.txt, or the file that `into` names, and what it tells on the way is added to
# NAME.log.
part() {
  local kind=$1 least=$2 name=$3 status=0 began=$SECONDS had stamp
  shift 3
  stamp=$dir/done/$name
  had=$(remaining)
  if [[ -f $stamp ]]; then
    status=$(sed -n 's/^exit: //p' "$stamp")
    if ((status == 0)); then ended=$((ended + 1)); else failed=$((failed + 1)); fi
    if [[ $mode == list ]]; then
      if ((status == 0)); then row "$step/$name" 'done'; else row "$step/$name" "failed, exit code $status"; fi
    fi
    return 0
  fi
  if [[ $mode == list ]]; then
    left=$((left + 1))
    if [[ -f $stamp.cut ]]; then
      row "$step/$name" "to do; $(<"$stamp.cut") s were not enough"
    elif [[ -f $dir/$name.log ]]; then
      row "$step/$name" 'begun'
    else
      row "$step/$name" 'to do'
    fi
    return 0
  fi
  if [[ -z $stopped ]] && ((had < least + grace)); then
    stopped="$step/$name needs $((least + grace)) s at least, and the budget leaves $((had > 0 ? had : 0)) s"
  fi
  if [[ -n $stopped ]]; then
    left=$((left + 1))
    return 0
  fi
  if [[ -f $stamp.cut ]] && ((had <= $(<"$stamp.cut"))); then
    say "-- $step/$name needs more than $(<"$stamp.cut") s and is left for a longer budget"
    left=$((left + 1))
    return 0
  fi
  say "== $step/$name ($SECONDS s so far)"
  mkdir -p "$dir/done"
  limited "$had" "$name" "$@" || status=$?
  # Whatever a command makes of an interruption.
  if [[ -n $interrupted ]] && ((status != 0)); then status=130; fi
  # Killed, because it did not stop when it was asked to.
  if ((budget > 0 && status == 137 && SECONDS - began >= had - grace)); then status=124; fi
  case $status in
    124) # It has been asked to stop, or has stopped by itself.
      [[ $kind == cells ]] || echo "$had" >"$stamp.cut"
      stopped="$step/$name was cut short by the budget"
      left=$((left + 1))
      ;;
    130)
      stopped='interrupted'
      left=$((left + 1))
      ;;
    *)
      {
        echo "exit: $status"
        echo "seconds: $((SECONDS - began))"
        echo "build: $build"
        echo "command: $(quoted "$@")"
      } >"$stamp.partial"
      mv "$stamp.partial" "$stamp"
      rm -f "$stamp.cut"
      if ((status == 0)); then
        ended=$((ended + 1))
      else
        failed=$((failed + 1))
        say "-- $step/$name failed with exit code $status: $dir/$name.log"
      fi
      ;;
  esac
}

# limited SECONDS NAME COMMAND...: runs a command that is cut short when the budget is spent. It has a process group of its
# own, so that what it has started ends with it and nothing is waited for that outlives it.
limited() {
  local seconds=$1 name=$2 pid teller status=0 limit=()
  local to=$dir/${into:-$name.txt}
  shift 2
  ((budget == 0)) || limit=(timeout --signal=INT --kill-after=$((grace - 2)) "$((seconds - grace))")
  [[ -n ${append:-} ]] || : >"$to"
  # What was on record before is not news.
  exec 4> >(trap '' INT TERM && tee -a "$dir/$name.log" | sed -u '/(on record)$/d' >&2)
  teller=$!
  set -m
  "${limit[@]}" "$@" </dev/null >>"$to" 2>&4 4>&- &
  pid=$!
  set +m
  trap 'interrupted=yes; kill -INT -- "-$pid" 2>/dev/null || true' INT TERM
  while true; do
    status=0
    wait "$pid" || status=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  trap - INT TERM
  exec 4>&-
  # Its last words come before those of the next, unless somebody still holds on to them.
  for _ in {1..10}; do
    kill -0 "$teller" 2>/dev/null || break
    sleep 0.1
  done
  return "$status"
}

# A part that cannot be done here, and why.
leave_out() {
  left_out=$((left_out + 1))
  if [[ $mode == list ]]; then row "$step/$1" "left out: $2"; else say "-- $step/$1 is left out: $2"; fi
}

# --- What parts are told

variants=bf16,int8,w8a8,w4a16
on=(--device "$device")
# A product's figures are said in terms of ceilings; a dry run has none worth it.
timing=() speed=(--trials 3 --energy-window 3 --energy-preroll 1 --idle-window 3)
if [[ -n $brief ]]; then
  timing=(--trials 3 --min-time 0 --max-time 1)
  speed=(--trials 3 --min-time 0 --warmup 1 --turns 1 --energy-window 0 --idle-window 0)
fi
if [[ -n $dry ]]; then
  timing=(--trials 3 --min-time 0 --max-time 1 --warmup 1 --no-ceilings)
  speed=(--trials 2 --min-time 0 --warmup 1 --energy-window 0.1 --no-ceilings)
fi

# Shapes of a model's products, as `candlepower kernels --model` takes them: NAME N,K, the largest first, and the head, of
# which a model has but one, last.
shapes_of() {
  case ${dry:+dry-}$1 in
    dry-*) printf '%s\n' 'gate_up 96,256' 'down 64,384' ;;
    llama-3.1-8b) printf '%s\n' 'gate_up 28672,4096' 'down 4096,14336' 'qkv 6144,4096' 'o 4096,4096' 'head 128256,4096' ;;
    qwen3-0.6b) printf '%s\n' 'gate_up 6144,1024' 'down 1024,3072' 'qkv 4096,1024' 'o 1024,2048' 'head 151936,1024' ;;
  esac
}

# Sets `without_torch` to the reason why PyTorch's products cannot be timed; empty if they can.
check_torch() {
  [[ -z ${without_torch+set} && $mode == run ]] || return 0
  local code='import torch, sys
sys.exit(None if sys.argv[1] == "cpu" or torch.cuda.is_available() else "PyTorch sees no GPU")'
  without_torch=''
  without_torch=$("$python" -c "$code" "$device" 2>&1) || without_torch="$python says: ${without_torch##*$'\n'}"
}

# --- The steps

step_info() {
  into=info.json part whole 20 info "$program" info --json "${on[@]}"
  if [[ -n $brief && $device == cuda ]]; then
    leave_out power 'it takes half a minute'
  elif [[ $device == cuda ]]; then
    into=power.json part whole 30 power "$program" info --power --json --tape "$dir/power.csv" "${on[@]}"
    part whole 5 nvidia-smi nvidia-smi --id=0 --format=csv \
      --query-gpu=name,driver_version,vbios_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem,ecc.mode.current
  else
    leave_out power 'there is no GPU'
    leave_out nvidia-smi 'there is no GPU'
  fi
}

# Tests that have not passed yet, by what they printed.
open_tests() {
  local passed=$dir/suite.txt
  [[ -f $passed ]] || passed=/dev/null
  "$tests" --list --format terse 2>/dev/null | sed -n 's/: test$//p' |
    grep -v '^mutations::' | grep -vxFf <(sed -nE 's/^test (.*) \.\.\. (ok|ignored).*/\1/p' "$passed") || true
}

step_tests() {
  if [[ -n $tests && -n $dry ]]; then
    part whole 5 suite "$tests" --list
  elif [[ -n $tests ]]; then
    if [[ ! -f $dir/done/suite && $mode == run ]]; then
      mkdir -p "$dir"
      open_tests >"$dir/open"
    fi
    # On the GPU alone: what the emulator runs, and what changed kernels do in it, is known. A process for each: what one
    # does to the GPU's context would fail those beside it. (With one thread libtest would write a line in two pieces.)
    append=yes part cells 30 suite env CANDLEPOWER_TEST_GPU=only xargs --arg-file="$dir/open" --max-procs=8 -n 1 \
      timeout 120 "$tests" --test-threads 2 --exact
  fi
  # At shapes that no tile divides.
  if [[ -n $dry ]]; then
    part cells 20 ops "$program" kernels --op linear,norm,attention --model tiny --m 3 --variants bf16,w4a16 --verify-only \
      "${on[@]}" --out "$dir/ops"
  else
    part cells 20 shapes "$program" kernels --shape 40,128 --shape 136,384 --shape 4104,640 --m 1-17,33,64,65,200 \
      --variants "$variants,f16,w4a16:g32" --verify-only "${on[@]}" --out "$dir/shapes"
    part cells 20 ops "$program" kernels --op all --model qwen3-0.6b --m 1,5,17,64 --verify-only "${on[@]}" \
      --out "$dir/ops"
  fi
}

step_study() {
  local cells=() scored=()
  [[ -z $dry ]] || cells=(--batch 1 --prompt 8 --gen 4 --ppl-segments 2 "${speed[@]}")
  part cells 30 tiny "$program" study --out "$dir/tiny" "${cells[@]}" "${on[@]}"
  if [[ -z $model ]]; then
    leave_out model 'no --model is given'
    return
  fi
  [[ -n $dry ]] || cells=(--batch '1,8,64' "${speed[@]}")
  [[ -z $text ]] || scored=(--text "$text")
  part cells 45 model "$program" study --model "$model" --variants "$variants" --out "$dir/model" "${scored[@]}" \
    "${cells[@]}" "${on[@]}"
}

step_logits() {
  local models=(--model tiny) wanted=f32,$variants
  # A trained model takes its time on the CPU.
  [[ -z $model || -n $dry ]] || models+=(--model "$model")
  part cells 20 logits "$python" benches/peers/logits.py --binary "$program" "${models[@]}" --variants "$wanted" \
    --device "$device" --out "$dir/logits.jsonl"
}

# A model's products, ours and PyTorch's, shape by shape: both of one shape within a minute or two of each other.
linear_of() {
  local name=$1 rows='1-2048*2' peer_rows=1,2,4,8,16,32,64,128,256,512,1024,2048 label shape seconds all=()
  local peers=(--compiled-m '1,8,64' --floor-m '1,64')
  check_torch
  if [[ -n $dry ]]; then
    # What PyTorch compiles for a CPU takes it half a minute and shows nothing.
    rows=1,17 peer_rows=1,17 peers=(--compiled-m none)
    all=(--shape '96,256' --shape '64,384')
  else
    all=(--model "$name")
  fi
  if [[ -n $brief ]]; then rows=1,8,64; fi
  while read -r label shape; do
    part cells 30 "ours-$label" "$program" kernels --shape "$shape" --m "$rows" --variants "$variants" --out "$dir" \
      "${timing[@]}" "${on[@]}"
    if [[ -n ${brief:-${without_torch:-}} ]]; then
      leave_out "peers-$label" "${without_torch:-each compiles for seconds}"
      continue
    fi
    # It is told to stop by itself before it is stopped.
    seconds=()
    ((budget == 0)) || seconds=(--budget $(($(remaining) - grace - 5)))
    part cells 30 "peers-$label" "$python" benches/peers/torch_linear.py --shape "$shape" --m "$peer_rows" \
      --out "$dir/peers.jsonl" --device "$device" "${peers[@]}" "${seconds[@]}"
  done < <(shapes_of "$name")
  # Everything is on record now: this puts it together.
  part cells 20 document "$program" kernels "${all[@]}" --m "$rows" --variants "$variants" --out "$dir" "${timing[@]}" \
    "${on[@]}"
}

# Attention of a model alone, by how the cache is held: decoding, and prompts. And what goes row by row.
step_attention() {
  local of=(--model llama-3.1-8b --variants bf16 --kv-cache 'auto,int8,fp8')
  if [[ -n $dry ]]; then
    part cells 20 decode "$program" kernels --op attention --model tiny --variants bf16 --m 1,2 --context 32 \
      --kv-cache auto,int8 --out "$dir/decode" "${timing[@]}" "${on[@]}"
    return
  fi
  part cells 30 decode "$program" kernels --op attention,append_attend "${of[@]}" --m 1,8,64 --context 512,2048,8192 \
    --out "$dir/decode" "${timing[@]}" "${on[@]}"
  part cells 30 prompts "$program" kernels --op attention_prefill "${of[@]}" --m 1,8 --context 512,2048 \
    --out "$dir/prompts" "${timing[@]}" "${on[@]}"
  part cells 20 rows "$program" kernels --op norm,silu_mul,rope,quantize,argmax --model llama-3.1-8b --variants bf16 \
    --m 1,64,8192 --out "$dir/rows" "${timing[@]}" "${on[@]}"
}

step_linear-llama-3.1-8b() { linear_of llama-3.1-8b; }
step_linear-qwen3-0.6b() { linear_of qwen3-0.6b; }

# Where the time of single kernels goes, by the profiler: one launch of each. NAME KERNEL FLAGS..., KERNEL a regular
# expression.
profile_of() {
  local name=$1 kernel=$2 sections=()
  shift 2
  for section in SpeedOfLight LaunchStats Occupancy SchedulerStats WarpStateStats InstructionStats MemoryWorkloadAnalysis \
    MemoryWorkloadAnalysis_Tables; do
    sections+=(--section "$section")
  done
  if [[ -n $dry ]]; then
    leave_out "$name" 'there is nothing to profile on the CPU'
  elif ! command -v ncu >/dev/null; then
    leave_out "$name" 'ncu is not in PATH'
  else
    # The third launch: the first two warm up. Clocks are left as they are.
    part whole 45 "$name" ncu --clock-control none --kernel-id "::regex:^$kernel\$:3" --launch-count 1 "${sections[@]}" \
      --log-file "$dir/$name.profile" "$program" kernels "$@" --trials 2 --min-time 0 --max-time 1 --no-ceilings "${on[@]}"
  fi
}

step_profile() {
  profile_of gate_up-64 'linear_(wgmma|tile)_int4_bf16_.*' --shape 28672,4096 --m 64 --variants w4a16
  profile_of o-64 'linear_(wgmma|tile)_int4_bf16_.*' --shape 4096,4096 --m 64 --variants w4a16
  profile_of gate_up-1 'linear_few_int4_bf16_.*x0' --shape 28672,4096 --m 1 --variants w4a16
  profile_of attention-64 'attention_single_bf16_128x8' --op attention --model llama-3.1-8b --variants bf16 --m 64 \
    --context 2048
  profile_of prompts 'attention_wgmma_bf16_128' --op attention_prefill --model llama-3.1-8b --variants bf16 --m 1 \
    --context 2048
}

step_sanitizer() {
  local tool
  for tool in memcheck racecheck initcheck; do
    if [[ -n $dry ]]; then
      leave_out "$tool" 'there is nothing to check on the CPU'
    elif ! command -v compute-sanitizer >/dev/null; then
      leave_out "$tool" 'compute-sanitizer is not in PATH'
    else
      local check=(compute-sanitizer --tool "$tool" --error-exitcode 9 "$program" kernels --verify-only "${on[@]}"
        --m '1,5,17')
      part whole 60 "$tool-shapes" "${check[@]}" --shape 136,384 --variants "$variants,f16"
      part whole 60 "$tool-ops" "${check[@]}" --op all --model tiny --variants "$variants"
    fi
  done
}

# One part of a model with made-up weights, as this program runs it: NAME LEAST FLAGS...
ours() {
  local name=$1 least=$2
  shift 2
  part cells "$least" "$name" "$program" bench "${of[@]}" "$@" --out "$dir/$name" "${speed[@]}" "${on[@]}"
}

# The same cells by PyTorch: NAME FLAGS...
torch_model() {
  local name=$1 seconds=()
  shift
  if [[ -n ${without_torch:-} ]]; then
    leave_out "$name" "$without_torch"
    return
  fi
  ((budget == 0)) || seconds=(--budget $(($(remaining) - grace - 5)))
  part cells 60 "$name" "$python" benches/peers/torch_model.py --model "$of_torch" --out "$dir/peers.jsonl" \
    --device "$device" "$@" "${seconds[@]}"
}

# A model of this shape with made-up weights: one sequence first, what its engine's parts are worth, then batches, then long
# prompts; candle's and PyTorch's beside each.
bench_of() {
  local of=(--model "$1" --weights dummy) of_torch=$1
  check_torch
  if [[ -n $dry ]]; then
    of=(--model tiny) of_torch=tiny
    ours single 20 --variants "$variants" --batch 1 --prompt 16 --gen 4
    ours ablate 20 --variants bf16 --ablate --batch 1 --prompt 16 --gen 4
    torch_model torch --batch 1 --prompt 16 --gen 4 --trials 2 --eager
    return
  fi
  if [[ -n $brief ]]; then
    ours single 20 --variants "$variants" --batch 1 --prompt 480 --gen 64
    ours persistent 20 --variants "$variants" --persistent on --batch 1 --prompt 480 --gen 64
    ours long 20 --variants "$variants" --batch 8 --prompt 2048 --gen 32
    ours candle 20 --variants bf16 --engine candle --batch 1 --prompt 480 --gen 64
    ours ablate 20 --variants w4a16 --ablate --batch 1 --prompt 480 --gen 64
    return
  fi
  # A context of 512 in the middle of what is generated.
  ours single 60 --variants "$variants" --batch 1 --prompt 480 --gen 64
  ours persistent 60 --variants "$variants" --persistent on --batch 1 --prompt 480 --gen 64
  ours ablate 60 --variants bf16,w4a16 --ablate --batch 1 --prompt 480 --gen 64
  torch_model torch-single --batch 1 --prompt 480 --gen 64
  ours batches 60 --variants "$variants" --batch '8,64,256' --prompt 128 --gen 64
  ours long 90 --variants "$variants" --batch '1,8,64' --prompt 2048 --gen 64
  ours candle 60 --variants bf16 --engine candle --batch '1,8,64' --prompt 128 --gen 64
  torch_model torch --batch '8,64' --prompt 128,2048 --gen 64
  # More than some cards hold, in a part of its own.
  ours largest 60 --variants "$variants" --batch 256 --prompt 2048 --gen 64
}

for name in "${models[@]}"; do
  eval "step_bench-$name() { bench_of '$name'; }"
done

# --- All of it

# Libraries of CUDA that the program misses are looked for where toolkits and PyTorch's packages keep them.
missing_libraries() { { ldd "$program" 2>/dev/null || true; } | awk '/not found/ { print $1 }'; }
find_libraries() {
  local missing name folder
  missing=$(missing_libraries)
  [[ -n $missing ]] || return 0
  while read -r folder; do
    for name in $missing; do
      if [[ -e $folder/$name && :${LD_LIBRARY_PATH:-}: != *":$folder:"* ]]; then
        export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
      fi
    done
  done < <(
    printf '%s\n' "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/local/cuda*/lib64 /usr/local/nvidia/lib64
    "$python" -c 'import glob, sys; print(*(f for p in sys.path for f in glob.glob(p + "/nvidia/*/lib")), sep="\n")'
  )
  missing=$(missing_libraries)
  [[ -z $missing ]] || die 69 "$program misses libraries: ${missing//$'\n'/, }. Put their folder into LD_LIBRARY_PATH"
}

build=''
if [[ $mode == run ]]; then
  [[ -x $binary ]] || die 2 "there is no program $program: build it, or name it with --binary"
  find_libraries
  "$program" kernels --help >/dev/null 2>&1 || die 2 "$program does not start, or is too old to have the command kernels"
  # A dry run shows something only if it runs.
  [[ -z ${fresh:-} ]] || rm -rf "$out"
  mkdir -p "$out"
  build=$(sha256sum "$binary" | cut -c 1-16)
  if [[ -f $out/build && $(<"$out/build") != "$build" ]]; then
    say "gpu: $out holds results of another build; what is done is not measured again (--again STEP does)"
  fi
  echo "$build" >"$out/build"
  for name in ${again//,/ }; do
    [[ -d $out/$name ]] || continue
    mkdir -p "$out/earlier"
    number=1
    while [[ -e $out/earlier/$name-$number ]]; do number=$((number + 1)); done
    mv "$out/$name" "$out/earlier/$name-$number"
    say "gpu: what $name left is in $out/earlier/$name-$number now"
  done
fi

for step in "${steps[@]}"; do
  [[ -z $only || ,$only, == *",$step,"* ]] || continue
  dir=$out/$step
  "step_$step"
done

summary="$ended done, $failed failed, $left to do, $left_out left out"
if [[ $mode == list ]]; then
  say "$out: $summary"
  exit 0
fi
"$python" benches/peers/compare.py "$out" || say "gpu: $out/SUMMARY.md could not be written"
[[ -z $stopped ]] || say "gpu: stopped: $stopped"
say "gpu: $out after $SECONDS s: $summary"
if [[ $stopped == interrupted ]]; then exit 130; fi
if ((left > 0)); then
  say 'gpu: the same command goes on from here'
  exit 75
fi
((failed == 0)) || exit 3
