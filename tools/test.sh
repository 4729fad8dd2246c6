#!/usr/bin/env bash
# Runs the workspace's tests, by cargo nextest where it is installed and by cargo test elsewhere. Doc tests are `make doc`.
#
#   tools/test.sh [--without-model | --fabric]
set -euo pipefail
cd "$(dirname "$0")/.."
# The tests know the tokens of the model that tools/model.sh fetches.
unset RUDDER_MODEL

with_model=true
fabric=false
case ${1:-} in
    '') ;;
    --without-model) with_model=false ;;
    --fabric) fabric=true ;;
    *)
        echo "test.sh: unknown option '$1'; there are --without-model and --fabric" >&2
        exit 2
        ;;
esac

if $fabric; then
    # Without the language model, so that a machine of the network's needs no more than it tests.
    package=(--package rudder --no-default-features --features 'fabric hwloc' --locked --lib)
    package+=(--test fabric --test fabric_fake --test allocations --test fork)
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run "${package[@]}" -E 'not kind(lib) or test(/fabric|placement/)'
    else
        cargo test "${package[@]}"
    fi
    # The library must load where there is no libfabric, and export nothing of the shim's.
    cargo build --package rudder --no-default-features --features fabric --locked
    library=${CARGO_TARGET_DIR:-target}/debug/librudder.so
    needed=$(ldd "$library")
    exported=$(nm --dynamic --defined-only "$library")
    if grep -F libfabric <<<"$needed" || grep -E ' (rf_|fi_)' <<<"$exported"; then
        echo "test.sh: $library should neither need libfabric nor export the shim" >&2
        exit 1
    fi
    exit
fi

if cargo nextest --version >/dev/null 2>&1; then
    filter='all()'
    $with_model || filter='not binary(llm)'
    cargo nextest run --workspace --locked -E "$filter"
    exit
fi

tests=()
for file in tests/*.rs; do
    name=$(basename "$file" .rs)
    # Transports that take more than this machine is sure to have are tested apart.
    [[ $name == llm || $name == verbs* || $name == fabric* || $name == mpi ]] || tests+=(--test "$name")
done
cargo test --workspace --locked --lib --bins "${tests[@]}"
if $with_model; then
    # Each of these loads the model: one at a time.
    cargo test --workspace --locked --test llm -- --test-threads=1
fi
