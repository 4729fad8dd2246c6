#!/usr/bin/env bash
# Builds the rudder command and the tests of the MPI transport for an MPI, for tests, and puts them into target/mpi/MPI/ as `rudder` and `tests`;
# prints that folder.
#
#   tools/mpi-build.sh [--test] mpich|openmpi      --test runs the unit tests of `rudder mpi` too
#
# It shares cargo's folder, and so every dependency, with the build of the tests. Cargo keeps there only the last library that it has built: that
# of the other MPI is made anew each time, but from its parts, which stay.
set -euo pipefail
cd "$(dirname "$0")/.."

test=false
if [[ ${1:-} == --test ]]; then
    test=true
    shift
fi
mpi=${1:?}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
folder=$target/mpi/$mpi

# The crate mpi-sys does not see that MPICC has changed. With another level of optimisation, which its declarations have no use for, it is
# another crate to cargo, and so are those above it.
declare -A level=([mpich]=1 [openmpi]=2)
options=(--workspace --locked --features rudder-bench/mpi --bins --config "profile.dev.package.mpi-sys.opt-level=${level[$mpi]:?}")
export MPICC=mpicc.$mpi CARGO_INCREMENTAL=1

built=$(cargo build "${options[@]}" --test mpi --message-format=json-render-diagnostics)
mkdir -p "$folder"
while read -r name pattern; do
    program=$(sed -nE "s/.*\"executable\":\"([^\"]*\/$pattern)\".*/\1/p" <<<"$built")
    [[ -x $program ]] || {
        echo "mpi-build.sh: cargo built no '$name' for $mpi" >&2
        exit 1
    }
    cp --remove-destination "$program" "$folder/$name"
done <<'END'
rudder rudder
tests mpi-[0-9a-f]+
END
! $test || cargo test "${options[@]}" -- mpi:: >&2
echo "$folder"
