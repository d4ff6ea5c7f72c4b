"""The batches of a whole run, made on the device: the host uploads the document and an order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from liftcore.config import LiftConfig
from liftcore.kernels.segment_batch import Buffers, Tables, buffers, counter, segment_batch
from liftcore.order import Order, order

# The list of scored rows is rounded up to this many, so that runs share their shapes.
ROWS = 64


class Resident:
    """Tables and buffers of a run on one device; next() makes the batch of the next pass.

    A pass takes `micro_batch` segments (default: all of a step), so that a step is `passes`
    passes; scored [steps · passes] int64 says how many rows each one scores. `run` is the order
    where it is known already. `counter` is the device's own: a CUDA graph of next() replays the
    whole run, and a run goes on at pass n with counter[0] = n.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        config: LiftConfig,
        prefix: Sequence[int],
        device: torch.device | str,
        micro_batch: int | None = None,
        run: Order | None = None,
    ):
        self.order = order(len(tokens), config, prefix) if run is None else run
        # A short document must not be padded to a long segment.
        self.size = min(config.segment_length, len(tokens))
        self.stride = min(config.step_length, self.size)
        self.loss = config.overlap_loss
        most = self.order.most
        micro = micro_batch or most
        self.passes = -(-most // micro)
        empty = ((0, 0), (0, self.passes * micro - most))
        segments = np.pad(self.order.segments, empty, constant_values=-1).reshape(-1, micro)
        self.scored = np.pad(self.order.scored, empty).reshape(-1, micro).sum(axis=1)
        arrays = (
            np.asarray(tokens, dtype=np.int64),
            np.asarray(prefix, dtype=np.int64),
            segments,
            np.repeat(np.minimum(self.order.first, self.size), self.passes),
        )
        self.tables = Tables(*(torch.from_numpy(a).to(device) for a in arrays))
        every = micro * (len(prefix) + self.size)
        rows = min(every, rounded(int(self.scored.max(initial=1))))
        self.buffers: Buffers = buffers(self.tables, self.size, rows)
        self.counter: Tensor = counter(device)

    def next(self) -> Buffers:
        """The batch of the pass that the counter names, and the counter moved on."""
        segment_batch(
            self.tables,
            self.counter,
            self.buffers,
            size=self.size,
            stride=self.stride,
            loss=self.loss,
        )
        return self.buffers


def rounded(rows: int) -> int:
    """A number of scored rows, rounded up."""
    return -(-rows // ROWS) * ROWS
