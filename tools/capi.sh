#!/usr/bin/env bash
# Holds the C interface against its tests: what the libraries export and need, an installation that programs in C11 and C++17 are built from, shared
# and static, and jobs of two such processes, once as they are and once under valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUST_BACKTRACE=0

folder=${CARGO_TARGET_DIR:-target}/debug
limit_s=${RUDDER_CAPI_TEST_LIMIT:-120}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
strict=(-Wall -Wextra -Werror -pedantic -g -pthread)
# POSIX for threads, forks and clocks; the header itself needs C11 alone.
c=(cc -std=c11 -D_POSIX_C_SOURCE=200809L "${strict[@]}")
cxx=(c++ -std=c++17 "${strict[@]}")
export VALGRIND_OPTS='--quiet --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite'

fail() {
    echo "capi.sh: $*" >&2
    exit 1
}

build() {
    # Without the language model, which no test here asks anything.
    local features=capi,verbs
    if echo '#include <rdma/fabric.h>' | cc -E - >/dev/null 2>&1; then
        features+=,fabric
    else
        echo "capi.sh: libfabric's headers are missing (Debian: libfabric-dev), so the libraries are tested without that transport" >&2
    fi
    cargo build --package rudder --no-default-features --features "$features" --locked
}

# The library must load anywhere, and export nothing but the interface.
check_library() {
    local needed exported abi soname
    needed=$(ldd "$folder/librudder.so")
    if grep -E 'lib(fabric|ibverbs|mpi|mpich|hwloc|stdc\+\+)\.' <<<"$needed"; then
        fail "librudder.so should be linked with none of these"
    fi
    exported=$(nm --dynamic --defined-only "$folder/librudder.so" | awk '{ print $3 }' | sort)
    diff <(functions | sort) <(echo "$exported") >&2 || fail "librudder.so exports (>) other symbols than the header has (<)"
    abi=$(sed -nE 's/^#define RUDDER_ABI_VERSION ([0-9]+)$/\1/p' native/include/rudder.h)
    soname=$(readelf --dynamic "$folder/librudder.so" | sed -nE 's/.*\(SONAME\).*\[(.*)\]/\1/p')
    [[ $soname == "librudder.so.$abi" ]] || fail "the library is named $soname, and the interface is of version $abi: see build.rs"
}

# The functions that the header declares.
functions() {
    grep -oE '\brudder_[a-z_]+\(' native/include/rudder.h | tr -d '(' | sort -u
}

check_install() {
    DESTDIR=$scratch/destination PREFIX=/opt/rudder LIBDIR=/opt/rudder/lib64 tools/install.sh "$folder"
    local installed=$scratch/destination/opt/rudder
    [[ -f $installed/include/rudder.h && -f $installed/share/doc/rudder/LICENSE-MIT && -L $installed/lib64/librudder.so ]] ||
        fail "DESTDIR or LIBDIR was not heeded"
    grep -Fx 'libdir=/opt/rudder/lib64' "$installed/lib64/pkgconfig/rudder.pc" >/dev/null || fail "rudder.pc names another folder"
    rm -rf "$scratch/destination"
    PREFIX=$scratch/prefix tools/install.sh "$folder"
}

