"""Tokens -> segments and loss weights (LIFT, equations 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liftcore.config import LiftConfig
from liftcore.errors import UsageError


@dataclass(frozen=True)
class Segments:
    """n segments: tokens [start[i], stop[i]) with a weight for each token as a target."""

    start: np.ndarray  # int64 [n]
    stop: np.ndarray  # int64 [n]
    weights: list[np.ndarray]  # n arrays, float32 [stop[i] - start[i]]

    def __len__(self) -> int:
        return len(self.start)

    @property
    def tokens(self) -> int:
        """Token-passes: the sum of the lengths."""
        return int((self.stop - self.start).sum())


def cut(length: int, config: LiftConfig, epoch: int = 0) -> Segments:
    """Cuts `length` tokens into the segments of one epoch.

    "overlap" and "trivial": starts at multiples of the stride; the last segment ends at `length`
    and no segment is only a suffix of another. "jitter": contiguous segments behind a first one
    of random length in [1, S], drawn from (seed, epoch). Raises UsageError for length < 1.
    """
    if length < 1:
        raise UsageError(f"cannot cut {length} tokens into segments")
    size, step = config.segment_length, config.start_distance
    if config.schedule == "jitter":
        first = int(np.random.default_rng([config.seed, epoch]).integers(1, size + 1))
        start = np.concatenate([[0], np.arange(first, length, size)]).astype(np.int64)
        stop = np.append(start[1:], length).astype(np.int64)
    else:
        count = 1 + max(0, -(-(length - size) // step))
        start = np.arange(count, dtype=np.int64) * step
        stop = np.minimum(start + size, length)
    return Segments(start, stop, _weights(start, stop, length, config.overlap_loss))


def _weights(
    start: np.ndarray, stop: np.ndarray, length: int, overlap_loss: str
) -> list[np.ndarray]:
    if overlap_loss == "mean":
        edges = np.zeros(length + 1, dtype=np.int64)
        np.add.at(edges, start, 1)
        np.add.at(edges, stop, -1)
        share = (1.0 / np.cumsum(edges)[:-1]).astype(np.float32)  # [length]
        return [share[a:b] for a, b in zip(start, stop, strict=True)]
    weights = [np.ones(b - a, dtype=np.float32) for a, b in zip(start, stop, strict=True)]
    if overlap_loss == "new":
        seen = 0
        for w, a, b in zip(weights, start, stop, strict=True):
            w[: max(0, seen - a)] = 0
            seen = b
    return weights
