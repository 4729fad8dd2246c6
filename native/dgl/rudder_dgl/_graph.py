"""What the adapter must know of a DistGraph: which features, who owns what, where the rows lie. All that touches DGL's inner workings."""

import ctypes
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

import dgl
import numpy as np
import torch as th
from dgl.distributed import DistGraph, DistTensor, role
from dgl.distributed.graph_partition_book import RangePartitionBook
from dgl.distributed.kvstore import KVClient, default_pull_handler

from ._native import TableSpec

SIGNATURES = {"pull": ["self", "name", "id_tensor"], "push": ["self", "name", "id_tensor", "data_tensor"]}


def check(g: DistGraph) -> None:
    """Raises RuntimeError where DGL is not one whose inner workings are known, or this process no trainer of a distributed job."""
    version, book, own_role = dgl.__version__.split("+")[0], g.get_partition_book(), role.get_role()
    takes = {name: list(inspect.signature(getattr(KVClient, name)).parameters) for name in SIGNATURES}
    for wrong, cause in (
        (version != "2.1.0", f"DGL {version} is not known here, only 2.1.0"),
        (takes != SIGNATURES, f"KVClient's methods take {takes}, not {SIGNATURES}: is it patched?"),
        (own_role != "default", f"attach() is for trainers, and this process is a {own_role}"),
        (type(g._client) is not KVClient, "DGL runs standalone, with nothing to fetch from other machines"),
        (g.local_partition is None, "no DGL server of this machine shares its partition, whose rows a trainer is to serve"),
        (not isinstance(book, RangePartitionBook), f"a {type(book).__name__} is not known here: use partition_graph"),
        (not th.distributed.is_initialized(), "trainers meet by torch.distributed: call init_process_group before attach()"),
    ):
        if wrong:
            raise RuntimeError(f"nothing is attached: {cause}")


def chosen(g: DistGraph, features: Sequence[str | DistTensor] | None) -> list[DistTensor]:
    """What `attach` is to attach, in the same order in every process. Raises ValueError for features that are not there or may not be."""
    there = [(name, tensor) for ntype in g.ntypes for name, tensor in g.nodes[ntype].data.items()]
    # Those that trainers have made (DistEmbedding makes one) carry a group's number; anyone may write to them.
    if features is None:
        taken = [tensor for _, tensor in there if tensor.dtype.is_floating_point and not tensor._attach]
    else:
        names = {name for name in features if isinstance(name, str)}
        if missing := names - {name for name, _ in there}:
            raise ValueError(f"no node type has a feature {missing.pop()!r}, only {sorted({name for name, _ in there})}")
        taken = [*(one for one in features if not isinstance(one, str)), *(tensor for name, tensor in there if name in names)]
    for tensor in taken:
        if tensor._attach:
            raise ValueError(f"{tensor.name!r} was made by the trainers, who may write to it: only features of the partitions are attached")
        if g._client._pull_handlers[tensor.kvstore_key] is not default_pull_handler:
            raise ValueError(f"{tensor.name!r} has a pull handler of its own, which the library would go round")
    if not taken:
        raise ValueError("no node feature is of floats: name the features to attach")
    return [tensor for _, tensor in sorted({tensor.kvstore_key: tensor for tensor in taken}.items())]


def starts_of(tensor: DistTensor) -> np.ndarray:
    """Where the ids of each partition start, and where those of the last one end: partitions + 1 numbers."""
    policy, book = tensor.part_policy, tensor.part_policy.partition_book
    ends = (book._typed_max_node_ids if policy.is_node else book._typed_max_edge_ids)[policy.type_name]
    return np.append(0, ends).astype(np.int64)


def halo_of(g: DistGraph) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By node type, the remote nodes next to this partition: their ids (int64, ascending), and their edges into it (uint32)."""
    part, book, halo = g.local_partition, g.get_partition_book(), {}
    if isinstance(part, dgl.DGLGraph):
        ids, sources = part.ndata[dgl.NID], part.adj_tensors("csc")[1]
    else:  # A partition of GraphBolt.
        ids, sources = part.node_attributes[dgl.NID], part.indices
    outer = book.nid2partid(ids) != book.partid
    degree = th.bincount(sources, minlength=len(ids))[outer]
    kinds, ids = book.map_to_per_ntype(ids[outer])
    for kind, ntype in enumerate(book.ntypes):
        nodes, order = ids[kinds == kind].sort()
        halo[ntype] = nodes.numpy().astype(np.int64), degree[kinds == kind][order].numpy().astype(np.uint32)
    return halo


def row_bytes_of(tensor: DistTensor) -> int:
    """Bytes of a row."""
    return th.empty((1, *tensor.shape[1:]), dtype=tensor.dtype).untyped_storage().nbytes()


def file_of(rows: th.Tensor) -> bytes | None:
    """The file that the tensor's memory is mapped from, if it begins where the tensor does."""
    mapped = re.search(rb"^0*%x-\S+ \S+ 0+ \S+ \d+ +(/.*)$" % rows.data_ptr(), Path("/proc/self/maps").read_bytes(), re.MULTILINE)
    return mapped[1] if mapped and not mapped[1].endswith(b"(deleted)") else None


def spec_of(tensor: DistTensor, number: int, halo: tuple[np.ndarray, np.ndarray] | None) -> tuple[TableSpec, list[object]]:
    """A feature as table `number`, and the lists that must live until it is created."""
    rows, starts = tensor.local_partition, starts_of(tensor)
    spec = TableSpec(struct_size=ctypes.sizeof(TableSpec), id=number, partition=tensor.part_policy.part_id)
    spec.partitions, spec.starts, spec.row_bytes = len(starts) - 1, starts.ctypes.data, row_bytes_of(tensor)
    if rows.numel():
        # All ranks of the machine and its server have the same pages: nothing is copied. Every transport takes a file.
        spec.path = file_of(rows)
        if spec.path is None:
            spec.rows, spec.bytes = rows.data_ptr(), rows.numel() * rows.element_size()
    if halo is not None:
        spec.halo, spec.degree, spec.halo_nodes = halo[0].ctypes.data, halo[1].ctypes.data, len(halo[0])
    return spec, [starts, halo]
