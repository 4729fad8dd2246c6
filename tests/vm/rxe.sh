#!/usr/bin/env bash
# Runs a command in a throw-away virtual machine that has RDMA devices: Debian's kernel with Soft-RoCE, under qemu's software emulation,
# so that neither root nor KVM nor a network card is needed.
#
#   tests/vm/rxe.sh COMMAND [ARGUMENT]...
#   tests/vm/rxe.sh --fetch                  only fetch what it takes
#
# The machine sees this one's files, and what it writes to them is lost with it, but for the folder $OUT. The command starts in the
# present folder; its output, both kinds, comes out here, and its status is this script's, or 125 where the machine failed.
# In the machine: rxe0 at 10.77.0.1 and rxe1 at 10.77.0.2, over the two ends veth0 and veth1 of a virtual cable; GID index 1 is RoCE v2
# over IPv4; sch_netem is there to lose packets.
#
#   OUT          a folder of this machine's that the command may write to; by default it has none that lasts
#   VM_CPUS      processors (2)
#   VM_MEMORY    MiB (2048)
#   VM_SECONDS   time for all of it (600)
#
# Kernel, qemu and busybox are Debian's packages, unpacked under ~/.cache/rudder/vm without being installed.
set -euo pipefail

cpus=${VM_CPUS:-2}
memory=${VM_MEMORY:-2048}
seconds=${VM_SECONDS:-600}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rudder/vm

# The versions that Debian 12 (bookworm) had when this was written; where they are gone, its present ones serve.
kernel=linux-image-6.1.0-56-amd64
pinned=("$kernel=6.1.192-2" busybox-static=1:1.35.0-4+deb12u1+b1 qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 perftest=4.5+0.17-1)
# In the order in which they are loaded, each after what it needs.
modules=(virtio_pci virtio_console 9pnet_virtio 9p overlay veth sch_netem crc32_generic rdma_rxe rdma_ucm)

say() { echo "rxe: $*" >&2; }

die() {
    say "$*"
    exit 125
}

# The packages NAME[=VERSION]... themselves, and with their versions what they need and this machine lacks; nothing where one cannot be had.
lacking() {
    local needed
    needed=$(apt-get --simulate install --no-install-recommends "$@" 2>/dev/null) || return 0
    {
        printf '%s\n' "$@"
        sed -nE 's/^Inst ([^ ]+) (\[[^]]*\] )?\(([^ ]+) .*/\1=\3/p' <<<"$needed"
    } | sort --unique
}

