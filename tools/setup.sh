#!/usr/bin/env bash
# Checks the tools that a purpose needs and, where it may, installs what is missing from Debian's packages.
#
#   tools/setup.sh [--check] [all|build|test|capi|verbs|fabric|mpi|slurm|dgl|model|demo]
#
# `all` leaves out mpi: MPICH and Open MPI, to build and test the MPI transport with; slurm: its daemons and both MPIs, for the tests of the job templates;
# and dgl: what tools/dgl-env.sh needs to install DistDGL, and what the adapter's tests need to make machines of namespaces.
#
# It installs as root or by sudo without a password; anyone else is told the line to run. With --check it never installs.
# Rust itself is yours to install: what Debian 12 carries is too old.
set -euo pipefail
cd "$(dirname "$0")/.."

may_install=true
if [[ ${1:-} == --check ]]; then
    may_install=false
    shift
fi
purpose=${1:-all}

# The versions that Debian 12 (bookworm) had when this was written; other releases give their own.
release_of_versions=bookworm
declare -A version=(
    [gcc]=4:12.2.0-3
    [libc6-dev]=2.36-9+deb12u14
    [libfabric-dev]=1.17.0-3
    [libfabric1]=1.17.0-3
    [libhwloc-dev]=2.9.0-1
    [libudev-dev]=252.39-1~deb12u2
    [shellcheck]=0.9.0-1
    [g++]=4:12.2.0-3
    [binutils]=2.40-2
    [pkg-config]=1.8.1-1
    [valgrind]=1:3.19.0-1
    [libibverbs1]=44.0-2
    [ibverbs-providers]=44.0-2
    [iproute2]=6.1.0-3
    [util-linux]=2.38.1-5+deb12u3
    [python3]=3.11.2-1+b1
    [python3-venv]=3.11.2-1+b1
    [python3-pip]=23.0.1+dfsg-1
    [zstd]=1.5.4+dfsg2-5
    [mpich]=4.0.2-3+b1
    [libmpich-dev]=4.0.2-3+b1
    [openmpi-bin]=4.1.4-3+b1
    [libopenmpi-dev]=4.1.4-3+b1
    [slurmctld]=22.05.8-4+deb12u3
    [slurmd]=22.05.8-4+deb12u3
    [slurm-client]=22.05.8-4+deb12u3
    [munge]=0.5.15-2+deb12u1
    [libclang-dev]=1:14.0-55.7~deb12u1
)

say() { echo "setup: $*" >&2; }

# One check a tool. METIS and zstd are compiled from the C sources that their crates carry.
have_cc() { command -v cc && echo '#include <stdio.h>' | cc -E -; }
# The headers to build with, and the library that is loaded at run time.
have_libfabric() { echo '#include <rdma/fabric.h>' | cc -E - && /sbin/ldconfig -p | grep -F libfabric.so.1; }
# nm and readelf show what a library exports.
have_cxx() { command -v c++ && echo '#include <array>' | c++ -xc++ -E - && command -v nm && command -v readelf; }
have_pkg_config() { command -v pkg-config; }
have_valgrind() { command -v valgrind; }
# Libraries that the feature hwloc links.
have_hwloc() { command -v pkg-config && pkg-config --exists hwloc libudev; }
have_shellcheck() { command -v shellcheck; }
# What the virtual machine of the verbs tests takes from this one; kernel and qemu it fetches for itself, without installing them.
have_verbs() {
    PATH=$PATH:/usr/sbin:/sbin command -v rdma && PATH=$PATH:/usr/sbin:/sbin command -v tc &&
        compgen -G '/usr/lib/*/libibverbs.so.1' && compgen -G '/usr/lib/*/libibverbs/librxe-*.so'
}
# By their own names: plain mpicc and mpiexec are those of the MPI that was installed last.
have_mpich() { command -v mpicc.mpich && command -v mpiexec.mpich; }
have_openmpi() { command -v mpicc.openmpi && command -v mpiexec.openmpi; }
# The bindings are generated from the MPI's header, by libclang; libclang-cpp beside it is another library.
have_clang() {
    [[ -n ${LIBCLANG_PATH:-} ]] || /sbin/ldconfig -p | grep -E '\blibclang(-[0-9.]+)?\.so' ||
        compgen -G '/usr/lib/llvm-*/lib/libclang.so*' || compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*'
}
have_slurm() {
    PATH=$PATH:/usr/sbin:/sbin
    command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged && command -v ip
}
have_pip() { command -v python3 && python3 -m pip --version; }

# One with venv, of the version that DistDGL's wheels are made for.
have_venv() { "${RUDDER_DGL_PYTHON:-python3.11}" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))'; }
have_namespaces() {
    PATH=$PATH:/usr/sbin:/sbin command -v ip && PATH=$PATH:/usr/sbin:/sbin command -v tc && command -v unshare && command -v nsenter
}
# The bundled graph is packed with it.
have_zstd() { command -v zstd; }

