#!/usr/bin/env bash
# Trains on a small generated graph with two ranks over sockets, without a buffer and with one, and checks what must hold between the
# two: the same minibatches give the same losses, and the buffer answers for rows that would be fetched. Uses the build of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
document=$folder/smoke.json
report=$folder/smoke.html

fail() {
    echo "smoke: $*" >&2
    exit 1
}

# Asked for in this way, it shares every dependency with the build of the tests.
cargo build --workspace --locked --bins --tests
"$target/debug/rudder" train --graph sbm:nodes=4000,degree=12,communities=8,dim=16 --ranks 2 --epochs 2 --batch 128 \
    --transport tcp --controller off,lfu --json "$document" --report "$report" </dev/null

# One line a run, so that a run's fields can be cut out without a JSON parser.
runs=$(tr -d ' \n' <"$document" | sed 's/{"setup":/\n&/g' | tail -n +2)
field() {
    grep "^{\"setup\":\"$1\"" <<<"$runs" | grep -oE "\"$2\":(\[[^]]*\]|[^,}]*)" | head -n 1 | cut -d : -f 2-
}

[[ $(wc -l <<<"$runs") == 2 ]] || fail "$document should hold two runs"
losses=$(field off loss)
[[ $losses == '['*,*']' ]] || fail "no losses in the run without a buffer"
[[ $losses == "$(field lfu loss)" ]] || fail "the losses of the two runs differ: some row was not what its owner holds"
off=$(field off rows_fetched)
lfu=$(field lfu rows_fetched)
[[ $off =~ ^[1-9][0-9]*$ && $lfu =~ ^[1-9][0-9]*$ ]] || fail "rows fetched: '$off' without a buffer, '$lfu' with one"
((lfu < off)) || fail "the buffer saved nothing: $lfu rows fetched with it, $off without"
grep -q '<svg' "$report" || fail "the report has no picture"
echo "smoke: same losses with and without a buffer; $off rows fetched without, $lfu with"
