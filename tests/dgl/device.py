"""Goal: rows are copied to a CUDA device out of pinned memory, on a stream of their own; the stream that computes waits for each copy, nothing
else does; and neither a buffer nor its pin goes before what reads it is over. No GPU is needed. Method: torch.cuda is replaced by streams
that keep what they are given until they are told to run, so that whatever comes too early reads or writes wrong bytes; comms of one rank.

    device.py
"""

import ctypes
import gc
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch as th
from rudder_dgl import _rows
from rudder_dgl._native import UNIQUE_ID_BYTES, RudderError, TableSpec, call, made
from torch.utils._python_dispatch import TorchDispatchMode

NODES, WIDTH, COUNT = 1000, 8, 300
DEVICE = types.SimpleNamespace(type="cuda")


class Event:
    """Has happened once its stream has come to it."""

    def __init__(self) -> None:
        self.happened = False

    def query(self) -> bool:
        """Whether it has happened."""
        return self.happened


class Stream:
    """Work in the order in which it was given, done when `run` is called."""

    def __init__(self, _: object = None) -> None:
        self.work: deque[Callable[[], bool]] = deque()

    def do(self, work: Callable[[], object]) -> None:
        """Gives it something to do."""
        self.work.append(lambda: work() is not False)

    def record_event(self) -> Event:
        """An event after all work so far."""
        event = Event()
        self.do(lambda: setattr(event, "happened", True))
        return event

    def wait_event(self, event: Event) -> None:
        """Holds all work to come until the event has happened."""
        self.do(event.query)

    def run(self) -> bool:
        """Works until all is done or it must wait; whether all is done."""
        while self.work and self.work[0]():
            self.work.popleft()
        return not self.work

    def synchronize(self) -> None:
        """Waits for all work."""
        assert self.run(), "the copying stream waits for something"


class Deferred(TorchDispatchMode):
    """Copies that are begun within it are made by a stream."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_dispatch__(self, function: object, _: object, arguments: tuple = (), named: dict | None = None) -> object:
        if function is not th.ops.aten.copy_.default:
            return function(*arguments, **(named or {}))
        to, rows, non_blocking = arguments
        assert non_blocking, "the processor would wait for the copy"
        # By the address, as a device reads: nothing of this keeps the rows.
        address, count = rows.data_ptr(), rows.numel() * rows.element_size()
        self.stream.do(lambda: ctypes.memmove(to.data_ptr(), address, count) and None)
        return to


class Cuda:
    """What the adapter uses of torch.cuda. order: pins, unpins, and which memory which stream was said to use."""

    Stream = Stream

    def __init__(self) -> None:
        self.computing, self.made, self.pinned, self.told = Stream(), [], {}, []
        self.refuses = False

    def make_stream(self, device: object) -> Stream:
        """A stream, kept to be run."""
        assert device is DEVICE
        self.made.append(Stream())
        return self.made[-1]

    def current_stream(self, device: object) -> Stream:
        """The stream that computes."""
        assert device is DEVICE
        return self.computing

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Has a stream make the copies."""
        with Deferred(stream):
            yield

    def cudart(self) -> "Cuda":
        """Where memory is pinned."""
        return self

    def cudaHostRegister(self, address: int, count: int, flags: int) -> int:  # noqa: N802, CUDA's name
        """Pins memory."""
        assert address % 4096 == 0 and flags == 0
        if not self.refuses:
            self.pinned[address] = count
        return int(self.refuses)

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802, CUDA's name
        """Undoes it."""
        del self.pinned[address]
        return 0

    def check_error(self, status: int) -> None:
        """Raises what torch does."""
        if status:
            raise RuntimeError(f"CUDA error {status}")


