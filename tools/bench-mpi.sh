#!/usr/bin/env bash
# Builds the rudder command for each MPI named, and runs the MPI microbenchmarks: once as the MPI likes it on this machine, and once over TCP
# loopback, into target/bench/mpi-MPI.{json,csv,html} and mpi-MPI-tcp.{json,csv,html}.
#
#   tools/bench-mpi.sh [--small|--check] [mpich|openmpi]...
#
# --small is a size for two minutes. --check is smaller still, for tests: it takes the build of the tests, what is measured says nothing, and every
# document is looked at.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$target/bench
limit_s=${RUDDER_MPI_BENCH_LIMIT:-600}
model=${RUDDER_MODEL:-${XDG_CACHE_HOME:-$HOME/.cache}/rudder/smollm2-135m-instruct.gguf}
tiny=(--message-size 8:1024 --iterations 30 --skip 1 --batch 500 --table-mib 1)
small=(--message-size 8:65536 --iterations 30 --skip 2 --row-bytes 400 --table-mib 32)
size=()
check=false

fail() {
    echo "bench-mpi: $*" >&2
    exit 1
}

case ${1:-} in
    --small)
        size=("${small[@]}")
        shift
        ;;
    --check)
        size=("${tiny[@]}")
        check=true
        out=$target/bench-check
        shift
        ;;
esac
[[ ${#size[@]} -gt 0 || ! -r $model ]] || size=(--model "$model")
[[ $# -gt 0 ]] || set -- mpich openmpi

# launch MPI RANKS ARGUMENT...: `rudder mpi` of the command in `rudder`, its variables and the MPI's own options in `ways`.
launch() {
    local mpi=$1 ranks=$2 options=()
    shift 2
    if [[ $mpi == openmpi ]]; then
        # More ranks than cores, and whoever runs this. Each rank would be bound to one core, on which its threads wait for each other.
        options=(--oversubscribe --bind-to none)
        [[ $(id -u) != 0 ]] || options+=(--allow-run-as-root)
    fi
    env "${ways[@]}" timeout --kill-after=10 "$limit_s" "mpiexec.$mpi" "${options[@]}" -n "$ranks" \
        "$rudder" mpi "$@" "${size[@]}" </dev/null
}

# measure NAME MPI RANKS ARGUMENT...
measure() {
    local name=$1 mpi=$2 ranks=$3
    shift 3
    echo "== $mpi, $ranks ranks: $name"
    launch "$mpi" "$ranks" "$@" --json "$out/$name.json" --csv "$out/$name.csv" --report "$out/$name.html" >"$out/$name.txt" ||
        fail "$name failed, or took more than $limit_s s"
    if $check; then tools/check-mpi.sh "$out/$name"; else cat "$out/$name.txt"; fi
}

mkdir -p "$out"
two=(latency bandwidth message-rate gather overlap registration allreduce decision)
many=(multi-pair all-to-all incast)
# What needs no MPI is the same with each.
unit_tests=(--test)
for mpi in "$@"; do
    if $check; then
        rudder=$(tools/mpi-build.sh "${unit_tests[@]}" "$mpi")/rudder
        unit_tests=()
    else
        MPICC=mpicc.$mpi cargo build --target-dir "$target/$mpi" --release --package rudder-bench --locked --features mpi --bins
        rudder=$target/$mpi/release/rudder
    fi
    ways=()
    measure "mpi-$mpi" "$mpi" 2 "${two[@]}"
    measure "mpi-$mpi-many" "$mpi" 4 "${many[@]}"
    # Open MPI's component for windows over TCP refuses the thread level that our transport mpi needs.
    level=multiple
    if [[ $mpi == mpich ]]; then
        # Over UCX's tcp, MPICH 4.0.2 does not always come back from MPI_Finalize: a test leaves UCX its choice.
        ways=(MPIR_CVAR_NOLOCAL=1)
        $check || ways+=("UCX_TLS=tcp,self")
    else
        ways=(OMPI_MCA_pml=ob1 "OMPI_MCA_btl=tcp,self" OMPI_MCA_osc=pt2pt)
        level=serialized
    fi
    measure "mpi-$mpi-tcp" "$mpi" 2 gather bandwidth --transport tcp,mpi --thread-level "$level"
done
! $check || echo "bench-mpi: all documents are as they should be"
