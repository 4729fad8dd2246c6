#!/usr/bin/env bash
# Runs the tests of the verbs transport, and of the fabric transport over verbs;ofi_rxm, in a virtual machine with RDMA devices
# (tests/vm/rxe.sh), all in one boot; with --rates it measures reads beside ib_read_bw there instead, which says how the two compare and
# nothing about a real network.
#
#   tools/test-verbs.sh [--rates]
set -euo pipefail
cd "$(dirname "$0")/.."

build=(cargo test --no-run --locked --package rudder --no-default-features)
case ${1:-} in
    '') build+=(--features 'verbs fabric' --test verbs --test verbs_conformance --test fabric_verbs) ;;
    --rates) build+=(--features verbs --release --bench verbs) ;;
    *)
        echo "test-verbs.sh: unknown option '$1'; the only one is --rates" >&2
        exit 2
        ;;
esac

messages=$("${build[@]}" 2>&1) || {
    echo "$messages" >&2
    exit 1
}
# Cargo names what it has built: "Executable tests/verbs.rs (target/debug/deps/verbs-…)".
executable_of() {
    sed -nE "s|^ *Executable .*$1 \((.*)\)\$|\1|p" <<<"$messages"
}

export VM_SECONDS=${VM_SECONDS:-600}
if [[ ${1:-} == --rates ]]; then
    OUT=$(realpath -m "${CARGO_TARGET_DIR:-target}")/bench
    mkdir -p "$OUT"
    export OUT
    # shellcheck disable=SC2016  # expanded in the machine
    tests/vm/rxe.sh bash -c 'RUDDER_RESULTS=$OUT/verbs.json exec "$0"' "$(executable_of benches/verbs.rs)"
    echo "as JSON: $OUT/verbs.json"
    exit
fi

conformance=$(executable_of tests/verbs_conformance.rs)
verbs=$(executable_of tests/verbs.rs)
fabric=$(executable_of tests/fabric_verbs.rs)
[[ -x $conformance && -x $verbs && -x $fabric ]] || {
    echo "test-verbs.sh: cargo named no test executables; it said:" "$messages" >&2
    exit 1
}
# The second changes the network, so its tests run one by one. The queues that libfabric asks for by default are too long for the device.
# None hides the others' failures.
# shellcheck disable=SC2016  # expanded in the machine
tests/vm/rxe.sh bash -c 'failed=0
    "$0" --test-threads 2 || failed=1
    "$1" --test-threads 1 || failed=1
    FI_UNIVERSE_SIZE=64 "$2" --test-threads 2 || failed=1
    exit "$failed"' "$conformance" "$verbs" "$fabric"