# compile SOURCE COMPILER...: linked with the shared library and, as *.static, with the static one.
compile() {
    local source=$1 name=${1##*/}
    shift
    export PKG_CONFIG_PATH=$scratch/prefix/lib/pkgconfig
    local flags libraries static
    read -ra flags <<<"$(pkg-config --cflags rudder)"
    read -ra libraries <<<"$(pkg-config --libs rudder)"
    # Beside a shared library of the same name the linker would take that one.
    read -ra static <<<"$(pkg-config --static --libs rudder | sed 's/-lrudder/-l:librudder.a/')"
    "$@" "${flags[@]}" "$source" -o "$scratch/$name.shared" "${libraries[@]}" -Wl,-rpath,"$scratch/prefix/lib"
    "$@" "${flags[@]}" "$source" -o "$scratch/$name.static" "${static[@]}"
    if ldd "$scratch/$name.static" | grep librudder; then
        fail "$name.static should hold the library itself"
    fi
    ldd "$scratch/$name.shared" | grep -F "$scratch/prefix/lib/librudder.so." >/dev/null || fail "$name does not load the library installed"
}

# What a test leaves out nobody has tried.
check_use() {
    local name function
    for name in "$@"; do
        # That one is called by RUDDER_ABI_MATCHES().
        for function in $(functions | grep -v rudder_abi_version); do
            grep -E "\b$function\b" "tests/capi/$name" tests/capi/job.h >/dev/null || fail "$name does not use $function"
        done
    done
}

# job TRANSPORT COMMAND...: two ranks of a program.
job() {
    local transport=$1 rank pids=() pid ended=0
    shift
    local shared
    shared=$(mktemp -d "$scratch/job.XXXXXX")
    for rank in 0 1; do
        timeout --kill-after=10 "$limit_s" "$@" "$rank" 2 "$shared" "$transport" </dev/null &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || ended=$?
    done
    rm -rf "$shared"
    ((ended == 0)) || fail "a rank of '${*##*/}' over $transport ended with $ended (124: after $limit_s s; 99: valgrind has found errors)"
    echo "passed: $transport, ${*##*/}"
}

# It tells its choices where it is asked to, and nothing otherwise.
check_words() {
    local words choice
    words=$(job auto "$scratch/everything.c.shared" 2>&1 >/dev/null)
    [[ -z $words ]] || fail "without RUDDER_DEBUG the library says: $words"
    words=$(RUDDER_DEBUG=info RUDDER_BUFFER=20% job auto "$scratch/everything.c.shared" 2>&1 >/dev/null)
    for choice in 'RUDDER_BUFFER=20% overrides the configuration' 'transport auto: tcp, because' \
        'table 0: a buffer of 20 slots, 2000 bytes of rows, policy rudder: 20 % of the 100 halo nodes' 'controller periodic: as'; do
        grep -F "$choice" <<<"$words" >/dev/null || fail "RUDDER_DEBUG=info does not tell '$choice', only: $words"
    done
}

misuse() {
    timeout --kill-after=10 "$limit_s" "$@" "$scratch" </dev/null || fail "'${*##*/}' ended with $?"
    echo "passed: ${*##*/}"
}

build
check_library
check_install
for standard in 'cc -std=c11 -xc' 'c++ -std=c++17 -xc++'; do
    read -ra compiler <<<"$standard"
    "${compiler[@]}" "${strict[@]}" -fsyntax-only native/include/rudder.h 2> >(grep -v 'pragma once' >&2)
done
# shellcheck disable=SC2016 # These are Markdown's fences.
sed -n '/^```c$/,/^```$/p' docs/c.md | sed '/^```/d' >"$scratch/example.c"
compile "$scratch/example.c" "${c[@]}"
compile tests/capi/everything.c "${c[@]}"
compile tests/capi/everything.cpp "${cxx[@]}"
compile tests/capi/misuse.c "${c[@]}"
check_use everything.c everything.cpp misuse.c
[[ $("$scratch/example.c.shared") == 'ccccaaaa' ]] || fail "the example of docs/c.md prints something else than it should"
for transport in tcp shm auto; do
    job "$transport" "$scratch/everything.c.shared"
    job "$transport" "$scratch/everything.cpp.shared"
done
check_words
job tcp "$scratch/everything.c.static"
job shm "$scratch/everything.cpp.static"
misuse "$scratch/misuse.c.shared"
misuse "$scratch/misuse.c.static"
for transport in tcp shm; do
    job "$transport" valgrind "$scratch/everything.c.shared"
    job "$transport" valgrind "$scratch/everything.cpp.shared"
done
misuse valgrind "$scratch/misuse.c.shared"
