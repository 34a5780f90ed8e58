#!/usr/bin/env bash
# Builds the package for the other Pythons of this machine (3.10 and later; pyenv's, Debian's) and with clang, and runs
# some of the short tests on each. Needs .venv (make build). Prints a table; exits with 1 if something failed.
# usage: tools/other_pythons.sh [PYTHON...]    (default: one per minor version but .venv's; "clang": .venv's, by it)
set -uo pipefail
cd "$(dirname "$0")/.."

# What differs between versions of Python: the C API, inspect, warnings, forks, argparse, typing, and how processes end.
TESTS=(build cli config docs fork loader_fields loader_life setup stub summary supervise beton_reader beton_writer
    checkpoint draws own_fields recipes report selection write_script writer_core)
PYTEST=(-q -m "not medium and not long and not torch" -p no:cacheprovider)
for name in "${TESTS[@]}"; do PYTEST+=("tests/py/test_$name.py"); done
OUT=$PWD/build/pythons
mkdir -p "$OUT"
table=() failed=0

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
usable() { "$1" -c 'import sys, ssl, venv, ensurepip, ctypes; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

others() {
    local seen candidate version
    seen=" $(version_of .venv/bin/python) "
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3 /usr/local/bin/python3.?? /usr/bin/python3.??; do
        [ -x "$candidate" ] || continue
        version=$(version_of "$candidate") || continue
        case $version in 3.1[0-9]) ;; *) continue ;; esac
        [[ $seen != *" $version "* ]] || continue
        seen+="$version "
        printf '%s\n' "$candidate"
    done
}

requirements() {
    .venv/bin/python - <<'PY'
import re
text = open("pyproject.toml").read()
blocks = [re.search(rf"^{key} = \[(.*?)\]$", text, re.M | re.S).group(1) for key in ("requires", "dependencies", "test")]
print("\n".join(name for block in blocks for name in re.findall(r'"([^"]+)"', block) if not re.match("ruff|clang-format", name)))
PY
}

# Makes the virtual environment, again only when the list of requirements has changed.
environment() {
    local python=$1 venv=$2 wanted
    local -a packages
    mapfile -t packages < <(requirements)
    wanted=$(printf '%s\n' "${packages[@]}" | cksum)
    [ "$(cat "$venv/.made" 2>/dev/null)" != "$wanted" ] || return 0
    rm -rf "$venv"
    "$python" -m venv "$venv" && "$venv/bin/python" -m pip install -q --disable-pip-version-check "${packages[@]}" &&
        printf '%s\n' "$wanted" >"$venv/.made"
}

# NAME PYTHON: builds outside the tree and tests; what does not include Python.h is compiled once for all Pythons.
build_and_test() {
    local name=$1 python=$2
    CGXFFCV_CUDA=0 CGXFFCV_WERROR=1 DNNLROOT=$PWD/.venv "$python" setup.py -q build_ext \
        --build-temp "$OUT/temp-${CC:-gcc}" --build-lib "$OUT/$name/lib" || return
    rm -rf "$OUT/$name/tree"
    mkdir -p "$OUT/$name/tree"
    git ls-files -z | xargs -0 cp --parents -t "$OUT/$name/tree"
    cp "$OUT/$name/lib/"_cgxffcv*.so "$OUT/$name/tree/"
    (cd "$OUT/$name/tree" && PYTHONPATH=$PWD exec "$python" -m pytest "${PYTEST[@]}")
}

check() {
    local name=$1 python=$2 start=$SECONDS result=passed log=$OUT/$1.log
    build_and_test "$name" "$python" >"$log" 2>&1 || { result=FAILED failed=1; tail -n 60 "$log"; }
    table+=("$(printf '%-12s %-7s %4d s  %s' "$name" "$result" $((SECONDS - start)) "$(tail -n 1 "$log")")")
}

[ $# -gt 0 ] || { mapfile -t found < <(others); set -- "${found[@]}" clang; }
for python in "$@"; do
    if [ "$python" = clang ]; then
        if command -v clang >/dev/null; then CC=clang check clang "$PWD/.venv/bin/python"; else table+=("clang        skipped: not installed"); fi
    elif ! usable "$python"; then
        table+=("$python skipped: too old, or without ssl, venv or ctypes")
    elif name=python$(version_of "$python") && ! environment "$python" "$OUT/$name/venv" >"$OUT/$name.log" 2>&1; then
        table+=("$(printf '%-12s skipped: no packages for it: %s' "$name" "$(tail -n 1 "$OUT/$name.log")")")
    else
        check "$name" "$OUT/$name/venv/bin/python"
    fi
done
printf '%s\n' "${table[@]}"
exit "$failed"
