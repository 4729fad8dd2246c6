# What the job templates share: a folder for a job's results, its steps, and its end. Templates source it; `slurm/submit` says where it is.
# shellcheck shell=bash
# Variables of a template come from the configuration that `slurm/submit` was given; those of all templates are:
#
#   RUDDER           the rudder command
#   RESULTS          folder, seen by all nodes, that each job makes a folder of its own in
#   RANKS_PER_NODE   ranks on each node
#   INTERFACE        network interface that ranks listen on; if empty, the one that a node reaches the job's first node by
#   SRUN_OPTIONS     further options of srun, such as a binding of cpus and NICs, or --network=job_vni on Slingshot
#   MODULES          modules to load, by name
#   WAYS             lines NAME=VALUE to export for ranks, such as FI_* and RUDDER_* variables
set -euo pipefail

say() { echo "${SLURM_JOB_NAME:-slurm}: $*" >&2; }

die() {
    say "$*"
    exit 1
}

# begin: makes the job's folder and enters it, or ends the job where an earlier start of it was through. `step` runs in it.
begin() {
    local name way
    : "${SLURM_JOB_ID:?slurm/submit starts this, by sbatch}" "${RUDDER:?}" "${RESULTS:?}" "${RANKS_PER_NODE:?}"
    if [[ -n ${MODULES:-} ]]; then
        # shellcheck disable=SC2086  # a list of names
        module load $MODULES
    fi
    while read -r way; do
        # shellcheck disable=SC2163  # what it says is exported
        [[ -z $way ]] || export "$way"
    done <<<"${WAYS:-}"
    name=$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+.$SLURM_ARRAY_TASK_ID}
    mkdir -p "$RESULTS/$name"
    cd "$RESULTS/$name"
    if [[ -e finished ]]; then
        say "this job was through before it was put into the queue again"
        exit 0
    fi
    # What a start that was cut short has left of itself.
    rm -rf meeting meeting.partial rudder-graph-*
    trap 'interrupted TERM 143' TERM
    trap 'interrupted INT 130' INT
    record >environment.txt
}

# What figures depend on.
record() {
    echo "date: $(date -u +%FT%TZ), start ${SLURM_RESTART_COUNT:-0} of the job"
    echo "rudder: $("$RUDDER" --version), $RUDDER"
    echo "nodes: $SLURM_JOB_NODELIST"
    uname -srm
    lscpu | grep -E '^(Model name|CPU\(s\)|NUMA node\(s\)):' || true
    env | grep -E '^(SLURM|RUDDER|FI_|MPICH_|OMPI_|UCX_|LOADEDMODULES|[A-Z_]*RANKS)' | sort
}

# interrupted SIGNAL STATUS: ends the steps that run, which have their ranks end, and leaves nothing behind but what was measured.
interrupted() {
    say "ends on SIG$1"
    trap - TERM INT
    stop
    rm -rf meeting meeting.partial rudder-graph-*
    exit "$2"
}

running=()

# start COMMAND...: in the background, because bash looks at signals only between commands, and while it waits.
start() {
    "$@" &
    running+=($!)
}

# ended: waits until all that was started has ended. Where one fails it stops the others, and returns a failure.
ended() {
    local left
    for ((left = ${#running[@]}; left > 0; --left)); do
        wait -n || {
            stop
            return 1
        }
    done
    running=()
}

# stop: has all that was started end.
stop() {
    [[ ${#running[@]} == 0 ]] || kill -TERM "${running[@]}" 2>/dev/null || true
    wait
    running=()
}

# run COMMAND...: to its end.
run() {
    start "$@"
    ended
}

# step NODES RANKS_PER_NODE ARGUMENT...: the rudder command as so many ranks on each of so many nodes, each listening on its own node's address.
step() {
    local nodes=$1 each=$2
    shift 2
    # shellcheck disable=SC2086  # a list of options
    run srun --nodes="$nodes" --ntasks=$((nodes * each)) --ntasks-per-node="$each" --kill-on-bad-exit=1 ${SRUN_OPTIONS:-} \
        "$RUDDER_SLURM/rank" "$RUDDER" "$@"
}

# train NODES NAME [OPTION...]: the training that the variables say, on so many nodes: NAME.json and NAME.html.
train() {
    step "$1" "$RANKS_PER_NODE" train --meeting "$PWD/meeting" --graph "${GRAPH:-debian}" --controller "${CONTROLLERS:-off,lfu}" \
        --lookahead "${LOOKAHEAD:-0}" --batch "${BATCH:-256}" --fanout "${FANOUT:-10,25}" --buffer "${BUFFER:-0.10}" \
        --epochs "${EPOCHS:-5}" --transport "${TRANSPORT:-tcp}" --patience "${PATIENCE_S:-300}" \
        --json "$PWD/$2.json" --report "$PWD/$2.html" "${@:3}"
}

# The job is through: put into the queue again, it would end at once.
finish() {
    touch finished
    say "results in $PWD"
}
