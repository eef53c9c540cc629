# Shared by the scripts of deploy/guest: where things are kept, how they end.
# Everything downloaded or made lives in one folder outside git; FVM_CACHE moves it.
cache="${FVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}}/fvm"
here=$(dirname "$(readlink -f "$0")")
PATH="$PATH:/usr/sbin:/sbin" # depmod, mke2fs, debootstrap for ordinary users

die() { # text [exit status]
    echo "${0##*/}: $1" >&2
    exit "${2:-1}"
}

need() { # program package
    command -v "$1" > /dev/null || die "$1 is missing: apt-get install $2" 69
}
