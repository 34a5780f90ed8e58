#!/usr/bin/env bash
# Sets up a checkout: missing system packages through apt, .venv, the package in it.
# usage: tools/setup.sh [test|site|tensorboard|beside|torch]     (instead: installs that extra into .venv)
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
PYTHON=${PYTHON:-python3}
read -r -a COMPILER <<<"${CC:-gcc}"  # "ccache gcc", "gcc -m64"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

has_python() { "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
has_python_h() {
    "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}
has_venv() { "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; }
has_compiler() { "${COMPILER[@]}" -E -x c - <<<'#include <stdio.h>' >/dev/null 2>&1; }
has_mpi() { command -v mpirun >/dev/null; }
has_jpeg() {
    [ -e /usr/include/jpeglib.h ] || [ -e /usr/local/include/jpeglib.h ] ||
        compgen -G '/usr/include/*/jpeglib.h' >/dev/null
}

# need: what the build requires; like: what it can use.
need=() like=()
find_missing() {
    need=() like=()
    local python=python3 compiler=${COMPILER[0]##*/}
    case ${PYTHON##*/} in python3.*) python=${PYTHON##*/} ;; esac
    [ "$compiler" != ccache ] || compiler="ccache ${COMPILER[1]:-gcc}"
    has_python || need+=("$python")
    has_python_h || need+=("$python-dev")
    has_venv || need+=("$python-venv")
    # shellcheck disable=SC2206
    has_compiler || need+=($compiler libc6-dev)
    [ "${CGXFFCV_MPI:-auto}" = 0 ] || has_mpi || like+=(openmpi-bin)
    [ "${CGXFFCV_JPEG:-auto}" = 0 ] || has_jpeg || like+=(libjpeg-dev)
}

apt_install() {
    local -a as_root=()
    if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
    say "installing system packages: $*"
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" \
        >>"$LOG" 2>&1; then
        "${as_root[@]}" apt-get update -q >>"$LOG" 2>&1 || true
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" \
            >>"$LOG" 2>&1 || { tail -n 5 "$LOG" >&2; return 1; }
    fi
}

system_packages() {
    if "$PYTHON" --version >/dev/null 2>&1 && ! has_python; then
        fail "$("$PYTHON" --version) is too old: 3.10 or later is needed. Remedy: PYTHON=python3.12 make build"
    fi
    find_missing
    local -a all=("${need[@]}" "${like[@]}")
    [ ${#all[@]} -gt 0 ] || return 0
    local remedy="sudo apt-get install -y ${all[*]}"
    if ! command -v apt-get >/dev/null; then
        remedy="install what Debian calls ${all[*]} with your package manager"
    elif [ "$(id -u)" = 0 ] || command -v sudo >/dev/null; then
        apt_install "${all[@]}" || true
        find_missing
    fi
    if [ ${#need[@]} -gt 0 ]; then
        fail "missing: ${need[*]}. They could not be installed here, as root or with sudo. Remedy: $remedy (log: $LOG)"
    elif [ ${#like[@]} -gt 0 ]; then
        say "WARNING: missing: ${like[*]}; continuing without (no mpirun or no JPEG). Remedy: $remedy, then make build"
    fi
}

pip_install() {
    "$VENV/bin/python" -m pip install -q --disable-pip-version-check "$@" >>"$LOG" 2>&1 ||
        { tail -n 15 "$LOG" >&2; fail "pip could not install $* (log: $LOG). Can this machine reach PyPI?"; }
}

# The requirements that pyproject.toml lists under a key, one per line.
requirements() {
    "$VENV/bin/python" - "$1" <<'PY'
import re, sys
text = open("pyproject.toml").read()
block = re.search(rf"^{sys.argv[1]} = \[(.*?)\]$", text, re.M | re.S).group(1)
print("\n".join(re.findall(r'"([^"]+)"', block)))
PY
}

virtual_environment() {
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        say "making $VENV with $("$PYTHON" --version)"
        rm -rf "$VENV"
        "$PYTHON" -m venv "$VENV" >>"$LOG" 2>&1 || fail "cannot make $VENV (log: $LOG)"
    fi
    local wanted
    wanted=$(cksum <pyproject.toml)
    [ "$(cat "$VENV/.requirements" 2>/dev/null)" = "$wanted" ] && return 0
    say "installing Python packages"
    local -a packages
    mapfile -t packages < <(requirements requires; requirements dependencies)
    pip_install "${packages[@]}"
    rm -f "$VENV"/.*-tools
    printf '%s\n' "$wanted" >"$VENV/.requirements"
}

package() {
    local switches
    local -a sources=(csrc cgxffcv setup.py pyproject.toml README.md)
    switches=$(
        env | grep -E '^(CGXFFCV_(CUDA|MPI|NCCL|ONEDNN|JPEG|CUDA_ARCH|CUDA_QUICK|DEBUG|SANITIZE|WERROR)|CC)=' | sort
        has_jpeg && echo jpeg
        [ -e /proc/driver/nvidia/version ] && echo gpu
        find "${sources[@]}" -type f -not -name '*.pyc' | sort | cksum  # notices deleted or renamed files
    ) || true
    if [ -e "$VENV/.installed" ] && [ "$(cat "$VENV/.installed")" = "$switches" ] &&
        [ -z "$(find "${sources[@]}" -type f -not -name '*.pyc' -newer "$VENV/.installed" -print -quit)" ]; then
        return 0
    fi
    say "building and installing cgxffcv"
    rm -rf build/lib* build/bdist*  # files deleted from the tree must not be installed from there
    PYTHONUNBUFFERED=1 "$VENV/bin/python" -m pip install -v --disable-pip-version-check --no-build-isolation --no-deps . 2>&1 |
        tee "$LOG.build" | { grep --line-buffered -oE 'cgxffcv: (mpi|onednn|jpeg|cuda|nccl) .*' || true; } ||
        { grep -E 'error|Error|Remedy' "$LOG.build" | head -n 20 >&2; fail "the build failed (log: $LOG.build)"; }
    printf '%s\n' "$switches" >"$VENV/.installed"
}

mkdir -p build
LOG=$PWD/build/setup.log
: >"$LOG"
if [[ ${1:-} =~ ^(test|site|tensorboard|beside)$ ]]; then
    [ -e "$VENV/.$1-tools" ] && exit 0
    say "installing the packages of [$1]"
    mapfile -t packages < <(requirements "$1")
    pip_install "${packages[@]}"
    touch "$VENV/.$1-tools"
    exit 0
elif [ "${1:-}" = torch ]; then
    "$VENV/bin/python" -c 'import torch' 2>/dev/null && exit 0
    say "installing PyTorch"
    mapfile -t packages < <(requirements torch)
    pip_install "${packages[@]}"
    exit 0
fi
system_packages
virtual_environment
package