have_rust() {
    local least found
    least=$(sed -nE 's/^rust-version = "(.*)"/\1/p' Cargo.toml)
    if ! command -v cargo >/dev/null; then
        say "cargo is missing: install Rust $least or later from https://rustup.rs, then open a new shell"
        return 1
    fi
    if ! found=$(cargo --version 2>&1); then
        say "cargo does not run: ${found%%$'\n'*}"
        return 1
    fi
    found=${found#cargo }
    found=${found%% *}
    if [[ $(printf '%s\n' "$least" "$found" | sort --version-sort | head -n 1) != "$least" ]]; then
        say "cargo is version $found, and $least or later is needed: rustup update"
        return 1
    fi
}

have_lints() {
    local part wanting=0
    for part in fmt clippy; do
        if ! cargo "$part" --version >/dev/null 2>&1; then
            say "cargo $part is missing: rustup component add rustfmt clippy"
            wanting=1
        fi
    done
    if ! cargo nextest --version >/dev/null 2>&1; then
        say "cargo nextest is not installed; 'cargo test' takes its place"
    fi
    return "$wanting"
}

# packages_of TOOL: the packages that bring it.
packages_of() {
    case $1 in
        cc) echo gcc libc6-dev ;;
        libfabric) echo libfabric-dev libfabric1 ;;
        cxx) echo g++ binutils ;;
        pkg_config) echo pkg-config ;;
        valgrind) echo valgrind ;;
        hwloc) echo libhwloc-dev libudev-dev pkg-config ;;
        shellcheck) echo shellcheck ;;
        verbs) echo libibverbs1 ibverbs-providers iproute2 ;;
        pip) echo python3 python3-pip ;;
        mpich) echo mpich libmpich-dev ;;
        openmpi) echo openmpi-bin libopenmpi-dev ;;
        clang) echo libclang-dev ;;
        slurm) echo slurmctld slurmd slurm-client munge iproute2 ;;
        venv) echo python3 python3-venv ;;
        namespaces) echo iproute2 util-linux ;;
        zstd) echo zstd ;;
    esac
}

needed=()
wanted=()
case $purpose in
    build) needed=(cc) ;;
    test) needed=(cc shellcheck) ;;
    capi) needed=(cc cxx pkg_config valgrind) ;;
    verbs) needed=(cc verbs libfabric) ;;
    fabric) needed=(cc libfabric hwloc) ;;
    mpi) needed=(cc mpich openmpi clang) ;;
    slurm) needed=(cc slurm mpich openmpi clang) ;;
    dgl) needed=(cc venv namespaces zstd) ;;
    model) needed=(pip) ;;
    demo) needed=(cc) wanted=(pip) ;;
    all) needed=(cc shellcheck cxx pkg_config valgrind verbs libfabric hwloc pip) ;;
    *)
        say "there is no purpose '$purpose'; there are all, build, test, capi, verbs, fabric, mpi, slurm, dgl, model, demo"
        exit 2
        ;;
esac

failed=false
if [[ $purpose != model ]]; then
    have_rust || failed=true
fi
if [[ $purpose == all || $purpose == test || $purpose == fabric ]] && command -v cargo >/dev/null; then
    have_lints || failed=true
fi

missing_packages() {
    local tool
    for tool in "$@"; do
        "have_$tool" >/dev/null 2>&1 || packages_of "$tool"
    done | tr ' ' '\n'
}

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    else
        sudo --non-interactive "$@"
    fi
}

# apt_install NAME[=VERSION]...
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends \
        -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@" </dev/null >&2
}

install() {
    local release pinned=() package
    as_root apt-get update --quiet=2 -o DPkg::Lock::Timeout=120 </dev/null >&2 ||
        say "apt-get update failed, so packages come from the lists as they are"
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [[ $release == "$release_of_versions" ]]; then
        for package in "$@"; do
            pinned+=("$package=${version[$package]}")
        done
        say "installing ${pinned[*]}"
        apt_install "${pinned[@]}" && return
        say "these versions cannot be had any more; taking the ones that Debian $release offers now"
    fi
    say "installing $*"
    apt_install "$@"
}

mapfile -t missing < <(missing_packages "${needed[@]}" "${wanted[@]}")
if ((${#missing[@]})); then
    if ! command -v apt-get >/dev/null; then
        say "missing here, by the names of Debian's packages: ${missing[*]}; install them by this system's own means"
    elif ! $may_install; then
        say "missing: ${missing[*]}; 'make setup' installs them where it may"
    elif [[ $(id -u) != 0 ]] && ! sudo --non-interactive true 2>/dev/null; then
        say "missing, and only root may install them: sudo apt-get install ${missing[*]}"
    elif ! install "${missing[@]}"; then
        say "apt-get could not install ${missing[*]}; its reason is above"
    fi
    mapfile -t missing < <(missing_packages "${needed[@]}")
    if ((${#missing[@]})); then
        say "still missing: ${missing[*]}"
        failed=true
    fi
fi

if $failed; then
    say "not ready for '$purpose'; see above"
    exit 1
fi
if $may_install; then
    say "ready for '$purpose'"
fi
