"""Rows of token ids that a model only reads, in batches."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor


def by_length(lengths: Sequence[int], most: int) -> Generator[list[int]]:
    """The numbers of the rows of these lengths, the longest first, those of like length together:
    batches of at most `most` tokens, padding included, or of one row."""
    waiting = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while waiting:
        count = max(1, most // lengths[waiting[0]])
        yield waiting[:count]
        waiting = waiting[count:]


def padded(rows: Sequence[np.ndarray]) -> Tensor:
    """int64 [B, S]; padding stands on the right, where causal attention never looks."""
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(ids)
