#!/usr/bin/env bash
# Runs every kernel at least once, on tiny shapes, on a GPU under compute-sanitizer's four tools. Prints one line each;
# exits with 1 if one of them found something or a test failed.
# usage: tools/gpu_sanitized.sh [memcheck|racecheck|synccheck|initcheck ...]
# PYTHON: an interpreter that finds the package and pytest. SECONDS_EACH (900): a tool's limit.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -n "${PYTHON:-}" ] || PYTHON=$PWD/.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=$(command -v python3)
LIMIT=${SECONDS_EACH:-900}
OUT=$PWD/build/gpu_sanitized
SANITIZER=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
[ $# -gt 0 ] || set -- memcheck racecheck synccheck initcheck

# Tests in which only our own kernels access the GPU's memory.
OURS=(
    "test_norm.py::test_every_kernel"
    "test_stem.py::test_stem"
    "test_head.py::test_head"
    "test_head.py::test_evaluation"
    "test_cuda_optim.py::test_sgd"
    "test_cuda_optim.py::test_pull"
    "test_quantize_gpu.py::test_maxmin"
    "test_quantize_gpu.py::test_buckets_of_several_pieces"
    "test_quantize_gpu.py::test_sign"
    "test_quantize_gpu.py::test_spikes"
    "test_quantize_gpu.py::test_rotated"
    "test_resident.py::test_batches_are_the_loaders"
    "test_resident.py::test_whitening_is_the_cpus"
)
# Tests that also use cuDNN and cuBLAS: with kernels that racecheck supports ...
WITH_LIBRARIES=(
    "test_norm.py::test_evaluation_of_residuals"
    "test_trainer_gpu.py::test_a_restart_is_a_fresh_trainer[averaging-True]"
)
# ... and with those of compute capability 9.0 in which racecheck itself fails ("Internal Sanitizer Error"), even when it
# checks no kernel at all. The emulator (tests/cuda/emulator) looks for races there.
WITH_NEWER_LIBRARIES=(
    "test_norm.py::test_residual"
    "test_fused.py::test_against_float64"
    "test_pooled_filter.py::test_activations"
    "test_cuda_optim.py::test_muon"
    "test_cuda_optim.py::test_gradients_finite"
    "test_trainer_gpu.py::test_graphs_change_nothing[savers]"
    "test_trainer_gpu.py::test_the_hash_of_a_replica"
    "test_conv.py::test_channels_as_rows"
    "test_fed.py::test_two_passes_at_a_time"
    "test_fed.py::test_tests_give_the_same_logits"
    "test_fed.py::test_whitening_is_that_of_resident_data"
)

# Only kernels of csrc/ are checked, by the part of their mangled name that is unique: "23train_close_step_kernel".
kernels=()
for name in $(find csrc -name '*.cu' -exec cat {} + -o -name '*.cuh' -exec cat {} + | tr '\n' ' ' |
    sed -E 's/__launch_bounds__ *\([^)]*\)//g' | grep -oE '__global__ +void +[a-z_0-9]+' | awk '{print $3}' | LC_ALL=C sort -u); do
    kernels+=(--kernel-name "kns=${#name}$name")
done
[ ${#kernels[@]} -gt 0 ] || { echo "no kernels found in csrc/" >&2; exit 2; }
if ! "$SANITIZER" --version >/dev/null 2>&1; then
    echo "compute-sanitizer not found (it comes with the CUDA toolkit): put it on the PATH or set CUDA_HOME" >&2
    exit 2
fi
mkdir -p "$OUT"
export CGXFFCV_CACHE=$OUT/cache PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD" OPENBLAS_NUM_THREADS=4

failed=0
for tool in "$@"; do
    tests=("${OURS[@]}")
    options=(--tool "$tool" --error-exitcode 86 --target-processes application-only --print-limit 20)
    case $tool in
    memcheck)
        options+=(--report-api-errors no "${kernels[@]}")
        tests+=("${WITH_LIBRARIES[@]}" "${WITH_NEWER_LIBRARIES[@]}")
        ;;
    synccheck) options+=("${kernels[@]}"); tests+=("${WITH_LIBRARIES[@]}" "${WITH_NEWER_LIBRARIES[@]}") ;;
    racecheck) options+=("${kernels[@]}"); tests+=("${WITH_LIBRARIES[@]}") ;;
    # It would not see the writes of unchecked kernels, so it checks all, and runs only tests without those libraries.
    initcheck) ;;
    *) echo "$tool is not one of memcheck, racecheck, synccheck, initcheck" >&2; exit 2 ;;
    esac
    begin=$SECONDS rc=0
    timeout -k 10 "$LIMIT" "$SANITIZER" "${options[@]}" "$PYTHON" -m pytest -q -x -p no:cacheprovider -p no:xdist \
        "${tests[@]/#/tests/cuda/}" >"$OUT/$tool.log" 2>&1 || rc=$?
    summary=$(grep -E '^=+ (ERROR|RACECHECK) SUMMARY:' "$OUT/$tool.log" | tail -1 | sed -E 's/^=+ //' || true)
    tested=$(grep -E '^[0-9]+ (passed|failed|skipped|error)|, [0-9]+ (passed|failed)' "$OUT/$tool.log" | tail -1 || true)
    verdict=clean
    case $rc in 0) ;; 86) verdict=FINDINGS ;; 124 | 137) verdict="TOOK LONGER THAN $LIMIT s" ;; *) verdict="FAILED ($rc)" ;; esac
    # racecheck's warnings leave the exit code at 0; a run in which nothing was tested proves nothing.
    if [ $rc = 0 ] && ! [[ $summary =~ SUMMARY:\ 0\  ]]; then verdict=FINDINGS; fi
    if [ $rc = 0 ] && ! [[ $tested =~ [0-9]+\ passed ]]; then verdict="NOTHING TESTED"; fi
    [ "$verdict" = clean ] || failed=1
    printf '%-9s %s: %s; %s (%d s, %s)\n' "$tool" "$verdict" "${summary:-no summary}" "${tested:-no tests}" \
        $((SECONDS - begin)) "${OUT#"$PWD"/}/$tool.log"
done
exit $failed
