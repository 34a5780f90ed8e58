#!/usr/bin/env bash
# Runs the README's two commands on a bare machine: a fresh Debian or Ubuntu with only git and make, a clean clone of
# HEAD, and nothing from this machine except its access to apt and PyPI. Prints a table; exits with 1 on a failure.
# usage: tools/bare_machine.sh DIST [COMMAND...]    (DIST: trixie, noble, ...; commands: "make train" "make test")
# Needs root and debootstrap. MIRROR=URL: the archive; PACKAGES=a,b: also installed first; FILES=a:b: copied to /root,
# for example a wheel; PYTHON=python3.x: passed on; BARE_DIR=DIR: where the machine is made (/var/tmp; about 4 GB) and,
# with KEEP=1, kept. Logs are in build/bare/DIST.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || { sed -n '2,8s/^# //p' "$0" >&2; exit 2; }
DIST=$1
shift
[ $# -gt 0 ] || set -- "make train" "make test"
LOGS=$PWD/build/bare/$DIST
PASSED_ON='^(PYTHON|CC|RANKS|TIER|https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|PIP_[A-Z_]+|SSL_CERT_FILE|CGXFFCV_[A-Z]+)='

say() { printf 'bare: %s\n' "$*"; }
fail() { printf 'bare: error: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "debootstrap and chroot need root: run this with sudo"
command -v debootstrap >/dev/null || fail "debootstrap is missing. Remedy: apt-get install debootstrap ubuntu-keyring"
# Which script debootstrap uses, so that it works even if this version does not know DIST.
case $DIST in
    sid | testing | stable | bookworm | trixie | forky | duke) family=Debian like=sid components=main ;;
    *) family=Ubuntu like=gutsy components=main,universe ;;
esac

# Copies this machine's access to apt and PyPI: resolver, certificates, apt's proxies, pip's configuration.
take_over_network() {
    local file certificates=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
    for file in /etc/pip.conf "$HOME/.pip/pip.conf" "$HOME/.config/pip/pip.conf"; do
        [ ! -f "$file" ] || cat "$file" >>"$ROOT/etc/pip.conf"
    done
    cp -L /etc/resolv.conf "$ROOT/etc/resolv.conf"
    if [ -f "$certificates" ]; then  # the bare machine's own certificates are installed later, elsewhere
        mkdir -p "$ROOT/etc/ssl"
        cp -L "$certificates" "$ROOT/etc/ssl/taken-over.crt"
        export PIP_CERT=/etc/ssl/taken-over.crt
    fi
    apt-config dump | grep -E '^(Acquire::(http|https|Retries|Check-|ForceIPv))' >"$ROOT/etc/apt/apt.conf.d/90host" || true
}

# Runs "$2" in the bare machine's checkout, in separate namespaces: its mounts and processes vanish when it ends.
inside() {
    local -a kept
    mapfile -t kept < <(env | grep -E "$PASSED_ON")
    unshare --mount --pid --fork --kill-child bash -c '
        set -e
        mount -t proc proc "$1/proc"
        mount -t sysfs -o ro sysfs "$1/sys"
        mount -t tmpfs -o mode=755 tmpfs "$1/dev"
        for node in null zero full random urandom tty; do
            touch "$1/dev/$node"
            mount --bind "/dev/$node" "$1/dev/$node"
        done
        mkdir "$1/dev/shm" "$1/dev/pts"
        mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
        mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$1/dev/pts"
        ln -s pts/ptmx "$1/dev/ptmx"
        ln -s /proc/self/fd "$1/dev/fd"
        ln -s /proc/self/fd/0 "$1/dev/stdin"
        ln -s /proc/self/fd/1 "$1/dev/stdout"
        ln -s /proc/self/fd/2 "$1/dev/stderr"
        root=$1 command=$2
        shift 2
        exec chroot "$root" env -i "$@" HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            bash -c "cd /root/checkout && $command"
    ' bare "$ROOT" "$1" "${kept[@]}" </dev/null
}

make_machine() {
    local url=${MIRROR:-$(tools/mirror.sh "$family")} # "": debootstrap's default
    say "making a bare $DIST in $ROOT"
    debootstrap --variant=minbase --include="git,make${PACKAGES:+,$PACKAGES}" --components="$components" \
        "$DIST" "$ROOT" "$url" "$like" >"$LOGS/debootstrap.log" 2>&1 ||
        { tail -n 5 "$LOGS/debootstrap.log" >&2; fail "debootstrap failed (log: $LOGS/debootstrap.log)"; }
    take_over_network
    git clone -q --no-local --depth 1 "file://$PWD" "$ROOT/root/checkout"
    local -a files
    IFS=: read -r -a files <<<"${FILES:-}"
    [ ${#files[@]} = 0 ] || cp -r -t "$ROOT/root" "${files[@]}"
}

rm -rf "$LOGS"
mkdir -p "$LOGS"
BASE=$(mktemp -d "${BARE_DIR:-/var/tmp}/bare-$DIST.XXXXXX")
ROOT=$BASE/root
if [ "${KEEP:-0}" = 1 ]; then say "keeping $ROOT"; else trap 'rm -rf --one-file-system "$BASE"' EXIT; fi
make_machine

failed=0 table=()
for command in "$@"; do
    log=$LOGS/$(tr -cs 'a-zA-Z0-9=\n' - <<<"${command:0:100}").log start=$SECONDS result=passed
    say "$command (log: $log)"
    inside "$command" >"$log" 2>&1 || { result="FAILED ($?)"; failed=1; tail -n 60 "$log"; }
    table+=("$(printf '%-14s %-12s %5d s  %s' "$command" "$result" $((SECONDS - start)) "$(tail -n 1 "$log" | cut -c 1-90)")")
done
printf '\n%s at %s: %s\n' "$DIST" "$(git -C "$ROOT/root/checkout" rev-parse --short HEAD)" \
    "$(inside '. /etc/os-release; echo "$PRETTY_NAME, $(.venv/bin/python --version), $(mpirun --version | head -n 1), $(gcc -dumpfullversion | sed "s/^/gcc /")"' 2>/dev/null)"
printf '%s\n' "${table[@]}"
exit "$failed"
