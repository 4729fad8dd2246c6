#!/usr/bin/env bash
# Holds the DistDGL adapter, as its wheel installs it, against DistDGL itself: tests/dgl/run.py on machines that are namespaces.
#
#   tools/test-dgl.sh [JOB]...
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
folder=$target/dgl
adapter_lines_max=600

lines=$(cat native/dgl/rudder_dgl/*.py | grep -c .)
if ((lines >= adapter_lines_max)); then
    echo "test-dgl.sh: the adapter has $lines lines that are not blank; fewer than $adapter_lines_max are promised" >&2
    exit 1
fi

python=$(tools/dgl-env.sh)
cargo build --locked --package rudder --no-default-features --features capi
rm -rf "$folder/wheels" "$folder/site"
wheel=$(PYTHON=$python tools/wheel.sh "$target/debug/librudder.so" "$folder/wheels")
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/site" "$wheel"

unset RUDDER_LIBRARY
export PYTHONPATH=$folder/site
"$python" tests/dgl/device.py
"$python" tests/dgl/run.py "$folder" "$@"
