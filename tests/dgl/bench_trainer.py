"""Server and trainer of the adapter's benchmark: one DistDGL job, in which all systems take turns on the same recorded minibatches.

    bench_trainer.py PLAN      PLAN is a JSON file that bench.py writes; each trainer writes its part of the answer beside it

An epoch is fetching and training; sampling is recorded before, timed apart, and the same for all systems. No two epochs of a turn are of
one sample: the first warms up, those of the plan are measured, and the tail, whose rows are compared with the KVStore's after their clock
has stopped, leaves as many minibatches to look ahead at as there ever are.

Nothing is bound to a core: torch has as many threads with each system as the plan says, so that what a language model computes on while it
decides, DistDGL has to itself in its turn.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import random
import socket
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dgl
import dgl.distributed
import rudder_dgl
import torch as th
import torch.nn.functional as F
from dgl.distributed import DistGraph, DistTensor
from dgl.distributed.kvstore import KVClient
from dgl.nn import GATConv, SAGEConv
from rudder_dgl import _native

# Of the plan's systems, those without the library.
BASELINES = ("distdgl", "distdgl-overlap")
# Settings of the library by system; `default` is attach(g) as it comes, whose controller is `analytic` where it has one feature. What has no
# buffer keeps nothing; `landing` has one that only takes what was gathered ahead, whose rows serve until others overwrite them.
SETTINGS = {
    "off": {"policy": "off", "buffer": 0.0},
    "landing": {"policy": "off"},
    "fixed": {"policy": "degree"},
    "periodic": {"policy": "rudder", "controller": "periodic:16"},
    "llm": {"policy": "rudder", "controller": "llm-replace"},
    "lfu": {"policy": "lfu", "controller": "off"},
    "window": {"policy": "window", "controller": "off"},
    "analytic": {"policy": "window"},
}
STREAM_PORT = 30300
# More than any of the graphs has.
CLASSES = 64
MODEL_LOAD_MAX_S = 120
# The share of all processor time that other programs may take while a system is measured, and how long they are watched before.
OTHERS_MAX = 0.05
WATCH_S = 0.5
DECISIONS = """decisions replace_decisions fallback_decisions fallbacks dropped_observations skipped_observations decision_ns_p50
    decision_ns_p99 decision_ns_max model_load_ns model_cpu_ns""".split()


class Decisions(ctypes.Structure):
    """rudder_comm_counts; the names of transport and controller are one field here."""

    _fields_ = [*((name, ctypes.c_uint64) for name in ("struct_size", *DECISIONS)), ("names", ctypes.c_char * 64)]


class Network(th.nn.Module):
    """Two layers of GraphSAGE or GAT."""

    def __init__(self, kind: str, inputs: int) -> None:
        super().__init__()
        if kind == "sage":
            layers = [SAGEConv(inputs, 128, "mean"), SAGEConv(128, CLASSES, "mean")]
        else:
            layers = [GATConv(inputs, 32, 4, allow_zero_in_degree=True), GATConv(128, CLASSES, 1, allow_zero_in_degree=True)]
        self.layers = th.nn.ModuleList(layers)

    def forward(self, blocks: list[dgl.DGLGraph], rows: th.Tensor) -> th.Tensor:
        """One row of scores a seed."""
        hidden = F.relu(self.layers[0](blocks[0], rows)).flatten(1)
        return self.layers[1](blocks[1], hidden).flatten(1)


class Bench:
    """A trainer's part."""

    def __init__(self, plan: dict) -> None:
        self.plan, self.patience_s = plan, plan["patience_s"]
        self.g = DistGraph("graph")
        self.rank, self.ranks = th.distributed.get_rank(), th.distributed.get_world_size()
        self.feature: DistTensor = self.g.ndata[f"feat{plan['dim']}"]
        self.name = self.feature.kvstore_key

    def record(self) -> None:
        """Samples all epochs of a turn, and keeps them with their labels, the remote rows of an epoch and the digests of the tail."""
        book = self.g.get_partition_book()
        mine = dgl.distributed.node_split(self.g.ndata["train_mask"], book, force_even=True)
        sampler = dgl.dataloading.NeighborSampler([10, 25])
        loader = dgl.dataloading.DistNodeDataLoader(self.g, mine, sampler, batch_size=self.plan["batch"], shuffle=True)
        th.distributed.barrier()
        began = time.perf_counter()
        batches = list(loader)
        self.per_epoch, kept = len(batches), 1 + self.plan["epochs"]
        depth = max(lookahead for _, lookahead in self.plan["systems"])
        # The tail is whole epochs, so that every trainer comes to the same barriers.
        epochs = kept + max(1, -(-depth // self.per_epoch))
        for _ in range(1, epochs):
            batches += loader
        self.sample_s = (time.perf_counter() - began) / epochs
        self.batches = [(nodes, self.g.ndata["labels"][seeds], blocks) for nodes, seeds, blocks in batches]
        self.measured = slice(self.per_epoch, kept * self.per_epoch)
        remote = [int((book.nid2partid(nodes) != book.partid).sum()) for nodes, _, _ in batches[self.measured]]
        self.remote_rows = sum(remote) / self.plan["epochs"]
        tail = batches[self.measured.stop :]
        self.digests = [self.digest(KVClient.pull(self.g._client, self.name, nodes)) for nodes, _, _ in tail]

    @staticmethod
    def digest(rows: th.Tensor) -> bytes:
        """Of all bytes of the rows."""
        return hashlib.blake2b(rows.numpy(), digest_size=16).digest()

    def fetched(self, system: str, lookahead: int) -> Iterator[tuple[tuple, th.Tensor, float]]:
        """Each minibatch, its rows, and the seconds that the trainer has waited for them."""
        if system == "distdgl-overlap":
            yield from self.overlapped()
            return
        began = time.perf_counter()
        for batch in rudder_dgl.ahead(self.batches, lookahead) if lookahead else self.batches:
            rows = self.feature[batch[0]]
            yield batch, rows, time.perf_counter() - began
            began = time.perf_counter()

    def overlapped(self) -> Iterator[tuple[tuple, th.Tensor, float]]:
        """The KVStore, with the next minibatch's rows on their way while this one trains."""
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self.feature.__getitem__, self.batches[0][0])
            for at, batch in enumerate(self.batches):
                began = time.perf_counter()
                rows = coming.result()
                if at + 1 < len(self.batches):
                    coming = thread.submit(self.feature.__getitem__, self.batches[at + 1][0])
                yield batch, rows, time.perf_counter() - began

    def received_bytes(self) -> int:
        """Bytes that this machine's network card has received."""
        line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("eth0:"))
        return int(line.split()[1])

    def attached(self, system: str) -> rudder_dgl.Attachment | None:
        """Attaches what a system takes, with its model loaded."""
        if system in BASELINES:
            return None
        if system == "default":
            return rudder_dgl.attach(self.g)
        attachment = rudder_dgl.attach(self.g, features=[self.feature], **{"buffer": self.plan["buffer"], **SETTINGS[system]})
        deadline = time.monotonic() + MODEL_LOAD_MAX_S
        while system == "llm" and not decisions_of(attachment)["model_load_ns"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the model was not loaded within {MODEL_LOAD_MAX_S} s")
            time.sleep(0.05)
        return attachment

    def undisturbed(self, system: str, lookahead: int) -> dict:
        """The same as `run`, when other programs leave the machine alone, and again if they did not meanwhile: as long as the job's patience
        lasts, whose seconds are those of waiting and of runs that are not counted."""
        again = th.ones(1)
        while again:
            if self.rank == 0:
                self.wait_for_others()
            th.distributed.barrier()
            began = time.monotonic()
            answer = self.run(system, lookahead)
            took = time.monotonic() - began
            # All machines are this one: rank 0 sees for all.
            again = th.tensor(float(answer["others"] > OTHERS_MAX and took < self.patience_s))
            th.distributed.broadcast(again, 0)
            if again:
                self.patience_s -= took
        return answer

    def wait_for_others(self) -> None:
        """Waits until other programs leave the machine alone."""
        while self.patience_s > 0:
            before = Processors()
            time.sleep(WATCH_S)
            if before.others_until_now() < OTHERS_MAX:
                return
            self.patience_s -= WATCH_S

    def run(self, system: str, lookahead: int) -> dict:
        """Trains an epoch to warm up, the measured ones, and the tail, all of whose rows it compares with the KVStore's."""
        attachment = self.attached(system)
        th.manual_seed(7)
        model = th.nn.parallel.DistributedDataParallel(Network(self.plan["model"], self.plan["dim"]))
        optimizer = th.optim.Adam(model.parameters(), 3e-3)
        epoch_s, fetch_s, wire, rows_so_far, exact = [], [], [], [], True
        th.distributed.barrier()
        began, waited, received = time.perf_counter(), 0.0, self.received_bytes()
        for at, ((_, labels, blocks), rows, wait_s) in enumerate(self.fetched(system, lookahead)):
            waited += wait_s
            if at >= self.measured.stop:
                exact = exact and self.digest(rows) == self.digests[at - self.measured.stop]
            loss = F.cross_entropy(model(blocks, rows), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (at + 1) % self.per_epoch == 0:
                th.distributed.barrier()
                now, so_far = time.perf_counter(), self.received_bytes()
                epoch_s.append(now - began)
                fetch_s.append(waited)
                wire.append(so_far - received)
                rows_so_far.append(self.rows_fetched(attachment))
                if at + 1 == self.measured.start:
                    processors = Processors()
                if at + 1 == self.measured.stop:
                    others = processors.others_until_now()
                began, waited, received = time.perf_counter(), 0.0, so_far
        decided = decisions_of(attachment) if system == "llm" else {}
        rudder_dgl.detach()
        epochs = self.plan["epochs"]
        fetched = (rows_so_far[epochs] - rows_so_far[0]) / epochs if attachment else self.remote_rows
        answer = {"system": system, "lookahead": lookahead, "exact": exact, "rows_fetched": fetched, "others": others, **decided}
        measured = slice(1, 1 + epochs)
        return {**answer, "epoch_s": epoch_s[measured], "fetch_s": fetch_s[measured], "wire_bytes": statistics.median(wire[measured])}

    def rows_fetched(self, attachment: rudder_dgl.Attachment | None) -> int:
        """Rows that the library has fetched so far."""
        if attachment is None:
            return 0
        counted = attachment.stats()["features"][self.name]
        return counted["demand_rows"] + counted["prefetched_rows"] + counted["fill_rows"]

    def alone(self) -> list[dict]:
        """Fetches random remote rows while nothing else runs: the KVStore, the library without a buffer and a plain stream, in turns."""
        starts = self.g.get_partition_book()._max_node_ids
        own_first = 0 if self.rank == 0 else int(starts[self.rank - 1])
        stream = Stream(self.rank, self.plan["addresses"])
        rudder_dgl.attach(self.g, features=[self.feature], **SETTINGS["off"])
        answers = []
        for count in self.plan["alone"]:
            times: dict[str, list[float]] = {"kvstore": [], "rudder": [], "stream": []}
            th.distributed.barrier()
            if self.rank == 0:
                drawn, order = th.Generator().manual_seed(count), random.Random(count)
                for _ in range(5 + self.plan["turns"]):
                    assert own_first == 0
                    # What one leaves running, such as the KVStore's server after its answer, falls upon all others alike.
                    for way, seconds in order.sample(list(times.items()), len(times)):
                        # Anew for each way: the second to read the same rows would find them in the owner's cache.
                        nodes = th.randint(int(starts[0]), int(starts[-1]), (count,), generator=drawn)
                        began = time.perf_counter()
                        if way == "kvstore":
                            KVClient.pull(self.g._client, self.name, nodes)
                        elif way == "rudder":
                            self.feature[nodes]
                        else:
                            stream.read(count * 4 * self.plan["dim"])
                        seconds.append(time.perf_counter() - began)
                medians = {f"{way}_s": statistics.median(seconds[5:]) for way, seconds in times.items()}
                answers.append({"rows": count, "dim": self.plan["dim"], **medians})
            th.distributed.barrier()
        stream.close()
        rudder_dgl.detach()
        return answers


def decisions_of(attachment: rudder_dgl.Attachment) -> dict[str, int]:
    """What the library has counted of its controller."""
    counted = Decisions(struct_size=ctypes.sizeof(Decisions))
    _native.call("comm_stats", attachment._comm, ctypes.byref(counted))
    return {name: getattr(counted, name) for name in DECISIONS}


class Processors:
    """How busy the machine is, by other programs than those of this benchmark, which alone are seen in its namespace of processes."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        # Ticks that programs have computed, without the system's own work for them.
        self._all = int(Path("/proc/stat").read_text().split(maxsplit=2)[1])
        self._ours = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                self._ours += int(stat.read_text().rpartition(")")[2].split()[11])

    def others_until_now(self) -> float:
        """The share of all processors' time that others have taken since."""
        now = Processors()
        ticks = (now._all - self._all) - (now._ours - self._ours)
        return ticks / os.sysconf("SC_CLK_TCK") / (now.began - self.began) / (os.cpu_count() or 1)


class Stream:
    """One plain socket stream from rank 1 to rank 0: bytes as fast as they come."""

    def __init__(self, rank: int, addresses: list[str]) -> None:
        self._socket: socket.socket | None = None
        if rank == 1:
            listener = socket.create_server((addresses[1], STREAM_PORT))
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
        th.distributed.barrier()
        if rank == 0:
            self._socket = socket.create_connection((addresses[1], STREAM_PORT))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._memory = memoryview(bytearray(64 << 20))

    @staticmethod
    def _serve(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        memory = memoryview(bytearray(64 << 20))
        while wanted := peer.recv(8, socket.MSG_WAITALL):
            peer.sendall(memory[: int.from_bytes(wanted, "little")])

    def read(self, count: int) -> None:
        """Asks for so many bytes and takes them in, up to 64 MiB."""
        assert self._socket is not None
        self._socket.sendall(count.to_bytes(8, "little"))
        self._socket.recv_into(self._memory, count, socket.MSG_WAITALL)

    def close(self) -> None:
        """Ends the stream."""
        if self._socket is not None:
            self._socket.close()


def main() -> None:
    """Carries the plan out."""
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])
    path = Path(sys.argv[1])
    plan = json.loads(path.read_text())
    th.set_num_threads(plan["threads"])
    th.distributed.init_process_group("gloo")
    try:
        bench = Bench(plan)
        answer: dict = {}
        if plan["alone"]:
            answer["alone"] = bench.alone()
        if plan["systems"]:
            bench.record()
            answer |= {"sample_s": bench.sample_s, "remote_rows": bench.remote_rows, "minibatches": bench.per_epoch}
            answer["runs"] = [
                bench.undisturbed(system, lookahead)
                for turn in range(plan["rounds"])
                for system, lookahead in (plan["systems"] if turn % 2 == 0 else reversed(plan["systems"]))
            ]
        path.with_suffix(f".{bench.rank}.json").write_text(json.dumps(answer))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    th.distributed.barrier()


if __name__ == "__main__":
    main()
