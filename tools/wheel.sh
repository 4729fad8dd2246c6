#!/usr/bin/env bash
# Makes the wheel of the DistDGL adapter (native/dgl) around a librudder.so, and prints its path. One wheel serves every Python 3 of the
# platform: the adapter loads the library by ctypes.
#
#   tools/wheel.sh LIBRARY FOLDER
#
# PYTHON names the interpreter whose pip builds it; where it has no setuptools and wheel, pip fetches them.
set -euo pipefail
cd "$(dirname "$0")/.."

library=$1
folder=$2
python=${PYTHON:-python3}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -r native/dgl "$scratch/dgl"
cp LICENSE-* "$scratch/dgl"
cp "$library" "$scratch/dgl/rudder_dgl/librudder.so"

isolation=()
if "$python" -c 'import setuptools, wheel' 2>/dev/null; then
    isolation=(--no-build-isolation)
fi
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps "${isolation[@]}" --wheel-dir "$scratch/wheel" \
    --config-settings="--build-option=--plat-name=linux_$(uname -m)" "$scratch/dgl" >&2
mkdir -p "$folder"
# One of another version would be installed beside it.
rm -f "$folder"/rudder_dgl-*.whl
mv "$scratch"/wheel/*.whl "$folder"
echo "$folder"/rudder_dgl-*.whl
