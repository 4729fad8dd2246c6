"""Trains GraphSAGE in DistDGL once for each system, on the same partitions, and tells what an epoch takes; slurm/dgl.sbatch starts it.

    dgl_train.py --systems distdgl,lfu,window+16 --json FILE [OPTION]...

A system is `distdgl`, as it is, or POLICY[/CONTROLLER][+DEPTH] of Rudder's: `rudder/periodic:16`, `window/analytic+16`; DEPTH is the number of
minibatches that `rudder_dgl.ahead` announces. All start from the same weights. DistDGL draws other samples in each, so that losses are alike but
not equal. The graph is homogeneous; its nodes have a feature of floats, a label from 0 on, and a mask of those to train on.
"""

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import dgl
import dgl.distributed
import rudder_dgl
import torch as th
import torch.nn.functional as F
from dgl.distributed import DistGraph
from dgl.nn import SAGEConv


def options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default="distdgl,lfu,window+16", help="separated by commas")
    parser.add_argument("--graph", default="graph", help="its name, as it was partitioned")
    parser.add_argument("--feature", default="feat")
    parser.add_argument("--label", default="labels")
    parser.add_argument("--mask", default="train_mask")
    parser.add_argument("--batch", type=int, default=1000, help="seeds a minibatch and trainer")
    parser.add_argument("--fanout", default="10,25", help="neighbours a node, a layer each, from the input on")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--buffer", type=float, default=0.25, help="share of the halo nodes that a trainer's buffer holds")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--skip", type=float, default=0.2, help="share of the epochs, of the first ones, that medians leave out")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


class Network(th.nn.Module):
    """GraphSAGE, a layer a fan-out."""

    def __init__(self, inputs: int, hidden: int, classes: int, layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), classes]
        self.layers = th.nn.ModuleList(SAGEConv(*pair, "mean") for pair in zip(widths, widths[1:]))

    def forward(self, blocks: list[dgl.DGLGraph], rows: th.Tensor) -> th.Tensor:
        """One row of scores a seed."""
        for layer, block in zip(self.layers[:-1], blocks):
            rows = F.relu(layer(block, rows))
        return self.layers[-1](blocks[-1], rows)


