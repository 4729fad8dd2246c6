"""librudder.so by ctypes: what the adapter calls of native/include/rudder.h.

ctypes gives up the interpreter's lock while the library works, so that other threads of a trainer go on during a gather.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

ABI_VERSION = 1
UNIQUE_ID_BYTES = 64
# Statuses: this ticket will not do; and where those end that only say that a call was wrong.
TICKET, ARGUMENTS_END = -5, -99


class RudderError(RuntimeError):
    """A call of the library failed; `status` is its number in rudder.h, the text says why and what to do."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class UniqueId(ctypes.Structure):
    _fields_ = [("bytes", c_uint8 * UNIQUE_ID_BYTES)]


class Config(ctypes.Structure):
    _fields_ = [("struct_size", c_uint64), ("settings", c_char_p)]


class TableSpec(ctypes.Structure):
    """rudder_table_spec; the lists are copied, the rows are used in place."""

    _fields_ = [
        ("struct_size", c_uint64),
        ("id", c_uint32),
        ("partition", c_uint32),
        ("partitions", c_uint32),
        ("starts", c_void_p),
        ("row_bytes", c_uint64),
        ("version", c_uint64),
        ("rows", c_void_p),
        ("bytes", c_uint64),
        ("path", c_char_p),
        ("halo", c_void_p),
        ("degree", c_void_p),
        ("halo_nodes", c_uint64),
        ("edges", c_uint64),
    ]


COUNTS = """row_bytes minibatches remote_nodes hits demand_rows prefetched_rows fill_rows retried_rows local_rows buffer_slots
    buffer_bytes buffer_admissions buffer_replacements buffer_evictions buffer_useless""".split()


class TableStats(ctypes.Structure):
    _fields_ = [(name, c_uint64) for name in ["struct_size", *COUNTS]]


SIGNATURES: dict[str, list[Any]] = {
    "rudder_unique_id_create": [c_char_p, POINTER(UniqueId)],
    "rudder_comm_create": [POINTER(UniqueId), c_uint32, c_uint32, POINTER(Config), POINTER(c_void_p)],
    "rudder_comm_start": [c_void_p],
    "rudder_comm_abort": [c_void_p],
    "rudder_comm_shutdown": [c_void_p],
    "rudder_comm_pause": [c_void_p, c_int32],
    "rudder_comm_destroy": [c_void_p],
    "rudder_table_create": [c_void_p, POINTER(TableSpec), POINTER(c_void_p)],
    "rudder_table_stats": [c_void_p, POINTER(TableStats)],
    "rudder_announce": [c_void_p, c_uint32, POINTER(c_void_p), c_uint32, c_void_p, c_uint64, POINTER(c_uint64)],
    "rudder_forget": [c_void_p, c_uint64],
    "rudder_gather": [c_void_p, c_void_p, c_uint64, c_uint64, c_void_p, c_uint64],
}

_library: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """The library: the file that RUDDER_LIBRARY names, or the one in this package, or the one that the system's loader finds.

    Raises RudderError where there is none, or one of another ABI.
    """
    global _library
    if _library is None:
        packaged = Path(__file__).with_name("librudder.so")
        path = os.environ.get("RUDDER_LIBRARY") or (str(packaged) if packaged.exists() else "librudder.so")
        try:
            found = ctypes.CDLL(path)
            found.rudder_abi_version.restype = c_uint32
            if (version := found.rudder_abi_version()) != ABI_VERSION:
                raise OSError(f"it speaks version {version} of the ABI, this package {ABI_VERSION}")
            found.rudder_last_error.restype = c_char_p
            for name, arguments in SIGNATURES.items():
                getattr(found, name).argtypes = arguments
                getattr(found, name).restype = c_int32
        except (OSError, AttributeError) as error:
            raise RudderError(0, f"{path}: {error}; install the wheel of this release, or name its library in RUDDER_LIBRARY") from error
        _library = found
    return _library


def call(name: str, *arguments: Any) -> None:
    """Calls a function of the library; raises RudderError where it fails."""
    status = getattr(library(), name)(*arguments)
    if status < 0:
        raise RudderError(status, library().rudder_last_error().decode(errors="replace"))


def unique_id(address: str) -> bytes:
    """A new job's id, by which its ranks find this process, rank 0, at the IP address `address` of this machine."""
    made = UniqueId()
    call("rudder_unique_id_create", address.encode(), byref(made))
    return bytes(made.bytes)


class Table:
    """Rows that every rank can gather."""

    def __init__(self, handle: c_void_p, row_bytes: int) -> None:
        self.handle, self.row_bytes = handle, row_bytes

    def gather(self, nodes: int, count: int, ticket: int, rows: int) -> None:
        """Gathers the rows of the `count` int64 ids at address `nodes` into as many rows at address `rows`; ticket 0 is none."""
        call("rudder_gather", self.handle, nodes, count, ticket, rows, count * self.row_bytes)

    def stats(self) -> dict[str, int]:
        """What the library has counted, as rudder_table_stats in rudder.h says."""
        counted = TableStats(struct_size=ctypes.sizeof(TableStats))
        call("rudder_table_stats", self.handle, byref(counted))
        return {name: getattr(counted, name) for name in COUNTS}


class Comm:
    """This process as rank `rank` of a job. All ranks make one, add the same tables, and start it; the first and the last are collective."""

    def __init__(self, job: bytes, ranks: int, rank: int, settings: dict[str, Any]) -> None:
        self.handle = c_void_p()
        made = UniqueId((c_uint8 * UNIQUE_ID_BYTES)(*job))
        config = Config(ctypes.sizeof(Config), json.dumps(settings).encode())
        call("rudder_comm_create", byref(made), ranks, rank, byref(config), byref(self.handle))

    def table(self, spec: TableSpec) -> Table:
        """Adds a table. Its rows must stay valid until `destroy`."""
        spec.struct_size = ctypes.sizeof(TableSpec)
        handle = c_void_p()
        call("rudder_table_create", self.handle, byref(spec), byref(handle))
        return Table(handle, spec.row_bytes)

    def announce(self, stream: int, tables: Sequence[Table], nodes: int, count: int) -> int:
        """Says that the `count` int64 ids at address `nodes` will be gathered from these tables. Returns the ticket."""
        handles, ticket = (c_void_p * len(tables))(*(table.handle for table in tables)), c_uint64()
        call("rudder_announce", self.handle, stream, handles, len(tables), nodes, count, byref(ticket))
        return ticket.value

    def destroy(self) -> None:
        """Gives back all that the comm has, whatever state it is in."""
        handle, self.handle = self.handle, c_void_p()
        call("rudder_comm_destroy", handle)
