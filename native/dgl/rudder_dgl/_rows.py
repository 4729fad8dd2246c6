"""Memory for gathered rows: registered once, so that rows come without a copy, and used again when no tensor is left of what was there."""

import contextlib
import weakref
from ctypes import byref, c_uint64, c_void_p

import numpy as np
import torch as th
from dgl.distributed import DistTensor

from ._graph import row_bytes_of
from ._native import FULL, RudderError, call, made

# All features together: for each a minibatch that trains, one under way, and one that a tensor still holds.
BUFFERS_MAX = 24
# What the library could not let go of, and may still write to: held to the end of the process.
GIVEN_UP: list[object] = []


def let_go(held: object, name: str, *arguments: object) -> None:
    """Calls rudder_NAME, after which the library does not use what is held any more; an error raises, and keeps that for ever."""
    try:
        call(name, *arguments)
    except RudderError:
        GIVEN_UP.append(held)
        raise


class Pool:
    """Buffers of a comm: memory, and its registration's handle. A tensor keeps its memory alive by itself, and so outlives the comm."""

    def __init__(self, comm: c_void_p) -> None:
        self._comm, self._buffers = comm, 0
        self._free: list[tuple[np.ndarray, c_void_p]] = []

    def take(self, rows: int, tensor: DistTensor) -> tuple[th.Tensor, c_void_p]:
        """`rows` rows as `tensor` has them, and the registration at whose beginning they lie; RudderError where there is no buffer."""
        wanted = rows * row_bytes_of(tensor)
        at = next((at for at, (memory, _) in enumerate(self._free) if wanted <= len(memory)), None)
        buffer = self._new(wanted) if at is None else self._free.pop(at)
        memory = buffer[0][:wanted]
        # All views of the tensor hold `memory`; with the last of them it goes, and the buffer is free.
        weakref.finalize(memory, self._free.append, buffer).atexit = False
        return th.from_numpy(memory).view(tensor.dtype).view(rows, *tensor.shape[1:]), buffer[1]

    def _new(self, wanted: int) -> tuple[np.ndarray, c_void_p]:
        if self._buffers == BUFFERS_MAX:
            if not self._free:
                raise RudderError(FULL, f"tensors of earlier minibatches hold all {BUFFERS_MAX} registered buffers: drop some")
            memory, registration = self._free.pop(0)
            let_go(memory, "registration_destroy", registration)
            self._buffers -= 1
        # Minibatches differ somewhat.
        memory = np.empty(wanted + wanted // 4, np.uint8)
        registration = made("registration_create", self._comm, memory.ctypes.data, len(memory))
        self._buffers += 1
        return memory, registration


class Request:
    """A gather under way, of `nodes` (int64) from a table into `rows`, which lie at the beginning of a registration."""

    def __init__(self, table: c_void_p, nodes: th.Tensor, ticket: int, rows: th.Tensor, registration: c_void_p) -> None:
        self._tensor, self._request = rows, c_void_p()
        self._rows = made("registration_rows", registration, 0, len(nodes), rows[0].numel() * rows.element_size())
        try:
            self._request = made("request_start", table, nodes.data_ptr(), len(nodes), ticket, self._rows)
        except RudderError:
            self.end()
            raise

    def wait(self) -> th.Tensor:
        """The rows, when they are there; the request is given back."""
        try:
            call("request_wait", self._request)
        finally:
            self.end()
        return self._tensor

    def end(self) -> None:
        """Gives the request back; one that is open is aborted. Memory that the library has given up with it is not used again."""
        with contextlib.suppress(RudderError):
            let_go(self._tensor, "request_destroy", self._request)
            # An error where the memory went with the request.
            let_go(self._tensor, "rows_data", self._rows, byref(c_void_p()), byref(c_uint64()))
            call("rows_destroy", self._rows)
