#!/usr/bin/env bash
# Measures the DistDGL adapter, as its wheel installs it, beside DistDGL: tests/dgl/bench.py, which is given all options.
#
#   tools/bench-dgl.sh WHEEL [--json FILE] [OPTION]...
set -euo pipefail
cd "$(dirname "$0")/.."

wheel=$1
shift
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
json=$target/bench/dgl.json
if [[ ${1:-} == --json ]]; then
    json=$2
    shift 2
fi
folder=$target/dgl
python=$(tools/dgl-env.sh)
rm -rf "$folder/bench-site"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/bench-site" "$wheel"
unset RUDDER_LIBRARY
PYTHONPATH=$folder/bench-site "$python" tests/dgl/bench.py "$folder" "$json" "$@"
