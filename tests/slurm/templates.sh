#!/usr/bin/env bash
# Submits every job template at small size, and checks what comes out: states, documents, logs without a warning, a job that is cancelled, and one
# that is put into the queue again.
#
#   tests/slurm/templates.sh TARGET PYTHON PARTS      tools/test-slurm.sh starts it, on the nodes of tests/slurm/cluster.sh
#
# TARGET is cargo's folder, with what tools/mpi-build.sh leaves in it; PYTHON has DistDGL and the adapter; PARTS is a graph of tests/dgl/graphs.py for it, cut in two.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=$1 python=$2 parts=$3
job_limit_s=300
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

fail() {
    echo "templates: $*" >&2
    tail -n 30 "$results"/*.log "$results"/rudder-dgl-*/*.log >&2 || true
    exit 1
}

submit() {
    echo "$1" >>"$results/submitted"
    slurm/submit --config tests/slurm/small.conf "$1" RESULTS="$results" RUDDER="$target/debug/rudder" "${@:2}"
}

state_of() { scontrol --oneliner show job "$1" | grep -oE 'JobState=[A-Z_]+' | cut -d = -f 2 | sort --unique | paste -sd ' '; }

# await JOB STATE...: until all tasks of the job are in one of the states.
await() {
    local job=$1 until=$((SECONDS + job_limit_s)) state
    shift
    while true; do
        state=$(state_of "$job")
        [[ " $* " == *" $state "* ]] && return
        ((SECONDS < until)) || fail "job $job is $state and not $* after $job_limit_s s"
        sleep 0.2
    done
}

# completed JOB: waits for its end, which must be that.
completed() {
    await "$1" COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL
    [[ $(state_of "$1") == COMPLETED ]] || fail "job $1 ended as $(state_of "$1")"
}

# quiet JOB: it must be completed without a word of warning.
quiet() {
    completed "$1"
    ! grep -iE 'warn|error|fail' "$results"/*-"$1"*.log || fail "job $1 has warnings"
}

# until_trains FOLDER: until rank 0 of the job has left what the others meet by, and they have met.
until_trains() {
    local until=$((SECONDS + job_limit_s))
    until compgen -G "$1/rudder-graph-*/graph" >/dev/null; do
        ((SECONDS < until)) || fail "the job in $1 does not begin"
        sleep 0.1
    done
}

