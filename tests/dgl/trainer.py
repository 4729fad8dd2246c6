"""Server and trainer of the adapter's tests; run.py says which job each scenario needs.

    trainer.py SCENARIO

Goal: whatever way a feature comes, its bytes are those that DGL's own KVStore gives, and nothing hangs. Method: every pull is compared
with `KVClient.pull`, which the adapter leaves as it is; each scenario ends at once, with status 1, where an assertion does not hold.
"""

import faulthandler
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import dgl
import dgl.distributed
import rudder_dgl
import torch as th
import torch.nn.functional as F
from dgl.distributed import DistGraph, DistTensor
from dgl.distributed.kvstore import KVClient
from dgl.nn import SAGEConv
from rudder_dgl._attach import FAILURES_MAX
from rudder_dgl._rows import BUFFERS_MAX, GIVEN_UP

EPOCHS = 2
DEPTH = 16
# Statuses of rudder.h.
FULL, HANDLE = -6, -8
# Deleting a DistTensor is collective, and the garbage collectors of two trainers keep no step.
KEPT: list[object] = []


def key(tensor: DistTensor) -> str:
    """The KVStore's name of a feature."""
    return tensor.kvstore_key


def check(g: DistGraph, tensor: DistTensor, nodes: th.Tensor) -> None:
    """Asserts that a pull of these nodes gives what the KVStore gives."""
    ours, theirs = tensor[nodes], KVClient.pull(g._client, key(tensor), nodes)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, (key(tensor), ours.dtype, ours.shape, theirs.shape)
    # By bytes: no number is equal to NaN.
    assert ours.numpy().tobytes() == theirs.numpy().tobytes(), f"{key(tensor)}: rows differ"


def check_batches(g: DistGraph, batches: Iterable[tuple], tensors: list[DistTensor]) -> int:
    """Checks these features of all batches; returns the number of batches."""
    count = 0
    for inputs, _, _ in batches:
        by_type = inputs if isinstance(inputs, dict) else {g.ntypes[0]: inputs}
        for tensor in tensors:
            check(g, tensor, by_type[tensor.part_policy.type_name])
        count += 1
    return count


@contextmanager
def refused(kind: type[Exception], words: str) -> Iterator[None]:
    """Asserts that what is within raises an error that says so."""
    try:
        yield
    except kind as error:
        assert words in str(error), f"expected {words!r} in {error!r}"
    else:
        raise AssertionError(f"nothing was raised, where {words!r} was expected")


def loader(g: DistGraph, batch: int = 100, ntype: str | None = None) -> dgl.dataloading.DistNodeDataLoader:
    """Shuffled minibatches of this trainer's training nodes."""
    mask = g.nodes[ntype].data["train_mask"] if ntype else g.ndata["train_mask"]
    mine = dgl.distributed.node_split(mask, g.get_partition_book(), ntype=ntype or "_N", force_even=True)
    return dgl.dataloading.DistNodeDataLoader(
        g, {ntype: mine} if ntype else mine, dgl.dataloading.NeighborSampler([5, 10]), batch_size=batch, shuffle=True
    )


def minibatches(attachment: rudder_dgl.Attachment) -> dict[str, int]:
    """By feature, the gathers that the buffer has learnt from."""
    return {name: counted["minibatches"] for name, counted in attachment.stats()["features"].items()}


def exact(g: DistGraph) -> None:
    """All float features, two epochs as one loop, every batch."""
    features = [g.nodes[ntype].data[name] for ntype in g.ntypes for name in sorted(g.nodes[ntype].data)]
    floats = [tensor for tensor in features if tensor.dtype.is_floating_point]
    attachment = rudder_dgl.attach(g, buffer=0.25)
    batches = loader(g, 25, "user" if len(g.ntypes) > 1 else None)
    loop = rudder_dgl.ahead(batches, DEPTH, epochs=EPOCHS)
    with epoch_ends(EPOCHS):
        count = check_batches(g, loop, floats)
    assert count == EPOCHS * batches.expected_idxs, count
    counted = attachment.stats()
    assert counted["served"] == count * len(floats) and counted["unannounced"] == 0, counted
    assert "fallbacks" not in counted and sorted(counted["features"]) == sorted(map(key, floats)), counted
    for name, of_feature in counted["features"].items():
        assert of_feature["minibatches"] == count and 0 < of_feature["hits"] <= of_feature["remote_nodes"], (name, of_feature)
    assert loop.epoch == EPOCHS - 1 and loop.depth_max == DEPTH and loop.not_announced == 0, vars(loop)
    assert loop.block_bytes == 0 < loop.block_bytes_max and loop.sampling_s > 0, vars(loop)
    rudder_dgl.detach()


