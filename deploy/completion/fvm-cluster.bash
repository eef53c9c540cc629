# bash completion for fvm-cluster and fvm-node. Source it, or install it below /usr/share/bash-completion/completions.

_fvm_names() { # nodes|vms: names, asked of the cluster (a moment at most)
    if [ "$1" = nodes ]; then
        timeout 2 fvm-cluster node list 2> /dev/null | awk 'NR > 1 { print $1 }'
    else
        timeout 2 fvm-cluster vm list 2> /dev/null | awk 'NR > 1 { print $1 }'
    fi
}

_fvm_cluster() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words=() w
    for w in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $w in -* | =) ;; *) words+=("$w") ;; esac
    done
    COMPREPLY=()
    case $prev in
    --kernel | --initrd | --disk | --cdrom | --dir | -d) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    --node) mapfile -t COMPREPLY < <(compgen -W "$(_fvm_names nodes)" -- "$cur"); return ;;
    --on-miss) mapfile -t COMPREPLY < <(compgen -W "cancel pause" -- "$cur"); return ;;
    --vga) mapfile -t COMPREPLY < <(compgen -W "std none" -- "$cur"); return ;;
    --on-reset) mapfile -t COMPREPLY < <(compgen -W "reset stop" -- "$cur"); return ;;
    --net) mapfile -t COMPREPLY < <(compgen -W "switch user none" -- "$cur"); return ;;
    --machine) mapfile -t COMPREPLY < <(compgen -W "pc virtio" -- "$cur"); return ;;
    --boot) mapfile -t COMPREPLY < <(compgen -W "disk cdrom net disk,cdrom,net" -- "$cur"); return ;;
    --cpu) mapfile -t COMPREPLY < <(compgen -W "fvm64-v1 fvm64-v2 fvm64-v3" -- "$cur"); return ;;
    esac
    if [[ $cur == -* ]]; then
        local options="--dir --as --node --json --help --version"
        case "${words[0]:-} ${words[1]:-}" in
        "init ") options+=" --store" ;;
        "node add") options+=" --address" ;;
        "vm create") options+=" --kernel --firmware --initrd --append --memory --cpus --cpu --machine --boot --disk --cdrom --net --vga --no-rng --on-reset" ;;
        "vm stop") options+=" --timeout" ;;
        "vm console") options+=" --no-history" ;;
        "vm migrate") options+=" --max-downtime --deadline --on-miss --max-bandwidth --no-throttle --dry-run" ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
        return
    fi
    case "${#words[@]} ${words[0]:-} ${words[1]:-}" in
    "0 "*) mapfile -t COMPREPLY < <(compgen -W "init node operator vm" -- "$cur") ;;
    "1 node "*) mapfile -t COMPREPLY < <(compgen -W "add remove list" -- "$cur") ;;
    "1 operator "*) mapfile -t COMPREPLY < <(compgen -W "add remove" -- "$cur") ;;
    "1 vm "*) mapfile -t COMPREPLY < <(compgen -W "create start list show console stop kill delete pause resume migrate explain recover" -- "$cur") ;;
    "2 node remove") mapfile -t COMPREPLY < <(compgen -W "$(_fvm_names nodes)" -- "$cur") ;;
    "2 vm create" | "2 vm list") ;;
    "2 vm "*) mapfile -t COMPREPLY < <(compgen -W "$(_fvm_names vms)" -- "$cur") ;;
    "3 vm migrate") mapfile -t COMPREPLY < <(compgen -W "$(_fvm_names nodes)" -- "$cur") ;;
    esac
}

_fvm_node() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    case $prev in
    --dir | -d | --state | -s | --fvm) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    --log-level) mapfile -t COMPREPLY < <(compgen -W "error warn info debug" -- "$cur") ;;
    *) mapfile -t COMPREPLY < <(compgen -W "--dir --name --listen --state --gateway --forward --fvm --log-level --help --version" -- "$cur") ;;
    esac
}

complete -F _fvm_cluster fvm-cluster
complete -F _fvm_node fvm-node
