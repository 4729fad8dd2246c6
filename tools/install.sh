#!/usr/bin/env bash
# Installs what C programs need: header, shared and static library, pkg-config file, licences.
#
#   [PREFIX=/usr/local] [LIBDIR=$PREFIX/lib] [DESTDIR=] tools/install.sh FOLDER
#
# FOLDER is where cargo has put the libraries, such as target/release.
set -euo pipefail

folder=${1:?the folder with librudder.so and librudder.a, such as target/release}
prefix=${PREFIX:-/usr/local}
libdir=${LIBDIR:-$prefix/lib}
root=${DESTDIR:-}
source=$(cd "$(dirname "$0")/.." && pwd)

for path in "$prefix" "$libdir"; do
    [[ $path == /* ]] || {
        echo "install.sh: PREFIX and LIBDIR begin at /, unlike '$path'" >&2
        exit 2
    }
done
for library in "$folder/librudder.so" "$folder/librudder.a"; do
    [[ -f $library ]] || {
        echo "install.sh: there is no $library: run 'make build' first" >&2
        exit 1
    }
done
version=$(sed -nE 's/^version = "(.*)"/\1/p' "$source/Cargo.toml" | head -n 1)
abi=$(sed -nE 's/^#define RUDDER_ABI_VERSION ([0-9]+)$/\1/p' "$source/native/include/rudder.h")

install -d "$root$prefix/include" "$root$libdir/pkgconfig" "$root$prefix/share/doc/rudder"
install -m 644 "$source/native/include/rudder.h" "$root$prefix/include/"
# What programs were linked against stays in place as long as they may run: a new library is a new file.
install -m 755 "$folder/librudder.so" "$root$libdir/librudder.so.$version"
ln -sf "librudder.so.$version" "$root$libdir/librudder.so.$abi"
ln -sf "librudder.so.$abi" "$root$libdir/librudder.so"
install -m 644 "$folder/librudder.a" "$root$libdir/"
sed -e "s|@PREFIX@|$prefix|; s|@LIBDIR@|$libdir|; s|@VERSION@|$version|" "$source/native/rudder.pc.in" \
    >"$root$libdir/pkgconfig/rudder.pc"
install -m 644 "$source/LICENSE-APACHE" "$source/LICENSE-MIT" "$source/docs/c.md" "$root$prefix/share/doc/rudder/"
