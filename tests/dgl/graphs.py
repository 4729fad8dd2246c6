"""Graphs for the adapter's tests and benchmarks, partitioned for DistDGL.

    graphs.py KIND FOLDER [--machines 2] [--nodes 20000] [--edges 100000] [--dims 100] [--graphbolt]

KIND is `rmat` (a power law), `sbm` (communities), `debian` (the packages of bench/data, of as many nodes and edges as there are) or `shop`
(two node types). The same arguments give the same graph.
"""

import argparse
import os
import struct
import subprocess
from pathlib import Path

os.environ.setdefault("DGLBACKEND", "pytorch")
import dgl
import numpy as np
import torch as th

LABELS = 16
COMMUNITIES = 200
DEBIAN = Path(__file__).resolve().parents[2] / "bench" / "data" / "debian.rgz"
DEBIAN_HEADER_BYTES = 52


def rmat(nodes: int, edges: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ends of `edges` edges at most, by the quadrants of Graph500: .57, .19, .19, .05."""
    levels = int(np.ceil(np.log2(nodes)))
    source, target = np.zeros(2 * edges, np.int64), np.zeros(2 * edges, np.int64)
    for _ in range(levels):
        draw = rng.random(2 * edges)
        source = 2 * source + (draw >= 0.76)
        target = 2 * target + (((draw >= 0.57) & (draw < 0.76)) | (draw >= 0.95))
    order = rng.permutation(1 << levels)
    source, target = order[source], order[target]
    kept = (source < nodes) & (target < nodes) & (source != target)
    return source[kept][:edges], target[kept][:edges]


def sbm(nodes: int, edges: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ends of `edges` edges at most: communities with 80 % of the edges inside, and degrees of a power law."""
    weight = np.minimum(rng.pareto(1.5, nodes) + 1, 1000)
    community = np.sort(rng.integers(0, COMMUNITIES, nodes))
    reach = np.cumsum(weight)
    first = np.searchsorted(community, np.arange(COMMUNITIES))
    last = np.append(first[1:], nodes)
    below = np.append(0.0, reach)

    def drawn(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        return np.searchsorted(reach, low + rng.random(edges) * (high - low)).clip(max=nodes - 1)

    source = drawn(0.0, reach[-1])
    inside = drawn(below[first[community[source]]], below[last[community[source]]])
    target = np.where(rng.random(edges) < 0.8, inside, drawn(0.0, reach[-1]))
    kept = source != target
    # Numbers say nothing about communities.
    order = rng.permutation(nodes)
    return order[source[kept]], order[target[kept]]


class Debian:
    """Packages of Debian, from the file that bench/src/graph/debian.rs describes: ends of the edges, `labels`, and words of each."""

    def __init__(self) -> None:
        frame = DEBIAN.read_bytes()[DEBIAN_HEADER_BYTES:]
        payload = subprocess.run(["zstd", "--decompress", "--stdout"], input=frame, check=True, capture_output=True).stdout
        self.nodes, _, self._vocabulary, sections = struct.unpack_from("<4I", payload)
        at = 16
        # The snapshot's name, and those of the sections.
        for _ in range(1 + sections):
            at += 1 + payload[at]
        self.labels = np.frombuffer(payload, np.uint8, self.nodes, at).astype(np.int64)
        numbers = self._numbers(payload[at + self.nodes :])
        (self.source, steps), first = self._lists(numbers, 0)
        # Gaps between a node's higher neighbours, the first one from itself.
        reach = np.cumsum(steps + 1)
        before = np.append(0, reach)[np.searchsorted(self.source, self.source)]
        self.target = self.source + reach - before
        (self._node, self._word), _ = self._lists(numbers, first)

    @staticmethod
    def _numbers(payload: bytes) -> np.ndarray:
        """LEB128."""
        raw = np.frombuffer(payload, np.uint8).astype(np.int64)
        starts = np.flatnonzero(np.append(True, raw[:-1] < 128))
        place = np.arange(len(raw)) - np.repeat(starts, np.diff(np.append(starts, len(raw))))
        return np.add.reduceat((raw & 127) << (7 * place), starts)

    def _lists(self, numbers: np.ndarray, first: int) -> tuple[tuple[np.ndarray, np.ndarray], int]:
        """A list a node, each behind its length, as pairs of node and entry; and where they end."""
        counts, entries = [], []
        for _ in range(self.nodes):
            last = first + 1 + int(numbers[first])
            counts.append(last - first - 1)
            entries.append(numbers[first + 1 : last])
            first = last
        return (np.repeat(np.arange(self.nodes), counts), np.concatenate(entries)), first

    def rows(self, dim: int) -> th.Tensor:
        """A package's words, weighted by TF-IDF, each in a column and with a sign that are drawn."""
        rng = np.random.default_rng(dim)
        weight = np.log(self.nodes / np.bincount(self._word, minlength=self._vocabulary)) * rng.choice((-1, 1), self._vocabulary)
        rows = np.zeros((self.nodes, dim), np.float32)
        np.add.at(rows, (self._node, rng.integers(0, dim, self._vocabulary)[self._word]), weight[self._word])
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        return th.from_numpy(rows * np.sqrt(dim) / np.maximum(norm, 1e-9)).float()


def homogeneous(kind: str, nodes: int, edges: int, dims: list[int]) -> dgl.DGLGraph:
    """A graph with features `feat<dim>` of floats, `half` of 16 bits, `odd` of 3 bytes, `labels` that can be learnt, and `train_mask`."""
    debian = Debian() if kind == "debian" else None
    if debian:
        nodes, source, target = debian.nodes, debian.source, debian.target
    else:
        source, target = {"rmat": rmat, "sbm": sbm}[kind](nodes, edges, np.random.default_rng(1))
    graph = dgl.to_simple(dgl.graph((np.append(source, target), np.append(target, source)), num_nodes=nodes))
    drawn = th.Generator().manual_seed(0)
    for dim in dims:
        graph.ndata[f"feat{dim}"] = debian.rows(dim) if debian else th.randn(nodes, dim, generator=drawn)
    graph.ndata["half"] = th.randn(nodes, 2, 7, generator=drawn).to(th.float16)
    graph.ndata["odd"] = th.randint(0, 256, (nodes, 3), generator=drawn, dtype=th.uint8)
    graph.ndata["labels"] = th.from_numpy(debian.labels) if debian else graph.ndata[f"feat{dims[0]}"][:, :LABELS].argmax(1)
    graph.ndata["train_mask"] = th.rand(nodes, generator=drawn) < 0.2
    graph.edata["weight"] = th.rand(graph.num_edges(), 1, generator=drawn)
    return graph


def shop(nodes: int, edges: int) -> dgl.DGLGraph:
    """Users and items, with features of different widths."""
    rng, drawn = np.random.default_rng(2), th.Generator().manual_seed(0)
    users, items = nodes // 2, nodes - nodes // 2
    user, item = (users * rng.random(edges) ** 2).astype(np.int64), (items * rng.random(edges) ** 3).astype(np.int64)
    graph = dgl.heterograph(
        {("user", "buys", "item"): (user, item), ("item", "bought", "user"): (item, user)}, {"user": users, "item": items}
    )
    graph.nodes["user"].data["profile"] = th.randn(users, 33, generator=drawn)
    graph.nodes["item"].data["image"] = th.randn(items, 64, generator=drawn)
    graph.nodes["item"].data["price"] = th.rand(items, generator=drawn).double()
    graph.nodes["user"].data["train_mask"] = th.rand(users, generator=drawn) < 0.2
    return graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("rmat", "sbm", "debian", "shop"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--edges", type=int, default=100_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[100])
    parser.add_argument("--graphbolt", action="store_true", help="partitions in GraphBolt's form")
    asked = parser.parse_args()
    th.manual_seed(0)
    dgl.seed(0)
    if asked.kind == "shop":
        graph, balance = shop(asked.nodes, asked.edges), None
    else:
        graph = homogeneous(asked.kind, asked.nodes, asked.edges, asked.dims)
        balance = graph.ndata["train_mask"]
    how = {"num_hops": 1, "balance_ntypes": balance, "use_graphbolt": asked.graphbolt}
    dgl.distributed.partition_graph(graph, "graph", asked.machines, str(asked.folder), **how)


if __name__ == "__main__":
    main()
