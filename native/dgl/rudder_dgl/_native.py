"""What the adapter calls of native/include/rudder.h, by ctypes, which gives up the interpreter's lock meanwhile: other threads go on."""

import ctypes
import functools
import os
from ctypes import c_char_p, c_int32, c_uint32, c_uint64, c_void_p
from pathlib import Path

ABI_VERSION, UNIQUE_ID_BYTES = 1, 64
# Statuses: something is full for now; and where those end that only say that a call was wrong.
FULL, ARGUMENTS_END = -6, -99

# Functions without rudder_ and their arguments, a struct and its fields, by letter: pointer or handle, text, numbers of 32 and 64 bits.
LETTERS = {"p": c_void_p, "s": c_char_p, "i": c_int32, "u": c_uint32, "n": c_uint64}
FUNCTIONS = """unique_id_create:pp comm_create:puupp comm_start:p comm_shutdown:p comm_pause:pi comm_mark_epoch_end:p comm_destroy:p
    table_create:ppp table_stats:pp announce:pupupnp forget:pn gather:ppnnpn registration_create:ppnp registration_rows:pnnnp
    registration_destroy:p rows_data:ppp rows_destroy:p request_start:ppnnpp request_wait:p request_destroy:p""".split()
SPEC = """struct_size:n id:u partition:u partitions:u starts:p row_bytes:n version:n rows:p bytes:n path:s halo:p degree:p halo_nodes:n
    edges:n""".split()
COUNTS = """row_bytes minibatches remote_nodes hits demand_rows prefetched_rows fill_rows retried_rows local_rows buffer_slots
    buffer_bytes buffer_admissions buffer_replacements buffer_evictions buffer_useless failovers""".split()


class RudderError(RuntimeError):
    """A call of the library failed; `status` is its number in rudder.h, the text says why and what to do."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Config(ctypes.Structure):
    _fields_ = [("struct_size", c_uint64), ("settings", c_char_p)]


class TableSpec(ctypes.Structure):
    _fields_ = [(name, LETTERS[letter]) for name, letter in (field.split(":") for field in SPEC)]


class TableStats(ctypes.Structure):
    _fields_ = [(name, c_uint64) for name in ["struct_size", *COUNTS]]


@functools.cache
def library() -> ctypes.CDLL:
    """RUDDER_LIBRARY's file, or the one in this package, or the system loader's; RudderError where there is none, or of another ABI."""
    packaged = Path(__file__).with_name("librudder.so")
    path = os.environ.get("RUDDER_LIBRARY") or (str(packaged) if packaged.exists() else "librudder.so.1")
    try:
        found = ctypes.CDLL(path)
        if (version := found.rudder_abi_version()) != ABI_VERSION:
            raise OSError(f"it speaks version {version} of the ABI, this package {ABI_VERSION}")
        for name, letters in (function.split(":") for function in FUNCTIONS):
            getattr(found, f"rudder_{name}").argtypes = [LETTERS[letter] for letter in letters]
        found.rudder_last_error.restype = c_char_p
    except (OSError, AttributeError) as error:
        raise RudderError(0, f"{path}: {error}; install the wheel, or name its library in RUDDER_LIBRARY") from error
    return found


def call(name: str, *arguments: object) -> None:
    """Calls rudder_NAME; raises RudderError where it fails."""
    status = getattr(library(), f"rudder_{name}")(*arguments)
    if status < 0:
        raise RudderError(status, library().rudder_last_error().decode(errors="replace"))


def made(name: str, *arguments: object) -> c_void_p:
    """Calls rudder_NAME, whose last argument takes a handle, and gives that."""
    handle = c_void_p()
    call(name, *arguments, ctypes.byref(handle))
    return handle


def counts_of(table: c_void_p) -> dict[str, int]:
    """What the library has counted of a table, as rudder_table_stats says."""
    counted = TableStats(struct_size=ctypes.sizeof(TableStats))
    call("table_stats", table, ctypes.byref(counted))
    return {name: getattr(counted, name) for name in COUNTS}
