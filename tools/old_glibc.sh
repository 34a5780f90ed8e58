#!/usr/bin/env bash
# Lets this machine's gcc link for glibc 2.28 (manylinux_2_28) without a container: it unpacks Debian 11's C library,
# libjpeg-turbo and libgomp (glibc 2.31) into a folder, and selects older versions of three functions newer than 2.28.
# usage: eval "$(tools/old_glibc.sh FOLDER)"    sets what a build needs; PLATFORM=... tools/wheels.sh does it
# Needs apt on x86-64; installs nothing. MIRROR=URL: an archive that has Debian 11, if this machine's no longer does.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

FOLDER=$(realpath -m "${1:?usage: tools/old_glibc.sh FOLDER}")
PACKAGES=(libc6 libc6-dev linux-libc-dev libgcc-s1 libgomp1 gcc-10-base libjpeg62-turbo libjpeg62-turbo-dev)
ROOT=$FOLDER/root
LIBRARIES=$ROOT/usr/lib/x86_64-linux-gnu
KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

fetch() {
    local apt=$FOLDER/apt link
    mkdir -p "$apt"/{lists,cache/archives}/partial "$FOLDER/debs" "$ROOT"
    echo "deb [arch=amd64 signed-by=$KEYS] ${MIRROR:-$(tools/mirror.sh Debian)} bullseye main" >"$apt/sources.list"
    local -a ways=(-q -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    apt-get "${ways[@]}" update
    (cd "$FOLDER/debs" && apt-get "${ways[@]}" download "${PACKAGES[@]/%//bullseye}")
    for package in "$FOLDER"/debs/*.deb; do dpkg-deb -x "$package" "$ROOT"; done
    # absolute links must point into this root
    find "$ROOT" -type l -lname '/*' -printf '%p %l\n' | while read -r link target; do ln -sfn "$ROOT$target" "$link"; done
    printf '__asm__(".symver %s, %s@GLIBC_2.2.5");\n' exp exp log log pow pow >"$FOLDER/older.h"
}

if [ ! -e "$FOLDER/older.h" ]; then
    mkdir -p "$FOLDER"
    trap 'tail -n 5 "$FOLDER/log" >&2' ERR
    fetch >"$FOLDER/log" 2>&1
fi
# -L: without it, gcc's default folder with this system's libraries comes before those of --sysroot
printf 'export %s=%q\n' SYSROOT "$ROOT" CC "gcc --sysroot=$ROOT -L$LIBRARIES -include $FOLDER/older.h" \
    CGXFFCV_JPEG_INCLUDE "$ROOT/usr/include" CGXFFCV_JPEG_LIB "$LIBRARIES"
