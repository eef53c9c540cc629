# For the cases cluster-*: a cluster of nodes on loopback, in $work/c. Source after lib.sh.
export FVM_CLUSTER_DIR=$work/c
declare -A node_pid
deadline=60

ctl() { timeout $deadline "$build/fvm-cluster" "$@"; }

cluster_make() { # node names
    local name
    ctl init > /dev/null || return
    for name; do ctl node add "$name" --address "tcp://127.0.0.1:$(free_port)" > /dev/null || return; done
}

node_start() { # name [option...]
    local name=$1
    shift
    "$build/fvm-node" --name "$name" --fvm "$fvm" "$@" > "$work/node-$name.log" 2>&1 < /dev/null &
    node_pid[$name]=$!
    own $!
    wait_for 20 grep -q " node.up " "$work/node-$name.log"
}

node_end() { # name signal
    kill "-$2" "${node_pid[$1]}"
    wait "${node_pid[$1]}" 2> /dev/null
}

vm_field() { # vm jq-like path, as state or record.owner
    ctl vm show "$1" --json 2> /dev/null | python3 -c '
import json, sys
v = json.load(sys.stdin)
for k in sys.argv[1].split("."): v = v[k]
print(v)' "$2"
}

vm_is() { [ "$(vm_field "$1" "$2")" = "$3" ]; } # vm path value
console_of() { echo "$FVM_CLUSTER_DIR/nodes/$1/vms/$2/console.log"; } # node vm
ticks() { grep -ac '^tick ' "$(console_of "$1" "$2")" 2> /dev/null || true; } # node vm
ticks_on() { # node vm: it goes on ticking
    local n
    n=$(ticks "$1" "$2")
    wait_for 20 ticks_more "$1" "$2" "$n"
}
ticks_more() { [ "$(ticks "$1" "$2")" -gt $(($3 + 1)) ]; }
processes() { pgrep -fc -- "^[^ ]*fvm run --name=$1 .*$work" || true; } # vm: how many processes of this case's VM
one_process() { [ "$(processes "$1")" = 1 ]; }

# Whatever happens, no guest outlives its case.
cluster_end() {
    local name pid
    for name in "${!node_pid[@]}"; do
        kill -KILL "${node_pid[$name]}"
        wait "${node_pid[$name]}"
    done 2> /dev/null
    for pid in $(cat "$FVM_CLUSTER_DIR"/nodes/*/vms/*/pid 2> /dev/null | cut -d' ' -f1); do
        grep -q "$work" "/proc/$pid/cmdline" 2> /dev/null && kill -KILL "$pid"
    done
    at_exit
}
trap cluster_end EXIT