class Job:
    """A trainer's part."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.g = DistGraph(asked.graph)
        self.feature, self.label = self.g.ndata[asked.feature], self.g.ndata[asked.label]
        self.book = self.g.get_partition_book()
        self.seeds = dgl.distributed.node_split(self.g.ndata[asked.mask], self.book, force_even=True)
        self.per_epoch = -(-len(self.seeds) // asked.batch)
        most = self.label[self.seeds].max().long()
        th.distributed.all_reduce(most, th.distributed.ReduceOp.MAX)
        self.classes = int(most) + 1
        self.device = th.device(f"cuda:{int(os.environ['LOCAL_RANK']) % th.cuda.device_count()}" if th.cuda.is_available() else "cpu")

    def minibatches(self, loader: dgl.dataloading.DistNodeDataLoader, depth: int) -> Iterator[tuple[int, tuple]]:
        """All minibatches with the epoch that each is of. Behind the epochs asked for comes what there is to look ahead at in the last of them."""
        if depth:
            loop = rudder_dgl.ahead(loader, depth, epochs=self.asked.epochs + -(-depth // self.per_epoch), device=self.device)
            for batch in loop:
                yield loop.epoch, batch
            return
        for epoch in range(self.asked.epochs):
            for batch in loader:
                yield epoch, batch

    def run(self, system: str) -> dict:
        """Trains by a system."""
        asked = self.asked
        name, _, depth = system.partition("+")
        policy, _, controller = name.partition("/")
        attachment = None
        if name != "distdgl":
            steering = {"policy": policy, "controller": controller or "off"}
            attachment = rudder_dgl.attach(self.g, buffer=asked.buffer, features=[self.feature], **steering)
        th.manual_seed(7)
        fanout = [int(neighbours) for neighbours in asked.fanout.split(",")]
        network = Network(self.feature.shape[1], asked.hidden, self.classes, len(fanout)).to(self.device)
        model = th.nn.parallel.DistributedDataParallel(network)
        optimizer = th.optim.Adam(model.parameters(), 3e-3)
        sampler = dgl.dataloading.NeighborSampler(fanout)
        loader = dgl.dataloading.DistNodeDataLoader(self.g, self.seeds, sampler, batch_size=asked.batch, shuffle=True)
        epoch_s, fetch_s, remote, loss = [0.0] * asked.epochs, [0.0] * asked.epochs, 0, th.zeros(())
        minibatches = 0
        th.distributed.barrier()
        began = time.perf_counter()
        for epoch, (nodes, seeds, blocks) in self.minibatches(loader, int(depth or 0)):
            if epoch == asked.epochs:
                break
            asking = time.perf_counter()
            rows = self.feature[nodes]
            fetch_s[epoch] += time.perf_counter() - asking
            remote += int((self.book.nid2partid(nodes) != self.book.partid).sum())
            blocks = [block.to(self.device) for block in blocks]
            scores = model(blocks, rows.to(self.device))
            loss = F.cross_entropy(scores, self.label[seeds].long().to(self.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            minibatches += 1
            # The next epoch's first step cannot begin before all trainers are through with this one's last.
            now = time.perf_counter()
            epoch_s[epoch] += now - began
            began = now
        counted = counts(attachment, self.feature.kvstore_key) if attachment else {"rows_fetched": remote}
        rudder_dgl.detach()
        mine = {"epoch_s": epoch_s, "fetch_s": fetch_s, "remote_rows": remote, "minibatches": minibatches, "loss": loss.item(), **counted}
        return self.together(system, mine)

    def together(self, system: str, mine: dict) -> dict:
        """The answers of all trainers as one: an epoch's time is its slowest trainer's, rows are all trainers'."""
        answers: list = [None] * th.distributed.get_world_size()
        th.distributed.all_gather_object(answers, mine)
        first = int(self.asked.skip * self.asked.epochs)
        slowest = [max(times) for times in zip(*(answer["epoch_s"] for answer in answers))]
        waited = [statistics.mean(times) for times in zip(*(answer["fetch_s"] for answer in answers))]
        sums = ("remote_rows", "rows_fetched", "hits", "fallbacks")
        return {
            "system": system,
            "epoch_s_median": statistics.median(slowest[first:]),
            "fetch_s_median": statistics.median(waited[first:]),
            "epoch_s": slowest,
            "minibatches": mine["minibatches"],
            "loss": statistics.mean(answer["loss"] for answer in answers),
            **{name: sum(answer.get(name, 0) for answer in answers) for name in sums},
        }


def counts(attachment: rudder_dgl.Attachment, feature: str) -> dict[str, int]:
    """What a trainer's library has fetched."""
    counted = attachment.stats()
    of_feature = counted["features"][feature]
    rows = of_feature["demand_rows"] + of_feature["prefetched_rows"] + of_feature["fill_rows"]
    return {"rows_fetched": rows, "hits": of_feature["hits"], "fallbacks": counted.get("fallbacks", 0)}


def table(runs: list[dict]) -> str:
    """The runs as lines of Markdown, ready to be pasted; `x` is the first one's time through a run's own."""
    lines = ["| system | epoch, s | fetch, s | x | rows fetched | hits | loss |", "|---|---|---|---|---|---|---|"]
    for run in runs:
        times = runs[0]["epoch_s_median"] / run["epoch_s_median"]
        hits = f"{100 * run['hits'] / run['remote_rows']:.1f} %" if run["system"] != "distdgl" else "-"
        lines.append(
            f"| `{run['system']}` | {run['epoch_s_median']:.3f} | {run['fetch_s_median']:.3f} | {times:.2f}"
            f" | {run['rows_fetched']:,} | {hits} | {run['loss']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    asked = options()
    # A server serves in here, and does not come back.
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])
    th.distributed.init_process_group("gloo")
    try:
        train(asked)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # DGL's own way out waits for the other trainers, which wait for this one.
        os._exit(1)


def train(asked: argparse.Namespace) -> None:
    """Trains by each system; the first trainer writes what came out."""
    job = Job(asked)
    runs = [job.run(system) for system in asked.systems.split(",")]
    if th.distributed.get_rank() == 0:
        arguments = {name: str(value) for name, value in vars(asked).items()}
        told = {"trainers": th.distributed.get_world_size(), "machines": int(job.book.num_partitions()), **arguments}
        asked.json.write_text(json.dumps({"job": told, "runs": runs}, indent=1))
        print(table(runs), flush=True)
    th.distributed.barrier()


if __name__ == "__main__":
    main()
