#!/usr/bin/env bash
# Trains on a small generated graph with two ranks over sockets, without a buffer and with one, and checks the document that comes out. Uses
# the build of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Asked for in this way, it shares every dependency with the build of the tests.
cargo build --workspace --locked --bins --tests
"$target/debug/rudder" train --graph sbm:nodes=4000,degree=12,communities=8,dim=16 --ranks 2 --epochs 2 --batch 128 \
    --transport tcp --controller off,lfu --json "$folder/smoke.json" --report "$folder/smoke.html" </dev/null
tools/check-runs.sh "$folder/smoke.json" "$folder/smoke.html"