@contextmanager
def pool() -> Iterator[tuple[Cuda, _rows.Pool, ctypes.c_void_p, np.ndarray]]:
    """A pool for the fake device, over a table of one rank whose rows are given too."""
    features = np.arange(NODES * WIDTH, dtype=np.float32).reshape(NODES, WIDTH)
    identity, starts = ctypes.create_string_buffer(UNIQUE_ID_BYTES), np.array([0, NODES])
    call("unique_id_create", None, identity)
    comm = made("comm_create", identity, 1, 0, None)
    spec = TableSpec(struct_size=ctypes.sizeof(TableSpec), partitions=1, starts=starts.ctypes.data, row_bytes=4 * WIDTH)
    spec.rows, spec.bytes = features.ctypes.data, features.nbytes
    table = made("table_create", comm, ctypes.byref(spec))
    call("comm_start", comm)
    cuda = Cuda()
    replaced = {name: getattr(cuda, name) for name in ("current_stream", "stream", "cudart", "check_error")}
    with mock.patch.multiple(th.cuda, Stream=cuda.make_stream, **replaced), mock.patch.object(
        th, "empty_like", lambda rows, device: th.zeros(rows.shape, dtype=rows.dtype)
    ), mock.patch.object(th.Tensor, "record_stream", lambda tensor, stream: cuda.told.append((tensor.data_ptr(), stream))):
        yield cuda, _rows.Pool(comm, DEVICE), table, features
    gc.collect()
    call("comm_destroy", comm)


TENSOR = types.SimpleNamespace(shape=(NODES, WIDTH), dtype=th.float32)


def gathered(rows: _rows.Pool, table: ctypes.c_void_p, seed: int) -> tuple[th.Tensor, th.Tensor, int]:
    """Random nodes, their rows on the device, and the address of the buffer that these came by."""
    nodes = th.randint(0, NODES, (COUNT,), generator=th.Generator().manual_seed(seed))
    pooled = rows.take(COUNT, TENSOR)
    address = pooled[0].data_ptr()
    request = _rows.Request(table, nodes, 0, *pooled)
    del pooled
    return nodes, rows.device.copy(request.wait()), address


def order() -> None:
    """Copies wait for nobody, computing waits for its copy, and a buffer is used again once its copy is over, not before."""
    with pool() as (cuda, rows, table, features):
        used, computed = [], []
        for seed in range(4):
            nodes, copied, address = gathered(rows, table, seed)
            expected = features[nodes.numpy()]
            cuda.computing.do(lambda copied=copied, expected=expected: computed.append(np.array_equal(copied.numpy(), expected)) or None)
            assert cuda.told[-1] == (copied.data_ptr(), cuda.computing), "torch may give the memory away too early"
            assert not copied.any() and not cuda.computing.run() and computed == [], "something was not waited for"
            used.append(address)
        assert len(set(used)) == 4, "a buffer was used again before its copy was over"
        (copying,) = cuda.made
        assert copying.run() and cuda.computing.run() and computed == [True] * 4
        *_, address = gathered(rows, table, 9)
        assert address in used, "a buffer whose copy is over was not used again"
        assert copying.run()
        del rows


def pins() -> None:
    """All buffers are pinned while they live; where a pin is refused there is no buffer, and what has none is copied all the same."""
    with pool() as (cuda, rows, table, _):
        *_, address = gathered(rows, table, 0)
        assert list(cuda.pinned) == [address] and cuda.pinned[address] >= COUNT * WIDTH * 4
        cuda.refuses = True
        try:
            rows.take(10 * COUNT, TENSOR)
            raise AssertionError("memory that cannot be pinned was given out")
        except RuntimeError as error:
            assert not isinstance(error, RudderError) and "CUDA error 1" in str(error), error
        plain = th.ones(3, WIDTH)
        copied = rows.device.copy(plain)
        assert cuda.made[0].run() and th.equal(copied, plain)
        del rows


def ends() -> None:
    """A pool that goes while copies are under way lets them end, and pins none of its memory any more."""
    with pool() as (cuda, rows, table, features):
        nodes, copied, _ = gathered(rows, table, 3)
        assert cuda.made[0].work and cuda.pinned
        del rows
        gc.collect()
        assert not cuda.pinned and not cuda.made[0].work
        assert np.array_equal(copied.numpy(), features[nodes.numpy()]), "the memory went before its copy was over"


def main() -> None:
    """Runs all."""
    for test in (order, pins, ends):
        test()
        print(f"ok {test.__name__}", flush=True)


if __name__ == "__main__":
    main()
