#!/usr/bin/env bash
# Runs the workspace's tests, by cargo nextest where it is installed and by cargo test elsewhere. Doc tests are `make doc`.
#
#   tools/test.sh [--without-model]
set -euo pipefail
cd "$(dirname "$0")/.."
# The tests know the tokens of the model that tools/model.sh fetches.
unset RUDDER_MODEL

with_model=true
case ${1:-} in
    '') ;;
    --without-model) with_model=false ;;
    *)
        echo "test.sh: unknown option '$1'; the only one is --without-model" >&2
        exit 2
        ;;
esac

if cargo nextest --version >/dev/null 2>&1; then
    filter='all()'
    $with_model || filter='not binary(llm)'
    cargo nextest run --workspace --locked -E "$filter"
    exit
fi

tests=()
for file in tests/*.rs; do
    name=$(basename "$file" .rs)
    # What takes RDMA devices is tested by tools/test-verbs.sh.
    [[ $name == llm || $name == verbs* ]] || tests+=(--test "$name")
done
cargo test --workspace --locked --lib --bins "${tests[@]}"
if $with_model; then
    # Each of these loads the model: one at a time.
    cargo test --workspace --locked --test llm -- --test-threads=1
fi
