"""The batches of a whole run, made on the device: the host uploads the document and an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from liftcore import batch
from liftcore.config import LiftConfig
from liftcore.kernels.segment_batch import Buffers, Tables, buffers, counter, segment_batch

# The list of scored rows is rounded up to this many, so that runs share their shapes.
ROWS = 64


@dataclass(frozen=True)
class Order:
    """The steps of a run, all epochs one behind the other, as batch.plan has them."""

    segments: np.ndarray  # int32 [steps, B], −1 for a row without a segment
    first: np.ndarray  # int32 [steps], tokens of segment 0 in the step's epoch
    scored: np.ndarray  # int64 [steps], scored rows
    tokens: np.ndarray  # int64 [steps], token-passes


def order(length: int, config: LiftConfig, prefix: Sequence[int]) -> Order:
    """The order of a run over a document of `length` tokens."""
    numbers, first, scored, tokens = [], [], [], []
    for epoch in range(config.epochs):
        segments, steps = batch.plan(length, config, epoch, prefix)
        lengths = segments.stop - segments.start
        head = 0 if len(prefix) else 1
        targets = np.array([np.count_nonzero(w[head:]) for w in segments.weights])
        # Only a jittered epoch starts with a shorter segment.
        start = lengths[0] if config.schedule == "jitter" else config.segment_length
        for rows in steps:
            row = np.full(config.batch_size, -1, dtype=np.int32)
            row[: len(rows)] = rows
            numbers.append(row)
            first.append(start)
            scored.append(targets[rows].sum())
            tokens.append(lengths[rows].sum())
    table = np.array(numbers, dtype=np.int32).reshape(-1, config.batch_size)
    wide = (np.array(values, dtype=np.int64) for values in (scored, tokens))
    return Order(table, np.array(first, dtype=np.int32), *wide)


class Resident:
    """Tables and buffers of a run on one device; next() makes the batch of the next step.

    `step` is the device's own counter: a CUDA graph of next() replays the whole run, and a run
    goes on at step n with step[0] = n.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        config: LiftConfig,
        prefix: Sequence[int],
        device: torch.device | str,
    ):
        self.order, self.config = order(len(tokens), config, prefix), config
        arrays = (
            np.asarray(tokens, dtype=np.int64),
            np.asarray(prefix, dtype=np.int64),
            self.order.segments,
            self.order.first,
        )
        self.tables = Tables(*(torch.from_numpy(a).to(device) for a in arrays))
        every = config.batch_size * (len(prefix) + config.segment_length)
        most = int(self.order.scored.max(initial=1))
        self.buffers: Buffers = buffers(
            self.tables, config.segment_length, min(every, -(-most // ROWS) * ROWS)
        )
        self.step: Tensor = counter(device)

    def next(self) -> Buffers:
        """The batch of the step that the counter names, and the counter moved on."""
        config = self.config
        segment_batch(
            self.tables,
            self.step,
            self.buffers,
            size=config.segment_length,
            stride=config.step_length,
            loss=config.overlap_loss,
        )
        return self.buffers
