# Shared by the cases of tests/e2e, which are programs (bash) of their own:
#
#     # fvm-test: quick limit=300          (this line makes it a case; quick: also in deploy/test --quick; long: not unless
#                                         asked for; limit: seconds)
#     . "$(dirname "$0")/lib.sh"
#     check "what is claimed" command...   (as often as wanted)
#     finish
#
# Prints TAP; exits 0, 1 (something failed) or 77 (skip). $work is a folder of its own, removed at the end together with
# the processes given to own().
set -u
e2e=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source=${e2e%/tests/e2e}
build=${FVM_BUILD:-$source/build/release}
fvm=$build/fvm
cache="${FVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}}/fvm"
work=$(mktemp -d "${TMPDIR:-/tmp}/fvm-e2e.XXXXXX")
owned=()
checks=0 bad=0

at_exit() {
    for pid in "${owned[@]}"; do
        kill -KILL "$pid"
        wait "$pid"
    done 2> /dev/null
    rm -rf "$work"
}
trap at_exit EXIT
trap 'exit 1' INT TERM

own() { # pid: ends with this case
    owned+=("$1")
}

ok() { # text
    checks=$((checks + 1))
    echo "ok $checks - $1"
}

fail() { # text [file whose end explains it]
    checks=$((checks + 1)) bad=$((bad + 1))
    echo "not ok $checks - $1"
    if [ -n "${2:-}" ] && [ -f "$2" ]; then tail -n 25 "$2" | tr -d '\r' | sed 's/^/#   /'; fi
}

skip() { # why: the whole case
    echo "1..0 # skip $1"
    exit 77
}

check() { # text command...
    local text=$1
    shift
    if "$@" > "$work/check.log" 2>&1; then ok "$text"; else fail "$text (status $?)" "$work/check.log"; fi
}

check_status() { # text wanted-status command...: its output stays in $work/check.log
    local text=$1 want=$2 got
    shift 2
    "$@" > "$work/check.log" 2>&1 < /dev/null
    got=$?
    if [ $got = "$want" ]; then ok "$text"; else fail "$text: status $got, not $want" "$work/check.log"; fi
}

check_text() { # text regular-expression file
    if tr -d '\r' < "$3" | grep -Eq -- "$2"; then ok "$1"; else fail "$1: no line matches $2" "$3"; fi
}

finish() {
    echo "1..$checks"
    [ $bad = 0 ] && [ $checks -gt 0 ]
    exit
}

need_guest() { # cloud|full: sets kernel and initrd, made if need be
    if [ ! -x "$fvm" ]; then
        fail "there is no $fvm: deploy/build makes it"
        finish
    fi
    kernel=$cache/kernels/$1/vmlinuz initrd=$cache/initrd-$1
    "$source/deploy/guest/initrd" --kernel "$1" > "$work/guest.log" 2>&1 && return
    fail "a guest from Debian's $1 kernel" "$work/guest.log"
    finish
}

need_tools() { # sets image: a Debian with compilers, interpreters and stress-ng, made if need be; copy it before use
    image=$cache/rootfs-workloads.img
    [ -s "$image" ] && return
    [ "$(id -u)" = 0 ] || skip "deploy/guest/rootfs needs root once"
    "$source/deploy/guest/rootfs" --out "$image" --size 3G --include openssl,python3,gcc,libc6-dev,stress-ng,perl,sqlite3,xz-utils,zstd \
        > "$work/rootfs.log" 2>&1 && return
    fail "deploy/guest/rootfs" "$work/rootfs.log"
    finish
}

wait_for() { # seconds command...: until it succeeds
    local until=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.1
    done
}

free_port() { # a TCP port on loopback that nobody uses now
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
