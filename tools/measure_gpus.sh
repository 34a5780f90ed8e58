#!/usr/bin/env bash
# Measures what docs/BENCHMARKS.md reports about GPUs, on all GPUs of one machine, and tests ranks on them.
# usage: tools/measure_gpus.sh OUT [PART...]    (parts, in this order: tests sums quantizer cold training ddp table)
# OUT gets a log and the figures (JSON) of each command; the list at the end shows what ran, for how long, what failed.
# GPUS=N: the first N only; DATA=DIR: folder with cifar_train.beton and cifar_test.beton (default data; without them,
# tests and training use random pixels); RUNS (5): trainings of each kind; LIMIT (600): seconds per command; DRY_RUN=1:
# only print the commands; PYTHON: the interpreter.
# shellcheck disable=SC2317  # functions that are called by name
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,7s/^# //p' "$0" >&2; exit 2; }
OUT=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- tests sums quantizer cold training ddp table
[ -n "${PYTHON:-}" ] || PYTHON=$PWD/.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=$(command -v python3)
N=${GPUS:-$( (nvidia-smi -L 2>/dev/null || true) | wc -l)}
RUNS=${RUNS:-5}
SIZES=4K,64K,256K,1M,8M,26M,64M,256M
BENCH=("$PYTHON" -m cgxffcv bench)
MPIRUN=(mpirun -np "$N" --oversubscribe --bind-to none --allow-run-as-root)
TESTS=(test_window test_allreduce_gpu test_quantize_gpu test_carried test_arrays test_bench_ranks test_ranks test_fed test_hook)
SETS=()
[ ! -f "${DATA:-data}/cifar_train.beton" ] ||
    SETS=(--train "${DATA:-data}/cifar_train.beton" --test "${DATA:-data}/cifar_test.beton")

[ "$N" -gt 0 ] || { echo "measure: no GPU here (nvidia-smi -L lists none); GPUS=N DRY_RUN=1 shows the commands" >&2; exit 2; }
mkdir -p "$OUT"
failed=0
lines=()

# One command, named $1, with its output in OUT/$1.log.
run() {
    local name=$1 began=$SECONDS said=passed
    shift
    printf 'measure: %s: %s\n' "$name" "$*"
    [ "${DRY_RUN:-0}" = 0 ] || return 0
    timeout -k 20 "${LIMIT:-600}" "$@" >"$OUT/$name.log" 2>&1 || { said="FAILED ($?)" failed=1; }
    tail -n 30 "$OUT/$name.log"
    lines+=("$(printf '%-36s %-12s %5d s' "$name" "$said" $((SECONDS - began)))")
}

# The counts of ranks: 1, 2, 4, ... and all.
counts() {
    local ranks
    for ((ranks = 1; ranks < N; ranks *= 2)); do echo "$ranks"; done
    echo "$N"
}

measure_tests() {
    # shellcheck disable=SC2046  # one word per file
    run tests "$PYTHON" -m pytest -q -n $((4 * N)) -rf $(printf 'tests/cuda/%s.py ' "${TESTS[@]}")
}

measure_sums() {
    local link
    [ "$N" -gt 1 ] || return 0
    for link in any no-peer; do
        run "sums-$link" "${MPIRUN[@]}" "${BENCH[@]}" allreduce --device gpu --sizes "$SIZES" --bits 4 --link "$link" \
            --json "$OUT/sums-$link.json"
    done
    run sums-exact "${MPIRUN[@]}" "${BENCH[@]}" allreduce --device gpu --sizes 4K,64K,256K,1M,2M --bits 32 \
        --json "$OUT/sums-exact.json"
    run sums-sockets "${MPIRUN[@]}" --mca btl self,tcp "${BENCH[@]}" allreduce --device gpu --sizes 8M,64M --bits 4 \
        --link sockets --json "$OUT/sums-sockets.json"
}

measure_quantizer() {
    local codec codecs
    codecs=$("$PYTHON" -c 'from cgxffcv.allreduce import CODECS; print(*CODECS)')
    for codec in $codecs; do
        run "quantizer-$codec" "${BENCH[@]}" quantize --device gpu --codec "$codec" --json "$OUT/quantizer-$codec.json"
    done
    run quantizer-stochastic "${BENCH[@]}" quantize --device gpu --bits 4 --rounding stochastic
    run quantizer-float16 "${BENCH[@]}" quantize --device gpu --bits 4 --dtype float16
    run quantizer-buckets-64 "${BENCH[@]}" quantize --device gpu --bits 4 --bucket-size 64
}

measure_training() {
    local recipe ranks bits
    for recipe in airbench94 airbench94_fast demo; do
        for ranks in $(counts); do
            for bits in 32 4; do
                [ "$ranks" -gt 1 ] || [ "$bits" = 32 ] || continue
                run "training-$recipe-$ranks-$bits" "${BENCH[@]}" cifar --device gpu --recipe "$recipe" --ranks "$ranks" \
                    --bits "$bits" --runs "$RUNS" "${SETS[@]}" --json "$OUT/training-$recipe-$ranks-$bits.json"
            done
        done
    done
}

measure_cold() {
    local recipe
    for recipe in airbench94 airbench94_fast; do
        run "cold-$recipe" "${BENCH[@]}" cifar --device gpu --recipe "$recipe" --ranks "$N" --bits 4 --runs 3 --fresh \
            "${SETS[@]}" --json "$OUT/cold-$recipe.json"
    done
}

measure_ddp() {
    local model
    [ "$N" -gt 1 ] || return 0
    for model in resnet50 vit_b_16 gpt2; do
        run "ddp-$model" "${BENCH[@]}" ddp --model "$model" --gpus "$N" --links any,no-peer,sockets --json "$OUT/ddp-$model.json"
    done
}

measure_table() { run table "${BENCH[@]}" table --device gpu --gpus "$N" --json "$OUT/table.json"; }

for part in "$@"; do
    declare -F "measure_$part" >/dev/null || { echo "measure: '$part' is not a part: see $0 without arguments" >&2; exit 2; }
done
for part in "$@"; do "measure_$part"; done
printf '%s\n' "" "${lines[@]}"
exit "$failed"
