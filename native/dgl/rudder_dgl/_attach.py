"""What `attach` puts before DGL's KVStore, and `detach` takes away: a trainer's client gets a `pull` that asks the library for names that
are attached, and DGL for all others, and a `push` that refuses these names. No class is changed: only trainers notice."""

import atexit
import contextlib
import ctypes
import datetime
import functools
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch as th
from dgl.distributed import DistGraph, DistTensor
from dgl.distributed.kvstore import KVClient

from . import _graph
from ._dry_run import DryRun
from ._native import ARGUMENTS_END, FULL, UNIQUE_ID_BYTES, Config, RudderError, call, counts_of, made
from ._rows import Pool, Request, let_go

# Failures in a row after which the library is not asked again: each may have cost a timeout.
FAILURES_MAX = 3
# Fewer rows are not worth a registered buffer.
POOLED_ROWS_MIN = 256


@dataclass
class Minibatch:
    """Input nodes of a loop, of one type, and its ticket (0 where there was no place); by feature, that while it is good, and the gathers
    under way. device: where its rows go."""

    nodes: th.Tensor
    kind: str
    device: th.device
    ticket: int = 0
    unredeemed: dict[str, int] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)


class Attachment:
    """Features that come by way of the library until `detach`. counts: those of docs/dgl.md. names: of features, by node type."""

    def __init__(self, g: DistGraph, tensors: list[DistTensor], settings: dict[str, Any], job: str) -> None:
        self.counts, self.names, self.only_type, self.pauses = Counter[str](), dict[str, list[str]](), g.ntypes[0], 0
        self.timeout_s = float(settings.get("collective_timeout", 60))
        self._client, self._job, self._process = g._client, job, os.getpid()
        # Kept: the process group may be gone when a trainer ends.
        self._store = th.distributed.distributed_c10d._get_default_store()
        self._rank, self._ranks = th.distributed.get_rank(), th.distributed.get_world_size()
        self._handed_out, self._read, self._announces, self._failures = list[Minibatch](), set[str](), False, 0
        self._tensors, self._tables = {tensor.kvstore_key: tensor for tensor in tensors}, {}
        self._comm = self._join(settings)
        self._pool = functools.cache(functools.partial(Pool, self._comm))
        try:
            halo = _graph.halo_of(g)
            for number, (name, tensor) in enumerate(self._tensors.items()):
                kind = tensor.part_policy.type_name
                self.names.setdefault(kind, []).append(name)
                # The lists that a table is made of must live until it is.
                spec, _lists = _graph.spec_of(tensor, number, halo.get(kind))
                self._tables[name] = made("table_create", self._comm, ctypes.byref(spec))
            call("comm_start", self._comm)
        except BaseException:
            call("comm_destroy", self._comm)
            raise
        self._client.pull, self._client.push = self._pull, self._push

    def _join(self, settings: dict[str, Any]) -> ctypes.c_void_p:
        key, made_id = f"{self._job}/id", ctypes.create_string_buffer(UNIQUE_ID_BYTES)
        if self._rank == 0:
            call("unique_id_create", settings["listen"].encode(), made_id)
            self._store.set(key, made_id.raw)
        self._store.wait([key], datetime.timedelta(seconds=self.timeout_s))
        config = ctypes.byref(Config(ctypes.sizeof(Config), json.dumps(settings).encode()))
        return made("comm_create", self._store.get(key), self._ranks, self._rank, config)

    def _pull(self, name: str, id_tensor: th.Tensor) -> th.Tensor:
        known = (id_tensor.dtype, id_tensor.dim(), id_tensor.device.type) == (th.int64, 1, "cpu")
        if not known or name not in self._tables or os.getpid() != self._process:
            self.counts["passed_through"] += 1
            return KVClient.pull(self._client, name, id_tensor)
        nodes, kind, rows = id_tensor.contiguous(), self._tensors[name].part_policy.type_name, None
        # By their ids: whoever has changed or copied the tensor since gets what it asks for now.
        minibatch = next((one for one in self._handed_out if one.kind == kind and th.equal(one.nodes, nodes)), None)
        if self._failures < FAILURES_MAX:
            try:
                rows = self._gather(name, nodes, minibatch)
                self._failures = 0
                self.counts.update(served=1, rows=len(nodes))
            except RudderError as error:
                if error.status >= ARGUMENTS_END and error.status != FULL:
                    raise
                # What is full for now has cost no time.
                self._failures += error.status != FULL
                last = " and is not asked again" if self._failures == FAILURES_MAX else ""
                warnings.warn(f"rudder could not gather {name}{last}; DGL fetches it: {error}", RuntimeWarning, stacklevel=3)
        if rows is None:
            self.counts["fallbacks"] += 1
            rows = KVClient.pull(self._client, name, nodes)
        return self._pool(minibatch.device).device.copy(rows) if minibatch else rows

    def _gather(self, name: str, nodes: th.Tensor, minibatch: Minibatch | None) -> th.Tensor:
        self._read.add(name)
        ticket = minibatch.unredeemed.pop(name, 0) if minibatch else 0
        self.counts["unannounced"] += ticket == 0
        if minibatch and name in minibatch.requests:
            return minibatch.requests.pop(name).wait()
        # What no loop has handed out, once one announces, is evaluation: the buffer is not for it.
        call("comm_pause", self._comm, self.pauses > 0 or (self._announces and minibatch is None))
        tensor = self._tensors[name]
        rows = th.empty((len(nodes), *tensor.shape[1:]), dtype=tensor.dtype)
        if len(nodes) >= POOLED_ROWS_MIN:
            with self._noting("not_registered"):
                rows, _ = self._pool(minibatch.device if minibatch else th.device("cpu")).take(len(nodes), tensor)
        call("gather", self._tables[name], nodes.data_ptr(), len(nodes), ticket, rows.data_ptr(), rows.numel() * rows.element_size())
        return rows

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self.counts[what] += 1
            if self.counts[what] == 1:
                warnings.warn(f"rudder goes on, but slower ({what}): {error}", RuntimeWarning, stacklevel=5)

    def _push(self, name: str, id_tensor: th.Tensor, data_tensor: th.Tensor) -> None:
        if name in self._tables:
            self.counts["refused_pushes"] += 1
            raise RuntimeError(f"{name} is attached, and so read-only on every rank: detach() before it is written to")
        KVClient.push(self._client, name, id_tensor, data_tensor)

    def announce(self, stream: int, kind: str, nodes: th.Tensor, device: th.device) -> Minibatch:
        """Announces input nodes for features of their type, once some are read only those, if there is a place. stream: of a loop."""
        self._announces = True
        names = [name for name in self.names[kind] if name in self._read] or self.names[kind]
        minibatch, ticket = Minibatch(nodes.to("cpu", th.int64, copy=True), kind, device), ctypes.c_uint64()
        tables = (ctypes.c_void_p * len(names))(*(self._tables[name] for name in names))
        # Nobody needs to announce; if more than the window's bound is wrong, the gather tells.
        with contextlib.suppress(RudderError):
            if self._failures < FAILURES_MAX:
                call("announce", self._comm, stream, tables, len(names), minibatch.nodes.data_ptr(), len(nodes), ctypes.byref(ticket))
                minibatch.ticket, minibatch.unredeemed = ticket.value, dict.fromkeys(names, ticket.value)
        return minibatch

    def hand_out(self, given: list[Minibatch], coming: list[Minibatch], epoch_ends: bool) -> None:
        """Lets pulls find what is given to the trainer, and gathers what comes next meanwhile. epoch_ends: with what was before."""
        if epoch_ends and not self.pauses:
            with contextlib.suppress(RudderError):
                call("comm_mark_epoch_end", self._comm)
        self._handed_out += given
        for minibatch, name, ticket in ((one, *announced) for one in coming for announced in one.unredeemed.items()):
            with self._noting("not_started"):
                if self._failures < FAILURES_MAX:
                    call("comm_pause", self._comm, self.pauses > 0)
                    pooled = self._pool(minibatch.device).take(len(minibatch.nodes), self._tensors[name])
                    minibatch.requests[name] = Request(self._tables[name], minibatch.nodes, ticket, *pooled)

    def forget(self, minibatches: list[Minibatch]) -> None:
        """Takes announcements back, or drops those that were gathered."""
        self._handed_out = [one for one in self._handed_out if not any(one is other for other in minibatches)]
        for minibatch in minibatches:
            while minibatch.requests:
                minibatch.requests.popitem()[1].end()
            with contextlib.suppress(RudderError):
                call("forget", self._comm, minibatch.ticket)

    def stats(self) -> dict[str, Any]:
        """Counts of this trainer, and those of the library by feature."""
        return {**self.counts, "features": {name: counts_of(table) for name, table in self._tables.items()}}

    def detach(self, timeout_s: float | None) -> None:
        """See `detach`."""
        del self._client.pull, self._client.push
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        marks = [f"{self._job}/done/{rank}" for rank in range(self._ranks)]
        try:
            # A rank that has ended early goes on serving: others may still gather what it owns.
            self._store.set(marks[self._rank], b"")
            self._store.wait(marks, datetime.timedelta(seconds=timeout_s))
            call("comm_shutdown", self._comm)
        except RuntimeError as error:
            raise RuntimeError(f"not all trainers came to detach() within {timeout_s:g} s; this one is detached ({error})") from error
        finally:
            let_go(self, "comm_destroy", self._comm)


