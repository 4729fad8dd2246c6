#!/usr/bin/env bash
# Makes the model of the controller pilot:FILE from generated jobs, and classifiers on the same samples, and holds both against the other
# contenders on what is frozen in bench/pilot/test-list.
#
#   tools/pilot.sh RUDDER FOLDER
#
# RUDDER is the command, FOLDER takes what is made.
set -euo pipefail
cd "$(dirname "$0")/.."

rudder=$(realpath "$1") out=$(realpath -m "$2")
mkdir -p "$out"
"$rudder" pilot samples --out "$out/samples.jsonl"
"$rudder" pilot train "$out/samples.jsonl" --out "$out/pilot.gguf" --json "$out/pilot.json"
"$rudder" pilot classifiers "$out/samples.jsonl" --model logistic,svm,mlp,forest,boosted,attention --out "$out/{}.json"
mapfile -t list < <(xargs -n 1 <bench/pilot/test-list)
"$rudder" study "${list[@]}" --json "$out/study.json" --report "$out/study.html" --contender \
    "off,degree,wtinylfu,lfu,window,lfu/quotas:25,window/quotas:25:8,lfu/analytic,window/analytic,window/guard:analytic,window/guard:ghost,window/pilot:$out/pilot.gguf,window/guard:pilot:$out/pilot.gguf,window/plan-classifier:$out/boosted.json,window/plan-classifier:$out/svm.json"
