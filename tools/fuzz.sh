#!/usr/bin/env bash
# Coverage-guided fuzzing, for as long as you like: libFuzzer on tests/fuzz/fuzz_*.c, Atheris on fuzz_python.py.
# usage: tools/fuzz.sh RUNS [TARGET...]      RUNS executions of each: reader jpeg huffman writer yaml safetensors pickle
#        tools/fuzz.sh corpus TARGET...      a small corpus of equal coverage, in tests/fuzz/corpus (not the last three)
# A target's new inputs are in build/fuzz/TARGET, a failing input is build/fuzz/TARGET-crash-*, the log is next to it.
# The first four need clang with its fuzzer library, installed from apt if run as root; Atheris comes from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=$PWD/.venv/bin/python OUT=$PWD/build/fuzz CC=${FUZZ_CC:-clang}
FLAGS=(-std=gnu11 -D_GNU_SOURCE -O1 -g -pthread -fsanitize=address,undefined,fuzzer -fno-sanitize-recover=all
       -Icsrc -Itests/fuzz)
LINK=(-Wl,--wrap=mmap -Wl,--wrap=munmap -ljpeg -lm)
declare -A MOST=([reader]=12288 [jpeg]=4096 [huffman]=512 [writer]=1024 [yaml]=2048 [safetensors]=4096 [pickle]=1024) # bytes
export ASAN_OPTIONS=allocator_may_return_null=1:quarantine_size_mb=16 PYTHONPATH=$PWD

[ $# -gt 0 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
runs=$1 && shift
[ $# -gt 0 ] || set -- reader jpeg huffman writer yaml safetensors pickle

has_fuzzer() {
    echo 'int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return data == 0 && size; }' |
        "$CC" -x c -fsanitize=fuzzer,address - -o "$OUT/probe" 2>/dev/null
}
need_fuzzer() {
    local -a as_root=()
    has_fuzzer && return
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null; }; then
        "${as_root[@]}" apt-get install -y -q clang >"$OUT/apt.log" 2>&1 || true
        "${as_root[@]}" apt-get install -y -q "libclang-rt-$("$CC" -dumpversion | cut -d. -f1)-dev" >>"$OUT/apt.log" 2>&1 || true
    fi
    has_fuzzer || { echo "fuzz: $CC cannot link -fsanitize=fuzzer: install clang and its libclang-rt-N-dev" >&2; exit 1; }
}

build() { # TARGET: sets `command` to the program's command line
    local source=tests/fuzz/fuzz_$1.c
    if [ ! -e "$source" ]; then
        "$PYTHON" -c 'import atheris' 2>/dev/null || "$PYTHON" -m pip install -q --disable-pip-version-check atheris
        command=("$PYTHON" tests/fuzz/fuzz_python.py "$1")
        return
    fi
    need_fuzzer
    local -a sources
    local i avx2=(-mavx2 -mfma -mf16c -mbmi2) # as in setup.py, by the suffix of the file's name
    mapfile -t sources < <("$PYTHON" tests/support/c_units.py "$source")
    for i in "${!sources[@]}"; do
        case ${sources[i]} in
        *_avx2.c) "$CC" "${FLAGS[@]}" "${avx2[@]}" -c "${sources[i]}" -o "$OUT/avx2.o" && sources[i]=$OUT/avx2.o ;;
        *_avx512.c)
            "$CC" "${FLAGS[@]}" "${avx2[@]}" -mavx512f -mavx512bw -mavx512dq -mavx512vl -c "${sources[i]}" \
                -o "$OUT/avx512.o" && sources[i]=$OUT/avx512.o ;;
        esac
    done
    "$CC" "${FLAGS[@]}" "$source" tests/fuzz/map.c "${sources[@]}" "${LINK[@]}" -o "$OUT/fuzz_$1"
    command=("$OUT/fuzz_$1")
}

mkdir -p "$OUT"
for target in "$@"; do
    build "$target"
    mkdir -p "$OUT/$target"
    if [ "$runs" = corpus ]; then
        rm -rf "$OUT/small" && mkdir "$OUT/small"
        "${command[@]}" -merge=1 -use_counters=0 "$OUT/small" "tests/fuzz/corpus/$target" "$OUT/$target" \
            >"$OUT/$target.log" 2>&1
        rm -f "tests/fuzz/corpus/$target"/* && cp "$OUT/small"/* "tests/fuzz/corpus/$target"
    else
        "${command[@]}" "-runs=$runs" "-max_len=${MOST[$target]}" -timeout=30 -rss_limit_mb=1500 -print_final_stats=1 \
            "-artifact_prefix=$OUT/$target-" "$OUT/$target" "tests/fuzz/corpus/$target" >"$OUT/$target.log" 2>&1 ||
            { tail -n 40 "$OUT/$target.log"; echo "fuzz: $target failed; its input is $OUT/$target-*" >&2; exit 1; }
    fi
    echo "$target: $(grep -E 'number_of_executed_units|MERGE-OUTER.*new files' "$OUT/$target.log" | tail -n 1), $(
        find "tests/fuzz/corpus/$target" "$OUT/$target" -type f | wc -l) files in its corpora"
done
