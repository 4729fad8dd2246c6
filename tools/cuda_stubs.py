#!/usr/bin/env python3
"""Makes empty stand-ins for the CUDA libraries that torch's common wheel is linked against.

    cuda_stubs.py FOLDER     the folder torch/lib

The loader wants every library and every symbol that is named there, though a program without a GPU never calls one. Stand-ins take
kilobytes where the real ones take two gigabytes. They need cc and readelf. libcudart is not among them: torch calls it at start-up.
"""

import collections
import pathlib
import re
import subprocess
import sys
import tempfile

CUDA_LIBRARY = re.compile(r"lib(cu|nccl|nv)")
CUDA_FUNCTION = re.compile(r"(cu[A-Z]|cu[a-z]+[A-Z]|cudnn|nccl|nvtx|nvrtc)")
NOT_STOOD_IN = ("libcudart", "libcuda.so")


def readelf(*arguments: str) -> list[str]:
    """The lines that readelf writes."""
    return subprocess.run(["readelf", "-W", *arguments], check=True, capture_output=True, text=True).stdout.splitlines()


def is_stood_in(library: str) -> bool:
    """Whether a library of this name is one of CUDA's that the loader can do without."""
    return bool(CUDA_LIBRARY.match(library)) and not library.startswith(NOT_STOOD_IN)


def wanted_of(file: pathlib.Path) -> tuple[set[str], dict[str, set[str]], set[str]]:
    """The CUDA libraries that a file names, the functions that it wants of each version, and those without a version."""
    libraries = set()
    for line in readelf("-d", str(file)):
        if found := re.search(r"NEEDED.*\[(.*?)\]", line):
            libraries.add(found[1])
    versioned, plain = collections.defaultdict(set), set()
    for line in readelf("--dyn-syms", str(file)):
        fields = line.split()
        if len(fields) < 8 or fields[6] != "UND":
            continue
        name, _, version = fields[7].partition("@")
        version = version.lstrip("@")
        if is_stood_in(version):
            versioned[version].add(name)
        elif not version and CUDA_FUNCTION.match(name) and not name.startswith("cuda"):
            plain.add(name)
    return {library for library in libraries if is_stood_in(library)}, versioned, plain


def write_stub(path: pathlib.Path, versioned: dict[str, set[str]], plain: set[str]) -> None:
    """Compiles one library whose functions all answer 999, CUDA's "unknown error"."""
    names = plain.union(*versioned.values())
    with tempfile.TemporaryDirectory() as scratch:
        source, script = pathlib.Path(scratch, "stub.c"), pathlib.Path(scratch, "stub.map")
        source.write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in sorted(names)) or "int nothing;\n")
        script.write_text("".join(f"{v} {{ global: {' '.join(f'{n};' for n in sorted(of))} }};\n" for v, of in versioned.items()))
        command = ["cc", "-shared", "-fPIC", "-O0", "-w", "-fno-builtin", "-o", str(path), str(source), f"-Wl,-soname,{path.name}"]
        if versioned:
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    libraries, versioned, plain = set(), collections.defaultdict(set), set()
    for file in sorted(folder.glob("*.so*")):
        of_file = wanted_of(file)
        libraries |= of_file[0]
        plain |= of_file[2]
        for version, names in of_file[1].items():
            versioned[version] |= names
    for library in sorted(libraries):
        if not (folder / library).exists():
            own = {library: versioned[library]} if library in versioned else {}
            # The loader looks for a name without a version in every library.
            write_stub(folder / library, own, plain)
            plain = set()


if __name__ == "__main__":
    main()