def refusals(g: DistGraph) -> None:
    """What may not be attached is refused with its reason, and nothing is changed."""
    version, dgl.__version__ = dgl.__version__, "2.2.0"
    with refused(RuntimeError, "DGL 2.2.0 is not known"):
        rudder_dgl.attach(g)
    dgl.__version__ = version
    pull, KVClient.pull = KVClient.pull, lambda self, name, id_tensor, where: None
    with refused(RuntimeError, "is it patched?"):
        rudder_dgl.attach(g)
    KVClient.pull = pull
    with refused(ValueError, "no node type has a feature 'absent'"):
        rudder_dgl.attach(g, features=["absent"])
    policy = g.ndata["feat100"].part_policy
    embedding = dgl.distributed.DistEmbedding(g.num_nodes(), 8, name="embedding", part_policy=policy)
    KEPT.append(embedding)
    with refused(ValueError, "was made by the trainers"):
        rudder_dgl.attach(g, features=[embedding._tensor])
    with refused(RuntimeError, "no graph is attached"):
        rudder_dgl.ahead([], DEPTH)
    assert "pull" not in g._client.__dict__


def dry_run(g: DistGraph) -> None:
    """A dry run changes no pull, and tells what it has seen."""
    observed = rudder_dgl.attach(g, buffer=0.25, features=["feat100"], dry_run=True)
    check_batches(g, rudder_dgl.ahead(loader(g), DEPTH), [g.ndata["feat100"]])
    (line,) = observed.report()
    assert "node~_N~feat100" in line and "would save about" in line and " 0 remote rows" not in line, line
    counted = observed.stats()["features"]["node~_N~feat100"]
    assert 0 < counted["saved_rows"] < counted["remote_rows"] and counted["row_bytes"] == 400, counted
    rudder_dgl.detach()
    assert "pull" not in g._client.__dict__


def read_only(g: DistGraph, attachment: rudder_dgl.Attachment) -> None:
    """Writes to attached names raise before anything is sent; others go on."""
    node, feature = th.zeros(1, dtype=th.int64), g.ndata["feat100"]
    before = KVClient.pull(g._client, key(feature), node)
    with refused(RuntimeError, "read-only on every rank"):
        feature[node] = th.full((1, 100), 7.0)
    assert th.equal(KVClient.pull(g._client, key(feature), node), before)
    assert attachment.stats()["refused_pushes"] == 1
    made = DistTensor((g.num_nodes(), 3), th.float32, name="made", part_policy=feature.part_policy)
    KEPT.append(made)
    made[node] = th.ones(1, 3)
    assert th.equal(made[node], th.ones(1, 3))
    th.distributed.barrier()


def odd_ids(g: DistGraph) -> None:
    """Ids that no sampler gives: none, far from the halo, twice, backwards, with gaps in memory; and those that are not there."""
    feature, nodes = g.ndata["half"], g.num_nodes()
    drawn = th.randint(0, nodes, (500,))
    for ids in (drawn[:0], drawn, drawn.sort().values.flip(0), drawn.repeat(2), drawn[::3], th.tensor([nodes - 1, 0])):
        check(g, feature, ids)
    with refused(rudder_dgl.RudderError, str(nodes)):
        feature[th.tensor([0, nodes])]


def broken_loops(g: DistGraph, attachment: rudder_dgl.Attachment) -> None:
    """Loops that end early give back what they have announced; two loops at once have each their own."""
    feature = g.ndata["feat100"]
    for _ in range(3):
        with epoch_ends(0):
            for at, (nodes, _, _) in enumerate(rudder_dgl.ahead(loader(g, 50), 62, epochs=EPOCHS)):
                check(g, feature, nodes)
                if at == 4:
                    break
        assert not attachment._handed_out
    first, second = rudder_dgl.ahead(loader(g, 70), DEPTH), rudder_dgl.ahead(loader(g, 90), DEPTH)
    announced = attachment.stats()["unannounced"]
    for (some, _, _), (others, _, _) in zip(first, second):
        check(g, feature, others)
        check(g, feature, some)
    assert first.not_announced == second.not_announced == 0
    assert attachment.stats()["unannounced"] == announced
    first.close()
    second.close()
    assert not attachment._handed_out


