#!/usr/bin/env bash
# Builds the MPI transport for each MPI named and holds it against its tests, as 2, 3 and 4 processes of this machine.
#
#   tools/mpi.sh [mpich|openmpi]...
#
# Every run has a time limit.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUST_BACKTRACE=0

limit_s=${RUDDER_MPI_TEST_LIMIT:-150}
death_limit_s=30

# launch MPI RANKS ARGUMENT...
launch() {
    local mpi=$1 ranks=$2 options=()
    shift 2
    if [[ $mpi == openmpi ]]; then
        # More ranks than cores, and whoever runs this.
        options=(--oversubscribe)
        [[ $(id -u) != 0 ]] || options+=(--allow-run-as-root)
    fi
    timeout --kill-after=10 "$limit_s" "mpiexec.$mpi" "${options[@]}" -n "$ranks" "$@" </dev/null
}

# check_death MPI PROGRAM: the death of a rank must end the job, soon and not as a success.
check_death() {
    local began=$SECONDS
    if launch "$1" 3 "$2" --die >/dev/null 2>&1; then
        echo "mpi.sh: $1: the job went on after a rank had died" >&2
        return 1
    fi
    if ((SECONDS - began > death_limit_s)); then
        echo "mpi.sh: $1: the job took more than $death_limit_s s to end after a rank had died" >&2
        return 1
    fi
    echo "$1: the death of a rank ends the job"
}

[[ $# -gt 0 ]] || set -- mpich openmpi
for mpi in "$@"; do
    program=$(tools/mpi-build.sh "$mpi")/tests
    for run in '2 hindexed' '3 plain' '4 probe'; do
        read -r ranks form <<<"$run"
        echo "== $mpi, $ranks ranks, RUDDER_MPI_GET=$form"
        RUDDER_MPI_GET=$form launch "$mpi" "$ranks" "$program" || {
            echo "mpi.sh: $mpi with $ranks ranks failed, or took more than $limit_s s" >&2
            exit 1
        }
    done
    check_death "$mpi" "$program"
done