mapfile -t templates < <(basename --multiple --suffix=.sbatch slurm/*.sbatch)
for config in slurm/config/*.conf; do
    for template in "${templates[@]}"; do
        command=$(slurm/submit --dry-run --config "$config" "$template" RUDDER=/bin/true)
        [[ $command == "sbatch --nodes="*"/slurm/$template.sbatch " ]] || fail "$config, $template: $command"
    done
done
! slurm/submit --config tests/slurm/small.conf nothing 2>/dev/null || fail "a template that is not there was submitted"

train=$(submit train)
quiet "$train"
tools/check-runs.sh "$results/rudder-train-$train"/train.{json,html}
grep -q '^SLURM_JOB_ID=' "$results/rudder-train-$train/environment.txt" || fail "the environment was not recorded"

scaling=$(submit scaling)
quiet "$scaling"
for task in 0 1 2 3; do
    tools/check-runs.sh "$results/rudder-scaling-$scaling.$task"/scaling.{json,html}
done
grep -qx 'nodes=2 ranks_per_node=2 batch=128' "$results/rudder-scaling-$scaling.3/combination.txt" || fail "the last task is another combination"

doctor=$(submit doctor RANKS_PER_NODE=2)
quiet "$doctor"
grep -qx 'ready' "$results/rudder-doctor-$doctor/doctor.txt" || fail "a job on virtual nodes is not ready"

trace=$(submit trace)
quiet "$trace"
traced=$results/rudder-trace-$trace
[[ $(cat "$traced"/trace.*.trace | wc -c) -gt 1000 && $(compgen -G "$traced/trace.*.trace" | wc -l) == 4 ]] || fail "four ranks left no four traces"
for document in replay study; do
    grep -qE '"(policy|contender)":"lfu"' "$traced/$document.json" || fail "no $document of the trace"
    grep -q '<svg' "$traced/$document.html" || fail "the report of the $document has no picture"
done

study=$(submit study NODES=1)
quiet "$study"
grep -q 'headroom' "$results/rudder-study-$study/study.html" || fail "the study says nothing of headroom"

dgl=$(submit dgl NODES=2 RANKS_PER_NODE=2 PYTHON="$python" PART_CONFIG="$parts")
quiet "$dgl"
trained=$results/rudder-dgl-$dgl
for system in distdgl lfu window+16; do
    grep -qE "^\\| \`${system/+/\\+}\` \\| [0-9.]+ \\|" "$trained/dgl.md" || fail "DistDGL was not trained with $system"
done
[[ $(grep -c '"fallbacks": 0' "$trained/dgl.json") == 3 ]] || fail "DGL fetched what the library should have"
# The published grid, by its own systems but the language model's, on a graph of our own.
mkdir "$results/partitions"
ln -s "$(dirname "$parts")" "$results/partitions/graph"
paper=$(slurm/paper/submit --config tests/slurm/small.conf RESULTS="$results" RUDDER="$target/debug/rudder" PYTHON="$python" NODES=2 RANKS_PER_NODE=2 \
    GRAPHS=graph PARTITIONS="$results/partitions" DGL_SYSTEMS=distdgl,degree,rudder/periodic:1,lfu,window/analytic+16)
quiet "$paper"
slurm/paper/table "$results/rudder-dgl-$paper/dgl.json" | grep -qE '^\| graph \| 2 x 2 \| [0-9.]+ \(1\.00\) \|( [0-9.]+ \([0-9.]+\) \|){4}$' ||
    fail "the published grid at small size fills no table"
[[ $(slurm/paper/submit --dry-run RUDDER=/bin/true | grep -c "^sbatch --nodes=4 --ntasks-per-node=4 .*/slurm/dgl.sbatch") == 3 ]] || fail "the published grid is not three jobs of 4 x 4"

# Virtual nodes are hosts to both MPIs. Open MPI is told of TCP, over which it has windows only below MPI_THREAD_MULTIPLE. MPICH's UCX is left to
# find that they share a kernel: over TCP it does not always come back from MPI_Finalize, in a program of C neither.
small="--message-size 8:1024 --iterations 30 --skip 1 --batch 500 --table-mib 1"
for mpi in mpich openmpi; do
    case $mpi in
        mpich) kind=pmi2 level=multiple ways= ;;
        openmpi) kind=pmix level=serialized ways=$'OMPI_MCA_pml=ob1\nOMPI_MCA_btl=tcp,self\nOMPI_MCA_osc=pt2pt' ;;
    esac
    microbenchmarks=$(submit microbenchmarks NODES=2 RUDDER="$target/mpi/$mpi/rudder" MPI_KIND="$kind" WAYS="$ways" \
        BENCHMARKS="latency gather all-to-all registration" MPI_BENCHMARK="$small --thread-level $level")
    quiet "$microbenchmarks"
    measured=$results/rudder-microbenchmarks-$microbenchmarks/mpi
    tools/check-mpi.sh "$measured"
    grep -q '; 2 ranks, 1 of them on the first host;' "$measured.txt" || fail "$mpi did not start one job of two hosts"
done

# A job of many epochs, cancelled: what it made for its ranks goes with it.
cancelled=$(submit train EPOCHS=10000)
until_trains "$results/rudder-train-$cancelled"
scancel "$cancelled"
await "$cancelled" CANCELLED
leftover=$(find "$results/rudder-train-$cancelled" -name 'meeting*' -o -name 'rudder-graph-*')
[[ -z $leftover ]] || fail "a cancelled job leaves $leftover"

# One that is put into the queue again starts anew, and is through; another time, it has nothing to do.
again=$(submit train EPOCHS=50)
until_trains "$results/rudder-train-$again"
scontrol requeue "$again"
completed "$again"
tools/check-runs.sh "$results/rudder-train-$again"/train.{json,html}
grep -q '^date: .* start 1 of the job' "$results/rudder-train-$again/environment.txt" || fail "the job was not started again"
diff <(printf '%s\n' "${templates[@]}" | sort) <(sort --unique "$results/submitted") || fail "not every template was submitted"
echo "test-slurm: all passed"
