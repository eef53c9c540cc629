# bash completion for fvm: source this, or install it as /usr/share/bash-completion/completions/fvm
_fvm() {
    local cur prev words cword command
    if declare -F _init_completion > /dev/null; then
        _init_completion -n =: || return
    else
        cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
    fi
    command=${words[1]}
    if [ "$cword" -eq 1 ]; then
        COMPREPLY=($(compgen -W 'run status pause resume powerdown quit dump stats migrate snapshot restore screenshot sendkey type --help --version' -- "$cur"))
        return
    fi
    case $prev in
    --kernel | --initrd | --trace-file | --key-file) COMPREPLY=($(compgen -f -- "$cur")) && return ;;
    --disk | --cdrom) COMPREPLY=($(compgen -f -- "$cur")) && return ;;
    --control) COMPREPLY=($(compgen -P unix: -f -- "${cur#unix:}")) && return ;;
    --serial | --console)
        case $cur in
        file:* | unix:*) COMPREPLY=($(compgen -P "${cur%%:*}:" -f -- "${cur#*:}")) ;;
        *) COMPREPLY=($(compgen -W 'stdio none file: unix:' -- "$cur")) ;;
        esac
        return
        ;;
    --firmware) COMPREPLY=($(compgen -W 'seabios' -f -- "$cur")) && return ;;
    --gdb) COMPREPLY=($(compgen -W 'tcp: unix:' -- "$cur")) && return ;;
    --vga) COMPREPLY=($(compgen -W 'std none' -- "$cur")) && return ;;
    --display) COMPREPLY=($(compgen -W 'none vnc=' -- "$cur")) && return ;;
    --cpu) COMPREPLY=($(compgen -W 'fvm64-v1 fvm64-v2 fvm64-v3' -- "$cur")) && return ;;
    --machine) COMPREPLY=($(compgen -W 'pc virtio' -- "$cur")) && return ;;
    --boot) COMPREPLY=($(compgen -W 'disk cdrom net disk,cdrom,net cdrom,disk' -- "$cur")) && return ;;
    --net) COMPREPLY=($(compgen -W 'user switch: none' -- "$cur")) && return ;;
    --trace) COMPREPLY=($(compgen -W 'exec int io code' -- "$cur")) && return ;;
    --log-level) COMPREPLY=($(compgen -W 'error warn info debug' -- "$cur")) && return ;;
    --sandbox) COMPREPLY=($(compgen -W 'on off log' -- "$cur")) && return ;;
    --on-reset) COMPREPLY=($(compgen -W 'reset stop' -- "$cur")) && return ;;
    esac
    # the options are the program's own, so that none is forgotten here
    COMPREPLY=($(compgen -W "$(fvm "$command" --help 2> /dev/null | grep -oE -- '--[a-z][a-z-]*' | sort -u)" -- "$cur"))
}
complete -o default -F _fvm fvm
