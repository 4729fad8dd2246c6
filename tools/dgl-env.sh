#!/usr/bin/env bash
# Makes a Python environment with AWS DistDGL 2.1.0 on processors (tests/dgl/requirements.txt), for the adapter's tests and benchmarks:
# about 2 minutes and 2 GB. Does nothing where it is there already; prints the path of its python.
#
# The default place is ~/.cache/rudder/dgl; RUDDER_DGL_ENV names another.
set -euo pipefail
cd "$(dirname "$0")/.."

env=${RUDDER_DGL_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/rudder/dgl}
requirements=tests/dgl/requirements.txt
# The environment is right when it was made, to its end, from these very lists.
recipe=$(cat "$requirements" tools/cuda_stubs.py tools/dgl-env.sh | sha256sum)

say() { echo "dgl-env.sh: $*" >&2; }

if [[ -x $env/bin/python && $(cat "$env/recipe" 2>/dev/null) == "$recipe" ]]; then
    echo "$env/bin/python"
    exit 0
fi

python=${RUDDER_DGL_PYTHON:-python3.11}
if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    say "DistDGL 2.1.0 with torch 2.1.2 needs Python 3.11 with venv (Debian: python3.11-venv); RUDDER_DGL_PYTHON names one"
    exit 1
fi

mkdir -p "$(dirname "$env")"
exec 9>"$env.lock"
flock 9
if [[ -x $env/bin/python && $(cat "$env/recipe" 2>/dev/null) == "$recipe" ]]; then
    echo "$env/bin/python"
    exit 0
fi
rm -rf "$env"
"$python" -m venv "$env"

say "installing DistDGL 2.1.0 into $env"
if ! "$env/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-cache-dir --requirement "$requirements" >&2; then
    say "pip could not install it: is there a network, and a package index that pip may use?"
    exit 1
fi
libraries=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/torch/lib
# Only CUDA programs load these.
rm -f "$libraries"/libtorch_cuda_linalg.so "$libraries"/libnvfuser_codegen.so
"$env/bin/python" tools/cuda_stubs.py "$libraries"

DGLBACKEND=pytorch "$env/bin/python" -c 'import dgl.distributed, torch; assert not torch.cuda.is_available()' || {
    say "DistDGL does not import; its reason is above"
    exit 1
}
echo "$recipe" >"$env/recipe"
echo "$env/bin/python"
