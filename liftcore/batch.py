"""Segments -> batches of padded rows, with the targets already shifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from liftcore.config import LiftConfig
from liftcore.segments import Segments, cut

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """B segments padded on the right to S tokens.

    Row t of a segment predicts labels[b, t], the next token; weights[b, t] is what it counts.
    A row that predicts nothing has label -100 and weight 0. row_index lists the scored rows of
    the flattened [B·S] batch, known on the host so that the head needs no device sync.
    """

    input_ids: Tensor  # int64 [B, S]
    labels: Tensor  # int64 [B, S]
    weights: Tensor  # float32 [B, S]
    row_index: Tensor  # int64 [M]
    tokens: int  # tokens of the document in this batch, padding left out
    weight: float  # sum of the weights
    most: int  # scored rows of the segment that has most

    def to(self, device: torch.device | str) -> Batch:
        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        return Batch(
            move(self.input_ids),
            move(self.labels),
            move(self.weights),
            move(self.row_index),
            self.tokens,
            self.weight,
            self.most,
        )


def make(
    tokens: np.ndarray, segments: Segments, rows: Sequence[int], prefix: Sequence[int]
) -> Batch:
    """The batch of the given segments. `prefix` (the tokens that the tokenizer puts before any
    text, usually none or one) stands before each; without it a segment's first token has no
    context and is not scored."""
    p = len(prefix)
    size = p + max(int(segments.stop[i] - segments.start[i]) for i in rows)
    ids = np.zeros((len(rows), size), dtype=np.int64)
    labels = np.full((len(rows), size), IGNORE, dtype=np.int64)
    weights = np.zeros((len(rows), size), dtype=np.float32)
    total = 0
    for b, i in enumerate(rows):
        text = tokens[segments.start[i] : segments.stop[i]]
        n = len(text)
        ids[b, :p], ids[b, p : p + n] = prefix, text
        first = 0 if p else 1
        span = slice(p + first - 1, p + n - 1)
        labels[b, span], weights[b, span] = text[first:], segments.weights[i][first:]
        total += n
    labels[weights == 0] = IGNORE
    row_index = np.flatnonzero(weights.reshape(-1))
    tensors = map(torch.from_numpy, (ids, labels, weights, row_index))
    most = int(np.count_nonzero(weights, axis=1).max())
    return Batch(*tensors, total, float(weights.sum()), most)


def order(segments: Segments, config: LiftConfig, epoch: int) -> list[np.ndarray]:
    """Which segments go into which step of an epoch, drawn from (seed, epoch).

    Random, but segments of like length share a step, and a step takes as many as come, padded to
    its longest, to config.target_tokens; no segment is dropped.
    """
    rng = np.random.default_rng([config.seed, epoch, 1])
    shuffled = rng.permutation(len(segments))
    lengths = segments.stop - segments.start
    by_length = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    steps, begin = [], 0
    while begin < len(by_length):
        fitting = max(1, config.target_tokens // int(lengths[by_length[begin]]))
        steps.append(by_length[begin : begin + fitting])
        begin += fitting
    return [steps[i] for i in rng.permutation(len(steps))]


def plan(length: int, config: LiftConfig, epoch: int, prefix: Sequence[int] = ()):
    """(segments, rows of each step) of one epoch; steps that would score nothing are left out."""
    segments = cut(length, config, epoch)
    first = 0 if len(prefix) else 1
    steps = order(segments, config, epoch)
    return segments, [
        rows for rows in steps if any(segments.weights[i][first:].any() for i in rows)
    ]


def count(length: int, config: LiftConfig, prefix: Sequence[int] = ()) -> tuple[int, int]:
    """(steps, token-passes) of a whole run over `length` tokens."""
    steps = passes = 0
    for epoch in range(config.epochs):
        segments, rows = plan(length, config, epoch, prefix)
        steps += len(rows)
        passes += sum(int((segments.stop[r] - segments.start[r]).sum()) for r in rows)
    return steps, passes