_attached: Attachment | DryRun | None = None
_jobs = 0


def current() -> Attachment | DryRun:
    """The attachment of this process; raises RuntimeError where there is none."""
    if _attached is None:
        raise RuntimeError("no graph is attached: call rudder_dgl.attach(g) first")
    return _attached


def attach(
    g: DistGraph, buffer: float | int = 0.1, features: Sequence[str | DistTensor] | None = None, dry_run: bool = False, **settings: Any
) -> Attachment | DryRun:
    """Has the library fetch features of `g` from now on. Collective: every trainer calls it, after DistGraph, with the same arguments.

    buffer: for a feature, a share of the halo nodes (float, 0 to 1) or bytes (int). features: names of node features, or DistTensors of
    nodes or edges; None for all node features of floats. dry_run: only counts until `detach()`; not collective. settings: as in docs/c.md.

    Raises RuntimeError for a DGL that is not known, outside a trainer, and where trainers do not come; ValueError for wrong features."""
    global _attached, _jobs
    # What is registered last is called first: before DGL's own way out.
    atexit.register(_leave, os.getpid())
    # Before anything can fail, so that an attach that fails on some ranks does not put them out of step.
    _jobs += not dry_run
    if _attached is not None:
        raise RuntimeError("a graph is attached already: detach() first")
    _graph.check(g)
    tensors = _graph.chosen(g, features)
    if dry_run:
        _attached = DryRun(g, tensors, buffer)
    else:
        address = g._client._server_namebook[g._client._main_server_id][1]
        size = f"{buffer}" if isinstance(buffer, float) else f"{buffer}B"
        _attached = Attachment(g, tensors, {"listen": address, "buffer": size, **settings}, f"rudder_dgl/{_jobs}")
    return _attached


def detach(timeout_s: float | None = None) -> None:
    """Undoes `attach`, if anything is attached. Collective: waits `timeout_s` seconds at most for all trainers (if None, the setting
    collective_timeout), and as long again for the library's end. RuntimeError where some do not come; this one is detached all the same."""
    global _attached
    attached, _attached = _attached, None
    if attached is not None:
        attached.detach(timeout_s)


def _leave(process: int) -> None:
    with contextlib.suppress(RuntimeError):
        if os.getpid() == process:
            detach()


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Within it the buffer learns nothing from what is gathered, and all is served: for evaluation and inference."""
    attached = current()
    attached.pauses += 1
    try:
        yield
    finally:
        attached.pauses -= 1
