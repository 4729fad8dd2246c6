#!/usr/bin/env bash
# Submits every job template at small size to a real Slurm of four virtual nodes: tests/slurm/templates.sh on tests/slurm/cluster.sh. Uses the
# builds of the tests, MPI's too, and DistDGL as the adapter's tests install it.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
site=$target/slurm/site

for mpi in mpich openmpi; do
    tools/mpi-build.sh "$mpi" >/dev/null
done
# Asked for in this way, it shares every dependency with the build of the tests.
cargo build --workspace --locked --bins --tests
python=$(tools/dgl-env.sh)
cargo build --locked --package rudder --no-default-features --features capi
rm -rf "$target/slurm"
wheel=$(PYTHON=$python tools/wheel.sh "$target/debug/librudder.so" "$target/slurm/wheels")
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$site" "$wheel"
"$python" tests/dgl/graphs.py rmat "$target/slurm/parts" --dims 64 >/dev/null
unset RUDDER_LIBRARY
export PYTHONPATH=$site
tests/slurm/cluster.sh 4 tests/slurm/templates.sh "$target" "$python" "$target/slurm/parts/graph.json"