def second_thoughts(g: DistGraph, attachment: rudder_dgl.Attachment) -> None:
    """Announced nodes that are pulled as a copy, twice, or after they were changed in place: each pull gives what it asks for."""
    feature = g.ndata["feat100"]
    unannounced = attachment.stats()["unannounced"]
    for nodes, _, _ in rudder_dgl.ahead(loader(g), DEPTH):
        check(g, feature, nodes.clone())
        assert attachment.stats()["unannounced"] == unannounced
        check(g, feature, nodes)
        nodes[0] = (nodes[0] + 1) % g.num_nodes()
        check(g, feature, nodes)
        unannounced += 2
        assert attachment.stats()["unannounced"] == unannounced


def on_device(g: DistGraph, attachment: rudder_dgl.Attachment) -> None:
    """With `device`, what a loop hands out comes as a tensor there, once, twice, and where DGL fetches it; what it does not, in main memory.

    The device is torch's `meta`, which has shapes and no bytes: there is no other one beside main memory on every machine.
    """
    feature = g.ndata["feat100"]
    fallbacks, count = attachment.stats().get("fallbacks", 0), 0
    for nodes, _, _ in rudder_dgl.ahead(loader(g), DEPTH, device="meta"):
        with failing(rudder_dgl._attach, "gather", FULL):
            for _ in range(2):
                rows = feature[nodes]
                assert (rows.device.type, rows.dtype, rows.shape) == ("meta", th.float32, (len(nodes), 100)), rows
        assert feature[nodes].device.type == "meta"
        assert feature[nodes[1:]].device.type == "cpu"
        count += 1
    # All but the first were gathered ahead, so that the first pull of these came by the library.
    assert count > 1 and attachment.stats()["fallbacks"] == fallbacks + count + 1, (count, attachment.stats())
    attachment.counts.pop("fallbacks")
    with refused(RuntimeError, "warp"):
        rudder_dgl.ahead([], DEPTH, device="warp")


def kept_rows(g: DistGraph) -> list[tuple[th.Tensor, bytes]]:
    """Rows that are held while others come, whole or as views of them, with the bytes that they must keep."""
    kept = []
    for at, (nodes, _, _) in enumerate(rudder_dgl.ahead(loader(g, 50), DEPTH, epochs=EPOCHS)):
        rows = g.ndata["feat100"][nodes]
        part = rows if at % 2 else rows[10:40, :7]
        kept.append((part, part.numpy().tobytes()))
        if at % 3 == 0:
            kept.pop(0)
    return kept


def evaluation(g: DistGraph, attachment: rudder_dgl.Attachment) -> None:
    """Once a loop has announced, what is not announced is served, and the buffer does not learn from it; `paused` does so always."""
    before = minibatches(attachment)
    check_batches(g, loader(g), [g.ndata["feat100"]])
    assert minibatches(attachment) == before
    with rudder_dgl.paused(), epoch_ends(0):
        check_batches(g, rudder_dgl.ahead(loader(g), DEPTH), [g.ndata["feat100"]])
    assert minibatches(attachment) == before


def edges(g: DistGraph, attachment: rudder_dgl.Attachment) -> None:
    """Edge features that are not named go to DGL, and are counted."""
    before = attachment.stats()["passed_through"]
    check(g, g.edata["weight"], th.randint(0, g.num_edges(), (300,)))
    assert attachment.stats()["passed_through"] == before + 1


