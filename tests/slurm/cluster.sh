#!/usr/bin/env bash
# A private Slurm of virtual nodes on this machine, for tests: real daemons, with keys, sockets and ports of their own.
#
#   tests/slurm/cluster.sh up FOLDER NODES     starts it; then export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm/cluster.sh down FOLDER         ends its jobs and its daemons
#
#   PORT_BASE   the controller's port; those after it are the nodes' (17000)
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

# Longest wait for a daemon, in tenths of a second.
wait_limit=200

say() { echo "cluster: $*" >&2; }

write_config() {
    local folder=$1 nodes=$2 base=${PORT_BASE:-17000} host user node
    host=$(hostname -s)
    user=$(id -un)
    cat <<CONF
ClusterName=rudder
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
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
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + node)) CPUs=2 RealMemory=4000 State=UNKNOWN"
        mkdir -p "$folder/run/spool.n$node" "$folder/run/tmp.n$node"
    done
    echo "PartitionName=test Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=NO"
}

up() {
    local folder=$1 nodes=$2 node tries
    mkdir -p "$folder"/{state,log,run}
    folder=$(realpath "$folder")
    chmod 755 "$folder" "$folder"/{state,log,run}
    head -c 128 /dev/urandom >"$folder/munge.key"
    chmod 400 "$folder/munge.key"
    munged --key-file="$folder/munge.key" --socket="$folder/run/munge.sock" --pid-file="$folder/run/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/run/munge.seed" --num-threads=2 --force 2>>"$folder/log/munged.log"
    write_config "$folder" "$nodes" >"$folder/slurm.conf"
    # It keeps Slurm from looking for control groups of its own.
    echo "CgroupPlugin=cgroup/v1" >"$folder/cgroup.conf"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    for ((node = 1; node <= nodes; ++node)); do
        slurmd -N "n$node"
    done
    for ((tries = 0; tries < wait_limit; ++tries)); do
        [[ $(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort --unique | wc -l) == "$nodes" ]] && return
        sleep 0.1
    done
    say "the nodes are not idle after $((wait_limit / 10)) s; the ends of the logs:"
    tail -n 5 "$folder"/log/*.log >&2
    return 1
}

down() {
    local folder pid_file pid tries
    folder=$(realpath "$1")
    export SLURM_CONF=$folder/slurm.conf
    scancel --user="$(id -un)" 2>/dev/null || true
    for pid_file in "$folder"/run/slurmd.*.pid "$folder/run/slurmctld.pid" "$folder/run/munged.pid"; do
        [[ -s $pid_file ]] || continue
        pid=$(<"$pid_file")
        kill "$pid" 2>/dev/null || continue
        for ((tries = 0; tries < wait_limit; ++tries)); do
            kill -0 "$pid" 2>/dev/null || continue 2
            sleep 0.1
        done
        say "process $pid does not end, and is killed"
        kill -KILL "$pid" || true
    done
}

case ${1:-} in
    up) up "$2" "$3" ;;
    down) down "$2" ;;
    *)
        say "up FOLDER NODES, or down FOLDER"
        exit 2
        ;;
esac
