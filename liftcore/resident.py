"""The batches of a whole run, made on the device: the host uploads the document and an order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from liftcore.config import LiftConfig
from liftcore.kernels.segment_batch import Buffers, Tables, buffers, counter, segment_batch
from liftcore.order import order

# The list of scored rows is rounded up to this many, so that runs share their shapes.
ROWS = 64


class Resident:
    """Tables and buffers of a run on one device; next() makes the batch of the next pass.

    A pass takes `micro_batch` segments (default: all of a step), so that a step is `passes`
    passes; scored [steps · passes] int64 says how many rows each one scores. `counter` is the
    device's own: a CUDA graph of next() replays the whole run, and a run goes on at pass n with
    counter[0] = n.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        config: LiftConfig,
        prefix: Sequence[int],
        device: torch.device | str,
        micro_batch: int | None = None,
    ):
        self.order, self.config = order(len(tokens), config, prefix), config
        micro = micro_batch or config.batch_size
        self.passes = -(-config.batch_size // micro)
        empty = ((0, 0), (0, self.passes * micro - config.batch_size))
        segments = np.pad(self.order.segments, empty, constant_values=-1).reshape(-1, micro)
        self.scored = np.pad(self.order.scored, empty).reshape(-1, micro).sum(axis=1)
        arrays = (
            np.asarray(tokens, dtype=np.int64),
            np.asarray(prefix, dtype=np.int64),
            segments,
            np.repeat(self.order.first, self.passes),
        )
        self.tables = Tables(*(torch.from_numpy(a).to(device) for a in arrays))
        every = micro * (len(prefix) + config.segment_length)
        most = rounded(int(self.scored.max(initial=1)))
        self.buffers: Buffers = buffers(self.tables, config.segment_length, min(every, most))
        self.counter: Tensor = counter(device)

    def next(self) -> Buffers:
        """The batch of the pass that the counter names, and the counter moved on."""
        config = self.config
        segment_batch(
            self.tables,
            self.counter,
            self.buffers,
            size=config.segment_length,
            stride=config.step_length,
            loss=config.overlap_loss,
        )
        return self.buffers


def rounded(rows: int) -> int:
    """A number of scored rows, rounded up."""
    return -(-rows // ROWS) * ROWS
