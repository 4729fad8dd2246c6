"""Counts what a job fetches, and tells what a buffer would save."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch as th
from dgl.distributed import DistGraph, DistTensor
from dgl.distributed.kvstore import KVClient

from ._graph import halo_of, row_bytes_of, starts_of


class DryRun:
    """Made by `attach(dry_run=True)`: DGL serves all pulls as before, and they are counted until `detach`."""

    def __init__(self, g: DistGraph, tensors: list[DistTensor], buffer: float | int) -> None:
        self.only_type, self.pauses, self.names = g.ntypes[0], 0, {}
        self._client, self._buffer, self._halo = g._client, buffer, halo_of(g)
        self._tensors = {tensor.kvstore_key: tensor for tensor in tensors}
        self._wanted = {name: th.zeros(len(tensor), dtype=th.int32) for name, tensor in self._tensors.items()}
        self._seconds = dict.fromkeys(self._tensors, 0.0)
        self._client.pull = self._pull

    def _pull(self, name: str, id_tensor: th.Tensor) -> th.Tensor:
        began = time.perf_counter()
        rows = KVClient.pull(self._client, name, id_tensor)
        if name in self._tensors and not self.pauses:
            self._seconds[name] += time.perf_counter() - began
            self._wanted[name].index_add_(0, id_tensor, th.ones(len(id_tensor), dtype=th.int32))
        return rows

    def open_stream(self) -> int:
        """Lets a loop run ahead; with no names here, it announces nothing."""
        return 0

    def detach(self, _: float | None = None) -> None:
        """Ends the counting, and prints a line for each feature."""
        del self._client.pull
        print("\n".join(self.report()), flush=True)

    def report(self) -> Iterator[str]:
        """For each feature what was fetched so far, how much less it might have been, and what memory that takes."""
        for name, tensor in self._tensors.items():
            starts, part, row_bytes = starts_of(tensor), tensor.part_policy.part_id, row_bytes_of(tensor)
            halo = len(self._halo.get(tensor.part_policy.type_name, ((),))[0])
            slots = int(self._buffer * halo if isinstance(self._buffer, float) else self._buffer // row_bytes)
            wanted = self._wanted[name].clone()
            wanted[starts[part] : starts[part + 1]] = 0
            rows = int(wanted.sum())
            # Each row is fetched once, and the most wanted ones never again.
            saved = int((wanted.topk(min(slots, len(wanted))).values - 1).clamp(min=0).sum())
            yield (
                f"rudder_dgl: {name}: {rows} remote rows ({rows * row_bytes / 1e6:.1f} MB) were fetched, {self._seconds[name]:.2f} s"
                f" in pulls; a buffer of {slots} rows ({slots * row_bytes / 1e6:.1f} MB a trainer) would save"
                f" about {100 * saved / max(rows, 1):.0f} % of them"
            )