class Network(th.nn.Module):
    """GraphSAGE of two layers."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layers = th.nn.ModuleList([SAGEConv(inputs, 32, "mean"), SAGEConv(32, classes, "mean")])

    def forward(self, blocks: list[dgl.DGLGraph], rows: th.Tensor) -> th.Tensor:
        """One row of scores a seed."""
        return self.layers[1](blocks[1], F.relu(self.layers[0](blocks[0], rows)))


def losses(g: DistGraph, batches: Iterable[tuple]) -> list[float]:
    """Trains a network on these batches, and gives the loss of each."""
    th.manual_seed(7)
    model = th.nn.parallel.DistributedDataParallel(Network(100, 16))
    optimizer = th.optim.Adam(model.parameters(), 3e-3)
    curve = []
    for nodes, seeds, blocks in batches:
        loss = F.cross_entropy(model(blocks, g.ndata["feat100"][nodes]), g.ndata["labels"][seeds])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def uneven(g: DistGraph, attachment: rudder_dgl.Attachment) -> None:
    """A trainer that ends early serves the others until they end too."""
    # With samplers, making a loader is collective.
    batches = loader(g)
    if th.distributed.get_rank() > 0:
        time.sleep(0.5)
        check_batches(g, list(batches) * 5, [g.ndata["feat100"]])
        assert "fallbacks" not in attachment.stats(), attachment.stats()
    began = time.monotonic()
    rudder_dgl.detach()
    if th.distributed.get_rank() == 0:
        assert time.monotonic() - began > 0.4
    before = attachment.counts.copy()
    check_batches(g, loader(g), [g.ndata["feat100"]])
    assert attachment.counts == before


@contextmanager
def epoch_ends(count: int) -> Iterator[None]:
    """Asserts that a trace would be told of so many ends of epochs."""
    call, told = rudder_dgl._attach.call, []

    def instead(name: str, *arguments: object) -> None:
        told.append(name)
        call(name, *arguments)

    rudder_dgl._attach.call = instead
    try:
        yield
    finally:
        rudder_dgl._attach.call = call
    assert told.count("comm_mark_epoch_end") == count, (told.count("comm_mark_epoch_end"), count)


@contextmanager
def failing(module: ModuleType, function: str, status: int) -> Iterator[None]:
    """Has a function of the library fail for a module of the adapter."""
    call = module.call

    def instead(name: str, *arguments: object) -> None:
        if name == function:
            raise rudder_dgl.RudderError(status, f"{name} was made to fail")
        call(name, *arguments)

    module.call = instead
    try:
        yield
    finally:
        module.call = call


def full(g: DistGraph, attachment: rudder_dgl.Attachment) -> None:
    """What is full for now is fetched by DGL, and the library is asked again however often."""
    feature, nodes, before = g.ndata["feat100"], th.randint(0, g.num_nodes(), (300,)), attachment.stats()
    with failing(rudder_dgl._attach, "gather", FULL):
        for _ in range(FAILURES_MAX + 1):
            check(g, feature, nodes)
    check(g, feature, nodes)
    assert attachment.stats()["fallbacks"] == FAILURES_MAX + 1 and attachment.stats()["served"] == before["served"] + 1
    attachment.counts.pop("fallbacks")


def given_up(g: DistGraph) -> None:
    """Memory that the library gives up with its request is never used again; when all is gone, rows come without."""
    attachment = rudder_dgl.attach(g, features=["feat100"])
    before, warned = len(GIVEN_UP), []
    with failing(rudder_dgl._rows, "rows_data", HANDLE), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check_batches(g, rudder_dgl.ahead(loader(g, 25), DEPTH), [g.ndata["feat100"]])
    lost = GIVEN_UP[before:]
    assert 0 < len(lost) <= BUFFERS_MAX and len({rows.data_ptr() for rows in lost}) == len(lost), len(lost)
    counted = attachment.stats()
    assert counted["not_started"] > 1 and counted["not_registered"] > 1 and "fallbacks" not in counted, counted
    assert sum("slower (not_started)" in str(warning.message) for warning in warned) == 1, warned
    rudder_dgl.detach()


def late(g: DistGraph) -> None:
    """Features of any type may be attached by name. Where not all come to detach, those that do are told so in time, and go on with DGL."""
    # What was bool is uint8 in DGL's partitions.
    assert (g.ndata["train_mask"].dtype, g.ndata["labels"].dtype) == (th.uint8, th.int64)
    names = ["odd", "train_mask", "labels"]
    attachment = rudder_dgl.attach(g, features=[*names, g.edata["weight"]], policy="window", share_buffer=False)
    check(g, g.edata["weight"], th.randint(0, g.num_edges(), (300,)))
    for name in names:
        check(g, g.ndata[name], th.randint(0, g.num_nodes(), (300,)))
    assert attachment.stats()["served"] == 1 + len(names)
    th.distributed.barrier()
    if th.distributed.get_rank() == 0:
        began = time.monotonic()
        with refused(RuntimeError, "not all trainers came to detach() within 1 s"):
            rudder_dgl.detach(timeout_s=1)
        assert time.monotonic() - began < 10
    th.distributed.barrier()
    check(g, g.ndata["odd"], th.randint(0, g.num_nodes(), (300,)))
    if th.distributed.get_rank() > 0:
        with refused(RuntimeError, "not all trainers"):
            rudder_dgl.detach(timeout_s=1)
    check(g, g.ndata["odd"], th.randint(0, g.num_nodes(), (300,)))


def whole(g: DistGraph) -> None:
    """One life of a job, from refusals to the last detach."""
    refusals(g)
    dry_run(g)
    recorded = list(loader(g))
    curve = losses(g, recorded)
    trace = Path(os.environ["DGL_IP_CONFIG"]).with_name("whole")
    attachment = rudder_dgl.attach(g, trace=str(trace))
    with refused(RuntimeError, "attached already"):
        rudder_dgl.attach(g)
    assert losses(g, recorded) == curve, "losses differ, all gathered as they come"
    assert losses(g, rudder_dgl.ahead(recorded, DEPTH)) == curve, "losses differ, announced ahead"
    assert minibatches(attachment)[key(g.ndata["half"])] == 0, "what the script does not read was gathered ahead"
    read_only(g, attachment)
    odd_ids(g)
    broken_loops(g, attachment)
    evaluation(g, attachment)
    edges(g, attachment)
    second_thoughts(g, attachment)
    full(g, attachment)
    on_device(g, attachment)
    kept = kept_rows(g)
    uneven(g, attachment)
    recorded_trace = trace.with_suffix(f".{th.distributed.get_rank()}.trace").read_bytes()
    assert recorded_trace.startswith(b"rudtrace") and len(recorded_trace) > 10_000, "what minibatches wanted was not recorded"
    assert len(kept) > 10 and all(rows.numpy().tobytes() == expected for rows, expected in kept), "rows changed while they were held"
    given_up(g)
    late(g)


def trainer_killed(g: DistGraph) -> None:
    """The death of a trainer, which gives its partition to the others: they are warned, and DGL fetches what the library cannot.

    Where a machine has two trainers it is the first one that dies, which serves for both: the other, which has the partition itself, takes
    its part.
    """
    rank, victim, here = th.distributed.get_rank(), int(os.environ["VICTIM"]), int(os.environ["LOCAL_RANK"])
    attachment = rudder_dgl.attach(g, features=["feat100"], gather_timeout=5, transfer_timeout=2)
    th.distributed.barrier()
    warned = []
    warnings.showwarning = lambda message, *_: warned.append(str(message))
    for at, (nodes, _, _) in enumerate(rudder_dgl.ahead(loader(g), DEPTH, epochs=EPOCHS)):
        if at == 3 and rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        if at == 4:
            # What is asked for now cannot be on its way already.
            time.sleep(1)
        began = time.monotonic()
        check(g, g.ndata["feat100"], nodes)
        assert time.monotonic() - began < 20
    told = [warning for warning in warned if "DGL fetches it" in warning]
    if th.distributed.get_world_size() == 4:
        failovers = attachment.stats()["features"]["node~_N~feat100"]["failovers"]
        assert failovers == int(rank - here != victim) and not told, (attachment.stats(), warned)
    elif rank - here != victim:
        assert 1 <= len(told) <= FAILURES_MAX and attachment.stats()["fallbacks"] >= len(told), (attachment.stats(), warned)
    with refused(RuntimeError, "not all trainers came"):
        rudder_dgl.detach(timeout_s=1)


def server_killed(g: DistGraph) -> None:
    """The death of a DGL server: rows that are attached are in the trainers' memory too, and still come."""
    rudder_dgl.attach(g, features=["feat100"])
    nodes = [inputs for inputs, _, _ in loader(g)]
    rows = [KVClient.pull(g._client, "node~_N~feat100", inputs) for inputs in nodes]
    th.distributed.barrier()
    print("READY", flush=True)
    # run.py kills the last machine's server, and tells so by this file.
    wait_for(lambda: os.path.exists(os.environ["KILLED"]))
    for inputs, expected in zip(nodes, rows):
        assert th.equal(g.ndata["feat100"][inputs], expected)
    rudder_dgl.detach()


def wait_for(happened: Callable[[], bool], seconds: float = 30) -> None:
    """Waits until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


SCENARIOS = {scenario.__name__: scenario for scenario in (exact, whole, trainer_killed, server_killed)}


def main() -> None:
    """Runs a scenario as the trainer that the environment says."""
    # Where it hangs, if it does, before run.py ends it.
    faulthandler.dump_traceback_later(int(os.environ["LIMIT_S"]) - 10)
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"], use_graphbolt=bool(os.environ["GRAPHBOLT"]))
    th.set_num_threads(1)
    th.distributed.init_process_group("gloo")
    scenario = SCENARIOS[sys.argv[1]]
    try:
        scenario(DistGraph("graph"))
        print("PASSED", flush=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # DGL's own way out waits for all other trainers.
        os._exit(1)
    if scenario in (trainer_killed, server_killed):
        os._exit(0)
    th.distributed.barrier()


if __name__ == "__main__":
    main()
