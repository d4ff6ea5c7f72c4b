"""Every step of a run, decided before the first: which segments it takes and what they weigh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from liftcore import batch
from liftcore.config import LiftConfig


@dataclass(frozen=True)
class Order:
    """The steps of all epochs, one behind the other; B is the most segments that a step takes."""

    segments: np.ndarray  # int32 [steps, B]: numbers within the step's epoch, −1 for an empty row
    scored: np.ndarray  # int64 [steps, B]: scored rows of each segment
    epoch: np.ndarray  # int32 [steps]
    first: np.ndarray  # int32 [steps]: tokens of segment 0 in the step's epoch
    tokens: np.ndarray  # int64 [steps]: token-passes
    weight: np.ndarray  # float64 [steps]: sum of the weights of the step's targets

    def __len__(self) -> int:
        return len(self.epoch)

    @property
    def most(self) -> int:
        """B."""
        return self.segments.shape[1]

    def rows(self, step: int) -> np.ndarray:
        """The segments of a step, without the empty rows."""
        found = self.segments[step]
        return found[found >= 0]

    @cached_property
    def normaliser(self) -> np.ndarray:
        """float64 [steps]: the mean weight of the steps of an epoch.

        What a step's loss is divided by: dividing by its own weight would undo the weights of the
        overlap loss.
        """
        total = np.bincount(self.epoch, self.weight)
        return (total / np.maximum(1, np.bincount(self.epoch)))[self.epoch]


def order(length: int, config: LiftConfig, prefix: Sequence[int] = ()) -> Order:
    """The order of a run over a document of `length` tokens behind `prefix`."""
    head = 0 if len(prefix) else 1
    columns: dict[str, list] = {name: [] for name in Order.__dataclass_fields__}
    for epoch in range(config.epochs):
        segments, steps = batch.plan(length, config, epoch, prefix)
        lengths = segments.stop - segments.start
        targets = np.array([np.count_nonzero(w[head:]) for w in segments.weights])
        weights = np.array([w[head:].sum(dtype=np.float64) for w in segments.weights])
        # Only a jittered epoch starts with a shorter segment.
        first = lengths[0] if config.schedule == "jitter" else config.segment_length
        for rows in steps:
            columns["segments"].append(rows)
            columns["scored"].append(targets[rows])
            columns["epoch"].append(epoch)
            columns["first"].append(first)
            columns["tokens"].append(lengths[rows].sum())
            columns["weight"].append(weights[rows].sum())
    return Order(
        segments=_table(columns["segments"], -1).astype(np.int32),
        scored=_table(columns["scored"], 0),
        epoch=np.array(columns["epoch"], dtype=np.int32),
        first=np.array(columns["first"], dtype=np.int32),
        tokens=np.array(columns["tokens"], dtype=np.int64),
        weight=np.array(columns["weight"], dtype=np.float64),
    )


def _table(rows: list[np.ndarray], empty: int) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows), default=1)), empty, dtype=np.int64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table
