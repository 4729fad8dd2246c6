#!/usr/bin/env python3
"""Build the Debian package graph from apt's lists.

Every package of main on amd64 is a node; Depends, Pre-Depends, Recommends, Suggests and Enhances are undirected edges.
The output depends on the package index alone: nodes are sorted by name, sections by name, words by frequency and then by name.

    apt-get update && bench/data/make_debian.py bench/data/debian.rgz

The format is described in bench/src/graph/debian.rs, which reads it. Needs Python 3.9 and the commands apt-get, zstd and apt-helper.
"""

import collections
import hashlib
import re
import struct
import subprocess
import sys

MAGIC = b"RUDDERDG"
VERSION = 1
RELATIONS = ("Depends", "Pre-Depends", "Recommends", "Suggests", "Enhances")
SUITE = "bookworm"
APT_HELPER = "/usr/lib/apt/apt-helper"


def index_path(kind):
    """The file in which apt keeps the suite's main amd64 index."""
    query = ["apt-get", "indextargets", "--format", "$(FILENAME)", f"Created-By: {kind}", f"Codename: {SUITE}",
             "Component: main", "Architecture: amd64"]
    paths = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()
    if len(paths) != 1:
        sys.exit(f"apt names {len(paths)} {kind} indexes of {SUITE} main amd64, not 1: run apt-get update and check sources.list")
    return paths[0]


def release_date(index):
    """The date that the suite's release file carries."""
    path = index.split("_main_binary")[0] + "_InRelease"
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("Date: "):
                return line[len("Date: "):].strip()
    sys.exit(f"{path} has no Date")


def packages(text):
    """The stanzas of a package index as dictionaries; continuation lines are not needed and dropped."""
    for stanza in text.split("\n\n"):
        fields = {}
        for line in stanza.split("\n"):
            if line and not line[0].isspace():
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if "Package" in fields:
            yield fields


def related(fields):
    """The names in a package's relations: all alternatives, without versions, architectures and build profiles."""
    for relation in RELATIONS:
        for term in re.split(r"[,|]", fields.get(relation, "")):
            name = re.match(r"\s*([a-z0-9][a-z0-9+.-]*)", term)
            if name:
                yield name.group(1)


def varint(out, value):
    """LEB128."""
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def text(out, words):
    """A string of fewer than 256 bytes behind its length."""
    raw = words.encode()
    out.append(len(raw))
    out += raw


def main():
    """Read apt's lists, write the graph, print its counts and checksums."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    index = index_path("Packages")
    raw = subprocess.run([APT_HELPER, "cat-file", index], check=True, capture_output=True).stdout
    archive = {fields["Package"]: fields for fields in packages(raw.decode())}

    neighbours = collections.defaultdict(set)
    for name, fields in archive.items():
        for other in related(fields):
            if other in archive and other != name:
                neighbours[name].add(other)
                neighbours[other].add(name)
    names = sorted(neighbours)
    ids = {name: node for node, name in enumerate(names)}

    sections = sorted({archive[name]["Section"] for name in names})
    label = {section: at for at, section in enumerate(sections)}
    described = [sorted(set(re.findall(r"[a-z0-9]{2,}", archive[name].get("Description", "").lower()))) for name in names]
    counts = collections.Counter(word for words in described for word in words)
    # A word of a single package says nothing about another.
    vocabulary = sorted((word for word in counts if counts[word] > 1), key=lambda word: (-counts[word], word))
    token = {word: at for at, word in enumerate(vocabulary)}

    payload = bytearray()
    edges = sum(len(others) for others in neighbours.values()) // 2
    date = release_date(index)
    payload += struct.pack("<IIII", len(names), edges, len(vocabulary), len(sections))
    text(payload, f"Debian {SUITE} main amd64, {date}")
    for section in sections:
        text(payload, section)
    for name in names:
        payload.append(label[archive[name]["Section"]])
    # Each edge once, at its lower end, as gaps: sorted names put relatives side by side, so that most gaps are one byte.
    for node, name in enumerate(names):
        higher = sorted(ids[other] for other in neighbours[name] if ids[other] > node)
        varint(payload, len(higher))
        previous = node
        for other in higher:
            varint(payload, other - previous - 1)
            previous = other
    for words in described:
        tokens = sorted(token[word] for word in words if word in token)
        varint(payload, len(tokens))
        for at in tokens:
            varint(payload, at)

    frame = subprocess.run(["zstd", "-19", "--single-thread", "--no-check"], input=bytes(payload), check=True, capture_output=True).stdout
    digest = hashlib.sha256(payload).digest()
    with open(sys.argv[1], "wb") as out:
        out.write(MAGIC + struct.pack("<IQ", VERSION, len(payload)) + digest + frame)
    print(f"{date}: {len(archive)} packages, {len(names)} nodes, {edges} edges, {len(sections)} sections, {len(vocabulary)} words")
    print(f"index sha256 {hashlib.sha256(raw).hexdigest()}")
    print(f"payload {len(payload)} bytes, sha256 {digest.hex()}")
    print(f"file {len(MAGIC) + 44 + len(frame)} bytes")


if __name__ == "__main__":
    main()
