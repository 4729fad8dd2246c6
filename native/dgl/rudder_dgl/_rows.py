"""Memory for gathered rows: registered with the library once, and used again when no tensor is left of what was there.

Rows arrive in it without a copy on the way, and its pages are there already.
"""

from __future__ import annotations

import contextlib
import weakref
from ctypes import c_void_p

import numpy as np
import torch as th

from ._native import RudderError, call, made

# All features together: for each a minibatch that trains, one under way, and one that a tensor still holds.
BUFFERS_MAX = 24


class Pool:
    """Buffers of a comm. A tensor keeps its memory alive by itself, and so outlives the comm."""

    def __init__(self, comm: c_void_p) -> None:
        self._comm, self._buffers = comm, 0
        # Memory, and the handle of its registration.
        self._free: list[tuple[np.ndarray, c_void_p]] = []

    def take(self, rows: int, shape: tuple[int, ...], dtype: th.dtype) -> tuple[th.Tensor, c_void_p] | None:
        """A tensor of `rows` rows, and the registration at whose beginning it lies; None where there is no buffer."""
        wanted = rows * int(np.prod(shape, dtype=np.int64)) * th.empty((), dtype=dtype).element_size()
        fitting = (at for at, (memory, _) in enumerate(self._free) if wanted <= len(memory))
        if (at := next(fitting, None)) is not None:
            buffer = self._free.pop(at)
        elif wanted == 0 or (buffer := self._new(wanted)) is None:
            return None
        memory = buffer[0][:wanted]
        # All views of the tensor hold `memory`; with the last of them it goes, and the buffer is free.
        weakref.finalize(memory, self._free.append, buffer).atexit = False
        return th.from_numpy(memory).view(dtype).view(rows, *shape), buffer[1]

    def _new(self, wanted: int) -> tuple[np.ndarray, c_void_p] | None:
        with contextlib.suppress(RudderError, IndexError):
            if self._buffers == BUFFERS_MAX:
                call("registration_destroy", self._free.pop(0)[1])
                self._buffers -= 1
            # Minibatches differ somewhat.
            memory = np.empty(wanted + wanted // 4, np.uint8)
            registration = made("registration_create", self._comm, memory.ctypes.data, len(memory))
            self._buffers += 1
            return memory, registration
        return None


class Request:
    """A gather under way, of `nodes` (int64) from a table into `rows`, which lie at the beginning of a registration."""

    def __init__(self, table: c_void_p, nodes: th.Tensor, ticket: int, rows: th.Tensor, registration: c_void_p) -> None:
        row_bytes = rows[0].numel() * rows.element_size()
        self._tensor, self._request = rows, c_void_p()
        self._rows = made("registration_rows", registration, 0, len(nodes), row_bytes)
        try:
            self._request = made("request_start", table, nodes.data_ptr(), len(nodes), ticket, self._rows)
        except RudderError:
            self.end()
            raise

    def wait(self) -> th.Tensor:
        """The rows, when they are there."""
        call("request_wait", self._request)
        return self._tensor

    def end(self) -> None:
        """Gives the request back; one that is open is aborted."""
        call("request_destroy", self._request)
        call("rows_destroy", self._rows)
