"""Memory for gathered rows: registered once, so that rows come without a copy, and used again when no tensor is left of what was there."""

import contextlib
import mmap
import weakref
from collections import deque
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


def unpin(stream: th.cuda.Stream, address: int) -> None:
    """Undoes `Device.pin` before the memory is freed, and once the stream copies nothing any more."""
    stream.synchronize()
    th.cuda.check_error(th.cuda.cudart().cudaHostUnregister(address))


class Device:
    """A CUDA device, with a stream for copies; any other gets rows by a plain copy, and in main memory they stay what they are."""

    def __init__(self, device: th.device) -> None:
        self._device, self._copies = device, deque()
        self._stream = th.cuda.Stream(device) if device.type == "cuda" else None

    def pin(self, memory: np.ndarray) -> None:
        """Has the device read the memory by itself, as long as that lives; RuntimeError where it cannot."""
        if self._stream:
            th.cuda.check_error(th.cuda.cudart().cudaHostRegister(memory.ctypes.data, len(memory), 0))
            weakref.finalize(memory, unpin, self._stream, memory.ctypes.data).atexit = False

    def copy(self, rows: th.Tensor) -> th.Tensor:
        """The rows on the device, for the stream that computes: it waits for them, and the processor does not. They are held until then."""
        if self._stream is None:
            return rows.to(self._device)
        computing = th.cuda.current_stream(self._device)
        with th.cuda.stream(self._stream):
            copied = th.empty_like(rows, device=self._device).copy_(rows, non_blocking=True)
            self._copies.append((self._stream.record_event(), rows))
        computing.wait_event(self._copies[-1][0])
        # Else torch would give the memory to the next copy while it is still computed with.
        copied.record_stream(computing)
        return copied

    def settle(self) -> None:
        """Lets go of rows whose copies are over."""
        while self._copies and self._copies[0][0].query():
            self._copies.popleft()


class Pool:
    """A comm's buffers for a device: memory, and its registration's handle. A tensor keeps its memory alive, and so outlives the comm."""

    def __init__(self, comm: c_void_p, device: th.device) -> None:
        self.device, self._comm, self._buffers, self._free = Device(device), comm, 0, list[tuple[np.ndarray, c_void_p]]()

    def take(self, rows: int, tensor: DistTensor) -> tuple[th.Tensor, c_void_p]:
        """`rows` rows as `tensor` has them, and the registration at whose beginning they lie; RuntimeError where there is no buffer."""
        self.device.settle()
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
        # Minibatches differ somewhat. Whole pages, which is what can be pinned.
        memory = np.frombuffer(mmap.mmap(-1, wanted + wanted // 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        self.device.pin(memory)
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
