#!/usr/bin/env bash
# Measures the DistDGL adapter, as its wheel installs it, beside DistDGL: tests/dgl/bench.py, which is given all arguments.
#
#   tools/bench-dgl.sh WHEEL [--quick] [--json FILE] [--part-config FILE --machines N --dim N]
set -euo pipefail
cd "$(dirname "$0")/.."

wheel=$1
shift
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/dgl
python=$(tools/dgl-env.sh)
rm -rf "$folder/bench-site"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/bench-site" "$wheel"
unset RUDDER_LIBRARY
PYTHONPATH=$folder/bench-site "$python" tests/dgl/bench.py "$folder" "$@"
