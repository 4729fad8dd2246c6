"""Graphs for the adapter's tests and benchmarks, partitioned for DistDGL.

    graphs.py KIND FOLDER [--machines 2] [--nodes 20000] [--edges 100000] [--dims 100] [--graphbolt]

KIND is `rmat` (a power law), `sbm` (communities) or `shop` (two node types). The same arguments give the same graph.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("DGLBACKEND", "pytorch")
import dgl
import numpy as np
import torch as th

LABELS = 16
COMMUNITIES = 200


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


def homogeneous(kind: str, nodes: int, edges: int, dims: list[int]) -> dgl.DGLGraph:
    """A graph with features `feat<dim>` of floats, `half` of 16 bits, `odd` of 3 bytes, `labels` that can be learnt, and `train_mask`."""
    rng = np.random.default_rng(1)
    source, target = {"rmat": rmat, "sbm": sbm}[kind](nodes, edges, rng)
    graph = dgl.to_simple(dgl.graph((np.append(source, target), np.append(target, source)), num_nodes=nodes))
    drawn = th.Generator().manual_seed(0)
    for dim in dims:
        graph.ndata[f"feat{dim}"] = th.randn(nodes, dim, generator=drawn)
    graph.ndata["half"] = th.randn(nodes, 2, 7, generator=drawn).to(th.float16)
    graph.ndata["odd"] = th.randint(0, 256, (nodes, 3), generator=drawn, dtype=th.uint8)
    graph.ndata["labels"] = graph.ndata[f"feat{dims[0]}"][:, :LABELS].argmax(1)
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
    parser.add_argument("kind", choices=("rmat", "sbm", "shop"))
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