fetch() {
    local wanted=() package
    [[ $(uname -m) == x86_64 ]] || die "the packages named here are for x86-64, and this machine is not"
    command -v apt-get >/dev/null || die "kernel and qemu come from Debian's packages, and there is no apt-get here"
    if [[ $(id -u) == 0 ]]; then
        apt-get update --quiet=2 >&2 || say "apt-get update failed, so packages come from the lists as they are"
    fi
    mapfile -t wanted < <(lacking "${pinned[@]}")
    if ((${#wanted[@]} == 0)); then
        say "the versions ${pinned[*]} cannot be had any more; taking the present ones"
        kernel=$(apt-cache depends linux-image-amd64 | sed -nE 's/.*Depends: (linux-image-[0-9].*)/\1/p' | head -n 1)
        mapfile -t wanted < <(lacking "$kernel" busybox-static qemu-system-x86 perftest)
    fi
    ((${#wanted[@]})) || die "apt-get knows no kernel or qemu: apt-get update, as root, may cure it"
    say "fetching ${#wanted[@]} packages into $cache"
    rm -rf "$cache"
    mkdir -p "$cache/packages" "$cache/root"
    (
        cd "$cache/packages"
        # Of the packages that come along, those for starting a machine from its own disk are of no use here.
        for package in "${wanted[@]}"; do
            case $package in
                initramfs-tools* | linux-base* | klibc-utils* | libklibc* | cpio=* | kmod=*) ;;
                *) echo "$package" ;;
            esac
        done | xargs apt-get --quiet=2 download >&2
    ) || die "apt-get could not download them; its reason is above"
    for package in "$cache"/packages/*.deb; do
        dpkg-deb --extract "$package" "$cache/root"
    done
    rm -rf "$cache/packages"
    "$cache/root/bin/busybox" depmod -b "$cache/root" "$(ls "$cache/root/lib/modules")"
    echo "${pinned[*]}" >"$cache/complete"
}

# The kernel modules' files in load order.
module_files() {
    local tree=$1 module file line
    for module in "${modules[@]}"; do
        # A line of modules.dep names a module's file, then all that it needs, nearest first.
        line=$(grep -E "/$module\.ko:" "$tree/modules.dep") || die "the kernel has no module $module"
        for file in ${line/:/}; do
            echo "$file"
        done | tac
    done | awk '!seen[$0]++'
}

# What runs first in the machine: it loads the modules, and puts a layer in memory over this machine's files.
write_init() {
    cat <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
while read -r module; do insmod "/modules/$module"; done </modules/order
mkdir /proc /below /layer /top
mount -t proc proc /proc
mount -t devtmpfs dev /dev
shared=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "ro,cache=loose,$shared" files /below
mount -t tmpfs -o size=80% layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/below,upperdir=/layer/upper,workdir=/layer/work files /top
mount --move /dev /top/dev
mkdir -p /top/dev/pts /top/dev/shm
mount -t devpts pts /top/dev/pts
mount -t tmpfs shm /top/dev/shm
mount -t proc proc /top/proc
mount -t sysfs sys /top/sys
mount -t tmpfs run /top/run
mkdir /top/run/job /top/run/out
mount -t 9p -o "$shared" job /top/run/job
mount -t 9p -o "$shared" out /top/run/out
exec chroot /top /bin/bash /run/job/main
INIT
}

# What runs then: it makes the devices, runs the command and leaves its status.
write_main() {
    cat <<'MAIN'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root OUT=/run/out
ulimit -l unlimited
status=125
devices() {
    ip link set lo up &&
        ip link add veth0 type veth peer name veth1 || return
    for end in 0 1; do
        # Both ends are of one network namespace: each must take packets that come from an address of this very machine.
        echo 1 >"/proc/sys/net/ipv4/conf/veth$end/accept_local" &&
            ip address add "10.77.0.$((end + 1))/24" dev "veth$end" &&
            ip link set "veth$end" mtu 9000 up &&
            rdma link add "rxe$end" type rxe netdev "veth$end" || return
    done
}
if devices >/dev/console 2>&1; then
    status=0
    setsid bash /run/job/command </dev/null >/dev/vport0p1 2>&1 || status=$?
fi
echo "$status" >/run/job/status
echo o >/proc/sysrq-trigger
sleep 60
MAIN
}

# share NAME FOLDER [OPTIONS]: qemu's options that let the machine mount a folder.
share() {
    echo "-fsdev local,id=$1,path=$2,security_model=none,multidevs=remap${3:-} -device virtio-9p-pci,fsdev=$1,mount_tag=$1"
}

boot() {
    local tree lib release job=$work/job shares=()
    release=$(ls "$cache/root/lib/modules")
    tree=$cache/root/lib/modules/$release
    lib=$cache/root/usr/lib/x86_64-linux-gnu
    mkdir -p "$work/first/bin" "$work/first/dev" "$work/first/modules" "$job" "${OUT:=$work/out}"
    module_files "$tree" >"$work/order"
    while read -r file; do
        cp "$tree/$file" "$work/first/modules/"
        basename "$file"
    done <"$work/order" >"$work/first/modules/order"
    cp "$cache/root/bin/busybox" "$work/first/bin/"
    ln -s busybox "$work/first/bin/sh"
    write_init >"$work/first/init"
    chmod +x "$work/first/init"
    (cd "$work/first" && find . | bin/busybox cpio -o -H newc 2>/dev/null) >"$work/initrd"
    write_main >"$job/main"
    {
        printf 'cd %q\n' "$PWD"
        printf 'export RXE_TOOLS=%q\n' "$cache/root"
        printf '%q ' "$@"
        echo
    } >"$job/command"
    read -ra shares <<<"$(share files / ,readonly=on) $(share job "$job") $(share out "$OUT")"
    # By way of cat, because qemu opens its output by name, which a socket has not.
    LD_LIBRARY_PATH=$lib:$cache/root/lib/x86_64-linux-gnu QEMU_MODULE_DIR=$lib/qemu \
        timeout "$seconds" "$cache/root/usr/bin/qemu-system-x86_64" \
        -L "$cache/root/usr/share/qemu" -L "$cache/root/usr/share/seabios" -nodefaults -no-user-config -display none \
        -machine q35 -accel tcg -cpu max -smp "$cpus" -m "$memory" -nic none -no-reboot \
        -kernel "$cache/root/boot/vmlinuz-$release" -initrd "$work/initrd" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off" -serial "file:$work/console" \
        -device virtio-serial-pci -chardev file,id=output,path=/dev/fd/1,append=on -device virtserialport,chardev=output,nr=1 \
        "${shares[@]}" </dev/null | cat || say "qemu ended with status $?"
    if [[ -s $job/status ]]; then
        return "$(<"$job/status")"
    fi
    say "the machine gave no status within $seconds s; the end of its console:"
    tail -n 30 "$work/console" >&2
    return 125
}

(($#)) || die "what is to run? See the head of this script"
# Where other versions are asked for than were fetched, what is there is of no use.
[[ -e $cache/complete && $(<"$cache/complete") == "${pinned[*]}" ]] || fetch
[[ $1 == --fetch ]] && exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
boot "$@" || status=$?
exit "$status"
