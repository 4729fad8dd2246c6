"""Minibatches sampled ahead of those that train, so that the library knows what they will want."""

import itertools
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch as th

from ._attach import Minibatch, current

# The library's window has 64 places, which all loops share.
DEPTH_MAX = 62
# Minibatches sampled for one that is handed out, until the depth is reached: the first one need not wait for all.
CATCH_UP = 2
DRAIN_TIMEOUT_S = 60
STREAMS = itertools.count(1)


class ahead:  # noqa: N801, it reads as a function where it is used
    """Iterates over `epochs` epochs of a dataloader as one, with up to `depth` minibatches after the one handed out sampled and announced.

    dataloader: yields tuples of input nodes (a tensor, or one by node type), ..., blocks; each minibatch comes out as it went in. Its
    features, to be pulled before the next is asked for, come as tensors on `device`. A loop that is left early ends when it is dropped.

    epoch: of the minibatch handed out, from 0. depth, depth_max: minibatches ahead, now and at most so far. sampling_s: seconds spent on
    them. block_bytes, block_bytes_max: about what their blocks take. not_announced: sets of nodes for which there was no place.

    Raises RuntimeError where no graph is attached, ValueError for a depth outside 1 to 62 or less than one epoch.
    """

    def __init__(self, dataloader: Iterable[tuple[Any, ...]], depth: int, epochs: int = 1, device: str | th.device = "cpu") -> None:
        if not 1 <= depth <= DEPTH_MAX or epochs < 1:
            raise ValueError(f"depth = {depth}, epochs = {epochs}: expected 1 to {DEPTH_MAX} minibatches, and at least one epoch")
        self.epoch = self.depth = self.depth_max = self.block_bytes = self.block_bytes_max = self.not_announced = 0
        self.sampling_s, self._sampled_epoch, self._handed_out = 0.0, 0, 0
        self._attachment, self._stream, self._device = current(), next(STREAMS), th.device(device)
        self._dataloader, self._wanted, self._epochs, self._iterator = dataloader, depth, epochs, iter(dataloader)
        self._queue: deque[tuple[Any, list[Minibatch], int, int]] = deque()
        self._current: list[Minibatch] = []

    def __iter__(self) -> "ahead":
        return self

    def __next__(self) -> tuple[Any, ...]:
        self._attachment.forget(self._current)
        while len(self._queue) <= min(self._wanted, CATCH_UP * self._handed_out + 1) and self._iterator is not None:
            self._sample()
        ends = self._handed_out > 0 and (not self._queue or self._queue[0][3] > self.epoch)
        if not self._queue:
            self._attachment.hand_out([], [], ends)
            self.close()
            raise StopIteration
        batch, self._current, held, self.epoch = self._queue.popleft()
        self.block_bytes, self.depth = self.block_bytes - held, len(self._queue)
        self.depth_max = max(self.depth_max, self.depth)
        self._handed_out += 1
        self._attachment.hand_out(self._current, self._queue[0][1] if self._queue else [], ends)
        return batch

    def _sample(self) -> None:
        began = time.perf_counter()
        batch = next(self._iterator, None)
        if batch is None:
            self._sampled_epoch += 1
            # An iterator at its end has given all that its samplers had in hand, so that it can begin again.
            self._iterator = iter(self._dataloader) if self._sampled_epoch < self._epochs else None
            return
        if self._queue:
            self.sampling_s += time.perf_counter() - began
        by_type = batch[0] if isinstance(batch[0], dict) else {self._attachment.only_type: batch[0]}
        wanted = ((kind, nodes) for kind, nodes in by_type.items() if kind in self._attachment.names and len(nodes))
        announced = [self._attachment.announce(self._stream, kind, nodes, self._device) for kind, nodes in wanted]
        self.not_announced += sum(one.ticket == 0 for one in announced)
        held = sum(8 * (3 * block.num_edges() + block.num_src_nodes() + block.num_dst_nodes()) for block in batch[-1])
        self.block_bytes += held
        self.block_bytes_max = max(self.block_bytes_max, self.block_bytes)
        self._queue.append((batch, announced, held, self._sampled_epoch))

    def close(self) -> None:
        """Forgets what is announced and drops what is sampled; the loop is at its end."""
        self._attachment.forget([*self._current, *(one for queued in self._queue for one in queued[1])])
        self._queue.clear()
        if self._iterator is not None:
            self._iterator = None
            # What samplers have in hand would come up in DGL's next loop, or trip it where this loader is gone by then.
            for _ in range(getattr(self._dataloader, "num_pending", 0)):
                self._dataloader._get_data_from_result_queue(timeout=DRAIN_TIMEOUT_S)
                self._dataloader.num_pending -= 1

    def __del__(self) -> None:
        if hasattr(self, "_current"):
            self.close()
