#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UBSan, next to the normal one; runs the tests that give it bad input.
# usage: tools/sanitized.sh [pytest arguments]     (default: the tests below)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=$PWD/.venv/bin/python
OUT=$PWD/build/sanitized
# No mpirun under a preloaded sanitizer, and no tests that give the C core only valid input, or none.
TESTS=(tests/py)
for test in augment.py::test_instruction_sets_agree_to_the_bit quantize.py::test_every_half_converts_as_in_numpy \
    image_limit.py::test_resident_images_beyond_the_machines_memory; do
    TESTS+=("--deselect=tests/py/test_$test")
done
for name in ascii bench_allreduce bench_cifar bench_json bench_loader bench_rival bench_table build cifar cli config \
    ddp_rules docs examples ffcv_script folder_lock interrupts launch own_images place predict recipes report resuming run \
    sample setup stub summary supervise train_here write_script; do
    TESTS+=("--ignore=tests/py/test_$name.py")
done
[ $# -gt 0 ] || set -- -q -n 2 --dist loadgroup --no-loadscope-reorder -m "not medium and not long and not torch" \
    -p no:cacheprovider "${TESTS[@]}"

# The kernels and their launch code are checked by the emulator (tests/cuda).
CGXFFCV_CUDA=0 CGXFFCV_DEBUG=1 CGXFFCV_SANITIZE=address,undefined "$PYTHON" setup.py -q build_ext \
    --build-temp "$OUT/temp" --build-lib "$OUT/lib"

# Python itself is not instrumented and keeps memory until it exits, so leaks are not checked.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:abort_on_error=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONMALLOC=malloc PYTHONPATH="$OUT/lib:$PWD"
exec "$PYTHON" -m pytest "$@"
