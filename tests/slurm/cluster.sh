#!/usr/bin/env bash
# A private Slurm of virtual nodes on this machine, for tests: real daemons, with keys, sockets and a network of their own.
#
#   tests/slurm/cluster.sh NODES COMMAND [ARGUMENT]...
#
# starts it, runs the command with SLURM_CONF set, and ends it with all that runs on it; the status is the command's. The nodes n1, n2, …
# are namespaces, joined by a bridge: each has a host name, a network card and a /dev/shm of its own, so that nothing that works only within
# one machine works between them. Nothing of the host's network is touched. It needs root.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

network=10.78.0
controller=$network.254
port=17000
shm_bytes=2g
# Longest wait for the nodes, in tenths of a second.
wait_limit=300

say() { echo "cluster: $*" >&2; }

# enter ARGUMENT...: this script again, in namespaces of its own, where all processes are killed when it ends.
enter() {
    # In a user namespace slurmd could not take the groups of who runs a job.
    [[ $(id -u) == 0 ]] || {
        say "virtual nodes are namespaces with daemons of root's: run this as root"
        exit 1
    }
    RUDDER_CLUSTER_ENTERED=1 exec unshare --net --mount --pid --fork --kill-child --mount-proc "$0" "$@"
}

write_config() {
    local user node
    user=$(id -un)
    cat <<CONF
ClusterName=rudder
SlurmctldHost=controller($controller)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.sock
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/run/spool.%n
TmpFS=$folder/run/tmp.%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
SlurmdTimeout=300
InactiveLimit=0
KillWait=5
MinJobAge=300
SlurmdParameters=config_overrides
CONF
    for ((node = 1; node <= nodes; ++node)); do
        echo "NodeName=n$node NodeHostname=n$node NodeAddr=$network.$node CPUs=2 RealMemory=4000 State=UNKNOWN"
        mkdir -p "$folder/run/spool.n$node" "$folder/run/tmp.n$node"
    done
    echo "PartitionName=test Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=NO"
}

# What each of them finds the others by.
write_hosts() {
    local node
    echo "127.0.0.1 localhost"
    echo "$controller controller"
    for ((node = 1; node <= nodes; ++node)); do
        echo "$network.$node n$node"
    done
}

make_network() {
    # Names of network namespaces are files, which nobody else is to see.
    mkdir -p /run/netns
    mount -t tmpfs tmpfs /run/netns
    mount --bind "$folder/hosts" /etc/hosts
    ip link set lo up
    ip link add switch type bridge
    ip address add "$controller/24" dev switch
    ip link set switch up
}

# start_node NUMBER: its namespaces, and its daemon in them.
start_node() {
    local name=n$1
    ip netns add "$name"
    ip link add "port$1" type veth peer name eth0 netns "$name"
    ip link set "port$1" master switch up
    ip -netns "$name" link set lo up
    ip -netns "$name" address add "$network.$1/24" dev eth0
    ip -netns "$name" link set eth0 up
    # shellcheck disable=SC2016  # the inner shell's own arguments
    ip netns exec "$name" unshare --mount --uts sh -c \
        'mount -t tmpfs -o size="$2" tmpfs /dev/shm && hostname "$1" && exec slurmd -N "$1"' sh "$name" "$shm_bytes"
}

start() {
    local node tries
    mkdir -p "$folder"/{state,log,run}
    chmod 755 "$folder" "$folder"/{state,log,run}
    head -c 128 /dev/urandom >"$folder/munge.key"
    chmod 400 "$folder/munge.key"
    munged --key-file="$folder/munge.key" --socket="$folder/run/munge.sock" --pid-file="$folder/run/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/run/munge.seed" --num-threads=2 --force 2>>"$folder/log/munged.log"
    write_config >"$folder/slurm.conf"
    write_hosts >"$folder/hosts"
    # It keeps Slurm from looking for control groups of its own.
    echo "CgroupPlugin=cgroup/v1" >"$folder/cgroup.conf"
    export SLURM_CONF=$folder/slurm.conf
    make_network
    unshare --uts sh -c 'hostname controller && exec slurmctld -c'
    for ((node = 1; node <= nodes; ++node)); do
        start_node "$node"
    done
    for ((tries = 0; tries < wait_limit; ++tries)); do
        [[ $(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort --unique | wc -l) == "$nodes" ]] && return
        sleep 0.1
    done
    say "the nodes are not idle after $((wait_limit / 10)) s; the ends of the logs:"
    tail -n 5 "$folder"/log/*.log >&2
    return 1
}

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]?$ ]]; then
    say "cluster.sh NODES COMMAND [ARGUMENT]..."
    exit 2
fi
[[ -n ${RUDDER_CLUSTER_ENTERED:-} ]] || enter "$@"
unset RUDDER_CLUSTER_ENTERED
nodes=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
start
"$@"
