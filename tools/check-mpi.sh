#!/usr/bin/env bash
# Checks what `rudder mpi` has left: NAME.json, NAME.csv, NAME.html and NAME.txt must hold together. That rows are right, the benchmarks have
# checked themselves.
#
#   tools/check-mpi.sh NAME
set -euo pipefail

fail() {
    echo "check-mpi: $*" >&2
    exit 1
}

named=$(grep -c '"contender": ' "$1.json") || fail "$1.json has no figures"
fitted=$(grep -c '"L_us": ' "$1.json") || true
figures=$(tail -n +2 "$1.csv" | cut -d , -f 1-6 | sort --unique | wc -l)
((figures > 0 && named == figures + fitted)) || fail "$1.json has $named figures, $fitted of them fitted, and $1.csv has $figures"
! grep -qE '"(us_p50|p50|L_us)": (null|0\.0,)' "$1.json" || fail "$1.json has figures that are none"
[[ $(grep -c '<svg' "$1.html") -gt 0 ]] || fail "$1.html has no plot"
grep -q '^# Rudder MPI ' "$1.txt" || fail "$1.txt has no table"
echo "$figures figures in $1.{json,csv,html}"
