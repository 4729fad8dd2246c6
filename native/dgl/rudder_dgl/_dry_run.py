"""Counts what a job fetches, and tells what a buffer would save."""

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
        self._client.pull = self._pull

    # Nothing is announced.
    hand_out = forget = lambda *_: None

    def _pull(self, name: str, id_tensor: th.Tensor) -> th.Tensor:
        rows = KVClient.pull(self._client, name, id_tensor)
        if name in self._tensors and not self.pauses:
            self._wanted[name].index_add_(0, id_tensor, th.ones(len(id_tensor), dtype=th.int32))
        return rows

    def detach(self, _: float | None = None) -> None:
        """Ends the counting, and prints a line for each feature."""
        del self._client.pull
        print("\n".join(self.report()), flush=True)

    def stats(self) -> dict[str, dict[str, dict[str, int]]]:
        """By feature: remote rows fetched, slots of a buffer for rows of `row_bytes`, and about how many rows these would save."""
        features = {}
        for name, tensor in self._tensors.items():
            starts, part, row_bytes = starts_of(tensor), tensor.part_policy.part_id, row_bytes_of(tensor)
            halo = len(self._halo.get(tensor.part_policy.type_name, ((),))[0])
            slots = int(self._buffer * halo if isinstance(self._buffer, float) else self._buffer // row_bytes)
            wanted = self._wanted[name].clone()
            wanted[starts[part] : starts[part + 1]] = 0
            # Each row is fetched once, and the most wanted ones never again.
            saved = int((wanted.topk(min(slots, len(wanted))).values - 1).clamp(min=0).sum())
            features[name] = {"remote_rows": int(wanted.sum()), "saved_rows": saved, "slots": slots, "row_bytes": row_bytes}
        return {"features": features}

    def report(self) -> Iterator[str]:
        """A line for each feature: what was fetched so far, how much less it might have been, and what memory that takes."""
        for name, of in self.stats()["features"].items():
            rows, slots, megabytes = of["remote_rows"], of["slots"], of["row_bytes"] / 1e6
            fetched = f"{rows} remote rows ({rows * megabytes:.1f} MB) were fetched"
            buffer = f"a buffer of {slots} rows ({slots * megabytes:.1f} MB, which this trainer brings)"
            saved = f"would save about {100 * of['saved_rows'] / max(rows, 1):.0f} % of them"
            yield f"rudder_dgl: {name}: {fetched}; {buffer} {saved}; trainers that hold the same partition share theirs"
