#!/usr/bin/env bash
# Everything that only a GPU can show, in at most nine minutes, the most important first: docs/GPU.md.
#
#   benchmarks/gpu.sh OUTPUT
#
# DEVICE=cpu runs every part in a tiny form, which shows that the commands compose and nothing about a GPU.
# PATIENCE=100 is how many per cent of its limit a part may take, SECONDS_ALLOWED=540 the time for all of them. A part
# whose limit exceeds what is left is skipped and named; one that fails stops no other.
set -u
out=${1:?usage: benchmarks/gpu.sh OUTPUT}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || python=python3
device=${DEVICE:-cuda}
patience=${PATIENCE:-$([ "$device" = cuda ] && echo 100 || echo 2000)}
allowed=${SECONDS_ALLOWED:-$((540 * patience / 100))}
grace=5 # seconds from SIGTERM to SIGKILL
export PYTHONPATH=$root/src:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' &>/dev/null; then
  echo "no CUDA GPU that torch can use; \`nvidia-smi\` and \`openslip doctor\` say more; DEVICE=cpu only tests the commands"
  exit 2
fi
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2
log=$out/log.txt summary=$out/summary.txt
: >"$log"
: >"$summary"
failed=0

# Whether towers are compiled: for step.py, whose default is not to, and for `openslip train`, which does on a GPU.
compiled=(--compile)
eager=(compile=false)

recordings=$work/recordings # those of two ranks are about CPUs
cp -r "$root/src/openslip/verify/recordings" "$recordings"
rm -f "$recordings"/two_ranks*

if [ "$device" = cuda ]; then
  accelerator=gpu model=slip_vitb16 clip=clip_vitb16 batch=256 clip_batch=512 large=2048 precision=bf16 rounds=10 workers=8
  formats=(float32 bfloat16 tf32) half=16-mixed
else
  accelerator=cpu model=slip_tiny clip=clip_tiny batch=8 clip_batch=8 large=64 precision=fp32 rounds=1 workers=0
  formats=(float32 bfloat16 float64) half=bf16-mixed
  rm -f "$recordings"/{meta,clip,simclr,slip,zero_shot,official_models}*
  compiled=() # it would take minutes
fi

say() { echo "$*" | tee -a "$summary"; }

# part NAME LIMIT COMMAND...: runs a command for at most LIMIT seconds.
part() {
  local name=$1 limit=$(($2 * patience / 100)) began=$SECONDS left=$((allowed - SECONDS)) code state=done
  shift 2
  if ((left < limit + grace)); then
    say "skipped  $name: may take $limit s, $left s are left"
    return
  fi
  printf '\n==== %s: %s\n' "$name" "$*" >>"$log"
  timeout --kill-after=$grace "$limit" "$@" >>"$log" 2>&1
  code=$?
  ((code == 0)) || state="failed with $code"
  # `timeout` ends with 124, or with 137 if the command had to be killed, which a lack of memory gives too.
  ((code != 124 && (code != 137 || SECONDS - began < limit))) || state="out of time"
  ((code == 0)) || failed=1
  say "$state  $name, $((SECONDS - began)) s: $(tail -n 1 "$log" | cut -c 1-150)"
}

train=(
  "$python" -m openslip train data=builtin "data.source.root=$work/builtin" "data.num_workers=$workers"
  "runs_dir=$work/runs" "trainer.accelerator=$accelerator" trainer.max_epochs=null
  callbacks.metrics.every_n_steps=1
)
step=("$python" "$root/benchmarks/step.py" --ours-only --device "$device" --precision "$precision" --rounds "$rounds")

part "environment and kernels" 60 "$python" "$root/benchmarks/gpu_environment.py" --device "$device" --peak-file "$work/peak"
[ -s "$work/peak" ] && step+=(--peak-tflops "$(cat "$work/peak")")
for format in "${formats[@]}"; do
  part "verify $format" 50 "$python" -m openslip verify "$recordings" --device "$device" --dtype "$format"
done
part "no synchronisation in a step" 100 "$python" "$root/benchmarks/sync_free_step.py" "${train[@]:4}" \
  "model=$model" global_batch_size=64 evaluation=none name=sync_free
part "SLIP step, eager" 60 "${step[@]}" --models "$model" --batch-size "$batch" --json "$out/step_slip_eager.json"
part "SLIP step, compiled" 100 "${step[@]}" --models "$model" --batch-size "$batch" "${compiled[@]}" \
  --json "$out/step_slip_compiled.json"
part "automatic micro-batches at $large" 100 "${train[@]}" "model=$model" "global_batch_size=$large" \
  micro_batch_size=auto trainer.max_steps=4 evaluation=none name=large
cp "$work/runs/large/metrics.csv" "$out/micro_batches.csv" 2>/dev/null
cat "$work/runs/large/micro_batch_size.json" >>"$log" 2>/dev/null
part "DDP on one device" 60 "${train[@]}" "${eager[@]}" "model=$model" trainer=ddp trainer.devices=1 global_batch_size=64 \
  evaluation=builtin trainer.max_steps=6 callbacks.save.every_n_steps=3 name=ddp
part "fp16 with clipping" 50 "${train[@]}" "${eager[@]}" "model=$model" "trainer.precision=$half" optim.clip_norm=1.0 \
  global_batch_size=64 trainer.max_steps=10 evaluation=none name=fp16
part "profile" 50 "$python" "$root/benchmarks/profile_step.py" --model "$model" --device "$device" \
  --precision "$precision" --batch-size "$batch" --output "$out/profile.txt"
part "CLIP step, eager" 60 "${step[@]}" --models "$clip" --batch-size "$clip_batch" --json "$out/step_clip_eager.json"

say "$((SECONDS)) s in all; everything printed: $log"
exit $failed
