#!/usr/bin/env bash
# Checks a document of `rudder train --controller off,lfu`: the same minibatches give the same losses with a buffer and without, and the buffer
# answers for rows that would be fetched.
#
#   tools/check-runs.sh DOCUMENT REPORT
set -euo pipefail
document=$1 report=$2

fail() {
    echo "check-runs: $*" >&2
    exit 1
}

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
echo "same losses with and without a buffer; $off rows fetched without, $lfu with"
